"""Tables and lists in other encodings, with other separators, and files that only have the name of a table."""

import gzip
import json
import os
import time

import numpy as np
import pytest
from coop_layouts import COOP_MAKERS, split_file
from dtrap.datamodules import AllWay, ChestXDataModule, ISICDataModule, coop
from dtrap.datamodules import text_files as reader
from dtrap.errors import DtrapError
from layouts import make_chestx, make_isic
from scipy.io import savemat

TRUTH = "ISIC2018_Task3_Training_GroundTruth"


@pytest.fixture
def root(tmp_path):
    return make_isic(tmp_path / "isic")


def table_of(root):
    return root / TRUTH / f"{TRUTH}.csv"


def content(root):
    index = ISICDataModule(root).scan()
    return index.paths, index.labels


READ = {
    "UTF-8 with a mark": (lambda text: text.encode("utf-8-sig"), None),
    "UTF-16 as Excel's Unicode text": (lambda text: text.replace(",", "\t").encode("utf-16"), "UTF-16 and its columns"),
    "UTF-16, big": (lambda text: b"\xfe\xff" + text.encode("utf-16-be"), "it is in UTF-16"),
    "UTF-32": (lambda text: text.encode("utf-32"), "it is in UTF-32"),
    "semicolons": (lambda text: text.replace(",", ";").encode(), "its columns are separated by a semicolon"),
    "tabs": (lambda text: text.replace(",", "\t").encode(), "its columns are separated by a tab"),
    "semicolons and decimal commas": (lambda text: text.replace(",", ";").replace(".", ",").encode(), "a semicolon"),
    "Windows' line ends": (lambda text: text.replace("\n", "\r\n").encode(), None),
    "line ends of an old Mac": (lambda text: text.replace("\n", "\r").encode(), None),
    "quotation marks": (lambda text: "\n".join(f'"{c}"'.replace(",", '","') for c in text.split()).encode(), None),
    "empty rows of a spreadsheet": (lambda text: (text + ",,,,,,,\n" * 3).encode(), None),
    "spaces in the header": (lambda text: text.replace(",MEL", ", MEL ").encode(), None),
}


@pytest.mark.parametrize("form", READ)
def test_a_table_that_is_read_and_said(root, form):
    change, note = READ[form]
    before = content(root)
    table_of(root).write_bytes(change(table_of(root).read_text()))
    assert content(root) == before
    notes = " ".join(ISICDataModule(root).scan().notes)
    assert (note in notes) if note else notes == ""


REFUSED = {
    "Latin-1": (
        lambda t: t.replace("ISIC_0000001", "ISIC_é").encode("latin-1"),
        r"line 3: byte 0xe9 is not UTF-8",
    ),
    "UTF-16 without a mark": (lambda t: t.encode("utf-16-le"), r"UTF-16LE without a byte order mark.*iconv"),
    "zero bytes": (lambda t: t.replace("0001", "\0\0\0\0", 1).encode(), r"line 3 has a zero byte"),
    "empty": (lambda t: b"", r"is empty\. Download it again"),
    "blank": (lambda t: b"\n \n", r"is empty\. Download it again"),
    "a mark alone": (lambda t: b"\xef\xbb\xbf", r"column 'image' is missing|has no rows|is empty"),
    "header alone": (lambda t: t.split()[0].encode(), r"has no rows"),
    "another semicolon table": (
        lambda t: b"a;b;c\n1;2;3\n",
        r"separated by a semicolon, and column 'image'",
    ),
    "Excel": (lambda t: b"PK\x03\x04" + bytes(40), r"is an Excel or zip file; expected a table\. Save it as CSV"),
    "old Excel": (lambda t: b"\xd0\xcf\x11\xe0" + bytes(40), r"is an old Excel file"),
    "gzip": (lambda t: gzip.compress(t.encode()), r"is gzip-compressed; .*gunzip"),
    "web page": (lambda t: b"\n<!DOCTYPE html><html>", r"is a web page; expected a table\. Download it again"),
    "LFS": (lambda t: b"version https://git-lfs.github.com/spec/v1\n", r"is a Git LFS pointer.*git lfs pull"),
    "binary": (lambda t: os.urandom(4000), r"zero byte|not UTF-8|UTF-16|UTF-32"),
    "open quotation mark": (lambda t: t.replace("ISIC_0000001", '"ISIC_0000001').encode(), r"not a row of a table"),
    "huge line": (lambda t: t.encode() + b"x" * 2**21, r"line 30 has 2,097,152 characters; expected a table"),
    "huge cell": (lambda t: t.encode() + b"x" * 200_000, r"line 30: not a row of a table \(field larger"),
    "many columns": (lambda t: b"," * 1_000_000, r"column 'image' is missing"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_a_table_that_is_refused(root, form):
    change, told = REFUSED[form]
    table_of(root).write_bytes(change(table_of(root).read_text()))
    started = time.monotonic()
    with pytest.raises(DtrapError, match=told) as error:
        ISICDataModule(root).scan()
    assert time.monotonic() - started < 5
    assert len(str(error.value)) < 1000
    assert f"{TRUTH}.csv" in str(error.value)


def test_files_that_never_end_or_are_none(root, monkeypatch):
    table = table_of(root)
    table.rename(root / "kept.csv")
    os.mkfifo(table)
    with pytest.raises(DtrapError, match=r"GroundTruth\.csv .*FIFO"):
        ISICDataModule(root).scan()
    table.unlink()
    table.symlink_to("/dev/zero")
    with pytest.raises(DtrapError, match=r"GroundTruth\.csv .*device"):
        ISICDataModule(root).scan()
    table.unlink()
    table.mkdir()
    with pytest.raises(DtrapError, match=r"GroundTruth\.csv .*folder"):
        ISICDataModule(root).scan()
    table.rmdir()
    (root / "kept.csv").rename(table)
    monkeypatch.setattr(reader, "LARGEST", 100)
    with pytest.raises(DtrapError, match=r"has more than 0 MB; expected a table\. Use the official file"):
        ISICDataModule(root).scan()


def test_chestx_in_latin_1_and_with_semicolons(tmp_path):
    root = make_chestx(tmp_path)
    before = ChestXDataModule(root).scan()
    table = root / "Data_Entry_2017.csv"
    text = table.read_text()
    table.write_text(text.replace(",", ";"))
    index = ChestXDataModule(root).scan()
    assert (index.paths, index.labels) == (before.paths, before.labels)
    table.write_bytes(text.replace(",M,PA", ",Männlich,PA").encode("cp1252"))
    with pytest.raises(DtrapError, match=r"line 2: byte 0xe4 is not UTF-8.*iconv -f WINDOWS-1252"):
        ChestXDataModule(root).scan()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("DTD", "dtd/split_zhou_DescribableTextures.json"),
        ("FGVCAircraft", "fgvc_aircraft/variants.txt"),
        ("ImageNet", "imagenet/classnames.txt"),
        ("StanfordCars", "stanford_cars/devkit/cars_meta.mat"),
        ("Flowers102", "oxford_flowers/imagelabels.mat"),
    ],
)
@pytest.mark.parametrize("kind", ["FIFO", "empty", "device"])
def test_lists_and_splits_that_are_no_files(tmp_path, name, file, kind):
    cls = getattr(coop, f"{name}DataModule")
    maker = {"DTD": "dtd", "FGVCAircraft": "fgvc_aircraft", "StanfordCars": "stanford_cars", "Flowers102": "flowers102"}
    COOP_MAKERS[maker.get(name, "imagenet")](tmp_path)
    if not file.endswith(".json") and cls.split_file:
        split_file(tmp_path).unlink()
    path = tmp_path / file
    path.unlink()
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
    with pytest.raises(DtrapError, match=r"is empty|FIFO"):
        cls(tmp_path).scan()


