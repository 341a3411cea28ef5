import gzip
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from coop_layouts import (
    AIRCRAFT,
    CALTECH101,
    CARS,
    COOP_MAKERS,
    DTD,
    EUROSAT,
    FLOWERS,
    FOOD,
    LONG_NAMES,
    PETS,
    SUN,
    UCF101,
    split_file,
)
from dtrap.configs import config_text
from dtrap.datamodules import EuroSATDataModule, Preprocessing, coop
from dtrap.datamodules.catalog import SETS, find_set
from dtrap.datamodules.coop.splits import draw_split, read_split
from dtrap.errors import DtrapError
from reference_files import NO_SAMPLES, REAL
from scipy.io import savemat

SMALL = Preprocessing(image_size=16)
SIZES = {"way": 5, "shot": 2, "query": 3, "preprocessing": SMALL}
COOP = {name.removeprefix("coop/"): cls for name, cls in SETS.items() if name.startswith("coop/")}
WITH_SPLIT_FILE = [name for name in COOP if name not in ("imagenet", "fgvc_aircraft")]
NAMES = {
    "imagenet": ["tench", "tiger shark", "tandem bicycle", "knot", "sunglass", "sunglasses"],
    "caltech101": [name.replace("_", " ") for name in CALTECH101.values()],
    "oxford_pets": [name.lower().replace("_", " ") for name in PETS],
    "stanford_cars": [f"{name[-4:]} {name[:-5]}" for name in CARS],
    "flowers102": FLOWERS,
    "food101": [name.replace("_", " ") for name in FOOD],
    "fgvc_aircraft": AIRCRAFT,
    "sun397": [name.replace("_", " ") for name in SUN.values()],
    "dtd": DTD,
    "eurosat": list(EUROSAT.values()),
    "ucf101": [name.replace("_", " ") for name in UCF101],
}
REAL_SPLITS = {
    "caltech101": "Caltech101",
    "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars",
    "flowers102": "OxfordFlowers",
    "dtd": "DescribableTextures",
    "eurosat": "EuroSAT",
    "ucf101": "UCF101",
}


def made(name, root, **arguments):
    return COOP[name](COOP_MAKERS[name](root), **arguments)


def rewrite(path, change):
    split = json.loads(path.read_text())
    change(split)
    path.write_text(json.dumps(split))


@pytest.mark.parametrize("name", COOP)
def test_official_layout(tmp_path, name):
    data = made(name, tmp_path / "root", **SIZES)
    data.setup()
    assert data.index.class_names == NAMES[name]
    assert Counter(data.index.splits) == ({"train": 18, "test": 18} | ({} if name == "imagenet" else {"val": 6}))
    assert [len(found) for found in data.positions_in("test")] == [3] * 6
    assert data.index.missing == ()
    assert all(Path(path).is_file() for path in data.index.paths)
    assert {data.index.splits[position] for position in data.support_ids} == {"train"}
    assert {data.index.splits[position] for position in data.query_ids} == {"test"}
    assert data.query()["images"].shape == (15, 3, 16, 16)
    assert data.description == f"{data.title} 5-way 2-shot"


@pytest.mark.parametrize("name", COOP)
@pytest.mark.parametrize("shot", [1, 5])
def test_every_set_runs_from_its_config(dtrap, tmp_path, tiny_model, name, shot):
    root = COOP_MAKERS[name](tmp_path / "data", counts=(shot, 1, 2))
    config = f"coop/{name}_{shot}shot.yaml"
    short = ["--data.template", "a {}"] if name in LONG_NAMES else []
    status, out, err = dtrap(
        "fit", "--config", config, "--data.root", root, "--data.query", 2, *short, *tiny_model,
        "--protocol.episodes", 1, "--trainer.max_epochs", 1,
    )  # fmt: skip
    assert status == 0, err
    assert f"{COOP[name].title} 5-way {shot}-shot" in out.replace("\n", " ")


@pytest.mark.parametrize("name", COOP)
@pytest.mark.parametrize("shot", [1, 5])
def test_configs(name, shot):
    text = config_text(f"coop/{name}_{shot}shot.yaml")
    config = yaml.safe_load(text)
    episodes = {1: 800, 5: 400}[shot]
    assert config["data"]["class_path"] == f"dtrap.datamodules.coop.{COOP[name].__name__}"
    assert config["data"]["init_args"] == {"way": 5, "shot": shot, "query": 15}
    assert (config["protocol"]["episodes"], config["trainer"]["max_epochs"]) == (episodes, 250)
    title = text.split("\n")[0]
    assert title.endswith(f" {COOP[name].published.classes:,} classes; 5-way {shot}-shot, {episodes} episodes")


