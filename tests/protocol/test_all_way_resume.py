"""A task of the all-way protocol that was stopped ends as if it had not been."""

import json
from pathlib import Path

import pytest
from all_way_runs import assert_equal_runs, break_image, data, results, words
from dtrap.datamodules.subset import subset_content
from dtrap.lightning_modules import FewShotClassifier
from dtrap.protocol.episode import EpisodeRecorder
from dtrap.protocol.progress import EpisodeProgress
from layouts import make_eurosat


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_eurosat(tmp_path_factory.mktemp("all_way") / "eurosat", per_class=9)


class Steps:
    """Sample ids of the training steps so far; a step interrupts the run when it is number `stop`."""

    def __init__(self):
        self.ids, self.stop = [], None

    def count(self, batch):
        self.ids.append(batch["sample_id"].tolist())
        if len(self.ids) == self.stop:
            raise KeyboardInterrupt


@pytest.fixture
def steps(monkeypatch):
    made, original = Steps(), FewShotClassifier.training_step

    def step(self, batch, batch_idx):
        made.count(batch)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(FewShotClassifier, "training_step", step)
    return made


@pytest.mark.parametrize("stop", [2, 5, 7, 9])
def test_a_stopped_task_goes_on_at_the_step_of_its_last_checkpoint(dtrap, root, tmp_path, steps, stop):
    """4 steps an epoch, 3 epochs, a checkpoint every 2 steps: stops in the middle of an epoch and at its ends."""
    more = ["--data.all_way.seeds", "[1]", "--model.tuner.dropout", "0.5", "--protocol.checkpoint_every", 2]
    assert dtrap(*words(root, "whole", *more))[0] == 0
    steps.ids.clear()
    steps.stop = stop
    assert dtrap(*words(root, "stopped", *more))[0] == 130
    before = list(steps.ids)
    steps.ids.clear()
    steps.stop = None
    status, _, err = dtrap(*words(root, "stopped", *more))
    assert status == 0, err
    done = (len(before) - 1) // 2 * 2
    assert len(steps.ids) == 12 - done
    assert before[done] == steps.ids[0]
    assert_equal_runs(tmp_path / "whole", tmp_path / "stopped")
    assert not list((tmp_path / "stopped").glob("checkpoints/*"))


def test_a_checkpoint_of_another_config_is_not_gone_on_from(dtrap, root, tmp_path, steps):
    more = ["--data.all_way.seeds", "[1]", "--protocol.checkpoint_every", 1]
    steps.ids.clear()
    steps.stop = 6
    assert dtrap(*words(root, "run", *more))[0] == 130
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    status, _, err = dtrap(*words(root, "run", *more, "--model.tuner.rank", 3))
    assert status == 0, err
    assert len(steps.ids) == 6 + 12


def test_a_stop_after_the_last_step_and_a_damaged_checkpoint_begin_again_where_they_must(
    dtrap, root, tmp_path, monkeypatch
):
    """What ends a fit, here KeepBest, is not left out by going on after the last step."""
    (tmp_path / "keep.yaml").write_text("trainer:\n  callbacks:\n    - class_path: dtrap.callbacks.KeepBest\n")
    more = ["--config", "keep.yaml", "--data.all_way.seeds", "[1]", "--data.all_way.validation", "true"]
    more += ["--data.shot", 2, "--protocol.checkpoint_every", 2]
    assert dtrap(*words(root, "whole", *more))[0] == 0
    original, tests = FewShotClassifier.on_test_epoch_start, []

    def start(self):
        tests.append(1)
        if len(tests) == 2:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(FewShotClassifier, "on_test_epoch_start", start)
    for folder, damaged in (("stopped", False), ("damaged", True)):
        tests.clear()
        assert dtrap(*words(root, folder, *more))[0] == 130
        (checkpoint,) = (tmp_path / folder / "checkpoints").iterdir()
        if damaged:
            checkpoint.write_bytes(b"")
        status, _, err = dtrap(*words(root, folder, *more))
        assert status == 0, err
        assert_equal_runs(tmp_path / "whole", tmp_path / folder)


