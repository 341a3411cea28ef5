"""The all-way protocol through the command line: subsets, streams, resume in the middle of a task."""

import json
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
from coop_layouts import COOP_MAKERS
from dtrap.datamodules import EuroSATDataModule, all_way
from dtrap.datamodules.all_way import AllWay
from dtrap.datamodules.subset import subset_content
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier
from dtrap.protocol.episode import EpisodeRecorder
from layouts import make_chestx, make_crop_disease, make_eurosat, make_isic
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_eurosat(tmp_path_factory.mktemp("all_way") / "eurosat", per_class=8)


def words(root, folder, *more):
    return [
        "fit", "--config", "eurosat_1shot.yaml", "--config", "backbones/tiny.yaml",
        "--config", "all_way/clip_lora.yaml", "--data.root", root, "--data.shot", 4,
        "--data.all_way.batch_size", 6, "--trainer.max_epochs", 3, "--data.all_way.seeds", "[1, 2]",
        "--protocol.folder", folder, "--protocol.save_adapters", "true", *more,
    ]  # fmt: skip


def results(folder):
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def adapters(folder):
    return [load_file(path) for path in sorted((folder / "adapters").glob("*.safetensors"))]


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


def assert_equal_runs(one, other):
    """Same rows, and same adapters bit by bit."""
    assert results(one) == results(other)
    for a, b in zip(adapters(one), adapters(other), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


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


def test_without_an_image_left_no_accuracy_is_claimed(dtrap, root, tmp_path):
    status, out, err = dtrap(*words(root, "run"))  # 4 for training and 4 for validation of 8
    assert status == 0, err
    assert "no held-out images, so no accuracy" in out


def test_the_whole_run_is_the_same_with_workers_and_from_its_own_subset(dtrap, root, tmp_path):
    more = ["--data.shot", 2, "--data.all_way.seeds", "[1]", "--model.tuner.dropout", "0.5"]
    assert dtrap(*words(root, "one", *more))[0] == 0
    assert dtrap(*words(root, "two", *more, "--data.num_workers", 2))[0] == 0
    assert dtrap(*words(root, "three", *more, "--data.subset", "one/subset.json"))[0] == 0
    assert sum(map(sum, results(tmp_path / "one")[0]["confusion"])) == 40
    for other in ("two", "three"):
        assert_equal_runs(tmp_path / "one", tmp_path / other)


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


def test_a_resumed_task_counts_the_time_before_its_checkpoint():
    first = EpisodeRecorder(lambda share: None)
    state = first.state_dict()
    state["seconds"] = 100.0
    resumed = EpisodeRecorder(lambda share: None)
    assert resumed.seconds < 50
    resumed.load_state_dict(state)
    assert 100 <= resumed.seconds < 150


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


def data(root, **settings):
    given = {name: settings.pop(name) for name in ("subset", "bad_images", "small_classes") if name in settings}
    shot = settings.pop("shot", 2)
    return EuroSATDataModule(root, shot=shot, all_way=AllWay(**settings), **given)


def test_parts_are_disjoint_and_a_class_does_not_depend_on_others(root, tmp_path):
    subset = data(root, seeds=[3]).subset
    for train, val, test in zip(subset.train, subset.val, subset.test, strict=True):
        assert (len(train), len(val), len(test)) == (2, 2, 4)
        assert len({*train, *val, *test}) == 8
    more = data(root, seeds=[3], shot=4).subset
    assert [images[:2] for images in more.train] == subset.train
    other = data(root, seeds=[4]).subset
    assert other.train != subset.train


def test_every_pass_has_every_image_once(root):
    module = data(root, seeds=[1], batch_size=6)
    module.setup()
    loader = module.train_dataloader()
    seen = []
    for epoch in range(10):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        assert [len(batch["labels"]) for batch in batches] == [6, 6]
        seen += [position for batch in batches for position in batch["sample_id"].tolist()]
    images = sorted(position for of_class in module.subset.train for position in of_class)
    for start in range(0, 120, 20):
        assert sorted(seen[start : start + 20]) == images
    assert seen[:20] != seen[20:40]
    labels = dict(zip(module.index.paths, module.index.labels, strict=True))
    batch = next(iter(loader))
    assert [labels[module.index.paths[p]] for p in batch["sample_id"].tolist()] == batch["labels"].tolist()


def test_one_loader_serves_all_epochs_so_that_workers_need_not_start_again(root, monkeypatch):
    made = []
    original = all_way.DataLoader
    monkeypatch.setattr(all_way, "DataLoader", lambda *a, **k: made.append(1) or original(*a, **k))
    loader = data(root, seeds=[1], batch_size=6).train_dataloader()
    in_order = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        in_order += [batch["sample_id"].tolist() for batch in loader]
    assert len(made) == 1
    loader.set_epoch(1)
    assert [batch["sample_id"].tolist() for batch in loader] == in_order[2:4]
    assert len(made) == 2


def test_crops_differ_from_step_to_step_and_plain_images_do_not(root):
    crops, plain = (data(root, seeds=[1], batch_size=20, augmentation=kind) for kind in ("crop", "plain"))
    for module, same in ((crops, False), (plain, True)):
        loader = module.train_dataloader()
        first, second = islice(iter(loader), 2)
        order = [batch["sample_id"].argsort() for batch in (first, second)]
        assert torch.equal(first["images"][order[0]], second["images"][order[1]]) == same


def test_validation_is_offered_only_where_it_is_asked_for(root):
    from lightning.pytorch.utilities.model_helpers import is_overridden

    assert not is_overridden("val_dataloader", data(root, seeds=[1]))
    module = data(root, seeds=[1], validation=True)
    assert is_overridden("val_dataloader", module)
    assert sum(len(batch["labels"]) for batch in module.val_dataloader()) == 20


def twice(images):
    images[1] = images[0]


def swap(classes):
    classes["Forest"], classes["River"] = classes["River"], classes["Forest"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(format="other"), "Expected the format dtrap-subset/1"),
        (lambda c: c.update(shot=4), "its shot is 4, that of the data 2"),
        (lambda c: c.update(set="ISIC"), "its set is 'ISIC', that of the data 'EuroSAT'"),
        (lambda c: twice(c["seeds"]["1"]["train"]["Forest"]), "named twice"),
        (lambda c: swap(c["seeds"]["1"]["train"]), "of another class"),
        (lambda c: c["seeds"].pop("1"), "no '1' in it"),
        (lambda c: c["seeds"]["1"]["train"].pop("Forest"), r"classes are not those of EuroSAT, such as \['Forest'\]"),
        (lambda c: c["seeds"]["1"]["val"]["Forest"].append("0/Forest/nowhere.jpg"), "nowhere.jpg' of class 'Forest'"),
    ],
)
def test_a_subset_that_does_not_fit_is_refused(root, tmp_path, change, told):
    module = data(root, seeds=[1])
    content = subset_content(module, {1: module.subset})
    change(content)
    path = tmp_path / "subset.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DtrapError, match=told):
        _ = data(root, seeds=[1], subset=str(path)).subset