def test_eurosat_with_coops_split_has_a_name_of_its_own_and_the_former_one(dtrap):
    assert coop.EuroSATDataModule is coop.CoOpEuroSATDataModule
    assert coop.CoOpEuroSATDataModule.__name__ != EuroSATDataModule.__name__
    words = ["--data.class_path", "dtrap.datamodules.coop.EuroSATDataModule", "--data.root", "x", "--print_config"]
    status, out, err = dtrap("fit", "--config", "coop/eurosat_1shot.yaml", *words)
    assert status == 0, err
    assert yaml.safe_load(out)["data"]["init_args"]["shot"] == 1


def test_catalog():
    assert len(SETS) == 15
    assert find_set("coop/dtd").__name__ == "DTDDataModule"
    for cls in SETS.values():
        assert cls.published.classes > 1
        assert set(cls.published.images) <= {"all", "train", "val", "test"}
    with pytest.raises(DtrapError, match=r"'coop/dtt'; expected one of isic, .*Did you mean 'coop/dtd'"):
        find_set("coop/dtt")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("caltech101", "Caltech101"),
        ("oxford_pets", "OxfordPets"),
        ("stanford_cars", "StanfordCars"),
        ("flowers102", "Flower102"),
        ("food101", "Food101"),
        ("sun397", "SUN397"),
        ("dtd", "DTD"),
        ("ucf101", "UCF101"),
        ("imagenet", "."),
        ("fgvc_aircraft", "."),
        ("dtd", "."),
        ("dtd", "dtd/dtd"),
        ("eurosat", "."),
        ("stanford_cars", "."),
    ],
)
@pytest.mark.parametrize("with_split_file", [True, False])
def test_other_folder_names_and_the_folder_itself(tmp_path, name, folder, with_split_file):
    before = made(name, tmp_path / "first").index
    (made_at,) = (tmp_path / "first").iterdir()
    target = tmp_path / "second" / folder
    target.parent.mkdir(parents=True, exist_ok=True)
    made_at.rename(target)
    if not with_split_file and name in WITH_SPLIT_FILE:
        split_file(tmp_path / "second").unlink()
    index = COOP[name](tmp_path / "second").index
    assert sorted(index.class_names) == sorted(before.class_names)
    assert len(index.paths) == len(before.paths)


def test_the_root_may_be_the_folder_of_sun397_with_the_class_list_among_its_images(tmp_path):
    """As its archive has it: the folder of images has the name of that of the set."""
    data = made("sun397", tmp_path)
    split_file(tmp_path).unlink()
    folder = tmp_path / "sun397"
    for root in (tmp_path, folder):
        before = COOP["sun397"](root).index
        (folder / "ClassName.txt").rename(folder / "SUN397" / "ClassName.txt")
        assert COOP["sun397"](root).index == before
        (folder / "SUN397" / "ClassName.txt").rename(folder / "ClassName.txt")
    assert before.class_names == data.index.class_names


@pytest.mark.parametrize("name", ["caltech101", "food101", "sun397", "dtd", "eurosat", "ucf101"])
def test_an_empty_class_folder_without_a_split_file_is_told_or_left_out(tmp_path, name):
    before = made(name, tmp_path).index
    split_file(tmp_path).unlink()
    for file in tmp_path.rglob("*"):  # the lists of a release, too
        if file.name in ("Training_01.txt", "train.json", "train.txt"):
            file.unlink()
    for path in {Path(path) for path, label in zip(before.paths, before.labels, strict=True) if label == 1}:
        path.unlink()
    gone = before.class_names[1]
    with pytest.raises(DtrapError, match=rf"no image in the class folder of {gone}\. .*--data\.small_classes skip"):
        _ = COOP[name](tmp_path).index
    index = COOP[name](tmp_path, small_classes="skip").index
    assert sorted(index.class_names) == sorted(set(before.class_names) - {gone})
    assert index.notes[-1] == f"no image in the class folder of {gone}: left out"
    folders = {
        Path(path).parent: index.class_names[label] for path, label in zip(index.paths, index.labels, strict=True)
    }
    known = {Path(p).parent: before.class_names[label] for p, label in zip(before.paths, before.labels, strict=True)}
    assert folders.items() <= known.items()


