import copy
import re
import sys
from pathlib import Path

import pytest
import yaml
from dtrap.protocol import identity as identities
from dtrap.protocol.identity import default_folder_name, difference, identity

CONFIG = {
    "config": ["isic_5shot.yaml"],
    "seed_everything": 1,
    "trainer": {
        "accelerator": "auto",
        "devices": "auto",
        "num_nodes": 1,
        "strategy": "auto",
        "precision": "32-true",
        "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "."}},
        "callbacks": [{"class_path": "dtrap.callbacks.StageSwitch", "init_args": {"start": 0.0, "stop": 0.6}}],
        "max_epochs": 250,
        "max_steps": -1,
        "limit_train_batches": None,
        "accumulate_grad_batches": 1,
        "gradient_clip_val": None,
        "gradient_clip_algorithm": None,
        "deterministic": None,
        "benchmark": None,
        "profiler": None,
        "log_every_n_steps": 50,
        "enable_progress_bar": None,
        "enable_model_summary": None,
        "default_root_dir": None,
    },
    "model": {
        "image_chunk": None,
        "objective": {"class_path": "Objective", "init_args": {"relation_weight": 3.0, "image_chunk": 4}},
        "learning_rate": 1e-5,
    },
    "data": {
        "class_path": "dtrap.datamodules.ISICDataModule",
        "init_args": {"root": "/data/isic", "query_root": None, "num_workers": 0, "shot": 5, "seed": 1},
    },
    "protocol": {
        "episodes": 400,
        "folder": None,
        "overwrite": False,
        "compare": None,
        "pictures": 0,
        "save_adapters": False,
        "method": "svl-ra",
    },
}


def changed(path, value):
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split(".")
    node = config
    for key in parents:
        node = node[int(key) if isinstance(node, list) else key]
    node[last] = value
    return config


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("config", ["a.yaml", "b.yaml"]),
        ("trainer.accelerator", "gpu"),
        ("trainer.devices", 1),
        ("trainer.strategy", "ddp"),
        ("trainer.num_nodes", 2),
        ("trainer.logger", False),
        ("trainer.log_every_n_steps", 1),
        ("trainer.enable_progress_bar", False),
        ("trainer.enable_whatever_comes", True),
        ("trainer.default_root_dir", "/tmp"),
        ("trainer.deterministic", True),
        ("trainer.benchmark", True),
        ("trainer.profiler", "simple"),
        ("model.image_chunk", 25),
        ("data.init_args.root", "/elsewhere"),
        ("data.init_args.query_root", "/elsewhere"),
        ("data.init_args.num_workers", 8),
        ("data.init_args.bad_images", "skip"),
        ("data.init_args.small_classes", "skip"),
        ("protocol.episodes", 800),
        ("protocol.folder", "runs/a"),
        ("protocol.overwrite", True),
        ("protocol.compare", ["methods/baseline.yaml"]),
        ("protocol.pictures", 3),
        ("protocol.save_adapters", True),
    ],
)
def test_what_cannot_change_the_numbers_is_no_part_of_the_identity(path, value):
    assert identity(changed(path, value)) == identity(CONFIG)
    assert difference(identity(CONFIG), identity(changed(path, value))) == []


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (
            "model.objective.init_args.relation_weight",
            5.0,
            "model.objective.relation_weight: 3.0 in the folder, 5.0 now",
        ),
        ("trainer.precision", "16-mixed", "trainer.precision: 32-true in the folder, 16-mixed now"),
        ("trainer.max_epochs", 1, "trainer.max_epochs: 250 in the folder, 1 now"),
        ("trainer.max_steps", 7, "trainer.max_steps: -1 in the folder, 7 now"),
        ("trainer.limit_train_batches", 2, "trainer.limit_train_batches: null in the folder, 2 now"),
        ("trainer.accumulate_grad_batches", 2, "trainer.accumulate_grad_batches: 1 in the folder, 2 now"),
        ("trainer.gradient_clip_val", 0.5, "trainer.gradient_clip_val: null in the folder, 0.5 now"),
        (
            "trainer.callbacks.0.init_args.stop",
            0.5,
            "trainer.callbacks.0.stop: 0.6 in the folder, 0.5 now",
        ),
        ("data.init_args.shot", 1, "data.shot: 5 in the folder, 1 now"),
        ("data.init_args.seed", 2, "data.seed: 1 in the folder, 2 now"),
        ("protocol.method", "mine", "protocol.method: svl-ra in the folder, mine now"),
        ("model.new_option", True, "model.new_option: (absent) in the folder, true now"),
    ],
)
def test_what_can_change_the_numbers_is_shown_by_its_key(path, value, line):
    assert difference(identity(CONFIG), identity(changed(path, value))) == [line]


