"""Mistakes of a user: each is one short message without a traceback, with a remedy that can be typed."""

import re

import pytest
from layouts import make_eurosat, make_folder

# What a remedy looks like: an option, a command, a key of a config, an install, or the right values.
REMEDY = re.compile(
    r"--[a-z]|`dtrap |\\bpip install|Did you mean|[Ee]xpected|Give |Set |Use |Fix |Put |Replace |Leave |Remove |See "
)


@pytest.fixture
def mistake(dtrap, tmp_path, tiny_model):
    """A command that must fail: words -> the message. `fit` starts with a sound config of EuroSAT."""
    root = make_eurosat(tmp_path / "eurosat", per_class=2)
    sound = ["--config", "eurosat_1shot.yaml", "--data.root", root, "--data.query", "1", *tiny_model]

    def run(*words, start=("fit", *sound)):
        before = set(tmp_path.iterdir())
        status, out, err = dtrap(*start, *words)
        assert status == 2, (out, err)
        assert "Traceback" not in out + err
        assert "usage:" not in err
        assert err.startswith("dtrap: ")
        assert len(err.splitlines()) <= 5, err
        assert REMEDY.search(err), err
        assert set(tmp_path.iterdir()) - before <= {tmp_path / "runs"}
        return err

    return run


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # names of options
        (["--data.shoot", "3"], ["--data.shoot", "Did you mean --data.shot?"]),
        (["--data.init_args.shoot", "3"], ["--data.shoot", "Did you mean --data.shot?"]),
        (["--model.tuner.ranks", "3"], ["--model.tuner.ranks", "Did you mean --model.tuner.rank?"]),
        (["--protocol.episods", "3"], ["--protocol.episods", "Did you mean --protocol.episodes?"]),
        (["--protocol.episode", "3"], ["--protocol.episode:", "Did you mean --protocol.episodes?"]),
        (["--trainer.max_epochz", "3"], ["--trainer.max_epochz", "Did you mean --trainer.max_epochs?"]),
        (["--stage_switch.stp", "3"], ["Did you mean --stage_switch.stop?"]),
        (["--lr", "3"], ["Did you mean --model.learning_rate?"]),
        (["--model.lr", "3"], ["Did you mean --model.learning_rate?"]),
        (["--epochs", "3"], ["Did you mean --trainer.max_epochs?"]),
        (["--shot=3"], ["Did you mean --data.shot?"]),
        (["--seed", "3"], ["Did you mean --data.seed?"]),
        (["--root", "3"], ["Did you mean --data.root?"]),
        (["-config", "folder.yaml"], ["Did you mean --config?"]),
        (["stray"], ["stray", "--config"]),
        # values
        (["--config"], ["--config has no value"]),
        (["--trainer.max_epochs"], ["--trainer.max_epochs has no value"]),
        (["--trainer.max_epochs", "ten"], ["--trainer.max_epochs: found 'ten', expected a whole number."]),
        (["--trainer", "{max_epochs: ten}"], ["--trainer.max_epochs: found 'ten', expected a whole number."]),
        (["--protocol.episodes", "many"], ["--protocol.episodes", "'many'", "a whole number"]),
        (["--protocol.save_adapters", "maybe"], ["--protocol.save_adapters", "true or false"]),
        (["--model.tuner.blocks", "x"], ["--model.tuner.blocks: found 'x', expected a list"]),
        (["--model.objective.relation_form", "cosin"], ["relation_form", "cosine, softmax", "'cosine'?"]),
        (["--trainer.precision", "17-mixed"], ["--trainer.precision", "'16-mixed'"]),
        (["--trainer.precision", "fp16"], ["Did you mean '16-mixed'?"]),
        (["--trainer.precision", "half"], ["Did you mean '16-mixed'?"]),
        (["--trainer.precision", "float32"], ["Did you mean '32-true'?"]),
        (["--protocol.method", "a/b"], ["protocol.method is 'a/b'", "without '/'"]),
        (["--protocol.pictures", "-1"], ["protocol.pictures is -1"]),
        (["--protocol.episodes", "0"], ["protocol.episodes is 0", "at least 1"]),
        (["--protocol.folder", __file__], ["a file", "--protocol.folder"]),
        (["--protocol.folder", ""], ["empty", "--protocol.folder"]),
        (["--seed_everything", "3"], ["seed_everything is 3", "--data.seed 3"]),
        (["--trainer.accelerator", "gpux"], ["accelerator 'gpux'", "Available names"]),
        (["--trainer.devices", "x"], ["devices 'x'"]),
        (["--trainer.devices", "2", "--trainer.accelerator", "cpu"], ["trainer.devices", "one"]),
        (["--trainer.limit_test_batches", "0"], ["trainer.limit_test_batches is 0"]),
        (["--stage_switch.stop", "1.5"], ["stop is 1.5", "between 0 and 1"]),
        (["--data.shot", "-3"], ["shot is -3", "at least 1"]),
        (["--data.way", "11"], ["way is 11", "10 classes"]),
        (["--data.shot", "9"], ["shot 9", "has 2"]),
        (["--model.tuner.rank", "0"], ["rank is 0"]),
        (["--model.tuner.blocks", "[7]"], ["block 7", "0 to 1"]),
        (["--model.tuner.dropout", "2"], ["dropout is 2.0"]),
        (["--model.learning_rate", "1", "--model.optimizer", "SGD", "--model.optimizer.lr", "1"], ["learning_rate"]),
        # classes
        (["--model.tuner", "Lora"], ["--model.tuner", "'Lora'", "'LoRA'"]),
        (["--model.tuner", "3"], ["--model.tuner"]),
        (["--model.tuner", "{class_path: LoRA, rank: 3}"], ["--model.tuner", "init_args"]),
        (["--model.tuner", "{class_path: LoRA, init_args: {rnk: 3}}"], ["--model.tuner.rnk", "--model.tuner.rank"]),
        (["--model.optimizer", "Adm"], ["--model.optimizer", "'Adam'"]),
        (["--trainer.logger", "WandLogger"], ["--trainer.logger", "'WandbLogger'"]),
        (["--trainer.callbacks+", "EarlyStoping"], ["--trainer.callbacks", "'EarlyStopping'"]),
        (["--trainer.callbacks+", "EarlyStopping"], ["--trainer.callbacks.monitor"]),
        (["--data.class_path", "dtrap.datamodules.EuroSatDataModule"], ["has no class", "'EuroSATDataModule'"]),
        (["--data.class_path", "torch.nn.Linear"], ["torch.nn.Linear", "FewShotDataModule"]),
        # files
        (["--config", "isic_5shott.yaml"], ["isic_5shott.yaml", "'isic_5shot.yaml'"]),
        (["--config", "lora"], ["'tuners/lora.yaml'"]),
        (["--config", "eurosat"], ["is a folder", "--data.root eurosat"]),
        (["--protocol.compare", "methods/baselin.yaml"], ["methods/baselin.yaml", "'methods/baseline.yaml'"]),
        (["--data.root", __file__], ["test_mistakes.py is not a folder"]),
        (["--data.root", "/nowhere/at/all"], ["/nowhere/at/all"]),
        (["--model.backbone.pretrained", "nowhere.safetensors"], ["nowhere.safetensors"]),
        (["--model.backbone.name", "ViT-B-61"], ["ViT-B-61", "ViT-B-16"]),
        (["--model.descriptions", "nowhere.yaml"], ["nowhere.yaml"]),
    ],
    ids=lambda value: " ".join(map(str, value))[:50],
)
def test_a_mistake_in_a_fit_is_one_short_message_with_the_remedy(mistake, words, told):
    message = mistake(*words)
    for part in told:
        assert part in message


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ft"], ["'fit'"]),
        (["fit"], ["isic_5shot.yaml", "--config NAME"]),
        (["fit", "--data.shot", "3"], ["--config NAME"]),
        (["fit", "--config", "isic_5shot.yaml"], ["--data.root"]),
        (["fit", "--data.shot", "3", "--config", "isic_5shot.yaml"], ["--config isic_5shot.yaml --data.shot VALUE"]),
        (["fit", "--help", "lra"], ["'lora'", "dtrap fit --help lora"]),
        (["predict", "--images", "photos"], ["--adapter"]),
        (["predict", "--adapter", "x", "--images", "photos", "--data.value_range", "[0, 1]"], ["--data.value_range"]),
        (["predict", "--adapter", "nowhere.safetensors", "--images", "photos"], ["nowhere.safetensors"]),
        (["predict", "--adapter", "photos", "--images", "photos"], ["photos", "--protocol.save_adapters true"]),
        (["test", "--adapter", "nowhere"], ["nowhere"]),
        (["export", "--adapter", "x.safetensors", "--output", "y"], ["x.safetensors", "`dtrap fit`"]),
        (["report", "nowhere"], ["nowhere"]),
        (["report", "photos"], ["photos"]),
        (["report"], ["dtrap report --help"]),
        (["configs", "lora"], ["'tuners/lora.yaml'"]),
        (["data", "chek", "photos"], ["'check'"]),
        (["data", "check", "nowhere"], ["nowhere does not exist"]),
        (["data", "check", "photos", "--set", "isik"], ["isik", "isic"]),
        (["data", "fetch", "isik", "photos"], ["isik", "isic"]),
        (["data", "show", "isik", "photos"], ["isik", "isic"]),
        (["completion", "tclsh"], ["bash", "zsh"]),
    ],
    ids=lambda value: " ".join(map(str, value))[:50],
)
def test_a_mistake_in_a_command_is_one_short_message_with_the_remedy(mistake, tmp_path, words, told):
    make_folder(tmp_path / "photos", counts=(2, 2))
    message = mistake(*words, start=())
    for part in told:
        assert part in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("model:\n  objectve: 3\n", ["--model.objectve", "--model.objective?"]),
        ("data:\n  init_args:\n    shoot: 3\n", ["--data.shoot", "--data.shot?"]),
        ("a: [\n", ["YAML", "line 2"]),
        ("modle:\n  template: x\n", ["'modle'", "'model'?"]),
        ("modell:\n  template: x\n", ["'modell'", "'model'?"]),
        ("", ["is empty"]),
        ("# only a comment\n", ["is empty"]),
        ("model:\n", ["`model:` holds nothing"]),
        ("trainer:\n- 3\n", ["`trainer:` holds [3]"]),
        ("just words\n", ["sections"]),
        ("protocol:\n  episodes: [1]\n", ["--protocol.episodes", "a whole number"]),
        (b"\xff\xfe\x00", ["not readable as YAML"]),
    ],
)
def test_a_mistake_in_a_config_file_names_the_file_and_the_key(mistake, tmp_path, content, told):
    (tmp_path / "own.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    message = mistake("--config", "own.yaml")
    assert "own.yaml" in message
    for part in told:
        assert part in message


def test_an_image_that_is_not_one_is_named_before_the_training(mistake, tmp_path):
    photos = make_folder(tmp_path / "photos", counts=(3, 3))
    broken = next(path for path in sorted(photos.rglob("*")) if path.is_file())
    broken.write_text("not an image")
    message = mistake(start=("fit", "--config", "folder.yaml", "--data.root", photos))
    assert broken.name in message
    assert "--data.bad_images skip" in message


def test_an_option_that_a_later_config_replaces_is_a_warning(dtrap, tmp_path):
    (tmp_path / "short.yaml").write_text("trainer:\n  max_epochs: 1\n")
    words = ["--data.query", 1, "--protocol.episodes", 1, "--protocol.compare", "null"]
    with pytest.warns(UserWarning, match="--trainer.max_epochs has no effect: --config short.yaml after it"):
        status, _, err = dtrap(
            "fit", "--config", "demo.yaml", "--trainer.max_epochs", 2, "--config", "short.yaml", *words
        )
    assert status == 0, err
