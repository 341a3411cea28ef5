"""Faults are planted in small sets of every kind; `dtrap data check` has to find and name each of them."""

import io
import json
import shutil
from pathlib import Path

import pytest
from dtrap.datamodules import ChestXDataModule, crop_disease
from dtrap.datamodules.catalog import SETS
from dtrap.datamodules.inspection.check import find_unreadable
from dtrap.datamodules.published import Published
from dtrap.errors import DtrapError
from layouts import (
    CROP_FOLDERS,
    make_chestx,
    make_class_folders,
    make_crop_disease,
    make_eurosat,
    make_isic,
    picture,
    truncate,
)
from reference_files import NO_SAMPLES, REAL_IMAGES
from rich.console import Console

TEXTURES = ["banded", "blotchy", "bumpy"]


def make_textures(root):
    """DTD as CoOp has it: 3 classes with 4 train, 1 val and 2 test images each."""
    make_class_folders(root / "dtd" / "images", TEXTURES, 7)
    splits = {"train": range(1, 5), "val": [5], "test": [6, 7]}
    rows = {
        split: [[f"{name}/{name}_{n}.jpg", label, name] for label, name in enumerate(TEXTURES) for n in numbers]
        for split, numbers in splits.items()
    }
    (root / "dtd" / "split_zhou_DescribableTextures.json").write_text(json.dumps(rows))
    return root


MAKERS = {
    "isic": (make_isic, {"all": 28}, 7),
    "eurosat": (make_eurosat, {"all": 40}, 10),
    "crop_disease": (make_crop_disease, {"all": 24}, 6),
    "chestx": (make_chestx, {}, 7),
    "coop/dtd": (make_textures, {"train": 12, "val": 3, "test": 6}, 3),
}


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """One small set of a kind, as complete as its published numbers say: its root."""
    monkeypatch.setattr(ChestXDataModule, "published_rows", 32)
    monkeypatch.setattr(crop_disease, "CLASS_FOLDERS", CROP_FOLDERS)

    def make(name):
        maker, published, classes = MAKERS[name]
        monkeypatch.setattr(SETS[name], "published", Published(classes, **published))
        return maker(tmp_path / "data")

    return make


@pytest.fixture
def check(dtrap):
    """Check of one set with a fault: (its row in the table, all that is said)."""

    def run(name, root, *words, status=1):
        code, out, err = dtrap("data", "check", root, "--set", name, *words)
        assert code == status, (out, err)
        assert err == ""
        (row,) = [line.split() for line in out.splitlines() if line.startswith(f"  {name} ")]
        return row, out

    return run


@pytest.mark.parametrize("name", MAKERS)
def test_a_sound_set_has_no_fault(sets, check, name):
    row, out = check(name, sets(name), status=0)
    assert row[-3:] == ["0", "0", "ok"]
    assert "fault" not in out


def test_splits_are_counted_each(sets, check):
    _, out = check("coop/dtd", sets("coop/dtd"), status=0)
    assert "train 12 / 12 · val 3 / 3 · test 6 / 6" in out


LOCATIONS = {
    "isic": "ISIC2018_Task3_Training_Input/ISIC_0001002.jpg",
    "eurosat": "2750/Forest/Forest_2.jpg",
    "crop_disease": "dataset/train/Tomato___healthy/Tomato___healthy_1.JPG",
    "chestx": "images/00000005_000.png",
    "coop/dtd": "dtd/images/blotchy/blotchy_3.jpg",
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_missing_image(sets, check, name):
    root = sets(name)
    (root / LOCATIONS[name]).unlink()
    row, out = check(name, root)
    by_table = name not in ("eurosat", "crop_disease")
    assert row[-4 if by_table else -3] == ("1" if by_table else "0")
    assert row[-1] == ("fault" if by_table else "differs")
    assert (LOCATIONS[name] in out) == by_table
    if name != "chestx":  # whose number of images nobody has published
        split, count = next(iter(MAKERS[name][1].items()))
        where = "" if split == "all" else f"{split}: "
        assert f"differs {where}{count - 1} images found, {count} published" in out


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("isic", "ISIC2018_Task3_Training_GroundTruth.csv, line 8 (Melanocytic Nevus)"),
        ("chestx", "Data_Entry_2017.csv, line 7 (Cardiomegaly)"),
        ("coop/dtd", "split_zhou_DescribableTextures.json, 'train' row 7 (blotchy)"),
    ],
)
def test_a_missing_image_is_told_with_its_row_and_class(sets, check, name, told):
    root = sets(name)
    (root / LOCATIONS[name]).unlink()
    assert told in check(name, root)[1]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