@pytest.mark.parametrize("name", COOP)
def test_data_in_the_wrong_place(tmp_path, name):
    for folder in ("images", "train", "annotations"):  # of some other set
        (tmp_path / folder / "class").mkdir(parents=True)
    with pytest.raises(
        DtrapError, match=rf"(?s)no data under .* Looked for: {COOP[name].folders[0]}/.*Give --data\.root"
    ):
        COOP[name](tmp_path, **SIZES).setup()
    with pytest.raises(DtrapError, match=r"none does not exist\. Give --data\.root"):
        COOP[name](tmp_path / "none", **SIZES).setup()


@pytest.mark.parametrize("name", [name for name in WITH_SPLIT_FILE if COOP[name].image_folder])
def test_without_images_folder(tmp_path, name):
    data = made(name, tmp_path / "root")
    folder = split_file(tmp_path).parent
    (folder / data.image_folder).rename(tmp_path / "elsewhere")
    with pytest.raises(DtrapError, match=f"has no folder {data.image_folder} with the images") as error:
        data.setup()
    assert "Looked for" not in str(error.value)


def test_missing_images_are_named_and_counted(tmp_path):
    data = made("dtd", tmp_path)
    for number in (1, 7):
        (tmp_path / "dtd" / "images" / "veined" / f"image_{number:04d}.jpg").unlink()
    with pytest.raises(DtrapError, match=r"2 images are named but do not exist.*veined/image_0001\.jpg"):
        data.setup()
    data = COOP["dtd"](tmp_path, **{**SIZES, "query": 2}, bad_images="skip")
    data.setup()
    assert [Path(path).name for path in data.index.missing] == ["image_0001.jpg", "image_0007.jpg"]
    assert len(data.index.paths) == len(data.index.splits) == 40


def test_a_missing_class_folder_is_a_class_of_missing_images(tmp_path):
    data = made("food101", tmp_path, **SIZES, bad_images="skip", small_classes="skip")
    (tmp_path / "food-101" / "images" / "pho").rename(tmp_path / "pho")
    data.setup()
    assert len(data.index.missing) == 7
    assert "pho" in data.index.class_names
    assert len(data.sampler.usable_classes) == 5


def test_the_split_file_may_be_compressed(tmp_path):
    data = made("eurosat", tmp_path)
    path = split_file(tmp_path)
    before = data.index
    Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert COOP["eurosat"](tmp_path).index == before


def test_paths_and_names_of_a_split_file_are_tidied(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": [["a//b.jpg", 1, "Tai_Chi"]], "val": [], "test": [["./c.jpg", 0, " x_ y"]]}))
    split = read_split(path)
    assert split == {"train": [("a/b.jpg", 1, "Tai Chi")], "val": [], "test": [("c.jpg", 0, "x y")]}


ROW = ["a.jpg", 0, "one"]
SPLIT_FAULTS = {
    "no lists": ({"train": []}, r"expected the lists 'train', 'val' and 'test', found 'train'\. Use"),
    "a list": ([], "expected the lists 'train', 'val' and 'test', found list"),
    "empty": ({"train": [], "val": [], "test": []}, r"has no rows\. Download"),
    "short row": (
        {"train": [ROW, ["b.jpg", 0]]},
        r"'train' row 2: expected \[path, label, class name\], found \[.b\.jpg",
    ),
    "label text": ({"test": [["a.jpg", "0", "one"]]}, r"'test' row 1: expected \[path, label, class name\]"),
    "label true": ({"test": [["a.jpg", True, "one"]]}, r"'test' row 1: expected \[path, label, class name\]"),
    "negative": ({"val": [["a.jpg", -1, "one"]]}, r"'val' row 1: expected \[path, label"),
    "no name": ({"val": [["a.jpg", 0, " "]]}, r"'val' row 1: expected \[path, label"),
    "absolute": ({"val": [["/etc/a.jpg", 0, "one"]]}, r"'val' row 1: the path '/etc/a\.jpg' leads out.*Correct"),
    "upwards": ({"val": [["b/../../a.jpg", 0, "one"]]}, r"'val' row 1: the path .* leads out of the image folder"),
    "twice": ({"train": [ROW], "test": [["./a.jpg", 0, "one"]]}, r"'test' row 1: 'a\.jpg' is also in 'train' row 1\."),
    "two names": (
        {"train": [ROW], "test": [["b.jpg", 0, "two"]]},
        r"'test' row 1: label 0 is 'two' here and 'one' in a row before",
    ),
    "two labels": ({"train": [ROW, ["b.jpg", 1, "one"]]}, r"'train' row 2: 'one' has label 1 here and 0 in a row"),
    "gap": ({"train": [ROW, ["b.jpg", 2, "two"]]}, r"2 classes with labels up to 2, but none has label 1\. Expected"),
}


@pytest.mark.parametrize("fault", SPLIT_FAULTS)
def test_faulty_split_file(tmp_path, fault):
    content, message = SPLIT_FAULTS[fault]
    content = {"train": [], "val": [], "test": [], **content} if content and fault != "no lists" else content
    made("dtd", tmp_path)
    path = split_file(tmp_path)
    path.write_text(json.dumps(content))
    with pytest.raises(DtrapError, match=re.escape(str(path)) + r".*" + message):
        COOP["dtd"](tmp_path).setup()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b'{"train": [}'])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_unreadable_split_file(tmp_path, content, ending):
    made("dtd", tmp_path)
    path = split_file(tmp_path)
    path.unlink()
    Path(f"{path}{ending}").write_bytes(content)
    with pytest.raises(DtrapError, match=r"split_zhou_.*( cannot be read as JSON: .*| is empty\.) ?Download it again"):
        COOP["dtd"](tmp_path).setup()


