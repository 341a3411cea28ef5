"""Draws that keep the images of a patient or lesion on one side of a split."""

import json
import shutil
from itertools import product

import numpy as np
import pytest
from dtrap.datamodules import AllWay, ChestXDataModule, FewShotDataModule, ImageIndex, ISICDataModule, Preprocessing
from dtrap.datamodules.groups import Side, draw_apart, numbered
from dtrap.datamodules.subset import subset_content
from dtrap.errors import DtrapError
from layouts import make_chestx, make_isic, truncate

SMALL = Preprocessing(image_size=16)


class Grouped(FewShotDataModule):
    """Images without files, with groups."""

    title = "Grouped"
    opens_files = False
    groups = ()
    labels = ()
    splits = None

    def scan(self):
        paths = [f"{position:04d}" for position in range(len(self.labels))]
        groups = None if self.groups is None else list(self.groups)
        return ImageIndex(
            paths, list(self.labels), [*"abcdef"][: max(self.labels) + 1], splits=self.splits, groups=groups
        )


def collection(groups, labels, splits=None, **options):
    kind = type("Made", (Grouped,), {"groups": groups, "labels": labels, "splits": splits})
    return kind(".", preprocessing=SMALL, **options)


def groups_of(data, images):
    return {data.index.groups[p] or f"own {p}" for of_class in images for p in of_class}


def assert_apart(data, *sides):
    found = [groups_of(data, side) for side in sides]
    assert len(set().union(*found)) == sum(map(len, found))


@pytest.fixture(scope="module")
def many():
    """300 images of 6 classes, in 60 groups that have images of several classes, and some without a group."""
    rng = np.random.default_rng(0)
    groups = [f"p{rng.integers(60)}" if position % 7 else "" for position in range(300)]
    return groups, [position % 6 for position in range(300)]


@pytest.mark.parametrize("seed", range(4))
def test_a_draw_is_found_exactly_where_there_is_one(seed):
    rng = np.random.default_rng(seed)
    solvable = 0
    for _ in range(25):
        count, classes = int(rng.integers(4, 24)), int(rng.integers(1, 4))
        group_of = rng.integers(0, rng.integers(2, 7), count)
        labels = rng.integers(0, classes, count)
        orders = [rng.permutation(np.flatnonzero(labels == label)).tolist() for label in range(classes)]
        needed = [int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(0, 2))]
        sides = [Side(orders, [number] * classes) for number in needed]
        found = draw_apart(sides, group_of, np.random.default_rng(1))
        names = sorted(set(group_of.tolist()))
        ways = (dict(zip(names, way, strict=True)) for way in product(range(3), repeat=len(names)))
        possible = any(
            all(
                sum(way[int(group_of[p])] == number for p in orders[label]) >= needed[number]
                for number in range(3)
                for label in range(classes)
            )
            for way in ways
        )
        assert possible == (found is not None)
        if found is None:
            continue
        solvable += 1
        sets = [
            {int(group_of[p]) for images in (*chosen, *rest) for p in images}
            for chosen, rest in zip(found.chosen, found.rest, strict=True)
        ]
        assert sum(map(len, sets)) == len(set().union(*sets))
        assert [[*map(len, chosen)] for chosen in found.chosen] == [[number] * classes for number in needed]
    assert solvable > 3


def test_images_without_a_group_are_drawn_as_without_groups(many):
    labels = many[1]
    plain, own = (collection(groups, labels, shot=3, query=4) for groups in (None, [""] * 300))
    for number in range(5):
        one, other = plain.sampler.draw(number), own.sampler.draw(number)
        assert (one.classes, one.support, one.query) == (other.classes, other.support, other.query)
    plain, own = (collection(groups, labels, shot=3, all_way=AllWay()) for groups in (None, [""] * 300))
    assert plain.subset == own.subset


def test_episodes_keep_groups_on_one_side_and_need_no_others(many):
    groups, labels = many
    data = collection(groups, labels, shot=4, query=8, validation_shots=2)
    again = collection(groups, labels, shot=4, query=8, validation_shots=2)
    for number in (7, 0, 3):
        task = data.sampler.draw(number)
        assert_apart(data, task.support, task.query, task.validation)
        assert [[*map(len, side)] for side in (task.support, task.query, task.validation)] == [
            [4] * 5,
            [8] * 5,
            [2] * 5,
        ]
        spare, query_spare = groups_of(data, task.spare), groups_of(data, task.query_spare)
        assert not spare & (query_spare | groups_of(data, (*task.query, *task.validation)))
        assert not query_spare & groups_of(data, (*task.support, *task.validation))
        assert any(task.spare)
        assert any(task.query_spare)
    assert again.sampler.draw(3) == data.sampler.draw(3)
    assert again.sampler.draw(4) != data.sampler.draw(3)
    assert collection(groups, labels, shot=4, query=8).sampler.draw(3).support == data.sampler.draw(3).support