@pytest.mark.parametrize("name", MAKERS)
def test_an_unreadable_image(sets, check, name, damage):
    root = sets(name)
    path = root / LOCATIONS[name]
    if damage == "truncated":
        truncate(path)
    else:
        path.write_text("" if damage == "empty" else "no image")
    row, out = check(name, root)
    assert row[-3:] == ["1", "1", "fault"]
    (line,) = [line for line in out.splitlines() if LOCATIONS[name] in line]
    assert {"truncated": "truncated", "empty": "the file is empty", "text": "not an image"}[damage] in line.lower()
    row, out = check(name, root, "--quick", status=0)
    assert row[-4:] == ["0", "not", "tried", "ok"]


FOLDERS = {
    "eurosat": "2750/River",
    "crop_disease": "dataset/train/Apple___healthy",
    "coop/dtd": "dtd/images/banded",
}


@pytest.mark.parametrize("change", ["missing", "empty", "renamed"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_class_folder(sets, check, name, change):
    root = sets(name)
    folder = root / FOLDERS[name]
    renamed = f"{FOLDERS[name]}s".rsplit("/")[-1]
    if change == "renamed":
        folder.rename(folder.with_name(renamed))
    else:
        shutil.rmtree(folder)
    if change == "empty":
        folder.mkdir()
    _, out = check(name, root)
    (line,) = [line for line in out.splitlines() if f"{FOLDERS[name]}: no" in line]
    assert ("no image in it" if change == "empty" else "no such folder") in line
    assert (f"'{renamed}' is there instead" in line) == (change == "renamed")


def test_an_empty_class_folder_without_a_split_file_stops_nothing(sets, check, tmp_path):
    root = sets("coop/dtd")
    next(root.rglob("split_zhou_*")).unlink()
    for path in (root / "dtd/images/banded").iterdir():
        path.unlink()
    _, out = check("coop/dtd", root)
    assert "no image in the class folder of banded" in out
    assert "Traceback" not in out


@pytest.mark.parametrize("name", ["eurosat", "crop_disease"])
def test_a_folder_of_no_class_is_a_note(sets, check, name):
    root = sets(name)
    extra = (root / FOLDERS[name]).with_name("extra")
    extra.mkdir()
    shutil.copy(root / LOCATIONS[name], extra)
    _, out = check(name, root, status=0)
    assert "note  1 folder is of no class and not used" in out
    assert "extra: 1 image(s)" in out


def test_a_folder_that_is_no_published_class(sets, check):
    root = sets("crop_disease")
    (root / "dataset/train/Tomato___old_age").mkdir()
    shutil.copy(root / LOCATIONS["crop_disease"], root / "dataset/train/Tomato___old_age")
    _, out = check("crop_disease", root)
    assert "Tomato___old_age: no such class." in out
    assert "differs 7 classes with images, 6 published" in out


@pytest.mark.parametrize(
    ("name", "gone", "told"),
    [
        ("isic", "ISIC2018_Task3_Training_Input", "the image folder ISIC2018_Task3_Training_Input is missing"),
        ("isic", "ISIC2018_Task3_Training_GroundTruth", "the table ISIC2018_Task3_Training_GroundTruth.csv is missing"),
        ("chestx", "images", "the image folder images is missing"),
        ("coop/dtd", "dtd/images", "has no folder images"),
    ],
)
def test_half_a_set(sets, check, name, gone, told):
    root = sets(name)
    shutil.rmtree(root / gone)
    assert told in check(name, root)[1]


def edit_split(root, change):
    path = root / "dtd" / "split_zhou_DescribableTextures.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def test_a_split_row_to_nowhere(sets, check):
    root = sets("coop/dtd")
    edit_split(root, lambda rows: rows["test"].insert(2, ["banded/banded_99.jpg", 0, "banded"]))
    row, out = check("coop/dtd", root)
    assert row[-4] == "1"
    assert "split_zhou_DescribableTextures.json, 'test' row 3 (banded): dtd/images/banded/banded_99.jpg" in out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows["test"].__setitem__(0, rows["train"][0]), "'banded/banded_1.jpg' is also in 'train' row 1"),
        (lambda rows: rows["test"].__setitem__(0, ["a.jpg", "0", "banded"]), "expected [path, label, class name]"),
    ],
)
def test_a_split_that_is_refused(sets, check, change, told):
    root = sets("coop/dtd")
    edit_split(root, change)
    row, out = check("coop/dtd", root)
    assert "split_zhou_DescribableTextures.json, 'test' row 1" in out
    assert told in out
    assert row[-2:] == ["1", "fault"]


