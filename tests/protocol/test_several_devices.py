"""All-way runs on two devices: their rows, adapters and predictions are those of one."""

import os

import pytest
import torch
from all_way_runs import adapters, results, words
from dtrap.cli import main
from dtrap.lightning_modules import FewShotClassifier
from layouts import make_eurosat
from safetensors.torch import load_file
from several_processes import in_two_processes

MONITORED = """
trainer:
  callbacks:
    - class_path: dtrap.callbacks.AlignmentMonitor
    - class_path: dtrap.callbacks.CostMonitor
    - class_path: dtrap.callbacks.KeepBest
    - class_path: dtrap.callbacks.NearDomainWarning
"""
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_eurosat(tmp_path_factory.mktemp("all_way") / "eurosat", per_class=7)


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def commands(root):
    """Words of runs: every batch has an odd number of rows, two epochs of two steps."""
    shared = ["--data.shot", 2, "--data.all_way.batch_size", 7, "--data.all_way.seeds", "[1]"]
    shared += ["--trainer.max_epochs", 2, "--trainer.precision", "64-true", "--trainer.accelerator", "cpu"]
    monitored = ["--config", "monitored.yaml", "--data.all_way.validation", "true", "--protocol.save_features", 1]
    kept = ["--protocol.save_predictions", "true", "--protocol.compare", "methods/baseline.yaml"]
    tip = ["--config", "tuners/tip_adapter.yaml"]
    return {
        "lora": words(root, "lora", *shared, *monitored, *kept),
        "tip": words(root, "tip", *shared, *tip),
        "stopped": words(root, "stopped", *shared, "--protocol.checkpoint_every", 1),
    }


def stopping(monkeypatch, step):
    """Let the training step of this number be interrupted, once."""
    original, done = FewShotClassifier.training_step, []

    def training_step(self, batch, batch_idx):
        done.append(batch)
        if len(done) == step:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(FewShotClassifier, "training_step", training_step)


def both(rank, folder, root):
    os.chdir(folder / "two")
    sys.stdout = sys.stderr = open(f"said_{rank}", "w", buffering=1)  # noqa: SIM115
    runs = commands(root)
    assert run(*runs["lora"], *TWO) == 0
    assert run(*runs["tip"], *TWO) == 0
    with pytest.MonkeyPatch.context() as patched:
        stopping(patched, 4)
        assert run(*runs["stopped"], *TWO) == 130
    assert run(*runs["stopped"], *TWO) == 0
    assert run(*runs["stopped"], *TWO) == 0


def close(found, expected, place=""):
    """Assert that two values of JSON are equal to rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key, value in expected.items():
            close(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for number, value in enumerate(expected):
            close(found[number], value, f"{place}[{number}]")
    else:
        same = pytest.approx(expected, rel=1e-6, abs=1e-9) if isinstance(expected, float) else expected
        assert found == same, place


@pytest.mark.filterwarnings("ignore")
def test_two_devices_give_the_rows_adapters_and_predictions_of_one(root, tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "monitored.yaml").write_text(MONITORED)
    in_two_processes(both, tmp_path, root)
    monkeypatch.chdir(tmp_path / "one")
    for name, command in commands(root).items():
        assert run(*command) == 0
        one, two = (tmp_path / folder / name for folder in ("one", "two"))
        for expected, found in zip(results(one), results(two), strict=True):
            assert expected.pop("cost", None) is None or found.pop("cost", None) is None
            close(found, expected, name)
        for expected, found in zip(adapters(one), adapters(two), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
        for kind in ("predictions", "features"):
            for path in sorted((one / kind).glob("*.safetensors")):
                torch.testing.assert_close(
                    load_file(two / kind / path.name), load_file(path), atol=1e-6, rtol=1e-5, equal_nan=True
                )
        files = [{str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (one, two)]
        assert files[0] == files[1]
    assert (tmp_path / "two" / "said_1").read_text() == ""
    assert "2 devices share every batch." in (tmp_path / "two" / "said_0").read_text()
