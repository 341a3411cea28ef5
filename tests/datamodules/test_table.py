"""A table of paths and labels: its forms, its columns, its faults, and the tasks over its images."""

import logging

import pandas as pd
import pytest
from dtrap.datamodules import AllWay, FolderDataModule, Preprocessing, TableDataModule
from dtrap.errors import DtrapError
from layouts import make_class_folders, picture

SMALL = Preprocessing(image_size=16)
CLASSES = ["birch", "maple", "oak"]
ROWS = [(f"{name}/{name}_{number + 1}.jpg", name, f"p{number // 2}") for name in CLASSES for number in range(6)]
BODY = "".join(f"{path},{label}\n" for path, label, _ in ROWS)
PLAIN = f"path,label\n{BODY}"
GROUPED = "path,label,group\n" + "".join(",".join(row) + "\n" for row in ROWS)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_class_folders(tmp_path_factory.mktemp("table") / "photos", CLASSES, 6)


@pytest.fixture
def read(root, tmp_path):
    """Write a table and return its data module."""

    def make(text, name="labels.csv", encoding="utf-8", **options):
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return TableDataModule(root, table=file, preprocessing=SMALL, **options)

    return make


def classes_by_path(data):
    index = data.index
    return {index.relative(n): index.class_names[label] for n, label in enumerate(index.labels)}


EXPECTED = {f"0/{path}": label for path, label, _ in ROWS}


@pytest.mark.parametrize(
    ("text", "name", "encoding"),
    [
        (PLAIN, "labels.csv", "utf-8"),
        (PLAIN, "labels.csv", "utf-8-sig"),
        (PLAIN, "labels.csv", "utf-16"),
        (PLAIN.replace("\n", "\r\n"), "labels.csv", "utf-8"),
        (PLAIN.replace(",", ";"), "labels.csv", "utf-8"),
        ("sep=;\n" + PLAIN.replace(",", ";"), "labels.csv", "utf-8"),
        (PLAIN.replace(",", "\t"), "labels.tsv", "utf-8"),
        (PLAIN.replace(",", " , "), "labels.csv", "utf-8"),
        ("\n\n" + PLAIN.replace("\n", "\n\n"), "labels.csv", "utf-8"),
        ('"path","label"\n' + "".join(f'"{path}","{label}"\n' for path, label, _ in ROWS), "labels.csv", "utf-8"),
        (PLAIN.replace(".jpg", ""), "labels.csv", "utf-8"),
        (PLAIN.replace("/", "\\"), "labels.csv", "utf-8"),
        ("path,label\n" + BODY.replace("oak/", "./photos/../oak/"), "labels.csv", "utf-8"),
        ("path,label\n" + "".join(f"photos/{path},{label}\n" for path, label, _ in ROWS), "labels.csv", "utf-8"),
        (
            ",image_id,dx\n" + "".join(f"{n},{path},{label}\n" for n, (path, label, _) in enumerate(ROWS)),
            "a.csv",
            "utf-8",
        ),
    ],
)
def test_all_forms_of_a_table_say_the_same(read, text, name, encoding):
    assert classes_by_path(read(text, name, encoding)) == EXPECTED


def test_absolute_paths_inside_the_root_and_no_others(read, root):
    absolute = "".join(f"{root / path},{label}\n" for path, label, _ in ROWS)
    assert classes_by_path(read(f"path,label\n{absolute}")) == EXPECTED
    for outside in (
        "/etc/passwd",
        "../labels.csv",
        "oak/../../photos/oak/oak_1.jpg",
        "C:\\oak\\oak_1.jpg",
        "\\\\x\\a.jpg",
    ):
        with pytest.raises(DtrapError, match=r"labels\.csv, line 20: it is outside of the root"):
            read(f"{PLAIN}{outside},oak\n").setup()
    with pytest.raises(DtrapError, match="web address"):
        read(f"{PLAIN}https://example.com/a.jpg,oak\n").setup()