def test_the_published_split_of_eurosat_and_a_sample_of_its_images(sets, check, monkeypatch):
    """Two views of one set: the rows whose image is not there are counted and named."""
    root = sets("eurosat")
    (root / "2750").rename(root / "eurosat_images")
    (root / "eurosat").mkdir()
    (root / "eurosat_images").rename(root / "eurosat" / "2750")
    rows = {split: [[f"Forest/Forest_{n}.jpg", 0, "Forest"]] for n, split in enumerate(("train", "val", "test"), 3)}
    (root / "eurosat" / "split_zhou_EuroSAT.json").write_text(json.dumps(rows))
    _, out = check("coop/eurosat", root)
    assert "train 1 / 13,500 · val 1 / 5,400 · test 0 / 8,100" in out
    assert "split_zhou_EuroSAT.json, 'test' row 1 (Forest): eurosat/2750/Forest/Forest_5.jpg does not exist" in out
    assert "differs 1 class with images, 10 published" in out
    check("eurosat", root, status=0)


def test_a_wrong_number_of_chestx_rows(sets, check, monkeypatch):
    root = sets("chestx")
    monkeypatch.setattr(ChestXDataModule, "published_rows", 112_120)
    assert "differs 32 rows in Data_Entry_2017.csv, 112,120 published" in check("chestx", root)[1]


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "chestx"])
def test_a_wrong_count(sets, check, name, monkeypatch):
    root = sets(name)
    published = {split: count + 1000 for split, count in MAKERS[name][1].items()}
    monkeypatch.setattr(SETS[name], "published", Published(MAKERS[name][2], **published))
    _, out = check(name, root)
    for split, count in published.items():
        assert f"{'' if split == 'all' else split + ': '}{count - 1000:,} images found, {count:,} published" in out


def isic_table(root, line, cells):
    path = root / "ISIC2018_Task3_Training_GroundTruth" / "ISIC2018_Task3_Training_GroundTruth.csv"
    lines = path.read_text().splitlines()
    lines[line - 1] = ",".join([lines[line - 1].split(",")[0], *cells])
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (["0.0"] * 7, ["1 row has no label", "expected one 1, found none"]),
        (["1.0", "1.0"] + ["0.0"] * 5, ["1 row has several labels", "expected one 1, found MEL and NV"]),
        (["0.5", "1.0"] + ["0.0"] * 5, ["other than 0 and 1", "expected 0 or 1, found MEL '0.5'"]),
        (["", "1.0"] + ["0.0"] * 5, ["other than 0 and 1", "expected 0 or 1, found MEL ''"]),
    ],
)
def test_isic_rows_without_exactly_one_label(sets, check, cells, told):
    root = sets("isic")
    isic_table(root, 3, cells)
    row, out = check("isic", root)
    assert row[1] == "27"
    for part in [*told, "line 3 (ISIC_0000001)"]:
        assert part in out


def test_an_empty_isic_column(sets, check):
    root = sets("isic")
    for line in range(2, 30):
        isic_table(root, line, [*(["1.0"] + ["0.0"] * 5 if line < 26 else ["0.0"] * 6), ""])
    _, out = check("isic", root)
    assert "1 column is empty" in out
    assert "column VASC (Vascular Lesion)" in out
    assert "4 rows have no label" in out


def test_rows_that_name_an_image_again(sets, check):
    root = sets("isic")
    path = root / "ISIC2018_Task3_Training_GroundTruth" / "ISIC2018_Task3_Training_GroundTruth.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1]]) + "\n")
    _, out = check("isic", root)
    assert "line 30: ISIC_0000000 is in line 2 already" in out


def test_chestx_rows_that_the_protocol_skips_are_no_faults(sets, check):
    _, out = check("chestx", sets("chestx"), status=0)
    assert "note  1 row with several findings skipped" in out
    assert "note  3 rows with a finding outside the 7 skipped: No Finding 2, Hernia 1" in out
    assert "nothing in columns that are not used: (column 12 without a title)" in out


