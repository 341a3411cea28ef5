"""Run folders and adapters that an earlier version wrote: resumed and tested as if nothing had changed.

`data/old_run` was written by the code before the package `commands` existed (0.1.0 in development): `demo` has two
episodes of two methods and one adapter, `all_way` one finished seed and the checkpoint of an interrupted one. Its data
module was stored as dtrap.datamodules.coop.EuroSATDataModule.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from coop_layouts import make_coop_eurosat
from dtrap.lightning_modules import FewShotClassifier

OLD = Path(__file__).parents[1] / "data" / "old_run"


@pytest.fixture
def old(tmp_path):
    """A copy of the old folders, in which a test may write."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


# What rows did not say when the folders were written.
CONFIDENCE = {"cross_entropy", "calibration_error", "zero_shot_cross_entropy", "zero_shot_calibration_error"}
NEW = {"precision", "support_images", "test_images", "binomial_interval", "terms", *CONFIDENCE}


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in rows:
        row["losses"] = {moment: row["losses"][moment] for moment in ("boundary", "end")}
    return [{key: value for key, value in row.items() if key not in {"seconds", *NEW}} for row in rows]


def without_training(rows):
    """What dropout does not change: its masks were others until "Unreleased" of the CHANGELOG."""
    return [{key: row[key] for key in ("episode", "method", "seed", "classes", "zero_shot_accuracy")} for row in rows]


def test_a_run_is_extended_by_the_rows_of_a_fresh_run(dtrap, old):
    config = ["--config", old / "demo" / "config.yaml", "--protocol.episodes", 3]
    before = (old / "demo" / "results.jsonl").read_bytes()
    status, out, err = dtrap("fit", *config, "--protocol.folder", old / "demo")
    assert status == 0, err
    assert "Shapes (x-ray) 3-way 1-shot · svl-ra · 3 episodes · " in out
    assert " nats (in 1 of 3 episodes)" in out
    assert (old / "demo" / "results.jsonl").read_bytes().startswith(before)
    assert dtrap("fit", *config, "--protocol.folder", "fresh")[0] == 0
    extended, fresh = rows_of(old / "demo"), rows_of(Path("fresh"))
    assert extended[4:] == fresh[4:]
    assert without_training(extended[:4]) == without_training(fresh[:4])


def test_another_config_is_still_refused(dtrap, old):
    config = ["--config", old / "demo" / "config.yaml", "--protocol.folder", old / "demo", "--protocol.episodes", 3]
    status, _, err = dtrap("fit", *config, "--model.tuner.rank", 2)
    assert status == 2
    assert "model.tuner.rank: 1 in the folder, 2 now" in err


def test_an_adapter_has_the_accuracy_that_was_saved(dtrap, old):
    adapter = old / "demo" / "adapters" / "episode_0001_svl-ra.safetensors"
    accuracy = next(row for row in rows_of(old / "demo") if (row["episode"], row["method"]) == (1, "svl-ra"))[
        "accuracy"
    ]
    status, out, err = dtrap("test", "--adapter", adapter)
    assert status == 0, err
    assert f"{adapter}: {accuracy:.1f} %, {accuracy:.1f} % when it was saved" in out


def test_an_interrupted_all_way_task_resumes_at_its_checkpoint(dtrap, old, tmp_path, monkeypatch):
    """Seed 2 has 6 steps, of which the checkpoint has 2; the data module's stored name may have changed since."""
    steps, original = [], FewShotClassifier.training_step

    def step(self, batch, batch_idx):
        steps.append(batch_idx)
        return original(self, batch, batch_idx)

    make_coop_eurosat(tmp_path / "data", counts=(3, 1, 3))
    config = ["--config", old / "all_way" / "config.yaml", "--data.root", tmp_path / "data"]
    stored = yaml.safe_load((old / "all_way" / "config.yaml").read_text())["data"]["class_path"]
    assert stored == "dtrap.datamodules.coop.EuroSATDataModule"
    before = (old / "all_way" / "results.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(FewShotClassifier, "training_step", step)
        status, _, err = dtrap("fit", *config, "--protocol.folder", old / "all_way")
    assert status == 0, err
    assert (old / "all_way" / "results.jsonl").read_bytes().startswith(before)
    assert len(steps) == 6 - 2
    assert dtrap("fit", *config, "--protocol.folder", "fresh")[0] == 0
    resumed, fresh = rows_of(old / "all_way"), rows_of(Path("fresh"))
    assert without_training(resumed) == without_training(fresh)
    assert resumed[1]["losses"].keys() == fresh[1]["losses"].keys()