def test_parquet(read, tmp_path):
    frame = pd.DataFrame(ROWS, columns=["path", "label", "group"]).assign(picture=b"1", target=[0.0, None] * 9)
    frame.to_parquet(tmp_path / "t.parquet")
    data = read((tmp_path / "t.parquet").read_bytes(), "labels.parquet")
    assert classes_by_path(data) == EXPECTED
    assert set(data.index.groups) == {"p0", "p1", "p2"}
    frame.assign(label=None).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DtrapError, match=r"None of the 18 rows .* birch/birch_1\.jpg \(b\.parquet, row 1: no label\)"):
        read((tmp_path / "t.parquet").read_bytes(), "b.parquet").setup()
    with pytest.raises(DtrapError, match="cannot be read as Parquet"):
        read(b"PAR1 and more", "b.parquet").setup()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PLAIN + "oak/oak_9.jpg,oak\n", r"oak/oak_9\.jpg \(labels\.csv, line 20: no such file\)"),
        (PLAIN + ",oak\n", r"\(empty\) \(labels\.csv, line 20: no path\)"),
        (PLAIN.replace("maple_2.jpg,maple", "maple_2.jpg,"), r"maple_2\.jpg \(labels\.csv, line 9: no label\)"),
        (PLAIN + "oak/oak_1.jpg,birch\n", r"label 'oak' in line 14, 'birch' in line 20"),
        (PLAIN + "oak,birch\n", "line 20: it is a folder"),
        ('path,label,x\n"oak/oak_1.jpg",oak,"a\nb"\nzz.jpg,oak,\n', r"zz\.jpg \(labels\.csv, line 4: no such file"),
        (PLAIN + "a, b.jpg,oak\n", r"line 20 has 3 cells, and the header 2.*quotation marks"),
        (PLAIN + '"oak/oak_1.jpg,oak\n', "line 20: a quotation mark is not closed"),
        (BODY, r"no header: its first line is 'birch/birch_1\.jpg, birch'.*path,label"),
        ("path\na.jpg\n", r"has one column, 'path'"),
        ("path,label,label\na.jpg,oak,oak\n", "several columns 'label'"),
        ("path,label\n", "no rows below its header"),
        ("", "is empty"),
        ("path,a,b\noak/oak_1.jpg,x,y\n", r"no column of labels is found among path, a, b\..*--data\.label_column"),
        ("a,b\nx,y\n", r"no column of paths of the images.*--data\.path_column"),
        (
            "path,label\nx.jpg,a\ny.jpg,b\n",
            r"None of the 2 rows .*x\.jpg \(labels\.csv, line 2: no such file\).*--data\.root",
        ),
        (PLAIN.replace(",maple", ",birch").replace(",oak", ",birch"), "one class only, 'birch'.*--data.label_column"),
        (
            PLAIN.replace("_1.jpg,oak", "_1.jpg,Oak"),
            r"'Oak' \(1 rows\) and 'oak' \(5 rows\) as the same text.*class_names",
        ),
        (b"PK\x03\x04" + b"\0" * 99, "Excel or zip file"),
        (PLAIN.encode() + b"oak/oak_1.jpg,Ahorn\xe4\n", r"line 20: byte 0xe4 is not UTF-8.*iconv"),
    ],
)
def test_faults_name_the_file_and_the_row(read, text, message):
    with pytest.raises(DtrapError, match=f"(?s){message}"):
        read(text).setup()


def test_faulty_rows_are_left_out_on_request(read, root, caplog):
    faults = "oak/oak_9.jpg,oak\n,oak\n../x.jpg,oak\noak/oak_1.jpg,birch\noak/oak_2.jpg,\n"
    data = read(PLAIN.replace("oak/oak_2.jpg,oak\n", "") + faults, bad_images="skip")
    assert {path: label for path, label in EXPECTED.items() if path not in ("0/oak/oak_1.jpg", "0/oak/oak_2.jpg")} == (
        classes_by_path(data)
    )
    assert len(data.skipped_images) == 5
    assert "without a row" not in caplog.text  # oak_1 and oak_2 have one


def test_what_is_unusual_is_said(read, root, caplog):
    caplog.set_level(logging.WARNING)
    names = "".join(f"{path.split('/')[1].upper()},{label}\n" for path, label, _ in ROWS[:-1])
    data = read(f"file;class\n{names}".replace(",", ";"))
    assert len(data.index.paths) == 17
    for said in (
        "labels.csv: paths from 'file', labels from 'class'; --data.path_column or --data.label_column",
        "its columns are separated by a semicolon",
        "17 images found in another folder: BIRCH_1.JPG, BIRCH_2.JPG",
        "1 image without a row, not used: oak/oak_6.jpg",
    ):
        assert said in caplog.text
    caplog.clear()
    assert len(read(PLAIN + "oak/oak_1.jpg,oak\n").index.paths) == 18
    assert "1 more rows of images that are named before: labels.csv, line 20 (oak/oak_1.jpg)" in caplog.text
    assert "paths from" not in caplog.text


