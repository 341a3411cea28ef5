"""A config that was found next to an adapter is not a command: no class of it is imported, no function called."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml
from layouts import picture

OLD = Path(__file__).parents[1] / "data" / "old_run" / "demo"
MODULE = "payload_of_a_stranger"
PAYLOAD = """
from pathlib import Path
Path("executed").touch()
class Logger: pass
def call(*arguments, **options): Path("executed").touch()
"""


@pytest.fixture
def received(tmp_path, monkeypatch):
    """A copy of an adapter whose card lacks the model, so that the config of its run is read."""
    (tmp_path / f"{MODULE}.py").write_text(PAYLOAD)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "new").mkdir()
    picture(1).save(tmp_path / "new" / "1.png")
    return Path(shutil.copytree(OLD, tmp_path / "received"))


def plant(received, *changes, text=None):
    """Change values of the config, given as dotted options."""
    config = yaml.safe_load((received / "config.yaml").read_text()) if text is None else {}
    for option, value in changes:
        *path, last = option.split(".")
        place = config
        for name in path:
            place = place[name]
        place[last] = value
    (received / "config.yaml").write_text(yaml.safe_dump(config) if text is None else text)


EVIL = {"class_path": f"{MODULE}.Logger"}
CALL = f"{MODULE}.call"
IGNORED = {
    "callbacks": ("trainer.callbacks", [EVIL]),
    "logger": ("trainer.logger", EVIL),
    "profiler": ("trainer.profiler", EVIL),
    "plugins": ("trainer.plugins", [CALL]),
    "strategy": ("trainer.strategy", EVIL),
    "optimizer": ("model.optimizer", {"class_path": CALL}),
    "lr_scheduler": ("model.lr_scheduler", CALL),
}
REFUSED = {
    "tuner": ("model.tuner", EVIL),
    "tuner by name": ("model.tuner.class_path", f"{MODULE}.Logger"),
    "tuner as a text": ("model.tuner", CALL),
    "backbone": ("model.backbone", EVIL),
    "objective": ("model.objective", EVIL),
    "data": ("data", EVIL),
    "nested": ("model.tuner", {"class_path": "FWT", "init_args": {"tuner": EVIL}}),
    "nested text": ("model.tuner", {"class_path": "FWT", "init_args": {"tuner": CALL}}),
    "argument": ("model.tuner.init_args.rank", CALL),
    "argument object": ("model.tuner.init_args.rank", EVIL),
    "list": ("model.tuner.init_args.projections", [EVIL]),
    "dict_kwargs": ("model.tuner.dict_kwargs", {"x": CALL}),
    "preprocessing": ("data.init_args.preprocessing", EVIL),
    "preprocessing text": ("data.init_args.preprocessing", CALL),
    "another file": ("config", "evil.yaml"),
    "section file": ("model", "evil.yaml"),
    "part file": ("model.tuner", "evil.yaml"),
    "arguments file": ("model.tuner.init_args", "evil.yaml"),
    "unknown section": ("evil", EVIL),
    "unknown option": ("model.evil", EVIL),
    "template": ("model.template", EVIL),
    "torch": ("model.tuner.class_path", "torch.hub.load"),
    "lightning": ("data.class_path", "lightning.pytorch.LightningDataModule"),
    "other part": ("model.tuner.class_path", "dtrap.lightning_modules.backbones.OpenCLIP"),
    "function": ("model.tuner.class_path", "dtrap.cli.main"),
}


def assert_not_executed():
    assert not Path("executed").exists()
    assert MODULE not in sys.modules


@pytest.mark.parametrize("attack", REFUSED)
def test_a_foreign_class_is_refused_with_the_option_that_allows_it(dtrap, received, attack, tmp_path):
    (tmp_path / "evil.yaml").write_text(yaml.safe_dump(EVIL))
    plant(received, REFUSED[attack])
    adapter = next(received.glob("adapters/*.safetensors"))
    status, out, err = dtrap("test", "--adapter", adapter)
    assert_not_executed()
    assert status == 2
    assert out == ""
    assert f"--config {received / 'config.yaml'}" in err
    assert len(err.splitlines()) == 1


def test_what_says_how_it_was_trained_is_ignored_with_one_line(dtrap, received):
    plant(received, *IGNORED.values(), ("model.descriptions", "evil.yaml"), ("seed_everything", 3))
    adapter = next(received.glob("adapters/*.safetensors"))
    for words in (["predict", "--images", "new"], ["export", "--output", "out"], ["test"]):
        status, out, err = dtrap(*words, "--adapter", adapter)
        assert status == 0, err
        assert_not_executed()
        (line,) = [line for line in out.splitlines() if "found, not given" in line]
        for option in ("trainer.callbacks", "trainer.logger", "trainer.profiler", "trainer.plugins", "model.optimizer"):
            assert option in line


def test_data_do_not_matter_for_predictions(dtrap, received):
    plant(received, REFUSED["data"])
    adapter = next(received.glob("adapters/*.safetensors"))
    status, _, err = dtrap("predict", "--adapter", adapter, "--images", "new")
    assert status == 0, err
    assert_not_executed()


def test_yaml_tags_references_and_bombs_are_refused(dtrap, received):
    adapter = next(received.glob("adapters/*.safetensors"))
    texts = [
        f"model: !!python/object/apply:{CALL} []",
        f"model: !!python/name:{CALL}",
        f"model: {{tuner: {{class_path: '${{oc.env:HOME}}.{MODULE}'}}}}",
        "- a list",
        "a: &a [x]\nb: &b [*a, *a]\nmodel: *b",
        "x" * (2 << 20),
    ]
    for text in texts:
        plant(received, text=text)
        status, _, err = dtrap("predict", "--adapter", adapter, "--images", "new")
        assert_not_executed()
        assert status == 2
        assert "config.yaml" in err
        assert len(err.splitlines()) == 1


def test_an_exported_folder_is_read_in_the_same_way(dtrap, received):
    adapter = next(received.glob("adapters/*.safetensors"))
    for form in ("plain", "peft"):
        assert dtrap("export", "--adapter", adapter, "--output", form, "--form", form)[0] == 0
        (Path(form) / "config.yaml").write_text(yaml.safe_dump({"data": EVIL, "model": {"tuner": EVIL}}))
        status, _, err = dtrap("predict", "--adapter", form, "--images", "new", "--overwrite")
        assert status == 0, err
        status, _, err = dtrap("test", "--adapter", form)
        assert status == 2
        assert "one of dtrap's classes" in err
        assert_not_executed()


def test_a_config_that_is_given_is_a_program(dtrap, received):
    plant(received, IGNORED["optimizer"])
    adapter = next(received.glob("adapters/*.safetensors"))
    dtrap("predict", "--adapter", adapter, "--images", "new", "--config", received / "config.yaml")
    assert Path("executed").exists()
    del sys.modules[MODULE]
