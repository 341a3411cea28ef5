"""The all-way protocol through the command line: every set, both ways through faults, seeds and subsets."""

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
from all_way_runs import assert_equal_runs, break_image, data, results, words
from coop_layouts import COOP_MAKERS
from dtrap.lightning_modules import FewShotClassifier
from layouts import make_chestx, make_crop_disease, make_eurosat, make_isic


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_eurosat(tmp_path_factory.mktemp("all_way") / "eurosat", per_class=8)


def test_all_classes_are_trained_and_the_rest_is_tested(dtrap, root, tmp_path):
    status, out, err = dtrap(*words(root, "run", "--data.shot", 2))
    assert status == 0, err
    assert "EuroSAT all-way 2-shot · 2 seeds · " in out
    first, second = results(tmp_path / "run")
    assert (first["seed"], second["seed"]) == (1, 2)
    assert len(first["classes"]) == 10
    assert sum(map(sum, first["confusion"])) == 40  # 2 for training and 2 for validation of 8
    status, out, err = dtrap("test", "--adapter", "run")
    assert status == 0, err
    assert f"{first['accuracy']:.1f} %, {first['accuracy']:.1f} % when it was saved" in out


def test_without_an_image_left_to_test_nothing_is_trained(dtrap, root, tmp_path):
    status, _, err = dtrap(*words(root, "run"))  # 4 for training and 4 for validation of 8
    assert status == 2
    assert "EuroSAT: no image is left to test on after 4 for training and up to 4 for validation of each class" in err


def test_classes_with_few_or_no_images_are_told_once(dtrap, root, tmp_path, caplog):
    few = Path(shutil.copytree(root, tmp_path / "few"))
    for path in sorted((few / "2750" / "Forest").iterdir())[1:]:
        path.unlink()
    status, _, err = dtrap(*words(few, "run", "--data.shot", 2, "--trainer.max_epochs", 1))
    assert status == 0, err
    for text in (
        "fewer than 2 training images: 'Forest' has 1",
        "no test image, so the accuracy does not cover them",
    ):
        assert caplog.text.count(text) == 1


def test_a_diverged_seed_is_named_by_its_number(dtrap, root, tmp_path):
    status, out, _ = dtrap(
        *words(root, "run", "--data.shot", 2, "--data.all_way.seeds", "[7]", "--model.learning_rate", 1e30)
    )
    assert status == 1
    assert "seed 7 of 'svl-ra' diverged: the loss is not finite from step 2" in out
    assert "1 diverged and left out (seed 7: " in out