def test_a_key_that_is_gone_and_a_callback_more_are_shown():
    config = changed("trainer.callbacks", [*CONFIG["trainer"]["callbacks"], {"class_path": "Other"}])
    del config["model"]["learning_rate"]
    assert sorted(difference(identity(CONFIG), identity(config))) == [
        "model.learning_rate: 1e-05 in the folder, (absent) now",
        'trainer.callbacks.1: (absent) in the folder, {"class_path": "Other"} now',
    ]


def test_a_number_and_a_switch_are_different():
    old, new = identity(changed("model.weight", 1)), identity(changed("model.weight", True))
    assert difference(old, new) == ["model.weight: 1 in the folder, true now"]


def test_a_config_read_back_from_yaml_has_the_same_identity():
    config = changed("model.betas", (0.9, 0.999))
    config["model"]["checkpoint"] = Path("weights") / "clip.safetensors"
    as_saved = copy.deepcopy(config)
    as_saved["model"].update(betas=[0.9, 0.999], checkpoint="weights/clip.safetensors")
    again = yaml.safe_load(yaml.safe_dump(as_saved))
    assert difference(identity(again), identity(config)) == []


def test_identity_leaves_the_config_as_it_is():
    before = copy.deepcopy(CONFIG)
    identity(CONFIG)
    assert before == CONFIG


LORA = {"class_path": "dtrap.lightning_modules.tuners.LoRA", "init_args": {"rank": 4, "alpha": 8.0}}
ALL_WAY = {"seeds": [1], "batch_size": 32, "augmentation": "crop", "validation": False}
ISIC = {"class_path": "dtrap.datamodules.ISICDataModule", "init_args": {"shot": 5, "all_way": ALL_WAY}}
STATED = {"model": {"tuner": LORA, "learning_rate": None}, "data": ISIC, "stage_switch": {"start": 0, "stop": "3/5"}}


def without(config, path):
    """A copy that lacks a key, and the key's value."""
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    node = config
    for key in parents:
        node = node[key]
    return config, node.pop(last)


@pytest.mark.parametrize(
    "path",
    [
        "model.tuner.init_args.alpha",
        "model.learning_rate",
        "data.init_args.shot",  # passed on to a base class
        "data.init_args.all_way.batch_size",  # of a dataclass
        "stage_switch.stop",
    ],
)
def test_a_key_that_the_stored_identity_lacks_counts_as_the_default(path):
    stored, _ = without(STATED, path)
    assert difference(stored, STATED) == []
    assert difference(STATED, stored) == []
    asked = copy.deepcopy(stored)
    node = asked
    for key in path.split(".")[:-1]:
        node = node[key]
    node[path.split(".")[-1]] = "another"
    assert difference(stored, asked) == [f"{path.replace('.init_args', '')}: (absent) in the folder, another now"]


