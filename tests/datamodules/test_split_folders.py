"""Folders with train, val and test folders of class folders."""

import numpy as np
import pytest
from dtrap.datamodules import FolderDataModule, Preprocessing
from dtrap.errors import DtrapError
from layouts import picture

SMALL = Preprocessing(image_size=16)


def make(root, tree):
    """Write pictures that are all different: {"train/cat": 3, ...}."""
    number = 0
    for folder, count in tree.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in range(count):
            picture(number := number + 1).save(root / folder / f"{name}.png")
    return root


def folder(root, **options):
    return FolderDataModule(root, preprocessing=SMALL, **options)


def parts(data):
    """Number of images of each class to train on, to validate on and to test on."""
    task = data.task
    count = {"train": task.support, "val": task.validation, "test": task.query}
    return {name: None if lists is None else [len(found) for found in lists] for name, lists in count.items()}


def of(root, data, lists):
    return {data.path_of(position).relative_to(root).parts[0] for found in lists for position in found}


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("train", "valid", "test"),
        ("Train", "Validation", "Test"),
        ("TRAINING", "dev", "testing"),
        ("training_set", "validation set", "test-set"),
        ("flowers_train", "flowers_val", "flowers_test"),
    ],
)
def test_split_folders_are_recognized(tmp_path, names, caplog):
    train, val, test = names
    tree = {f"{train}/cat": 5, f"{train}/dog": 4, f"{val}/cat": 2, f"{val}/dog": 1, f"{test}/cat": 3, f"{test}/dog": 3}
    data = folder(make(tmp_path, tree))
    assert parts(data) == {"train": [5, 4], "val": [2, 1], "test": [3, 3]}
    assert data.class_names == ["cat", "dog"]
    assert (data.has_query, data.tasks) == (True, 1)
    assert of(tmp_path, data, data.task.support) == {train}
    assert of(tmp_path, data, data.task.validation) == {val}
    assert of(tmp_path, data, data.task.query) == {test}
    assert f"split folders {train}, {val}, {test}: train 9, val 3, test 6 images" in caplog.text


def test_a_folder_around_the_splits(tmp_path):
    data = folder(make(tmp_path, {f"data/flowers/{s}/{c}": 2 for s in ("train", "test") for c in ("a", "b")}))
    assert parts(data) == {"train": [2, 2], "val": None, "test": [2, 2]}


def test_only_training_and_validation_images(tmp_path, caplog):
    root = make(tmp_path, {"train/a": 9, "train/b": 8, "val/a": 2, "val/b": 3})
    data = folder(root)
    assert parts(data) == {"train": [9, 8], "val": [2, 3], "test": [0, 0]}
    assert not data.has_query
    assert f"no test folder; to test on val: --data.query_root {root / 'val'}" in caplog.text
    assert parts(folder(root, query_root=root / "val")) == {"train": [9, 8], "val": None, "test": [2, 3]}
    assert parts(folder(root, held_out=0.25)) == {"train": [7, 6], "val": [2, 3], "test": [2, 2]}


def test_a_test_folder_of_images_without_classes_is_not_used(tmp_path, caplog):
    data = folder(make(tmp_path, {"train/a": 3, "train/b": 3, "test": 4}))
    assert parts(data) == {"train": [3, 3], "val": None, "test": [0, 0]}
    assert "Not used: test" in caplog.text


def test_a_class_that_only_one_side_has(tmp_path, caplog):
    root = make(tmp_path, {"train/a": 3, "train/b": 3, "train/c": 2, "test/A": 2, "test/b": 1, "test/d": 5})
    with pytest.raises(DtrapError, match=r"test/d: .*train has no class folder 'd'.*--data\.small_classes skip"):
        folder(root).setup()
    data = folder(root, small_classes="skip")
    data.setup()
    assert parts(data) == {"train": [3, 3, 2], "val": None, "test": [2, 1, 0]}
    assert "no test image, so the accuracy does not cover them: c" in caplog.text


@pytest.mark.parametrize(
    "tree",
    [
        {"cat": 2, "dog": 2, "test": 3},
        {"train": 3, "test": 3},
        {"car": 2, "train/steam": 2, "train/electric": 1},
        {"car": 2, "test/exam": 2, "test/quiz": 1},
    ],
)
def test_classes_that_are_called_like_splits_stay_classes(tmp_path, tree, caplog):
    data = folder(make(tmp_path, tree))
    assert data.class_names == sorted({name.split("/")[0] for name in tree})
    assert data.index.splits is None
    assert "split folders" not in caplog.text


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"cat": 2, "dog": 2, "test/cat": 1, "test/dog": 1}, r"test has folders called like the classes.*cat, dog"),
        ({"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1, "car": 2}, r"next to them car with images"),
        ({"train/a": 2, "train/b": 2, "val/a": 1, "valid/b": 1}, r"val, valid may both be the val split"),
        ({"test/a": 2, "val/a": 2}, "no folder with training images: found test, val"),
    ],
)
def test_what_may_be_either_is_refused_with_a_way_out(tmp_path, tree, said):
    root = make(tmp_path, tree)
    with pytest.raises(DtrapError, match=rf"{said}.*--data\.split_folders false"):
        folder(root).setup()
    data = folder(root, split_folders=False)
    assert data.class_names == sorted({name.split("/")[0] for name in tree})


