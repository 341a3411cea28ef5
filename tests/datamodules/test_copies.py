"""The same image under other names: found by content, wherever it would make a number wrong."""

import os
import shutil

import pytest
from dtrap.datamodules import FolderDataModule, Preprocessing
from dtrap.datamodules.copies import find_copies
from dtrap.errors import DtrapError
from layouts import make_class_folders, make_folder, picture


@pytest.fixture
def queries(tmp_path, folder_root):
    """Two images per class, the first two of which are copies of support images of cls_00."""
    root = make_class_folders(tmp_path / "queries", ["cls_00", "cls_01"], 0)
    for number in range(2):
        shutil.copy(folder_root / "cls_00" / f"cls_00_{number + 1}.png", root / "cls_00" / f"copy {number}.jpg")
        picture(900 + number).save(root / "cls_01" / f"new_{number}.png")
    return root


def folder(root, **options):
    return FolderDataModule(root, preprocessing=Preprocessing(image_size=16), **options)


def test_only_files_of_one_size_and_the_same_ends_are_read(tmp_path, monkeypatch):
    for name, content in {"a": b"x" * 9000, "b": b"x" * 9000, "c": b"y" * 9000, "d": b"z", "e": b"", "f": b""}.items():
        (tmp_path / name).write_bytes(content)
    middle = b"x" * 4500 + b"w" + b"x" * 4499
    (tmp_path / "g").write_bytes(middle)
    os.mkfifo(tmp_path / "h")
    paths = [str(tmp_path / name) for name in "abcdefgh"] + [str(tmp_path / "gone")]
    assert find_copies(paths) == [paths[:2]]


def test_a_support_image_among_the_queries_is_said(folder_root, queries, caplog):
    data = folder(folder_root, query_root=queries)
    data.setup()
    assert data.copied_queries == 2
    assert "2 of the 4 images of query_root are also under root" in caplog.text
    assert "copy 0.jpg is " in caplog.text
    assert "--data.bad_images skip" in caplog.text
    assert data.query()["labels"].tolist() == [0, 0, 1, 1]


def test_the_result_says_how_many_test_images_were_trained_on(dtrap, folder_root, queries, tiny_model):
    words = ["fit", "--config", "folder.yaml", "--data.root", folder_root, "--data.query_root", queries, *tiny_model]
    status, out, err = dtrap(*words, "--trainer.max_epochs", 1, "--protocol.folder", "run")
    assert status == 0, err
    assert "2 of 4 test images are training images" in out
    status, out, _ = dtrap("test", "--adapter", "run")
    assert status == 0
    assert "2 of 4 test images are training images" in out


def test_a_support_image_among_the_queries_can_be_left_out(folder_root, queries, caplog):
    data = folder(folder_root, query_root=queries, bad_images="skip")
    assert data.query()["labels"].tolist() == [1, 1]
    assert len(data.support_ids) == 23
    assert [os.path.basename(path) for path, _ in data.skipped_images] == ["copy 0.jpg", "copy 1.jpg"]
    assert "left out 2 files or folders that cannot be used" in caplog.text


def test_a_copy_of_the_root_is_no_test(folder_root, tmp_path):
    shutil.copytree(folder_root, tmp_path / "copy")
    with pytest.raises(DtrapError, match=r"All 23 images of query_root .* are images of root .* --data\.held_out 0\.2"):
        folder(folder_root, query_root=tmp_path / "copy", bad_images="skip").setup()


def test_queries_in_the_root_are_a_class(folder_root):
    make_class_folders(folder_root / "test", ["cls_00"], 1)
    with pytest.raises(DtrapError, match=r"is inside root .*Move it"):
        folder(folder_root, query_root=folder_root / "test")


def test_copies_within_the_root_are_said(tmp_path, caplog):
    root = make_folder(tmp_path / "photos", counts=(3, 3))
    shutil.copy(root / "cls_00" / "cls_00_1.png", root / "cls_00" / "cls_00_1 (1).png")
    shutil.copy(root / "cls_00" / "cls_00_2.png", root / "cls_01" / "other.png")
    folder(root, held_out=0.3).setup()
    assert "the same image is there twice: cls_00/cls_00_1 (1).png and cls_00/cls_00_1.png" in caplog.text
    assert "the same image is in several classes: cls_00/cls_00_2.png and cls_01/other.png" in caplog.text


def test_two_files_of_one_name_are_said(tmp_path, caplog):
    root = make_folder(tmp_path / "photos", counts=(3, 3))
    picture(77).save(root / "cls_00" / "CLS_00_1.jpg")
    folder(root).setup()
    assert "1 image has the name of another one with another ending, and all are used" in caplog.text
    assert "cls_00/CLS_00_1.jpg and cls_00_1.png" in caplog.text
