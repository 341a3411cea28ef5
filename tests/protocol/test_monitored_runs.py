"""Runs with the monitor and with files of features: the same results as without, also resumed, diverged or untested."""

import json
from collections import namedtuple

import pytest
import torch
from all_way_runs import words as all_way_words
from coop_layouts import COOP_MAKERS
from dtrap import metrics
from dtrap.callbacks import AlignmentMonitor
from dtrap.datamodules import EuroSATDataModule
from dtrap.datamodules.all_way import AllWay
from dtrap.datamodules.coop import CoOpEuroSATDataModule
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.tuners import CLIPAdapter
from dtrap.protocol import run_protocol, space
from layouts import make_eurosat
from run_folders import rows_of
from safetensors import safe_open
from safetensors.torch import load_file

MONITOR = ["--config", "monitors/alignment.yaml"]


def without(rows, *names):
    names = {"alignment", "alignment_features", "seconds", *names}
    return [{key: value for key, value in row.items() if key not in names} for row in rows]


def adapters(folder):
    return {path.name: load_file(path) for path in (folder / "adapters").glob("*.safetensors")}


def assert_same_run(one, other):
    assert without(rows_of(one)) == without(rows_of(other))
    first, second = adapters(one), adapters(other)
    assert first.keys() == second.keys() != set()
    for name, values in first.items():
        assert all(torch.equal(values[key], second[name][key]) for key in values), name


def test_a_run_is_the_same_with_the_monitor_and_a_finished_folder_is_extended_with_it(dtrap, words, tmp_path):
    words = [*words, "--protocol.save_adapters", "true", "--protocol.save_features", 1, "--protocol.episodes"]
    assert dtrap(*words, 2, "--protocol.folder", "with", *MONITOR)[0] == 0
    assert dtrap(*words, 1, "--protocol.folder", "later")[0] == 0
    status, _, err = dtrap(*words, 2, "--protocol.folder", "later", *MONITOR)
    assert status == 0, err
    assert_same_run(tmp_path / "with", tmp_path / "later")
    measured = {(row["method"], row["episode"]): "alignment" in row for row in rows_of(tmp_path / "later")}
    assert measured == {(m, e): e == 1 for m in ("svl-ra", "baseline") for e in range(2)}
    status, out, _ = dtrap(*words, 2, "--protocol.folder", "later")
    assert (status, "Already finished" in out) == (0, True)
    for row in rows_of(tmp_path / "with"):
        start, switch, end = row["alignment"]
        assert start["query"]["cross_entropy"] == pytest.approx(row["zero_shot_cross_entropy"], rel=1e-5)
        assert end["query"]["cross_entropy"] == pytest.approx(row["cross_entropy"], rel=1e-5)
        assert (start["step"], switch["step"], end["step"]) == (0, 3, 5)
    check_features(tmp_path / "with")
    again = ["--protocol.folder", "with", "--protocol.save_features", 0, "--protocol.overwrite", "true"]
    assert dtrap(*words, 1, *again)[0] == 0
    assert not (tmp_path / "with" / "features").exists()


def check_features(folder):
    """The files of episode 0 hold what its rows say."""
    names = {f"episode_0000_{row['method']}.safetensors": row for row in rows_of(folder) if row["episode"] == 0}
    assert {path.name for path in (folder / "features").iterdir()} == names.keys()
    for name, row in names.items():
        kept = load_file(folder / "features" / name)
        with safe_open(folder / "features" / name, "pt") as file:
            assert json.loads(file.metadata()["class_names"]) == row["classes"]
        query, labels = kept["is_query"], kept["labels"]
        assert query.tolist() == [False] * 5 + [True] * 10
        assert labels.tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        for moment, entry in (("before", row["alignment"][0]), ("after", row["alignment"][-1])):
            images, texts = kept[f"{moment}.image"], kept[f"{moment}.text"]
            assert images.dtype == torch.float32
            for part, chosen in (("query", query), ("support", ~query)):
                gap = float(metrics.modality_gap(images[chosen], texts))
                assert gap == pytest.approx(entry[part]["modality_gap"], rel=1e-6)
        assert not torch.equal(kept["before.image"], kept["after.image"])
        assert torch.equal(kept["before.text"], kept["after.text"])


def test_files_of_features_that_do_not_fit_on_the_disk_are_refused(dtrap, words, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    status, _, err = dtrap(*words, "--protocol.folder", "run", "--protocol.save_features", 3)
    assert status == 2
    # 3 episodes of 2 methods; 15 images and 5 texts of 16 numbers in float32, before and after
    assert "features of 15.4 kB, 15.4 kB in all, but 1.0 kB are free" in err
    assert "leave out --protocol.save_features" in err
    assert not (tmp_path / "run" / "results.jsonl").exists()


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    return make_eurosat(tmp_path_factory.mktemp("all_way") / "eurosat", per_class=9)


def test_an_all_way_task_is_measured_at_its_ends_and_resumed(dtrap, larger, tmp_path, monkeypatch):
    more = ["--model.tuner.dropout", "0.5", "--protocol.checkpoint_every", 2, "--data.all_way.seeds", "[1]"]
    assert dtrap(*all_way_words(larger, "whole", *more, *MONITOR))[0] == 0
    original, steps = FewShotClassifier.training_step, []

    def step(self, batch, batch_idx):
        steps.append(batch_idx)
        if len(steps) == 11:  # after the switch, which is in the checkpoint
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(FewShotClassifier, "training_step", step)
    assert dtrap(*all_way_words(larger, "stopped", *more, *MONITOR))[0] == 130
    assert dtrap(*all_way_words(larger, "stopped", *more, *MONITOR))[0] == 0
    assert dtrap(*all_way_words(larger, "plain", *more))[0] == 0
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "plain")
    whole, stopped = rows_of(tmp_path / "whole"), rows_of(tmp_path / "stopped")
    assert [row["alignment"] for row in whole] == [row["alignment"] for row in stopped]
    for row in whole:
        start, switch, end = row["alignment"]
        assert switch["step"] == 7
        assert switch["query"] == {}  # a whole test split is not tested in the middle
        assert start["images"] == end["images"] == {"query": 10, "support": 40}