def test_a_split_file_in_another_form(tmp_path, monkeypatch):
    COOP_MAKERS["dtd"](tmp_path)
    path = split_file(tmp_path)
    text = path.read_text()
    before = coop.DTDDataModule(tmp_path).scan()
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text(text, encoding=encoding)
        assert coop.DTDDataModule(tmp_path).scan() == before
    path.write_text("[" * 200_000)
    with pytest.raises(DtrapError, match=r"cannot be read as JSON"):
        coop.DTDDataModule(tmp_path).scan()
    path.unlink()
    bomb = path.with_name(f"{path.name}.gz")
    bomb.write_bytes(gzip.compress(bytes(10_000_000)))
    monkeypatch.setattr(reader, "LARGEST", 1_000_000)
    with pytest.raises(DtrapError, match=r"has more than 0 MB; expected JSON"):
        coop.DTDDataModule(tmp_path).scan()


def test_a_list_in_utf_16_is_read(tmp_path):
    root = COOP_MAKERS["fgvc_aircraft"](tmp_path)
    before = coop.FGVCAircraftDataModule(root).scan()
    for path in (root / "fgvc_aircraft").glob("*.txt"):
        path.write_text(path.read_text(), encoding="utf-16")
    assert coop.FGVCAircraftDataModule(root).scan() == before


def test_a_matlab_file_of_something_else(tmp_path):
    root = COOP_MAKERS["flowers102"](tmp_path)
    split_file(root).unlink()
    savemat(root / "oxford_flowers" / "imagelabels.mat", {"setid": np.arange(3)})
    with pytest.raises(DtrapError, match=r"variable 'labels' is missing; found setid"):
        coop.Flowers102DataModule(root).scan()


def test_a_subset_file_that_is_a_pipe_or_deep(tmp_path):
    root = COOP_MAKERS["dtd"](tmp_path / "data")
    os.mkfifo(tmp_path / "subset.json")
    (tmp_path / "deep.json").write_text("[" * 200_000)
    for name, told in (("subset.json", "is a pipe or device"), ("deep.json", "not a subset file")):
        data = coop.DTDDataModule(root, shot=1, all_way=AllWay(seeds=[1]), subset=tmp_path / name)
        with pytest.raises(DtrapError, match=told):
            _ = data.subset


def test_json_is_not_read_as_a_table(root):
    table_of(root).write_text(json.dumps({"image": 1}))
    with pytest.raises(DtrapError, match=r"column 'image' is missing"):
        ISICDataModule(root).scan()
