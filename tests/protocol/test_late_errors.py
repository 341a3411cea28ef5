"""What is created after parsing: an error is one short message, before anything is written."""

import subprocess
import sys

import pytest
from lightning_utilities.core.imports import RequirementCache

OWN = """
from dtrap.datamodules import EuroSATDataModule
from dtrap.lightning_modules import Objective
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners import LoRA
from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import SingleDeviceStrategy
import torch, threading

def fail(self, *arguments, **options):
    raise RuntimeError("no such thing\\nsecond line")

class FailingTuner(LoRA): __init__ = fail
class LateTuner(LoRA):
    def reset(self, seed, classes): self.helper()
    helper = fail
class StepTuner(LoRA):
    def classification_loss(self, *arguments): raise KeyError("labels")
class FailingBackbone(OpenCLIP): __init__ = fail
class FailingObjective(Objective): __init__ = fail
class FailingData(EuroSATDataModule):
    def __init__(self, root: str, way: int = 5): fail(self)
class FailingCallback(Callback): __init__ = fail
class FailingLogger(DummyLogger): __init__ = fail
class FailingStrategy(SingleDeviceStrategy): __init__ = fail
class FailingProfiler(Profiler): __init__ = fail
class FailingPlugin(MixedPrecision): __init__ = fail
class FailingOptimizer(torch.optim.SGD): __init__ = fail
class FailingSchedule(torch.optim.lr_scheduler.StepLR): __init__ = fail
class LockedCallback(Callback):
    def __init__(self): self.lock = threading.Lock()
class HookCallback(Callback):
    def on_train_batch_end(self, *arguments): self._helper()
    _helper = fail
class SetupCallback(Callback):
    def setup(self, *arguments, stage): fail(self)
class TestCallback(Callback):
    def on_test_batch_end(self, *arguments): fail(self)
"""


@pytest.fixture
def refused(dtrap, words, tmp_path, monkeypatch):
    """A fit with further words: the message."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own", None)

    def run(*more):
        status, out, err = dtrap(*words[:-2], "--protocol.folder", "run", *more)
        assert status == 2, (out, err)
        assert err.startswith("dtrap: ")
        assert "Traceback" not in err
        assert len(err.splitlines()) <= 5
        return err

    return run


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--trainer.logger", "CometLogger"], ["trainer.logger: lightning.pytorch.loggers.CometLogger", "comet"]),
        (["--trainer.logger", "own.FailingLogger"], ["trainer.logger: own.FailingLogger"]),
        (["--trainer.callbacks+=own.FailingCallback"], ["trainer.callbacks: own.FailingCallback"]),
        (["--trainer.profiler", "own.FailingProfiler"], ["`profiler`"]),
        (["--trainer.strategy", '{"class_path": "own.FailingStrategy"}'], ["trainer.strategy: own.FailingStrategy"]),
        (["--trainer.plugins", "own.FailingPlugin"], ["trainer.plugins: own.FailingPlugin"]),
        (["--trainer.callbacks+=own.LockedCallback"], ["trainer.callbacks", "pickle"]),
        (["--model.tuner", "own.FailingTuner"], ["model.tuner: own.FailingTuner"]),
        (["--model.tuner", "own.LateTuner"], ["own.LateTuner failed in reset"]),
        (["--model.backbone", "own.FailingBackbone"], ["model.backbone: own.FailingBackbone"]),
        (["--model.objective", "own.FailingObjective"], ["model.objective: own.FailingObjective"]),
        (["--data", "own.FailingData"], ["data: own.FailingData"]),
        (["--model.optimizer", "own.FailingOptimizer"], ["model.optimizer"]),
        (["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "-1"], ["optimizer", "learning rate"]),
        (["--model.lr_scheduler", "own.FailingSchedule"], ["model.lr_scheduler"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_what_cannot_be_created_is_told_before_anything_is_written(refused, tmp_path, more, told):
    message = refused(*more)
    for part in told:
        assert part in message
    if "own.Failing" in more[-1] and "profiler" not in more[0]:
        assert "RuntimeError: no such thing)" in message
    assert "second line" not in message
    assert not (tmp_path / "run" / "identity.json").exists()


def test_a_logger_whose_library_is_missing_is_told_before_anything_is_written(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", RequirementCache("mlflow>=999"))
    message = refused("--trainer.logger", "MLFlowLogger")
    assert "trainer.logger: lightning.pytorch.loggers.MLFlowLogger" in message
    assert "mlflow" in message
    assert not (tmp_path / "run" / "identity.json").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["EarlyStopping", "--trainer.callbacks.monitor", "val/loss"],
         ["EarlyStopping failed in on_train_epoch_end", "val/loss", "not available", "train/L_vlm"]),
        (["ModelCheckpoint"], ["`enable_checkpointing=False` but found `ModelCheckpoint`"]),
        (["LearningRateMonitor"], ["LearningRateMonitor failed in on_train_start", "logger"]),
        (["own.HookCallback"], ["own.HookCallback failed in on_train_batch_end (RuntimeError: no such thing)"]),
        (["own.SetupCallback"], ["own.SetupCallback failed in setup (RuntimeError: no such thing)"]),
        (["own.TestCallback"], ["own.TestCallback failed in on_test_batch_end (RuntimeError: no such thing)"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)  # fmt: skip
def test_a_callback_that_cannot_work_is_named_at_its_first_use(refused, tmp_path, more, told):
    message = refused(f"--trainer.callbacks+={more[0]}", *more[1:])
    for part in told:
        assert part in message
    assert not (tmp_path / "run" / "results.jsonl").exists()


def test_a_tuner_of_ones_own_that_fails_in_a_step_is_named(refused):
    assert "own.StepTuner failed in classification_loss (KeyError: 'labels')" in refused(
        "--model.tuner", "own.StepTuner"
    )


def test_a_mistake_together_with_overwrite_deletes_nothing(dtrap, words, refused, tmp_path):
    assert dtrap(*words[:-2], "--protocol.folder", "run", "--protocol.episodes", 1)[0] == 0
    before = (tmp_path / "run" / "results.jsonl").read_bytes()
    for more in (["--model.tuner", "own.LateTuner"], ["--trainer.logger", "own.FailingLogger"]):
        refused(*more, "--protocol.overwrite", "true")
        assert (tmp_path / "run" / "results.jsonl").read_bytes() == before


def test_debug_shows_the_traceback_of_the_class(words, tmp_path, refused):
    command = [sys.executable, "-m", "dtrap", *words[:-2], "--model.tuner", "own.FailingTuner", "--debug"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "in fail" in done.stderr
    assert "second line" in done.stderr
