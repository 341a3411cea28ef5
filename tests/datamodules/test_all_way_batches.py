"""What the all-way protocol draws and streams."""

import json
import pickle
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from all_way_runs import break_image, data
from dtrap.datamodules import streams
from dtrap.datamodules.subset import subset_content
from dtrap.errors import DtrapError
from layouts import make_eurosat


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_eurosat(tmp_path_factory.mktemp("all_way") / "eurosat", per_class=8)


def test_parts_are_disjoint_and_a_class_does_not_depend_on_others(root, tmp_path):
    subset = data(root, seeds=[3]).subset
    for train, val, test in zip(subset.train, subset.val, subset.test, strict=True):
        assert (len(train), len(val), len(test)) == (2, 2, 4)
        assert len({*train, *val, *test}) == 8
    more = data(root, seeds=[3], shot=3).subset
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
    original = streams.DataLoader
    monkeypatch.setattr(streams, "DataLoader", lambda *a, **k: made.append(1) or original(*a, **k))
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


def test_a_dataset_goes_to_a_process_that_is_not_forked(root):
    """As where processes are spawned, in the middle of a fit, whose trainer no process can get."""
    module = data(root, seeds=[1], batch_size=6)
    module.setup()
    module.trainer = SimpleNamespace(fit_loop=SimpleNamespace(running=(number for number in range(3))))
    training, test = module.train_dataloader().dataset, module.test_dataloader().loader.dataset
    sent_training, sent_test = pickle.loads(pickle.dumps((training, test)))
    assert torch.equal(sent_training[1][0]["images"], training[1][0]["images"])
    assert torch.equal(sent_test[1]["images"], test[1]["images"])


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
        (lambda c: c.update(format="other"), "its format is not dtrap-subset/1"),
        (lambda c: c.update(shot=4), "made for EuroSAT \\(4 per class\\); this run uses EuroSAT \\(2\\)"),
        (lambda c: c.update(set="ISIC"), "made for ISIC \\(2 per class\\); this run uses EuroSAT \\(2\\)"),
        (lambda c: twice(c["seeds"]["1"]["train"]["Forest"]), "listed twice"),
        (lambda c: c["seeds"]["1"]["train"].update(Forest=[["a"]]), "the images of 'Forest' are not a list of paths"),
        (lambda c: c["seeds"]["1"]["train"]["Forest"].append("0/Forest/x.jpg"), "3 training images of class 'Forest'"),
        (lambda c: swap(c["seeds"]["1"]["train"]), "of another class"),
        (lambda c: c["seeds"].update({"4": c["seeds"].pop("1")}), "has no seed 1, only 4"),
        (lambda c: c.pop("seeds"), "'seeds' is missing"),
        (
            lambda c: c["seeds"]["1"]["train"].pop("Forest"),
            r"not those of EuroSAT, for example \['Forest'\]",
        ),
        (lambda c: c["seeds"]["1"]["val"]["Forest"].append("0/Forest/nowhere.jpg"), "nowhere.jpg' of class 'Forest'"),
    ],
)
def test_a_subset_that_does_not_fit_is_refused(root, tmp_path, change, told):
    module = data(root, seeds=[1])
    content = subset_content(module, 2, {1: module.subset})
    change(content)
    path = tmp_path / "subset.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DtrapError, match=told):
        _ = data(root, seeds=[1], subset=str(path)).subset


def test_a_subset_file_that_is_none_is_told(root, tmp_path):
    for text in ("[]", "3", "", '{"format": "dtrap-subset/1", "seeds": []}'):
        (tmp_path / "subset.json").write_text(text)
        with pytest.raises(DtrapError, match="not a subset file"):
            _ = data(root, seeds=[1], subset=tmp_path / "subset.json").subset
    for name, told in (("none.json", "does not exist"), (".", "is a folder")):
        with pytest.raises(DtrapError, match=rf"{told}\. Expected the subset.json of an all-way run"):
            _ = data(root, seeds=[1], subset=tmp_path / name).subset


@pytest.mark.parametrize(
    ("settings", "told"), [({"seeds": []}, "seeds"), ({"seeds": [1, 1]}, "seeds"), ({"batch_size": 0}, "batch_size")]
)
def test_settings_are_checked(root, settings, told):
    with pytest.raises(DtrapError, match=rf"all_way\.{told}"):
        data(root, **settings)


def test_unreadable_images_of_a_given_subset_are_left_out(damaged, tmp_path):
    whole = data(damaged, seeds=[1])
    file = tmp_path / "subset.json"
    file.write_text(json.dumps(subset_content(whole, 2, {1: whole.subset})))
    break_image(whole, whole.subset.train[0][0])
    subset = data(damaged, seeds=[1], subset=file, bad_images="skip").subset
    assert subset.train == [whole.subset.train[0][1:], *whole.subset.train[1:]]
    assert subset.test == whole.subset.test