def test_a_value_from_before_a_key_existed_comes_before_the_default(monkeypatch):
    stored, _ = without(STATED, "model.tuner.init_args.alpha")
    monkeypatch.setitem(identities.VALUES_BEFORE, "model.tuner.init_args.alpha", 1.0)
    line = "model.tuner.alpha: 1.0 in the folder, 8.0 now"
    assert difference(stored, STATED) == [line]
    asked = copy.deepcopy(STATED)
    asked["model"]["tuner"]["init_args"]["alpha"] = 1.0
    assert difference(stored, asked) == []


def test_two_paths_of_one_class_are_equal_and_two_classes_are_not():
    def tuner(path):
        return {"model": {"tuner": {"class_path": path}}}

    package = "dtrap.lightning_modules.tuners"
    assert difference(tuner(f"{package}.LoRA"), tuner(f"{package}.lora.LoRA")) == []
    assert len(difference(tuner(f"{package}.LoRA"), tuner(f"{package}.CoOp"))) == 1
    assert len(difference(tuner(f"{package}.Gone"), tuner(f"{package}.Gone2"))) == 1


def test_a_class_under_its_former_name_is_the_same_class():
    def data(name):
        return {"data": {"class_path": f"dtrap.datamodules.{name}", "init_args": {"shot": 1}}}

    assert difference(data("ClassFoldersDataModule"), data("FolderDataModule")) == []
    assert difference(data("coop.EuroSATDataModule"), data("coop.CoOpEuroSATDataModule")) == []
    assert len(difference(data("EuroSATDataModule"), data("coop.CoOpEuroSATDataModule"))) == 1


def test_what_a_stored_identity_names_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "of_a_stranger.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    stored, asked = ({"model": {"tuner": {"class_path": f"{name}.Tuner"}}} for name in ("of_a_stranger", "x"))
    assert len(difference(stored, asked)) == 1
    assert "of_a_stranger" not in sys.modules


ARGUMENTS = {
    "dataset": "ISIC",
    "way": 5,
    "shot": 5,
    "backbone": "ViT-B-16-quickgelu/openai",
    "tuner": "LoRA",
    "method": "SVL + RA",
    "seed": 1,
}


def test_folder_name_is_readable():
    assert default_folder_name(**ARGUMENTS) == "isic_5way_5shot_vit-b-16-quickgelu_openai_lora_svl-ra_seed1"


def test_folder_name_without_way_and_shot():
    name = default_folder_name(**{**ARGUMENTS, "dataset": "my_photos", "way": None, "shot": None})
    assert name == "my_photos_vit-b-16-quickgelu_openai_lora_svl-ra_seed1"


@pytest.mark.parametrize(
    "dataset", ["a/../b", "..", "con: *?", "ユーロサット" * 30, "x" * 300, "", ".hidden", "a\nb\0"]
)
def test_folder_name_is_safe_for_any_text(dataset):
    name = default_folder_name(**{**ARGUMENTS, "dataset": dataset, "backbone": dataset, "method": dataset})
    assert re.fullmatch(r"[\w-][\w.-]*", name)
    assert len(name.encode()) <= 255
    assert name.endswith("seed1")


def test_long_names_that_begin_alike_stay_apart():
    names = {default_folder_name(**{**ARGUMENTS, "dataset": "d" * 100 + end}) for end in "ab"}
    assert len(names) == 2


def test_a_callback_that_only_measures_is_neutral_in_any_place():
    monitor = {"class_path": "dtrap.callbacks.AlignmentMonitor", "init_args": {"curve": True}}
    described = {"class_path": "dtrap.callbacks.alignment_monitor.AlignmentMonitor", "init_args": {}}
    keep, foreign = {"class_path": "dtrap.callbacks.KeepBest"}, {"class_path": "mine.AlignmentMonitor"}

    def of(callbacks):
        return identity({"trainer": {"callbacks": callbacks}})

    assert of(None) == of([]) == of([monitor]) == of(monitor) == of([described, monitor])
    assert of([keep]) == of([monitor, keep]) == of([keep, monitor]) != of(None)
    assert of([foreign]) != of(None)