def test_a_name_that_several_files_have_is_refused(tmp_path):
    root = make_class_folders(tmp_path / "photos", ["a", "b"], 1)
    for folder in ("a", "b"):
        picture(7).save(root / folder / "same.jpg")
    picture(8).save(root / "a" / "a_1.png")
    table = tmp_path / "labels.csv"
    for cell in ("same.jpg", "a/a_1"):
        table.write_text(f"path,label\nb/b_1.jpg,y\n{cell},x\n")
        with pytest.raises(DtrapError, match=r"labels\.csv, line 3: several files may be meant: a/"):
            TableDataModule(root, table=table).setup()


def test_labels_as_numbers_get_names(read, caplog):
    numbered = "path,target\n" + "".join(f"{path},{CLASSES.index(label)}.0\n" for path, label, _ in ROWS)
    assert read(numbered).index.class_names == ["0", "1", "2"]
    assert "name the classes: --data.class_names '{0: NAME, 1: NAME}'" in caplog.text
    names = {"0": "birch tree", "2": "oak"}
    assert read(numbered, class_names=names).index.class_names == ["birch tree", "1", "oak"]
    beside = "path,target,name\n" + "".join(f"{path},{9 + CLASSES.index(label)},{label}\n" for path, label, _ in ROWS)
    assert read(beside).index.class_names == CLASSES
    with pytest.raises(DtrapError, match=r"class_names has the label 'okk'.* Did you mean 'oak'"):
        read(PLAIN, class_names={"okk": "x"}).setup()
    assert read(PLAIN, class_names={"maple": "a tree", "oak": "a tree"}).index.class_names == ["birch", "a tree"]
    assert "maple, oak are one class, 'a tree'" in caplog.text


def test_a_row_with_several_labels_is_not_a_class(read):
    text = PLAIN.replace("oak_2.jpg,oak", "oak_2.jpg,oak|birch")
    with pytest.raises(
        DtrapError, match=r"oak_2\.jpg \(labels\.csv, line 15: several labels: oak, birch; expected one"
    ):
        read(text).setup()
    assert read(text, bad_images="skip").index.class_names == CLASSES
    assert read(text, class_names={"oak|birch": "mixed"}).index.class_names == ["birch", "maple", "oak", "mixed"]
    assert read(PLAIN.replace(",oak", ",oak|tree")).index.class_names[-1] == "oak|tree"


def test_columns_of_zeros_and_ones(read):
    def table(last="0,0,1"):
        rows = [f"{p},{','.join('1.0' if label == c else '0.0' for c in CLASSES)}" for p, label, _ in ROWS[:-1]]
        return "\n".join([",".join(["image", *CLASSES]), *rows, f"oak/oak_6.jpg,{last}"]) + "\n"

    assert classes_by_path(read(table())) == EXPECTED
    assert classes_by_path(read(table(), label_column=CLASSES)) == EXPECTED
    for last, reason in (("1,0,1", "expected one 1, found birch and oak"), ("0,0,0", "no label")):
        with pytest.raises(DtrapError, match=rf"oak_6\.jpg \(labels\.csv, line 19: {reason}\)"):
            read(table(last)).setup()
    with pytest.raises(DtrapError, match=r"expected 0 or 1 in column oak, found '0\.4'"):
        read(table("0,0,0.4"), label_column=CLASSES).setup()


def split_table(splits):
    rows = (f"{path},{label},{splits[n % len(splits)]}\n" for n, (path, label, _) in enumerate(ROWS))
    return "path,label,split\n" + "".join(rows)


def test_splits(read):
    data = read(split_table(["Train", "training", "valid", "TEST", "train", "dev"]))
    task = data.task
    of = data.index.splits
    parts = (task.support, task.validation, task.query)
    assert [[len(images) for images in part] for part in parts] == [[3] * 3, [2] * 3, [1] * 3]
    assert [{of[p] for images in part for p in images} for part in parts] == [{"train"}, {"val"}, {"test"}]
    episode = read(split_table(["train", "train", "test"]), shot=2, query=1, way=2).task
    assert [len(images) for images in episode.support] == [2, 2]
    assert read(split_table(["train"])).index.splits is None
    assert read(split_table(["train", "test"]), split_column="").index.splits is None
    for splits, options, message in (
        (
            ["train", "held back"],
            {},
            r"labels\.csv, line 3: split 'held back' in column 'split'; expected train, val, test",
        ),
        (["train", ""], {}, r"birch_2\.jpg \(labels\.csv, line 3: no split\)"),
        (["test"], {}, "no image to train on: 18 test"),
        (["train", "test"], {"held_out": 0.2}, "has test images"),
        (["train", "val"], {"shot": 1, "query": 1, "way": 2}, "no test image to draw queries from"),
    ):
        with pytest.raises(DtrapError, match=message):
            read(split_table(splits), **options).setup()