@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
def test_split_made_of_the_release(tmp_path, name):
    official = made(name, tmp_path).index
    split_file(tmp_path).unlink()
    data = COOP[name](tmp_path, **SIZES)
    index = data.index
    assert "It is not CoOp's own split" in index.notes[0]
    assert official.notes == ()
    assert sorted(index.class_names) == sorted(official.class_names)
    assert [index.splits.count(part) for part in ("train", "val", "test")] == [18, 6, 18] if name in (
        "oxford_pets", "stanford_cars", "sun397", "ucf101") else [24, 6, 12]  # fmt: skip
    name_of = dict(zip(official.paths, (official.class_names[label] for label in official.labels), strict=True))
    assert {path: index.class_names[label] for path, label in zip(index.paths, index.labels, strict=True)} == name_of
    assert COOP[name](tmp_path).index == index


@pytest.mark.parametrize("name", ["oxford_pets", "stanford_cars", "sun397", "ucf101"])
def test_published_test_images_stay_test_images(tmp_path, name):
    official = made(name, tmp_path).index
    split_file(tmp_path).unlink()
    index = COOP[name](tmp_path).index
    tests = [{p for p, s in zip(i.paths, i.splits, strict=True) if s == "test"} for i in (official, index)]
    assert tests[0] == tests[1]


def test_the_split_that_is_short_is_named_with_its_numbers(tmp_path):
    """A class of FGVC has 100 images, of which 34 are for training."""
    data = made("fgvc_aircraft", tmp_path, way=5, shot=4, query=2)
    with pytest.raises(DtrapError, match=r"too few training images .* '707-320' has 3, .*; needed: 4 \(shot 4\)"):
        data.setup()
    with pytest.raises(DtrapError, match=r"too few test images .* '707-320' has 3, .*; needed: 5 \(query 5\)"):
        COOP["fgvc_aircraft"](tmp_path, way=5, shot=2, query=5).setup()
    with pytest.raises(DtrapError, match=r"only 0 classes .* have 4 training and 2 test images or more\. Lower"):
        COOP["fgvc_aircraft"](tmp_path, way=5, shot=4, query=2, small_classes="skip").setup()


def test_shares_of_a_drawn_split():
    split = draw_split({"one": [f"{n}.jpg" for n in range(40)], "two": [f"b/{n}.jpg" for n in range(45)]})
    counts = {part: Counter(row.label for row in rows) for part, rows in split.items()}
    assert counts == {"train": {0: 20, 1: 22}, "val": {0: 8, 1: 9}, "test": {0: 12, 1: 14}}
    paths = [row.path for rows in split.values() for row in rows]
    assert len(set(paths)) == 85
    assert [row.path for row in split["train"][:20]] != [f"{n}.jpg" for n in range(20)]


