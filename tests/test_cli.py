"""What a person types and reads: the light commands, and mistakes told in a few lines."""

import subprocess
import sys

import pytest
from layouts import make_eurosat


def python(*words, cwd):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.parametrize(
    "words", [["--help"], [], ["--version"], ["configs"], ["data", "--help"], ["report", "--help"]], ids=" ".join
)
def test_light_commands_answer_without_importing_torch(words, tmp_path):
    code = (
        "import sys; from dtrap.cli import main\n"
        f"try: main({words!r})\n"
        "finally: print(sorted({'torch', 'lightning', 'jsonargparse', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert done.stdout


def test_configs_lists_every_shipped_file_with_what_it_is(dtrap):
    status, out, _ = dtrap("configs")
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "5-way 1-shot, 800 episodes" in lines["isic_1shot.yaml"]
    assert "125" not in lines["methods/baseline.yaml"]
    assert {"folder.yaml", "demo.yaml", "backbones/pe_core.yaml", "loggers/wandb.yaml"} <= lines.keys()


@pytest.fixture
def mistake(dtrap, tmp_path, tiny_model):
    """A fit on EuroSAT with further words that are wrong: the message."""
    root = make_eurosat(tmp_path / "eurosat", per_class=2)
    sound = ["--config", "eurosat_1shot.yaml", "--data.root", root, "--data.query", "1", *tiny_model]

    def run(*words, start=sound):
        status, out, err = dtrap("fit", *start, *words)
        assert status == 2, (out, err)
        assert len(err.splitlines()) <= 8
        assert "Traceback" not in err
        assert "usage:" not in err
        assert err.startswith("dtrap: ")
        return err

    return run


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data.shoot", "3"], ["data.shoot", "Did you mean 'shot'?"]),
        (["--model.tuner.ranks", "3"], ["model.tuner.ranks", "'rank'"]),
        (["--protocol.episods", "3"], ["--protocol.episods", "'--protocol.episodes'"]),
        (["--trainer.max_epochz", "3"], ["--trainer.max_epochz", "'--trainer.max_epochs'"]),
        (["--protocol.episode", "3"], ["--protocol.episode:", "'--protocol.episodes'"]),
        (["--protocol.method", "a/b"], ["protocol.method is 'a/b'", "without '/'"]),
        (["--protocol.pictures", "-1"], ["protocol.pictures is -1"]),
        (["--config"], ["--config: expected one argument"]),
        (["--seed_everything", "3"], ["seed_everything is 3", "--data.seed 3"]),
        (["--trainer.max_epochs", "ten"], ["trainer.max_epochs: found 'ten', expected a whole number."]),
        (["--model.tuner.blocks", "x"], ["model.tuner.blocks: found 'x', expected a list"]),
        (["--trainer.accelerator", "gpux"], ["accelerator 'gpux'", "Available names"]),
        (["--trainer.devices", "x"], ["devices 'x'"]),
        (["--trainer.limit_test_batches", "0"], ["trainer.limit_test_batches is 0"]),
        (["--data.root", __file__], ["test_cli.py is not a folder"]),
        (["--protocol.episodes", "many"], ["protocol.episodes", "'many'", "a whole number"]),
        (["--protocol.episodes", "0"], ["protocol.episodes is 0", "at least 1"]),
        (["--model.objective.relation_form", "cosin"], ["relation_form", "'cosin'", "cosine, softmax", "'cosine'?"]),
        (["--trainer.precision", "17-mixed"], ["trainer.precision", "'16-mixed'"]),
        (["--model.tuner", "Lora"], ["model.tuner", "'Lora'", "'LoRA'"]),
        (["--data.class_path", "dtrap.datamodules.EuroSatDataModule"], ["has no class", "'EuroSATDataModule'"]),
        (["--data.class_path", "torch.nn.Linear"], ["torch.nn.Linear", "FewShotDataModule"]),
        (["--stage_switch.stop", "1.5"], ["stop is 1.5", "between 0 and 1"]),
        (["--data.shot", "-3"], ["shot is -3", "at least 1"]),
        (["--data.way", "11"], ["way is 11", "10 classes"]),
        (["--data.shot", "9"], ["shot 9", "has 2"]),
        (["--model.tuner.rank", "0"], ["rank is 0"]),
        (["--model.tuner.blocks", "[7]"], ["block 7", "0 to 1"]),
        (["--config", "isic_5shott.yaml"], ["isic_5shott.yaml", "'isic_5shot.yaml'"]),
        (["--protocol.compare", "methods/baselin.yaml"], ["methods/baselin.yaml", "'methods/baseline.yaml'"]),
        (["--data.root", "/nowhere/at/all"], ["/nowhere/at/all"]),
        (["--model.backbone.pretrained", "nowhere.safetensors"], ["nowhere.safetensors"]),
        (["--model.backbone.name", "ViT-B-61"], ["ViT-B-61", "ViT-B-16"]),
        (["stray"], ["stray", "--config"]),
        (["--trainer.devices", "2", "--trainer.accelerator", "cpu"], ["trainer.devices", "one"]),
        (["--model.learning_rate", "1", "--model.optimizer", "SGD", "--model.optimizer.lr", "1"], ["learning_rate"]),
    ],
    ids=lambda value: " ".join(map(str, value))[:50],
)
def test_a_mistake_is_one_short_message_with_the_remedy(mistake, words, told):
    message = mistake(*words)
    for part in told:
        assert part in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("model:\n  objectve: 3\n", ["model.objectve", "'objective'"]),
        ("data:\n  init_args:\n    shoot: 3\n", ["data.shoot", "'shot'"]),
        ("a: [\n", ["YAML", "line 2"]),
        ("modle:\n  template: x\n", ["modle"]),
    ],
)
def test_a_mistake_in_a_config_file_names_the_key(mistake, tmp_path, content, told):
    (tmp_path / "own.yaml").write_text(content)
    message = mistake("--config", "own.yaml")
    assert "own.yaml" in message
    for part in told:
        assert part in message


def test_no_data_and_no_root_say_what_to_give(mistake):
    assert "isic_5shot.yaml" in mistake(start=[])
    assert "--data.root" in mistake(start=["--config", "isic_5shot.yaml"])


def test_a_closed_standard_output_is_no_error(tmp_path):
    done = subprocess.run(["sh", "-c", f"{sys.executable} -m dtrap configs >&-"], capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_warning_is_one_line_without_code(tmp_path, tiny_model):
    root = make_eurosat(tmp_path / "eurosat", per_class=2)
    done = python(
        "-m", "dtrap", "fit", "--config", "eurosat_1shot.yaml", "--data.root", str(root), "--data.query", "1",
        *tiny_model, "--model.backbone.pretrained", "null", "--protocol.episodes", "1", "--trainer.max_epochs", "1",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == "Warning: The backbone has random weights (pretrained: null): expect chance accuracy.\n"


def test_debug_shows_the_traceback(tmp_path):
    done = python("-m", "dtrap", "ft", "--debug", cwd=tmp_path)
    assert "Traceback" in done.stderr
    done = python("-m", "dtrap", "ft", cwd=tmp_path)
    assert done.returncode == 2
    commands = "expected one of fit, test, predict, export, data, report, configs."
    assert done.stderr == f"dtrap: unknown command 'ft'; {commands} Did you mean 'fit'?\n"