@pytest.mark.parametrize(
    ("settings", "told"), [({"seeds": []}, "seeds"), ({"seeds": [1, 1]}, "seeds"), ({"batch_size": 0}, "batch_size")]
)
def test_settings_are_checked(settings, told):
    with pytest.raises(DtrapError, match=rf"all_way\.{told}"):
        AllWay(**settings)


@pytest.fixture
def damaged(root, tmp_path):
    """A copy of the images to damage."""
    return Path(shutil.copytree(root, tmp_path / "damaged"))


def break_image(module, position):
    Path(module.index.paths[position]).write_bytes(b"no image")


def test_an_unreadable_training_image_is_told_or_replaced_by_the_next_of_its_class(dtrap, damaged, tmp_path):
    whole = data(damaged, seeds=[1])
    lost = whole.subset.train[0][0]
    break_image(whole, lost)
    more = ["--data.shot", 2, "--data.all_way.seeds", "[1]", "--protocol.checkpoint_every", 1]
    status, _, err = dtrap(*words(damaged, "run", *more))
    assert status == 2
    assert "bad_images: skip" in err
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


def test_a_test_without_a_readable_image_is_an_error(dtrap, damaged):
    whole = data(damaged, seeds=[1])
    for position in (p for images in whole.subset.test for p in images):
        break_image(whole, position)
    more = ["--data.shot", 2, "--data.all_way.seeds", "[1]", "--data.bad_images", "skip"]
    status, _, err = dtrap(*words(damaged, "run", *more))
    assert status == 2
    assert "EuroSAT: none of the images of a test or validation can be read" in err


def test_unreadable_images_of_a_given_subset_are_left_out(damaged, tmp_path):
    whole = data(damaged, seeds=[1])
    file = tmp_path / "subset.json"
    file.write_text(json.dumps(subset_content(whole, {1: whole.subset})))
    break_image(whole, whole.subset.train[0][0])
    subset = data(damaged, seeds=[1], subset=file, bad_images="skip").subset
    assert subset.train == [whole.subset.train[0][1:], *whole.subset.train[1:]]
    assert subset.test == whole.subset.test


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