@pytest.mark.parametrize(
    ("finding", "told"), [("Mas", "no such finding 'Mas'. Did you mean 'Mass'?"), ("", "expected a finding")]
)
def test_a_chestx_row_with_a_wrong_finding(sets, check, finding, told):
    root = sets("chestx")
    path = root / "Data_Entry_2017.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace("Atelectasis", finding), *lines[2:]]))
    _, out = check("chestx", root)
    assert f"Data_Entry_2017.csv, line 2 (00000000_000.png): {told}" in out


def test_a_table_that_cannot_be_read_is_a_fault(sets, check):
    root = sets("chestx")
    (root / "Data_Entry_2017.csv").write_text("Image,Label\n1.png,Mass\n")
    assert "column 'Image Index' is missing" in check("chestx", root)[1]


def plant_in_rows(root, line, change):
    path = next(root.rglob("*.csv"))
    lines = path.read_text().splitlines()
    lines[line - 1] = change(lines[line - 1])
    path.write_text("\n".join(lines) + "\n")


def remove(root, place):
    path = root / place
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def without_split_and_images(root):
    next(root.rglob("split_zhou_*")).unlink()
    for path in (root / "dtd/images/banded").iterdir():
        path.unlink()


def rename_folder(root):
    (root / "2750/River").rename(root / "2750/Rivers")


PLANTED = {
    **{f"{name}, no image": (name, lambda root, place=place: remove(root, place)) for name, place in LOCATIONS.items()
       if name not in ("eurosat", "crop_disease")},
    "isic, no label": ("isic", lambda root: plant_in_rows(root, 9, lambda line: line.replace("1.0", "0.0"))),
    "isic, two labels": ("isic", lambda root: plant_in_rows(root, 2, lambda line: line.replace("0.0", "1.0", 1))),
    "isic, a text": ("isic", lambda root: plant_in_rows(root, 5, lambda line: line.replace("1.0", "yes"))),
    "isic, no name": ("isic", lambda root: plant_in_rows(root, 5, lambda line: line.replace("ISIC_0000003", ""))),
    "isic, twice": ("isic", lambda root: plant_in_rows(root, 5, lambda line: line.replace("0003", "0002"))),
    "isic, column": ("isic", lambda root: plant_in_rows(root, 1, lambda line: line.replace("DF", "FD"))),
    "isic, no table": ("isic", lambda root: remove(root, "ISIC2018_Task3_Training_GroundTruth")),
    "isic, no folder": ("isic", lambda root: remove(root, "ISIC2018_Task3_Training_Input")),
    "chestx, finding": ("chestx", lambda root: plant_in_rows(root, 4, lambda line: line.replace("sis", "sus"))),
    "chestx, no finding": ("chestx", lambda root: plant_in_rows(root, 4, lambda line: line.replace("Atelectasis", ""))),
    "chestx, column": ("chestx", lambda root: plant_in_rows(root, 1, lambda line: line.replace("Labels", "Label"))),
    "chestx, no folder": ("chestx", lambda root: remove(root, "images")),
    "eurosat, no folder": ("eurosat", lambda root: remove(root, "2750/River")),
    "eurosat, renamed": ("eurosat", rename_folder),
    "eurosat, empty": ("eurosat", lambda root: [path.unlink() for path in (root / "2750/River").iterdir()]),
    "crop_disease, empty": (
        "crop_disease", lambda root: [path.unlink() for path in (root / FOLDERS["crop_disease"]).iterdir()],
    ),
    "dtd, no folder": ("coop/dtd", lambda root: remove(root, "dtd/images/banded")),
    "dtd, no images": ("coop/dtd", lambda root: remove(root, "dtd/images")),
    "dtd, row twice": ("coop/dtd", lambda root: edit_split(root, lambda rows: rows["test"].append(rows["train"][0]))),
    "dtd, no split": ("coop/dtd", without_split_and_images),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_a_run_raises_the_first_fault_that_the_check_lists(sets, check, fault):
    name, plant = PLANTED[fault]
    root = sets(name)
    SETS[name](root).scan()
    plant(root)
    with pytest.raises(DtrapError) as error:
        SETS[name](root).scan()
    lines = iter(check(name, root)[1].splitlines())
    first = next(line for line in lines if line.startswith("  fault "))
    case = next(lines, "")
    assert first.removeprefix("  fault ").strip() in str(error.value)
    if case.startswith(" " * 10):
        assert case.strip() in str(error.value)


def test_the_columns_of_a_table_are_found_by_name(sets, check, dtrap, tiny_model):
    root = sets("chestx")
    path = root / "Data_Entry_2017.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("\n".join(",".join([row[0], row[3], row[1], row[2], *row[4:]]) for row in rows))
    assert check("chestx", root, status=0)[0][1] == "28"
    words = ["--data.shot", 1, "--data.query", 2, "--trainer.max_epochs", 1, "--protocol.episodes", 1]
    status, out, err = dtrap("fit", "--config", "chestx_1shot.yaml", "--data.root", root, *tiny_model, *words)
    assert status == 0, err
    assert "ChestX 5-way 1-shot · 1 episode" in out
    path.write_text(path.read_text().replace("Finding Labels", "Labels"))
    assert "column 'Finding Labels' is missing. Did you mean 'Labels'?" in check("chestx", root)[1]
    status, _, err = dtrap("fit", "--config", "chestx_1shot.yaml", "--data.root", root, *tiny_model, *words)
    assert status == 2
    assert "column 'Finding Labels' is missing. Did you mean 'Labels'?" in err


def test_several_sets_under_one_root_and_few_lines_for_many_cases(sets, dtrap):
    root = sets("isic")
    sets("eurosat")
    for path in (root / "ISIC2018_Task3_Training_Input").glob("ISIC_0000*.jpg"):
        path.unlink()
    status, out, _ = dtrap("data", "check", root)
    assert status == 1
    assert "4 images are named but do not exist" in out
    assert out.count("does not exist") == 3
    assert "and 1 more" in out
    assert "images per class" not in out
    _, verbose, _ = dtrap("data", "check", root, "--verbose")
    assert verbose.count("does not exist") == 4
    assert "      0  Melanoma" in verbose
    assert "      4  Sea or Lake" in verbose


def test_a_bar_on_a_terminal_only(tmp_path):
    paths = [str(tmp_path / f"{number}.jpg") for number in range(300)]
    picture(0).save(paths[0])
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    truncate(Path(paths[7]))
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal)
        assert list(find_unreadable(paths, console)) == [paths[7]]
        assert ("decoding" in console.file.getvalue()) == terminal


