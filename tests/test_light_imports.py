"""What an import loads, each in a process of its own, and the names that packages resolve when they are used."""

import inspect
import pickle
import subprocess
import sys
from functools import cache
from importlib import import_module

import pytest
from dtrap import callbacks, datamodules, lightning_modules, metrics
from dtrap.datamodules import coop
from dtrap.lightning_modules import backbones, tuners

HEAVY = {
    "open_clip", "timm", "transformers", "peft", "wandb", "lightning", "scipy", "pandas", "jsonargparse", "matplotlib",
    "torchvision", "torchmetrics",
}  # fmt: skip
PACKAGES = [lightning_modules, backbones, tuners, callbacks, datamodules, coop, metrics]


@cache
def loaded(statement):
    """Names of all modules that a fresh process has after a statement."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize(
    ("statement", "needed"),
    [
        ("import dtrap", set()),
        ("import dtrap.metrics", set()),
        ("from dtrap.lightning_modules import losses", set()),
        ("from dtrap.lightning_modules import Objective", set()),
        ("from dtrap.lightning_modules.tuners import CoOp, FWT, Tuner", set()),
        ("from dtrap.lightning_modules.backbones import Transformers", {"transformers"}),
    ],
)
def test_an_import_loads_what_it_needs(statement, needed):
    assert loaded(statement) & HEAVY == needed
    assert ("torch" in loaded(statement)) == (statement not in ("import dtrap", "import dtrap.metrics"))


def test_lightning_alone_is_loaded_with_the_stage_switch_and_the_module():
    by_lightning = loaded("import lightning.pytorch")
    assert loaded("from dtrap.callbacks import StageSwitch") - by_lightning == {
        "dtrap", "dtrap.callbacks", "dtrap.callbacks.keep_best", "dtrap.callbacks.stage_switch", "dtrap.errors",
    }  # fmt: skip
    new = (loaded("from dtrap.lightning_modules import FewShotClassifier") - by_lightning) & HEAVY
    assert new <= {"jsonargparse"}, "the types of its arguments are Lightning's, from lightning.pytorch.cli"


def test_one_backbone_does_not_load_the_library_of_the_other():
    assert loaded("from dtrap.lightning_modules.backbones import Transformers") & {"open_clip", "timm"} == set()
    # open_clip itself imports transformers, but none of its models
    found = loaded("from dtrap.lightning_modules.backbones import OpenCLIP")
    assert not {name for name in found if name.startswith("transformers.models.clip.modeling")}
    assert "dtrap.lightning_modules.backbones.transformers" not in found


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_name_is_found_listed_and_pickled(package):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        found = getattr(package, name)
        if inspect.ismodule(found):
            continue
        assert getattr(import_module(found.__module__), name) is found
        assert pickle.loads(pickle.dumps(found)) is found
    with pytest.raises(AttributeError, match="Nothing"):
        package.Nothing  # noqa: B018


def test_star_imports_and_attributes_of_packages():
    names = {}
    exec("from dtrap.lightning_modules.tuners import *", names)
    assert names["CoOp"] is tuners.CoOp
    code = "import dtrap.lightning_modules as m; print(m.losses.__name__, m.tuners.LoRA.__name__)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["dtrap.lightning_modules.losses", "LoRA"]
    with pytest.raises(ImportError, match="cannot import name 'CoOpp'"):
        exec("from dtrap.lightning_modules.tuners import CoOpp")


def test_the_command_knows_every_class_by_its_short_name():
    code = (
        "from dtrap.cli import main\n"
        "main(['fit', '--config', 'demo.yaml', '--model.tuner', 'CoOp', '--model.backbone', 'Transformers', "
        "'--data', 'FolderDataModule', '--data.root', '.', '--trainer.callbacks+=KeepBest', '--print_config'])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for path in ("tuners.CoOp", "backbones.Transformers", "FolderDataModule", "callbacks.KeepBest"):
        assert f"{path}\n" in done.stdout