def test_a_checkpoint_is_not_written_amid_an_accumulated_gradient(dtrap, root, tmp_path, steps):
    more = ["--data.all_way.seeds", "[1]", "--protocol.checkpoint_every", 1, "--trainer.accumulate_grad_batches", 2]
    assert dtrap(*words(root, "whole", *more))[0] == 0
    steps.ids.clear()
    steps.stop = 4
    assert dtrap(*words(root, "stopped", *more))[0] == 130
    status, _, err = dtrap(*words(root, "stopped", *more))
    assert status == 0, err
    assert len(steps.ids) == 4 + 12 - 2
    assert_equal_runs(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("stop", [2, 6, 8])
def test_a_validation_within_an_epoch_is_not_missed_by_a_resumed_run(dtrap, root, tmp_path, monkeypatch, stop):
    """4 steps an epoch, a validation after every 2, a checkpoint due after every step; stopped amid a validation."""
    more = ["--data.all_way.seeds", "[1]", "--protocol.checkpoint_every", 1, "--data.all_way.validation", "true"]
    more += ["--trainer.val_check_interval", 2]
    original, validated, stops = FewShotClassifier.validation_step, [], []

    def validation(self, *arguments):
        if self.trainer.global_step in stops:
            stops.clear()
            raise KeyboardInterrupt
        validated.append(self.trainer.global_step)
        return original(self, *arguments)

    monkeypatch.setattr(FewShotClassifier, "validation_step", validation)
    assert dtrap(*words(root, "whole", *more))[0] == 0
    whole = sorted(set(validated))
    assert whole[-6:] == [2, 4, 6, 8, 10, 12]
    validated.clear()
    stops.append(stop)
    assert dtrap(*words(root, "stopped", *more))[0] == 130
    status, _, err = dtrap(*words(root, "stopped", *more))
    assert status == 0, err
    assert sorted(set(validated)) == whole
    assert_equal_runs(tmp_path / "whole", tmp_path / "stopped")


def test_the_subset_file_tells_what_finished_seeds_were_trained_on(dtrap, damaged, tmp_path):
    whole = data(damaged, seeds=[1, 2])
    lost = Path(whole.index.paths[whole.subset_of(1).train[0][0]])
    content = lost.read_bytes()
    lost.write_bytes(b"no image")
    more = ["--data.shot", 2, "--data.all_way.seeds", "[1, 2]", "--trainer.max_epochs", 1, "--data.bad_images", "skip"]
    assert dtrap(*words(damaged, "run", *more, "--protocol.episodes", 1))[0] == 0
    seeds = json.loads((tmp_path / "run" / "subset.json").read_text())["seeds"]
    lost.write_bytes(content)
    baseline = ["--protocol.compare", "methods/baseline.yaml"]
    status, _, err = dtrap(*words(damaged, "run", *more, *baseline))
    assert status == 2
    assert "the results of seed 1 come from other images than can be read now" in err
    status, _, err = dtrap(*words(damaged, "run", *more))
    assert status == 0, err
    now = json.loads((tmp_path / "run" / "subset.json").read_text())["seeds"]
    assert now["1"] == seeds["1"]
    assert now["1"] != subset_content(whole, 2, {1: whole.subset_of(1)})["seeds"]["1"]


@pytest.mark.parametrize("stop", [3, 5, 6])
def test_early_stopping_has_counted_the_epoch_of_a_checkpoint(dtrap, root, tmp_path, steps, stop):
    """2 steps an epoch, checkpoints at every step and so at every epoch's end; patience 2 ends it before epoch 6."""
    stopping = "lightning.pytorch.callbacks.EarlyStopping"
    (tmp_path / "early.yaml").write_text(
        f"trainer:\n  callbacks:\n  - class_path: {stopping}\n    init_args: "
        "{monitor: val/accuracy, mode: max, patience: 2, min_delta: 100}\n"
    )
    more = ["--config", "early.yaml", "--data.all_way.seeds", "[1]", "--data.all_way.validation", "true"]
    more += ["--data.shot", 2, "--protocol.checkpoint_every", 1, "--trainer.max_epochs", 6]
    assert dtrap(*words(root, "whole", *more))[0] == 0
    assert len(steps.ids) == 6
    steps.ids.clear()
    steps.stop = stop
    assert dtrap(*words(root, "stopped", *more))[0] == 130
    steps.stop = None
    status, _, err = dtrap(*words(root, "stopped", *more))
    assert status == 0, err
    assert len(steps.ids) == 6 + 1
    assert_equal_runs(tmp_path / "whole", tmp_path / "stopped")


def test_a_resumed_task_counts_the_time_before_its_checkpoint():
    first = EpisodeRecorder(EpisodeProgress(1, ["svl-ra"]))
    state = first.state_dict()
    state["seconds"] = 100.0
    resumed = EpisodeRecorder(EpisodeProgress(1, ["svl-ra"]))
    assert resumed.seconds < 50
    resumed.load_state_dict(state)
    assert 100 <= resumed.seconds < 150


def test_a_task_begun_before_an_image_was_left_out_begins_anew(dtrap, damaged, tmp_path, steps):
    steps.ids.clear()
    steps.stop = 4
    more = ["--data.shot", 2, "--data.all_way.seeds", "[1]", "--protocol.checkpoint_every", 1]
    assert dtrap(*words(damaged, "run", *more))[0] == 130
    whole = data(damaged, seeds=[1])
    break_image(whole, whole.subset.train[0][0])
    status, _, err = dtrap(*words(damaged, "run", *more, "--data.bad_images", "skip"))
    assert status == 0, err
    assert len(steps.ids) == 4 + 6
    assert dtrap(*words(damaged, "fresh", *more, "--data.bad_images", "skip"))[0] == 0
    assert results(tmp_path / "run") == results(tmp_path / "fresh")