def test_where_groups_are_few_every_way_is_tried():
    # Of each class one large group and two single images: only the large one can be the query.
    groups = [f"{label}-{min(n, 2)}" for label in range(3) for n in range(8)]
    labels = [label for label in range(3) for _ in range(8)]
    data = collection(groups, labels, way=3, shot=2, query=6)
    for number in range(10):
        task = data.sampler.draw(number)
        assert_apart(data, task.support, task.query)
        assert [sorted(p % 8 for p in images) for images in task.support] == [[0, 1]] * 3
    with pytest.raises(
        DtrapError, match=r"(?s)'a' has 8 images in 3 groups, the largest of 6.*3 support \+ 5 query.*Lower"
    ):
        collection(groups, labels, way=3, shot=3, query=5).setup()
    labels = [*labels, *[3] * 8, *[4] * 8]
    data = collection([*groups, *[""] * 16], labels, way=2, shot=3, query=5, small_classes="skip")
    assert {label for number in range(9) for label in data.sampler.draw(number).classes} == {3, 4}


def test_published_splits(many):
    groups, labels = many
    splits = [("train", "test", "train", "val")[position // 6 % 4] for position in range(300)]
    data = collection(groups, labels, splits, shot=4, query=2, validation_shots=1)
    task = data.sampler.draw(0)
    assert_apart(data, task.support, task.query, task.validation)
    for split, side in (("train", task.support), ("test", task.query), ("val", task.validation)):
        assert {splits[p] for images in side for p in images} == {split}
    subset = collection(groups, labels, splits, shot=4, all_way=AllWay()).subset
    assert_apart(data, subset.train, subset.val, subset.test)
    assert [{splits[p] for images in side for p in images} for side in (subset.train, subset.val, subset.test)] == [
        {"train"},
        {"val"},
        {"test"},
    ]


def test_all_way(many, caplog):
    groups, labels = many
    data = collection(groups, labels, shot=4, all_way=AllWay(seeds=[1, 2]))
    subsets = list(data.subsets.values())
    for subset in subsets:
        assert_apart(data, subset.train, subset.val, subset.test)
        assert [*map(len, subset.train)] == [4] * 6
        used = groups_of(data, (*subset.train, *subset.val))
        rest = {p for p in range(300) if (groups[p] or f"own {p}") not in used}
        assert {p for images in subset.test for p in images} == rest
    assert subsets[0] != subsets[1]
    assert "images are not tested on, because they share a group with images of the training" in caplog.text
    few = ["x", "y"] * 5
    with pytest.raises(DtrapError, match=r"'a' has 5 images in 2 groups.*1 training \+ 1 validation \+ 1 test"):
        collection(sorted(few), [0, 1] * 5, shot=1, all_way=AllWay()).subset  # noqa: B018


def test_a_subset_file_is_held_to_the_groups(many, tmp_path):
    labels = many[1]

    plain = collection(None, labels, shot=4, all_way=AllWay(seeds=[1]))
    file = tmp_path / "subset.json"
    file.write_text(json.dumps(subset_content(plain, 4, plain.subsets)))
    options = {"shot": 4, "all_way": AllWay(seeds=[1]), "subset": file}
    own = [""] * 300
    train, val = plain.subset.train[0][0], plain.subset.val[1][0]
    tested = plain.subset.test[2][0]
    own[train] = own[tested] = "p"
    subset = collection(own, labels, **options).subset
    assert subset.train == plain.subset.train
    assert subset.test[2] == [p for p in plain.subset.test[2] if p != tested]
    own[val] = "p"
    with pytest.raises(DtrapError, match=r"training and validation images share 1 group\(s\), for example 'p'"):
        collection(own, labels, **options).subset  # noqa: B018


@pytest.fixture(scope="module")
def isic(tmp_path_factory):
    """ISIC with two images of each lesion."""
    root = make_isic(tmp_path_factory.mktemp("groups") / "isic", per_class=8)
    rows = ["lesion_id,image_id,dx"]
    rows += [f"HAM_{label}{n // 2},ISIC_00{label:02d}{n:03d},nv" for label in range(7) for n in range(8)]
    (root / "HAM10000_metadata.csv").write_text("\n".join(rows) + "\n")
    return root


def test_lesions_of_isic(isic, tmp_path, caplog):
    options = {"shot": 2, "query": 4, "preprocessing": SMALL}
    plain, apart = ISICDataModule(isic, **options), ISICDataModule(isic, group="lesion_id", **options)
    assert plain.index.groups is None
    assert plain.fingerprint != apart.fingerprint
    shared = 0
    for number in range(10):
        task = apart.sampler.draw(number)
        assert_apart(apart, task.support, task.query)
        task = plain.sampler.draw(number)
        of = [{apart.index.groups[p] for images in side for p in images} for side in (task.support, task.query)]
        shared += bool(of[0] & of[1])
    assert shared
    plain.note_split_groups(range(10))
    assert f"in {shared} of 10 episodes a lesion is in both support and query" in caplog.text
    assert "--data.group lesion_id keeps them apart" in caplog.text
    caplog.clear()
    apart.note_split_groups(range(10))
    assert caplog.text == ""
    with pytest.raises(DtrapError, match=r"group is 'patient_id'; expected lesion_id"):
        ISICDataModule(isic, group="patient_id")
    with pytest.raises(DtrapError, match=r"no lesion_id is known .*Put HAM10000_metadata\.csv"):
        ISICDataModule(make_isic(tmp_path / "without"), group="lesion_id").setup()


def test_the_groupings_of_the_challenge_say_the_same(isic, tmp_path):
    root = make_isic(tmp_path / "isic", per_class=8)
    table = root / "ISIC2018_Task3_Training_GroundTruth" / "ISIC2018_Task3_Training_LesionGroupings.csv"
    lines = (isic / "HAM10000_metadata.csv").read_text().splitlines()[1:]
    rows = [",".join([image, lesion, "histopathology"]) for lesion, image, _ in (line.split(",") for line in lines)]
    table.write_text("\n".join(["image,lesion_id,diagnosis_confirm_type", *rows]) + "\n")
    apart = ISICDataModule(root, group="lesion_id")
    assert apart.index.groups == ISICDataModule(isic, group="lesion_id").index.groups


def test_what_replaces_an_unreadable_image_respects_groups(isic, damaged_isic):
    data = ISICDataModule(damaged_isic, shot=2, query=2, group="lesion_id", bad_images="skip", preprocessing=SMALL)
    for number in range(3):
        data.set_episode(number)
        support, query = ([data.index.groups[p] for p in ids] for ids in (data.support_ids, data.query_ids))
        assert (len(support), len(query)) == (10, 10)
        assert not set(support) & set(query)
    assert data.skipped_images


@pytest.fixture
def damaged_isic(isic, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(isic, root)
    for label in range(7):
        truncate(root / "ISIC2018_Task3_Training_Input" / f"ISIC_00{label:02d}000.jpg")
    return root


def test_patients_of_chestx(tmp_path, dtrap):
    root = make_chestx(tmp_path / "chestx", per_class=6)
    table = root / "Data_Entry_2017.csv"
    head, *rows = table.read_text().splitlines()
    cells = [row.split(",") for row in rows]
    # Every third image of every class is of one patient.
    patients = [[*row[:3], str(n % 3), *row[4:]] for n, row in enumerate(cells)]
    table.write_text("\n".join([head, *map(",".join, patients)]) + "\n")
    data = ChestXDataModule(root, shot=2, query=2, way=3, group="Patient ID", preprocessing=SMALL)
    task = data.sampler.draw(0)
    assert_apart(data, task.support, task.query)
    assert set(data.index.groups) == {"0", "1", "2"}
    status, out, _ = dtrap("data", "check", root, "--quick")
    assert status == 1  # a part of the set
    assert "3 patients have several images (patient_id)" in out


def test_a_run_says_it_and_keeps_apart_on_request(isic, dtrap, tiny_model, caplog):
    words = ["--config", "isic_1shot.yaml", "--data.root", isic, "--data.query", 4, "--data.views", 1, *tiny_model]
    words += ["--trainer.max_epochs", 1, "--protocol.episodes", 2]
    status, _, err = dtrap("fit", *words, "--protocol.folder", "plain")
    assert status == 0, err
    assert "of 2 episodes a lesion is in both support and query" in caplog.text
    caplog.clear()
    status, _, err = dtrap("fit", *words, "--protocol.folder", "apart", "--data.group", "lesion_id")
    assert status == 0, err
    assert "in both support and query" not in caplog.text
    status, _, err = dtrap("fit", *words, "--protocol.folder", "plain", "--data.group", "lesion_id")
    assert status != 0
    assert 'data.group: null in the folder, "lesion_id" now' in err or "data.group: null in the folder" in err


def test_groups_of_an_index_are_checked():
    with pytest.raises(DtrapError, match="4 paths but 1 groups"):
        collection(["x"], [0, 1, 0, 1]).setup()
    with pytest.raises(DtrapError, match="groups has a int, expected strings"):
        collection([1, 2, 1, 2], [0, 1, 0, 1]).setup()
    assert numbered(["a", "", "a", ""]).tolist() == [0, 1, 0, 2]