def test_test_images_are_not_chosen_twice(tmp_path):
    root = make(tmp_path, {f"{split}/{name}": 4 for split in ("train", "test") for name in "ab"})
    for options in ({"held_out": 0.5}, {"repeats": 3}):
        with pytest.raises(DtrapError, match=r"has test images in .*test.*--data\.root .*train"):
            folder(root, **options).setup()


def test_an_empty_split_is_an_error(tmp_path):
    root = make(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 0, "test/b": 0})
    with pytest.raises(DtrapError, match=r"No images in the class folders of .*test"):
        folder(root).setup()


def test_copies_across_splits_are_said_and_left_out(tmp_path, caplog):
    root = make(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 2})
    (root / "test" / "a" / "copy.png").write_bytes((root / "train" / "a" / "0.png").read_bytes())
    data = folder(root)
    data.setup()
    assert data.copied_queries == 1
    assert "1 of the 5 images of the val and test folders are also training images" in caplog.text
    assert parts(folder(root, bad_images="skip"))["test"] == [2, 2]


def test_episodes_draw_from_both_splits(tmp_path):
    root = make(tmp_path, {f"{split}/{name}": 4 for split in ("train", "test") for name in "abc"})
    data = folder(root, way=2, shot=2, query=3)
    for number in range(3):
        data.set_episode(number)
        assert of(root, data, data.task.support) == {"train"}
        assert of(root, data, data.task.query) == {"test"}
    alone = make(tmp_path / "alone", {f"{split}/{name}": 4 for split in ("train", "val") for name in "abc"})
    with pytest.raises(DtrapError, match=r"none with test images to draw queries from.*--data\.root .*train"):
        folder(alone, way=2, shot=2, query=3).setup()


def test_the_fingerprint_changes_with_the_split_and_not_with_the_place(tmp_path):
    first, second = (
        make(tmp_path / name, {f"{split}/{label}": 2 for split in ("train", "test") for label in "ab"})
        for name in ("one", "two")
    )
    known = folder(first).index.fingerprint()
    assert folder(second).index.fingerprint() == known
    (second / "test" / "a" / "0.png").rename(second / "train" / "a" / "9.png")
    assert folder(second).index.fingerprint() != known


def test_repeats_are_stratified_draws_of_their_own(tmp_path):
    data = folder(make(tmp_path, {"a": 10, "b": 6, "c": 3}), held_out=0.3, repeats=4)
    assert (data.tasks, data.unit, data.has_query) == (4, "repeat", True)
    seen = []
    for number in range(4):
        data.set_episode(number)
        task = data.task
        assert [len(found) for found in task.query] == [3, 2, 1]
        for support, query in zip(task.support, task.query, strict=True):
            assert not {*support} & {*query}
        seen.append(tuple(data.query_ids))
    assert len(set(seen)) == 4
    once = folder(tmp_path, held_out=0.3)
    assert tuple(once.query_ids) == seen[0]  # the first repeat is the single held-out task
    assert folder(tmp_path, repeats=2).held_out == 0.2
    with pytest.raises(DtrapError, match="repeats is 0; expected at least 1"):
        folder(tmp_path, repeats=0)
    with pytest.raises(DtrapError, match="query_root and repeats"):
        folder(tmp_path, shot=1, repeats=3)


class Grouped(FolderDataModule):
    """Class folders whose file names begin with the number of a patient."""

    def scan(self):
        from dataclasses import replace

        index = super().scan()
        return replace(index, groups=[path.rpartition("/")[2].split("_")[0].strip("-") for path in index.paths])


def test_held_out_groups_are_whole(tmp_path):
    rng = np.random.default_rng(0)
    for label, count in (("a", 40), ("b", 25), ("c", 12)):
        (tmp_path / label).mkdir()
        for number in range(count):
            patient = f"p{rng.integers(12)}" if number % 9 else "-"
            picture(int(rng.integers(1 << 30))).save(tmp_path / label / f"{patient}_{label}{number}.png")
    data = Grouped(tmp_path, held_out=0.25, repeats=6, preprocessing=SMALL)
    groups, seen = data.index.groups, set()
    assert "" in groups
    for number in range(6):
        data.set_episode(number)
        task = data.task
        sides = [{groups[p] for found in lists for p in found} - {""} for lists in (task.support, task.query)]
        assert not sides[0] & sides[1]
        assert sorted(p for lists in (task.support, task.query) for found in lists for p in found) == list(range(77))
        assert all(abs(len(found) - want) <= 3 for found, want in zip(task.query, (10, 6, 3), strict=True))
        assert all([*task.support, *task.query])
        seen.add(tuple(data.query_ids))
    assert len(seen) == 6


def test_a_class_of_one_group_is_trained_on(tmp_path, caplog):
    make(tmp_path, {"a": 0, "b": 0})
    for label, patients in (("a", "111111"), ("b", "223344")):
        for number, patient in enumerate(patients):
            picture(ord(label) * 100 + number).save(tmp_path / label / f"p{patient}_{number}.png")
    data = Grouped(tmp_path, held_out=0.3, preprocessing=SMALL)
    assert [len(found) for found in data.task.query] == [0, 2]
    assert "no test image, so the accuracy does not cover them: a" in caplog.text