def test_seeds_with_the_same_test_split_share_its_zero_shot_features(tiny_backbone, tmp_path, monkeypatch):
    data = CoOpEuroSATDataModule(
        COOP_MAKERS["eurosat"](tmp_path / "data", (3, 2, 2)), shot=1, all_way=AllWay(seeds=[1, 2])
    )
    tests = []
    monkeypatch.setattr(FewShotClassifier, "on_test_end", lambda self: tests.append(self._zero_shot))
    result = run_protocol(
        {"adapter": lambda: FewShotClassifier(tiny_backbone, CLIPAdapter(), Objective(relation_source="current"))},
        data, folder=str(tmp_path / "run"), save_features=2,
        trainer={"max_epochs": 2, "accelerator": "cpu", "callbacks": [AlignmentMonitor(["gap_drop"])]},
    )  # fmt: skip
    assert tests == [True, False, False]
    first, second = (row["alignment"][0] for row in result.rows)
    assert first["query"] == second["query"] != {}
    files = [load_file(path) for path in sorted((tmp_path / "run" / "features").iterdir())]
    query = files[0]["is_query"]
    assert torch.equal(files[0]["before.image"][query], files[1]["before.image"][query])
    assert not torch.equal(files[0]["before.image"][~query], files[1]["before.image"][~query])


def test_a_diverged_episode_keeps_what_was_measured_before(tiny_backbone, root, tmp_path):
    class Breaks(CLIPAdapter):
        def classification_loss(self, *arguments):
            self.steps = getattr(self, "steps", 0) + 1
            loss = super().classification_loss(*arguments)
            return loss * float("nan") if self.steps == 5 else loss

    trainer = {"max_epochs": 5, "accelerator": "cpu", "callbacks": [AlignmentMonitor(["gap_drop"])]}
    result = run_protocol(
        {"adapter": lambda: FewShotClassifier(tiny_backbone, Breaks())}, EuroSATDataModule(root, shot=1, query=2),
        episodes=2, folder=str(tmp_path / "run"), trainer=trainer, save_features=2,
    )  # fmt: skip
    broken, sound = result.rows
    assert "diverged" in broken
    assert [entry["moment"] for entry in broken["alignment"]] == ["start", "switch"]
    assert [entry["moment"] for entry in sound["alignment"]] == ["start", "switch", "end"]
    assert [path.name for path in (tmp_path / "run" / "features").iterdir()] == ["episode_0001_adapter.safetensors"]


def test_data_without_queries_have_the_support_only(dtrap, larger, tiny_model, tmp_path):
    words = ["fit", "--config", "folder.yaml", "--data.root", larger / "2750", *tiny_model]
    words += ["--trainer.max_epochs", 5, "--protocol.folder", "run", "--protocol.save_features", 1, *MONITOR]
    status, _, err = dtrap(*words)
    assert status == 0, err
    (row,) = rows_of(tmp_path / "run")
    images = row["support_images"]
    for entry in row["alignment"]:
        assert entry["query"] == {}
        assert entry["support"]["gap_drop"] is not None
        assert entry["images"] == {"support": images}
    assert [entry["moment"] for entry in row["alignment"]] == ["start", "switch", "end"]
    (path,) = (tmp_path / "run" / "features").iterdir()
    kept = load_file(path)
    assert kept["is_query"].tolist() == [False] * images
    gap = float(metrics.modality_gap(kept["after.image"], kept["after.text"]))
    assert gap == pytest.approx(row["alignment"][-1]["support"]["modality_gap"], rel=1e-6)


def test_measures_are_chosen_on_the_command_line_and_the_last_monitor_counts(dtrap, words, tmp_path):
    more = [*MONITOR, "--protocol.folder", "run", "--protocol.episodes", 1, "--trainer.callbacks+", "AlignmentMonitor"]
    more += ["--trainer.callbacks.measures", "[gap_drop]", "--trainer.callbacks.accuracy_fifths", "true"]
    status, _, err = dtrap(*words, *more)
    assert status == 0, err
    for row in rows_of(tmp_path / "run"):
        assert list(row["alignment"][-1]["query"]) == ["gap_drop"]
        assert row["accuracy_at"]["step"] == [1, 2, 3, 4, 5]
        assert row["accuracy_at"]["accuracy"][-1] == row["accuracy"]


def test_of_several_monitors_the_last_one_measures(tiny_model, dtrap, tmp_path):
    """Configs and overlays add theirs; demo.yaml has one."""
    words = ["fit", "--config", "demo.yaml", *tiny_model, "--protocol.compare", "null", "--protocol.episodes", 1]
    words += ["--data.query", 2, "--trainer.max_epochs", 2, "--protocol.folder", "run"]
    status, _, err = dtrap(*words, "--trainer.callbacks+=AlignmentMonitor", "--trainer.callbacks.measures=[uniformity]")
    assert status == 0, err
    (row,) = rows_of(tmp_path / "run")
    assert [list(entry["query"]) for entry in row["alignment"]] == [["uniformity"]] * 3
