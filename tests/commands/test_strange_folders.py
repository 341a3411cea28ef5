"""Folders with every kind of entry: each command reads the images, and says what it left out."""

import os
import shutil
from contextlib import nullcontext

import pandas as pd
import pytest
from layouts import make_class_folders, make_crop_disease, make_folder


@pytest.fixture
def strange(tmp_path):
    """A user's folder with images in sub-folders, other files, links in a circle, broken links, pipes and devices."""
    root = make_folder(tmp_path / "photos", counts=(2, 2))
    make_class_folders(root / "cls_00", ["2024-05"], 2, ".TIFF")
    for number in range(12):
        (root / "cls_00" / f"{number}.dcm").touch()
    for number in range(8):
        (root / "cls_01" / f"{number}.svg").touch()
    (root / "cls_01" / "around").symlink_to("..")
    os.mkfifo(root / "cls_01" / "queue")
    return root


def test_fit_says_once_what_it_left_out(dtrap, strange, tmp_path, tiny_model, caplog):
    words = ["--config", "folder.yaml", "--data.root", strange, *tiny_model, "--trainer.max_epochs", 1]
    status, out, err = dtrap("fit", *words, "--protocol.folder", tmp_path / "run")
    assert status == 0, err
    assert "photos 2 classes · 6 images" in out
    told = "22 files left out: 12 .dcm, 8 .svg, 1 FIFO, 1 link to a folder that is read already"
    assert caplog.text.count(told) == 1


def test_entries_called_like_images_stop_a_run_or_are_left_out(dtrap, strange, tmp_path, tiny_model):
    os.mkfifo(strange / "cls_00" / "pipe.jpg")
    (strange / "cls_01" / "gone.png").symlink_to("nowhere.png")
    words = ["--config", "folder.yaml", "--data.root", strange, *tiny_model, "--trainer.max_epochs", 1]
    words += ["--protocol.folder", tmp_path / "run"]
    status, _, err = dtrap("fit", *words)
    assert status == 2
    assert "pipe.jpg (FIFO)" in err
    assert "gone.png (broken link)" in err
    status, out, err = dtrap("fit", *words, "--data.bad_images", "skip")
    assert status == 0, err
    assert "photos 2 classes · 6 images" in out
    assert "2 missing or unreadable images left out" in out


def test_check_lists_what_a_run_says(dtrap, strange):
    os.mkfifo(strange / "cls_00" / "pipe.jpg")
    (strange / "empty").mkdir()
    status, out, _ = dtrap("data", "check", strange)
    assert status == 1
    assert "cls_00/pipe.jpg: FIFO" in out
    assert "22 files left out: 12 .dcm" in out
    assert "1 class folder has no image" in out
    assert "2 of 6 images are in sub-folders of the class folders" in out


def test_predict_reads_the_same_files(dtrap, strange, tmp_path, tiny_model):
    run = tmp_path / "run"
    words = ["--config", "folder.yaml", "--data.root", strange, *tiny_model, "--trainer.max_epochs", 1]
    status, _, err = dtrap("fit", *words, "--protocol.folder", run, "--protocol.save_adapters", "true")
    assert status == 0, err
    (strange / "cls_01" / "gone.png").symlink_to("nowhere.png")
    status, out, err = dtrap(
        "predict", "--adapter", run / "adapters", "--images", strange, "--output", tmp_path / "out.csv"
    )
    assert status == 0, err
    assert "6 images labeled" in out
    assert "22 files left out: 12 .dcm, 8 .svg" in out
    assert "gone.png: broken link" in out
    assert len(pd.read_csv(tmp_path / "out.csv")) == 6


def test_fit_names_a_folder_of_no_class(tmp_path, caplog):
    from dtrap.datamodules import CropDiseaseDataModule

    root = make_crop_disease(tmp_path / "crop", per_class=2)
    make_class_folders(root / "dataset" / "train", ["Background_without_leaves"], 3)
    data = CropDiseaseDataModule(root, shot=1, query=1)
    data.setup()
    data.setup()
    told = "1 folder is of no class and not used: dataset/train/Background_without_leaves: 3 image(s)"
    assert caplog.text.count(told) == 1


@pytest.mark.parametrize("small_classes", ["error", "skip"])
def test_a_class_folder_is_never_dropped_in_silence(strange, small_classes, caplog):
    from dtrap.datamodules import FolderDataModule
    from dtrap.errors import DtrapError

    (strange / "scans").mkdir()
    (strange / "scans" / "1.dcm").touch()
    data = FolderDataModule(strange, small_classes=small_classes)
    with nullcontext() if small_classes == "skip" else pytest.raises(DtrapError, match="'scans' has 0"):
        data.setup()
    assert "no image in the class folder scans: 1 file left out: 1 .dcm" in caplog.text
    assert ("left out 1 small class(es): 'scans' has 0" in caplog.text) == (small_classes == "skip")


def test_a_folder_that_cannot_be_searched_is_named_by_every_command(dtrap, strange, monkeypatch):
    original = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **how: path != strange and original(path, mode, **how))
    for words in (["fit", "--config", "folder.yaml", "--data.root", strange], ["data", "check", strange]):
        status, _, err = dtrap(*words)
        assert status == 2
        assert f"{strange}: the folder cannot be read (Permission denied). Fix its permissions" in err


def test_a_disk_that_cannot_list_a_class(strange, monkeypatch):
    from dtrap.datamodules import FolderDataModule
    from dtrap.errors import DtrapError

    original = os.scandir

    def scandir(path):
        if str(path).endswith("2024-05"):
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(
        DtrapError, match=r"2024-05 \(the folder cannot be read \(Permission denied\)\).*bad_images skip"
    ):
        FolderDataModule(strange).setup()
    data = FolderDataModule(strange, bad_images="skip")
    data.setup()
    assert len(data.support_ids) == 4
    shutil.rmtree(strange)