def test_sun397_without_partitions(tmp_path):
    made("sun397", tmp_path)
    for path in (split_file(tmp_path), *(tmp_path / "sun397").glob("T*_01.txt")):
        path.unlink()
    index = COOP["sun397"](tmp_path).index
    assert index.class_names == NAMES["sun397"]
    assert [index.splits.count(part) for part in ("train", "val", "test")] == [24, 6, 12]


def test_ucf101_names_in_camel_case(tmp_path):
    made("ucf101", tmp_path)
    split_file(tmp_path).unlink()
    for path in list((tmp_path / "ucf101" / "UCF-101-midframes").iterdir()):
        path.rename(path.with_name(path.name.replace("_", "")))
    assert sorted(COOP["ucf101"](tmp_path).index.class_names) == sorted(NAMES["ucf101"])


RELEASE_FAULTS = {
    "pets": ("oxford_pets", "annotations/test.txt", "pug 5 1 1\n", r"test\.txt, line 1: expected '<Breed>_<number>"),
    "pets label": ("oxford_pets", "annotations/test.txt", "\npug_1 x\n", r"test\.txt, line 2: expected '<Breed>"),
    "no pets": ("oxford_pets", "annotations/test.txt", None, r"no annotations/test\.txt.*split_zhou_OxfordPets\.json"),
    "empty pets": ("oxford_pets", "annotations/test.txt", "\n", r"test\.txt is empty"),
    "no cars": ("stanford_cars", "devkit/cars_meta.mat", None, r"no devkit/cars_meta\.mat.*split_zhou_StanfordCars"),
    "cars": ("stanford_cars", "devkit/cars_meta.mat", "none", r"cars_meta\.mat cannot be read as a MATLAB file"),
    "no names": ("flowers102", "cat_to_name.json", None, r"no cat_to_name\.json or .*split_zhou_OxfordFlowers\.json"),
    "few names": ("flowers102", "cat_to_name.json", '{"1": "rose"}', r"cat_to_name\.json has no name for label 2"),
    "scene": ("sun397", "Testing_01.txt", "/a/abbie/1.jpg", r"line 1: 'a/abbie' is not.*Did you mean 'a/abbey'"),
    "group": ("ucf101", "UCF-101-midframes/Archery/x.jpg", "", r"Archery/x\.jpg: expected a name that ends in _g"),
    "variant": ("fgvc_aircraft", "images_variant_val.txt", "1 F/A-19", r"line 1: 'F/A-19' is not.*mean 'F/A-18'"),
    "no list": ("fgvc_aircraft", "images_variant_val.txt", None, r"has no images_variant_val\.txt\. Complete"),
    "no names file": ("imagenet", "classnames.txt", None, r"has no classnames\.txt\. Get CoOp's"),
    "wnid alone": ("imagenet", "classnames.txt", "n01440764", r"classnames\.txt, line 1: expected '<wnid> <class"),
    "wnid twice": ("imagenet", "classnames.txt", "n1 a\nn1 b", r"line 2: expected one line for n1, this is the second"),
    "name twice": (
        "imagenet",
        "classnames.txt",
        "n1 a\nn2 a",
        r"classnames\.txt: line 1 \(n1 'a'\) and line 2 \(n2 'a'\) .* for example: n2 a \(n2\)",
    ),
    "names that differ in case": (
        "imagenet",
        "classnames.txt",
        "n02113186 Cardigan\nn02963159  cardigan",
        r"line 1 \(n02113186 'Cardigan'\) and line 2 .*\. Write in line 1: n02113186 Cardigan Welsh corgi",
    ),
    "wnid unknown": (
        "imagenet",
        "classnames.txt",
        "n01440765 tench\n",
        r"n01440764: not in classnames\.txt.*mean 'n01440765'",
    ),
}


@pytest.mark.parametrize("fault", RELEASE_FAULTS)
def test_faulty_release(tmp_path, fault):
    name, file, content, message = RELEASE_FAULTS[fault]
    made(name, tmp_path)
    (folder,) = tmp_path.iterdir()
    for path in folder.glob("split_zhou_*"):
        path.unlink()
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(DtrapError, match=message):
        COOP[name](tmp_path).setup()