def test_ctrl_c_where_python_ignores_it_ends_the_run_at_the_next_step(dtrap, root, tmp_path, monkeypatch):
    """As while worker processes are forked: an exception within a `__del__` goes nowhere."""

    class Ignored:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    original, calls = FewShotClassifier.training_step, []

    def step(self, batch, batch_idx):
        calls.append(1)
        if len(calls) == 3:
            Ignored()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(FewShotClassifier, "training_step", step)
    monkeypatch.setattr(sys, "unraisablehook", lambda fault: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status, out, _ = dtrap(*words(root, "run", "--data.shot", 2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 130
    assert "Resume with: dtrap fit" in out
    assert len(calls) == 3


def test_the_whole_run_is_the_same_with_workers_and_from_its_own_subset(dtrap, root, tmp_path):
    more = ["--data.shot", 2, "--data.all_way.seeds", "[1]", "--model.tuner.dropout", "0.5"]
    assert dtrap(*words(root, "one", *more))[0] == 0
    assert dtrap(*words(root, "two", *more, "--data.num_workers", 2))[0] == 0
    assert dtrap(*words(root, "three", *more, "--data.subset", "one/subset.json"))[0] == 0
    assert sum(map(sum, results(tmp_path / "one")[0]["confusion"])) == 40
    for other in ("two", "three"):
        assert_equal_runs(tmp_path / "one", tmp_path / other)


def test_a_run_may_be_overwritten_from_its_own_subset(dtrap, root, tmp_path):
    more = ["--data.shot", 2, "--data.all_way.seeds", "[1]", "--trainer.max_epochs", 1]
    assert dtrap(*words(root, "run", *more))[0] == 0
    before = (tmp_path / "run" / "subset.json").read_text()
    again = ["--data.subset", "run/subset.json", "--protocol.overwrite", "true"]
    status, _, err = dtrap(*words(root, "run", *more, *again))
    assert status == 0, err
    assert (tmp_path / "run" / "subset.json").read_text() == before


def test_a_tuner_that_needs_the_whole_support_is_refused(dtrap, root):
    status, _, err = dtrap(*words(root, "run", "--data.shot", 2, "--config", "tuners/stepspt.yaml"))
    assert status == 2
    assert "the all-way protocol streams mini-batches" in err


def test_an_unreadable_training_image_is_told_or_replaced_by_the_next_of_its_class(dtrap, damaged, tmp_path):
    whole = data(damaged, seeds=[1])
    lost = whole.subset.train[0][0]
    break_image(whole, lost)
    more = ["--data.shot", 2, "--data.all_way.seeds", "[1]", "--protocol.checkpoint_every", 1]
    status, _, err = dtrap(*words(damaged, "run", *more))
    assert status == 2
    assert "--data.bad_images skip" in err
    status, out, err = dtrap(*words(damaged, "run", *more, "--data.bad_images", "skip"))
    assert status == 0, err
    assert "1 missing or unreadable images left out" in out
    chosen = json.loads((tmp_path / "run" / "subset.json").read_text())["seeds"]["1"]
    name = whole.index.class_names[0]
    order = [whole.index.relative(p) for p in (*whole.subset.train[0][1:], *whole.subset.val[0])]
    assert chosen["train"][name] == order[:2]
    assert chosen["val"][name][0] == order[2]
    assert len(chosen["val"][name]) == 2
    assert whole.index.relative(lost) not in json.dumps(chosen)


def test_a_test_without_a_readable_image_is_an_error(dtrap, damaged):
    whole = data(damaged, seeds=[1])
    for position in (p for images in whole.subset.test for p in images):
        break_image(whole, position)
    more = ["--data.shot", 2, "--data.all_way.seeds", "[1]", "--data.bad_images", "skip"]
    status, _, err = dtrap(*words(damaged, "run", *more))
    assert status == 2
    assert "EuroSAT: none of the images of a test or validation can be read" in err


def test_a_class_without_training_images_is_told_or_left_out(dtrap, tmp_path, tiny_model):
    made = COOP_MAKERS["caltech101"](tmp_path / "data", (3, 2, 2))
    file = next(made.rglob("split_zhou_*.json"))
    split = json.loads(file.read_text())
    gone = split["train"][0][2]
    split["train"] = [row for row in split["train"] if row[2] != gone]
    file.write_text(json.dumps(split))
    run = [
        "fit", "--config", "coop/caltech101_1shot.yaml", "--config", "all_way/clip_lora.yaml", *tiny_model,
        "--data.root", made, "--data.shot", 2, "--data.template", "a {}", "--data.all_way.seeds", "[1]",
        "--trainer.max_epochs", 1, "--protocol.folder", "run",
    ]  # fmt: skip
    status, _, err = dtrap(*run)
    assert status == 2
    assert f"'{gone}' has 0; needed: 1 (a training image)" in err
    status, _, err = dtrap(*run, "--data.small_classes", "skip")
    assert status == 0, err
    (row,) = results(tmp_path / "run")
    assert gone not in row["classes"]
    kept = len({name for *_, name in split["train"]})
    assert len(row["classes"]) == kept
    assert [sum(counts) for counts in row["confusion"]] == [2] * kept
    again = [*run[:-1], "again", "--data.small_classes", "skip", "--data.subset", "run/subset.json"]
    assert dtrap(*again)[0] == 0
    assert results(tmp_path / "again") == [row]


def test_fewer_episodes_than_seeds_are_the_first_seeds(dtrap, root, tmp_path):
    more = ["--data.shot", 2, "--trainer.max_epochs", 1]
    status, out, err = dtrap(*words(root, "run", *more, "--protocol.episodes", 1))
    assert status == 0, err
    assert "EuroSAT all-way 2-shot · 1 seed · " in out
    assert [row["seed"] for row in results(tmp_path / "run")] == [1]
    status, out, err = dtrap(*words(root, "run", *more))
    assert status == 0, err
    assert "EuroSAT all-way 2-shot · 2 seeds · " in out


def test_a_published_test_split_is_tested_zero_shot_once_for_all_seeds(dtrap, root, tmp_path, tiny_model, monkeypatch):
    tests = []
    original = FewShotClassifier.on_test_epoch_start
    monkeypatch.setattr(FewShotClassifier, "on_test_epoch_start", lambda self: tests.append(1) or original(self))
    made = COOP_MAKERS["caltech101"](tmp_path / "data", (3, 2, 2))
    run = [
        "fit", "--config", "coop/caltech101_1shot.yaml", "--config", "all_way/clip_lora.yaml", *tiny_model,
        "--data.root", made, "--data.shot", 2, "--data.template", "a {}", "--trainer.max_epochs", 1,
        "--protocol.compare", "methods/baseline.yaml",
    ]  # fmt: skip
    assert dtrap(*run, "--data.all_way.seeds", "[1, 2, 3]", "--protocol.folder", "all")[0] == 0
    assert len(tests) == 2 * (1 + 3)
    assert dtrap(*run, "--data.all_way.seeds", "[3]", "--protocol.folder", "third")[0] == 0
    alone = [{**row, "episode": 2} for row in results(tmp_path / "third")]
    assert results(tmp_path / "all")[-2:] == alone
    tests.clear()  # the test images of two seeds differ where no split is published
    assert dtrap(*words(root, "own", "--data.shot", 2, "--trainer.max_epochs", 1))[0] == 0
    assert len(tests) == 2 * 2


@pytest.mark.parametrize(
    ("word", "value"), [("seeds", "[]"), ("seeds", "[1,1]"), ("seeds", "[-1]"), ("batch_size", 0), ("batch_size", -4)]
)
def test_a_value_out_of_range_is_one_line(dtrap, root, word, value):
    status, _, err = dtrap(*words(root, "run", f"--data.all_way.{word}", value))
    assert status == 2
    assert err.startswith(f"dtrap: all_way.{word} is ")
    assert len(err.splitlines()) == 1


def test_tasks_are_counted_in_epochs(dtrap, root):
    status, _, err = dtrap(*words(root, "run", "--data.shot", 2, "--trainer.max_steps", 4))
    assert status == 2
    assert "trainer.max_steps is 4, but the all-way protocol counts epochs of 2 step(s)" in err


def test_a_subset_belongs_to_the_all_way_protocol(dtrap, root):
    words = ["--config", "eurosat_1shot.yaml", "--config", "backbones/tiny.yaml", "--data.root", root]
    status, _, err = dtrap("fit", *words, "--data.subset", "subset.json")
    assert status == 2
    assert "subset is subset.json, but only the all-way protocol has one" in err


CROSS_DOMAIN = {"isic": make_isic, "eurosat": make_eurosat, "crop_disease": make_crop_disease, "chestx": make_chestx}


@pytest.mark.parametrize("name", [*CROSS_DOMAIN, *(f"coop/{name}" for name in COOP_MAKERS)])
def test_every_set_runs_in_the_all_way_protocol(dtrap, tmp_path, tiny_model, name):
    published = name.startswith("coop/")
    make = COOP_MAKERS[name[5:]] if published else CROSS_DOMAIN[name]
    made = make(tmp_path / "data", (3, 2, 2)) if published else make(tmp_path / "data", per_class=5)
    status, out, err = dtrap(
        "fit", "--config", f"{name}_1shot.yaml", "--config", "all_way/clip_lora.yaml", *tiny_model,
        "--data.root", made, "--data.shot", 2, "--data.template", "a {}", "--data.all_way.seeds", "[1]",
        "--data.all_way.batch_size", 4, "--data.all_way.validation", "true", "--trainer.max_epochs", 1,
        "--protocol.folder", "run",
    )  # fmt: skip
    assert status == 0, err
    assert "all-way 2-shot · 1 seed · " in out
    (row,) = results(tmp_path / "run")
    tested = [sum(counts) for counts in row["confusion"]]
    assert tested == [2 if published else 1] * len(row["classes"])
