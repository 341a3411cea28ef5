"""All-way runs on two devices: their rows, adapters and predictions are those of one."""

import copy
import sys
import warnings

import pytest
import torch
from all_way_runs import adapters, data, results
from dtrap.callbacks import AlignmentMonitor, CostMonitor, KeepBest, NearDomainWarning
from dtrap.console import SafeConsole
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.tuners import LoRA
from dtrap.protocol import run_protocol
from dtrap.protocol.module_method import ModuleMethod
from dtrap.protocol.runner import ProtocolRun
from dtrap.protocol.settings import ProtocolSettings
from layouts import make_eurosat
from safetensors.torch import load_file
from several_processes import in_two_processes

TWO = {"devices": 2, "strategy": "ddp"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_eurosat(tmp_path_factory.mktemp("all_way") / "eurosat", per_class=7)


def run(folder, root, backbone, **trainer):
    """Every batch has an odd number of rows; two epochs of two steps; dropout is as by default."""
    backbone, tuner = copy.deepcopy(backbone), LoRA("both", rank=2)
    callbacks = [AlignmentMonitor(["gap_drop", "scatter_ratio"]), KeepBest(), NearDomainWarning()]
    if trainer:
        callbacks.append(CostMonitor())
    return run_protocol(
        {
            "svl-ra": lambda: FewShotClassifier(backbone, tuner, Objective(relation_source="current")),
            "baseline": lambda: FewShotClassifier(backbone, tuner, Objective(0.0, 0.0)),
        },
        data(root, seeds=[1], batch_size=7, validation=True),
        trainer={"max_epochs": 2, "precision": "64-true", "accelerator": "cpu", "callbacks": callbacks, **trainer},
        folder=str(folder), save_adapters=True, save_predictions=True, save_features=1, checkpoint_every=1,
        console=SafeConsole(),
    )  # fmt: skip


def stopping(monkeypatch, step):
    """Let the training step of this number be interrupted."""
    original, done = FewShotClassifier.training_step, []

    def training_step(self, batch, batch_idx):
        done.append(batch)
        if len(done) == step:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(FewShotClassifier, "training_step", training_step)


def both(rank, folder, root, backbone):
    sys.stdout = sys.stderr = open(folder / f"said_{rank}", "w", buffering=1)  # noqa: SIM115
    warnings.resetwarnings()
    warnings.showwarning = lambda message, *where, **more: print(message)
    with pytest.MonkeyPatch.context() as patched:
        stopping(patched, 4)
        with pytest.raises(KeyboardInterrupt):
            run(folder / "two", root, backbone, **TWO)
    result = run(folder / "two", root, backbone, **TWO)
    assert [row["method"] for row in result.rows] == ["svl-ra", "baseline"]
    assert result.accuracy["svl-ra"].images == 30


def close(found, expected, place=""):
    """Assert that two values of JSON are equal to rounding, except what depends on the clock."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key, value in expected.items():
            if key not in ("seconds", "idle_share", "idle_seconds"):
                close(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for number, value in enumerate(expected):
            close(found[number], value, f"{place}[{number}]")
    else:
        same = pytest.approx(expected, rel=1e-6, abs=1e-9) if isinstance(expected, float) else expected
        assert found == same, place


@pytest.mark.filterwarnings("ignore")
def test_two_devices_give_the_rows_adapters_and_predictions_of_one(root, tmp_path, tiny_backbone):
    """Also after a resume from a checkpoint; one process has the folder, the other one is silent."""
    in_two_processes(both, tmp_path, root, tiny_backbone)
    one, two = tmp_path / "one", tmp_path / "two"
    run(one, root, tiny_backbone)
    close(results(two), results(one))
    for expected, found in zip(adapters(one), adapters(two), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    for kind in ("predictions", "features"):
        paths = sorted((one / kind).glob("*.safetensors"))
        assert len(paths) == 2
        for path in paths:
            torch.testing.assert_close(load_file(two / kind / path.name), load_file(path), atol=1e-6, rtol=1e-5)
    files = [{str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (one, two)]
    assert files[0] == files[1]
    said = (tmp_path / "said_0").read_text()
    assert "2 devices share every batch." in said
    assert said.count("CostMonitor: a step on 2 devices is not timed") == 2  # once for each method
    assert "sync_dist" not in said
    assert (tmp_path / "said_1").read_text() == ""


def test_processes_that_would_write_the_same_run_are_refused(root, tmp_path, tiny_backbone, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(DtrapError, match=r"started 4 processes.*--trainer.strategy ddp --trainer.devices 4"):
        run(tmp_path / "run", root, tiny_backbone, devices=1)


def test_what_cannot_share_a_task_is_refused(dtrap, root, tmp_path, tiny_backbone, tiny_model):
    with pytest.raises(DtrapError, match=r"DDPStrategy; expected --trainer.strategy ddp, or --trainer.devices 1"):
        run(tmp_path / "run", root, tiny_backbone, devices=2, strategy="ddp_spawn")
    episodes = ["--config", "eurosat_1shot.yaml", *tiny_model, "--data.root", root, "--data.query", 2]
    two = ["--trainer.accelerator", "cpu", "--trainer.devices", 2]
    status, _, err = dtrap("fit", *episodes, *two)
    assert status == 2
    assert "an episode runs on one" in err
    assert "--protocol.workers 2" in err
    console = SafeConsole(quiet=True)
    method = ModuleMethod("lora", lambda: FewShotClassifier(tiny_backbone), images := data(root, seeds=[1]), TWO, None)
    of_study = ProtocolRun([method], images, ProtocolSettings(folder=str(tmp_path / "run")), console)
    of_study.shared = False
    with pytest.raises(DtrapError, match=r"a study runs each task on one.*--protocol.workers 2"):
        of_study.run()
    assert not (tmp_path / "run").exists()