def test_cars_without_test_labels(tmp_path):
    made("stanford_cars", tmp_path)
    split_file(tmp_path).unlink()
    rows = np.array([[("00001.jpg",), ("00002.jpg",)]], dtype=[("fname", object)])
    savemat(tmp_path / "stanford_cars" / "cars_test_annos_withlabels.mat", {"annotations": rows})
    with pytest.raises(DtrapError, match=r"annotation 1: expected a class from 1 to 6, found none.*with labels"):
        COOP["stanford_cars"](tmp_path).setup()


@pytest.mark.parametrize("name", ["dtd", "food101", "eurosat", "caltech101"])
def test_release_without_class_folders(tmp_path, name):
    cls = COOP[name]
    (tmp_path / cls.folders[0] / cls.image_folder).mkdir(parents=True)
    with pytest.raises(DtrapError, match=f"no class folders to make a split of.* put CoOp's {cls.split_file} into"):
        cls(tmp_path).setup()


def test_imagenet_names_that_stand_twice(tmp_path):
    index = made("imagenet", tmp_path).index
    assert index.notes == ("n04355933 'sunglasses' is called 'sunglass': another class has its name",)
    labels = {label for path, label in zip(index.paths, index.labels, strict=True) if "n04356056" in path}
    assert [index.class_names[label] for label in labels] == ["sunglasses"]


def test_imagenet_folders(tmp_path):
    data = made("imagenet", tmp_path, **SIZES)
    folder = tmp_path / "imagenet"
    for path in list((folder / "images").iterdir()):
        path.rename(folder / path.name)
    assert len(data.index.paths) == 36
    (folder / "val" / "n01440764").rename(folder / "val" / "n0144076")
    with pytest.raises(DtrapError, match=r"val/n0144076: not in classnames\.txt\. Did you mean 'n01440764'"):
        COOP["imagenet"](tmp_path).setup()
    (folder / "val" / "n0144076").rename(folder / "n0144076")
    with pytest.raises(DtrapError, match=r"val/n01440764: no such folder\. .*--data\.small_classes skip"):
        COOP["imagenet"](tmp_path).setup()
    data = COOP["imagenet"](tmp_path, **SIZES, small_classes="skip")
    data.setup()
    assert len(data.sampler.usable_classes) == 5
    (folder / "val").rename(folder / "validation")
    with pytest.raises(DtrapError, match=r"imagenet/val does not exist\. Unpack the images there"):
        COOP["imagenet"](tmp_path).setup()


def test_imagenet_with_validation_images_in_one_folder(tmp_path):
    """As Kaggle has it."""
    folder = COOP_MAKERS["imagenet"](tmp_path) / "imagenet"
    (folder / "ILSVRC" / "Data").mkdir(parents=True)
    (folder / "images").rename(folder / "ILSVRC" / "Data" / "CLS-LOC")
    assert len(COOP["imagenet"](tmp_path).scan().paths) == 36
    val = folder / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    for path in list(val.rglob("*.JPEG")):
        path.rename(val / f"{path.parent.name}_{path.name}")
    for path in list(val.iterdir()):
        if path.is_dir():
            path.rmdir()
    with pytest.raises(DtrapError, match=r"val has 18 files, .* and no class folders\. .*valprep\.sh"):
        COOP["imagenet"](tmp_path).scan()


def test_imagenet_is_listed_without_asking_for_each_file(tmp_path, monkeypatch):
    data = made("imagenet", tmp_path)
    scanned = []
    scandir = os.scandir

    def counting(path):
        scanned.append(os.fspath(path))
        return scandir(path)

    def refused(path, *rest, **options):
        if os.fspath(path).endswith(".JPEG"):
            raise AssertionError(f"stat of {path}")
        return stat(path, *rest, **options)

    stat = os.stat
    monkeypatch.setattr(os, "scandir", counting)
    monkeypatch.setattr(os, "stat", refused)
    assert len(data.scan().paths) == 36
    class_folders = [path for path in scanned if Path(path).name.startswith("n")]
    assert len(class_folders) == len(set(class_folders)) == 12


@pytest.fixture(scope="module")
def real_splits():
    folder = REAL / "splits_coop"
    if not folder.is_dir():
        pytest.skip(NO_SAMPLES)
    return folder