@pytest.mark.parametrize("words", [["{empty}"], ["{empty}", "--set", "isic"]])
def test_nothing_found(dtrap, tmp_path, words):
    (tmp_path / "empty").mkdir()
    status, out, err = dtrap("data", "check", *(word.format(empty=tmp_path / "empty") for word in words))
    assert (status, out.strip()) == (2, "")  # rich before 14.3 ends an invisible bar with an empty line
    assert ("Looked for: ISIC2018_Task3" if "--set" in words else "Looked for: isic") in err
    assert "dtrap data fetch" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["check", "/nowhere/at/all"], "/nowhere/at/all does not exist"),
        (["check", __file__], "test_check.py is not a folder"),
        (["check"], "required: ROOT"),
        (["chekc", "."], "Did you mean 'check'?"),
        (["check", ".", "--qick"], "unknown option '--qick'. Did you mean '--quick'?"),
        (["check", ".", "--set", "isik"], "Did you mean 'isic'?"),
        (["show", "isik", "."], "Did you mean 'isic'?"),
        (["fetch", "isik", "."], "Did you mean 'isic'?"),
        (["fetch", "isic"], "required: ROOT"),
        (["show", "isic", ".", "--seed", "-1"], "'-1' is not a whole number"),
        (["show", "isic", ".", "--output", "a.jpg"], "ends in .png"),
        (["show", "isic", "."], "no ground-truth table"),
        ([], "check|show|fetch"),
    ],
)
def test_mistakes(dtrap, words, told):
    status, out, err = dtrap("data", *words)
    assert (status, out) == (2, "")
    assert err.startswith("dtrap: ")
    assert told in err
    assert len(err.splitlines()) <= 5


@pytest.mark.skipif(not REAL_IMAGES.is_dir(), reason=NO_SAMPLES)
def test_real_samples(dtrap):
    status, out, err = dtrap("data", "check", REAL_IMAGES)
    assert (status, err) == (1, "")
    for line in ("210 images found, 10,015", "300 images found, 27,000", "18 class folders are missing"):
        assert line in out
    assert "15 rows with several findings skipped" in out
    assert "Pleural_Thickening 4" in out
    assert "67 of 212 rows have nothing in columns that are not used: Patient Age," in out
    assert "cannot be read" not in out