def test_a_column_that_only_may_be_splits_is_not_used(read, caplog):
    assert read(split_table(["A", "B"]).replace("split", "set")).index.splits is None
    assert "column 'set' has other values than splits and is not used" in caplog.text


def test_the_order_of_the_rows_does_not_matter(read):
    options = {"held_out": 0.4, "group": "group"}
    first = read(GROUPED, **options)
    head, *rows = GROUPED.splitlines(keepends=True)
    second = read(head + "".join(reversed(rows)), "other.csv", **options)
    assert (first.task, first.fingerprint) == (second.task, second.fingerprint)
    assert read(GROUPED, group="").fingerprint != first.fingerprint


def test_one_task_of_a_table_is_that_of_class_folders(read, root):
    folders = FolderDataModule(root, held_out=0.3, preprocessing=SMALL)
    assert read(PLAIN, held_out=0.3).task == folders.task
    options = {"shot": 2, "query": 2, "way": 3, "preprocessing": SMALL}
    assert read(PLAIN, shot=2, query=2, way=3).task == FolderDataModule(root, **options).task


def test_groups_in_all_protocols(read, caplog):
    def groups(data, images):
        return {data.index.groups[p] for of_class in images for p in of_class}

    held = read(GROUPED, held_out=0.3)
    episode = read(GROUPED, shot=1, query=2, way=3, validation_shots=1)
    subset = (all_way := read(GROUPED, shot=1, all_way=AllWay(seeds=[4]))).subset
    for data, parts in (
        (held, (held.task.support, held.task.query)),
        (episode, (episode.task.support, episode.task.query, episode.task.validation)),
        (all_way, (subset.train, subset.val, subset.test)),
    ):
        found = [groups(data, part) for part in parts]
        assert all(found)
        assert len(set().union(*found)) == sum(map(len, found))
    crossing = GROUPED.replace("group", "split,group").replace(",p", ",train,p").replace("train,p2", "test,p1")
    with pytest.raises(
        DtrapError, match=r"1 of 2 groups of column 'group' are in several splits, such as 'p1' in train"
    ):
        read(crossing).setup()
    assert read(crossing, group="").index.groups is None
    with pytest.raises(DtrapError, match=r"no column 'patient' \(--data\.group\)"):
        read(GROUPED, group="patient").setup()


def test_a_column_that_may_be_groups_is_named(read, caplog):
    data = read(GROUPED.replace("group", "Patient ID"), shot=2, query=2, way=2)
    data.note_split_groups(range(3))
    assert data.index.groups is None
    assert "column 'Patient ID' is not used: 3 of its values have several images" in caplog.text
    assert "of 3 episodes a patient is in both support and query" in caplog.text
    assert "--data.group 'Patient ID' keeps them apart" in caplog.text
    assert set(read(GROUPED.replace("group", "Patient ID"), group="patient_id").index.groups) == {"p0", "p1", "p2"}


def test_missing_and_unusual_files(root, tmp_path):
    with pytest.raises(DtrapError, match=r"--data\.table FILE"):
        TableDataModule(root)
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "x.csv", "does not exist"),
        (tmp_path / "a.xlsx", "spread"),
    ):
        (tmp_path / "a.xlsx").touch()
        with pytest.raises(DtrapError, match=message):
            TableDataModule(root, table=path).setup()
    (tmp_path / "ok.csv").write_text(PLAIN)
    with pytest.raises(DtrapError, match=r"none does not exist\. Set data\.root"):
        TableDataModule(tmp_path / "none", table=tmp_path / "ok.csv").setup()


def test_a_run_resumes_with_the_table_in_another_place(dtrap, tmp_path, root, tiny_model):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "labels.csv").write_text(PLAIN)
    words = ["--config", "table.yaml", "--data.root", root, "--data.held_out", 0.3, *tiny_model]
    words += ["--trainer.max_epochs", 1, "--protocol.folder", "run", "--data.class_names", "{oak: an oak leaf}"]
    status, out, err = dtrap("fit", *words, "--data.table", "one/labels.csv")
    assert status == 0, err
    assert "trained on 12 images, tested on 6" in out
    status, out, err = dtrap("fit", *words, "--data.table", "two/labels.csv")
    assert status == 0, err
    assert "Already finished" in out
    (tmp_path / "two" / "labels.csv").write_text(PLAIN.replace("oak_1.jpg,oak", "oak_1.jpg,birch"))
    status, _, err = dtrap("fit", *words, "--data.table", "two/labels.csv", "--protocol.episodes", 1)
    assert status != 0
    assert "its rows come from other data files" in err