@pytest.mark.parametrize("name", REAL_SPLITS)
def test_official_split_file(real_splits, name):
    cls = COOP[name]
    path = real_splits / f"split_zhou_{REAL_SPLITS[name]}.json.gz"
    assert path.name == f"{cls.split_file}.gz"
    split = read_split(path)
    assert {part: len(rows) for part, rows in split.items()} == cls.published.images
    names = {row.label: row.name for rows in split.values() for row in rows}
    assert sorted(names) == list(range(cls.published.classes))
    assert not any("_" in class_name for class_name in names.values())


@pytest.mark.parametrize("name", REAL_SPLITS)
def test_official_split_file_over_empty_image_files(real_splits, tmp_path, name):
    cls = COOP[name]
    folder = tmp_path / cls.folders[0]
    folder.mkdir()
    (folder / f"{cls.split_file}.gz").symlink_to(real_splits / f"split_zhou_{REAL_SPLITS[name]}.json.gz")
    rows = [row for part in read_split(folder / f"{cls.split_file}.gz").values() for row in part]
    for parent in {str(Path(row.path).parent) for row in rows}:
        (folder / cls.image_folder / parent).mkdir(parents=True, exist_ok=True)
    kept = rows[:: max(1, len(rows) // 200)]
    for row in kept:
        (folder / cls.image_folder / row.path).touch()
    index = cls(tmp_path, bad_images="skip").scan()
    assert len(index.paths) == len(kept)
    assert len(index.missing) == sum(cls.published.images.values()) - len(kept)
    assert len(index.class_names) == cls.published.classes
    assert [index.class_names[label] for label in index.labels] == [row.name for row in kept]


@pytest.fixture
def real_eurosat(real_splits, tmp_path):
    folder = tmp_path / "eurosat"
    folder.mkdir()
    (folder / "2750").symlink_to(REAL / "images" / "EuroSAT" / "2750")
    (folder / "split_zhou_EuroSAT.json.gz").symlink_to(real_splits / "split_zhou_EuroSAT.json.gz")
    return tmp_path


def test_real_eurosat_images_with_the_official_split(real_eurosat):
    with pytest.raises(DtrapError, match=r"26,700 images .* do not exist.*AnnualCrop.*--data\.bad_images skip"):
        COOP["eurosat"](real_eurosat).setup()
    data = COOP["eurosat"](real_eurosat, bad_images="skip")
    index = data.scan()
    assert Counter(index.splits) == {"train": 132, "val": 61, "test": 107}
    assert len(index.missing) == 26700
    for path, label in zip(index.paths, index.labels, strict=True):
        assert index.class_names[label] == data.renamed[Path(path).parent.name]


def test_an_episode_of_real_eurosat_images(real_eurosat):
    path = real_eurosat / "eurosat" / "split_zhou_EuroSAT.json.gz"
    split = json.loads(gzip.decompress(path.read_bytes()))
    here = {part: [row for row in rows if (path.parent / "2750" / row[0]).exists()] for part, rows in split.items()}
    path.unlink()
    path.write_bytes(gzip.compress(json.dumps(here).encode()))
    data = COOP["eurosat"](real_eurosat, way=10, shot=8, query=7, views=1, preprocessing=SMALL)
    data.setup()
    assert data.support()["images"].shape == (80, 3, 16, 16)
    assert data.query()["images"].shape == (70, 3, 16, 16)
    assert data.support()["images"].std() > 0.1
    assert data.template == "a centered satellite photo of {}."


TEMPLATES = {
    "imagenet": "a photo of a {}.",
    "caltech101": "a photo of a {}.",
    "oxford_pets": "a photo of a {}, a type of pet.",
    "stanford_cars": "a photo of a {}.",
    "flowers102": "a photo of a {}, a type of flower.",
    "food101": "a photo of {}, a type of food.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "sun397": "a photo of a {}.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "ucf101": "a photo of a person doing {}.",
}
TEST_SIZES = {
    "imagenet": 50000,
    "caltech101": 2465,
    "oxford_pets": 3669,
    "stanford_cars": 8041,
    "flowers102": 2463,
    "food101": 30300,
    "fgvc_aircraft": 3333,
    "sun397": 19850,
    "dtd": 1692,
    "eurosat": 8100,
    "ucf101": 3783,
}


def test_templates_and_published_test_sizes():
    assert {name: cls.default_template for name, cls in COOP.items()} == TEMPLATES
    assert {name: cls.published.images["test"] for name, cls in COOP.items()} == TEST_SIZES
