"""All unreadable images of a set are told at once, before the first episode."""

import os
import sys
from types import ModuleType

import numpy as np
import pytest
from dtrap.datamodules import FolderDataModule, Preprocessing, image_check
from dtrap.datamodules.images import ImageError, open_image
from dtrap.datamodules.walk import IMAGE_ENDINGS, list_images
from dtrap.errors import DtrapError
from layouts import make_folder, picture, truncate
from PIL import Image

# Formats that Pillow can write, by ending.
WRITTEN = [
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "bmp", "dib", "tif", "tiff", "webp", "gif", "ppm", "pgm", "pbm"),
    *("pnm", "jp2", "j2k", "jpc", "jpf", "jpx", "j2c", "avif", "tga", "ico", "pcx", "sgi", "dds", "qoi", "icns", "mpo"),
]


def quick_fault(path):
    return image_check.quick_fault(path, lambda: open_image(path))


def full_fault(path):
    return image_check.full_fault(path, lambda: open_image(path))


@pytest.mark.parametrize("ending", WRITTEN)
def test_endings_that_pillow_decodes_are_read_in_any_case(tmp_path, ending):
    mode = {"pbm": "1", "pgm": "L"}.get(ending, "RGB")
    picture(0, (64, 64)).convert(mode).save(tmp_path / f"a.{ending}")
    (tmp_path / f"a.{ending}").rename(tmp_path / f"b.{ending.upper()}")
    (path,) = list_images(tmp_path)
    assert open_image(path).mode == "RGB"
    assert quick_fault(path) == full_fault(path) == ""


def test_what_starts_another_program_is_not_opened_under_any_name(tmp_path):
    assert not IMAGE_ENDINGS & {".eps", ".ps", ".pdf", ".wmf", ".emf", ".mpg", ".h5", ".svg"}
    picture(0).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="not an image that Pillow supports"):
        open_image(tmp_path / "a.jpg")


def test_heic_is_read_by_its_package(tmp_path, monkeypatch):
    path = tmp_path / "a.HEIC"
    picture(0).save(path, format="PNG")
    for registry in (Image.OPEN, Image.ID):
        monkeypatch.setattr(Image, "OPEN" if registry is Image.OPEN else "ID", type(registry)(registry))
    package = ModuleType("pillow_heif")
    seen = []
    package.register_heif_opener = lambda: seen.append("registered")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path.write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ImageError, match=r"a\.HEIC cannot be read: .*pip install pillow-heif"):
        open_image(path)
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    with pytest.raises(ImageError):
        open_image(path)
    assert seen == ["registered"]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.tif"])
def test_a_quick_look_finds_what_decoding_finds(tmp_path, name):
    path = tmp_path / name
    picture(0, (200, 160)).save(path)
    content = path.read_bytes()
    assert quick_fault(str(path)) == ""
    path.write_bytes(content + b"\0" * 100)
    assert quick_fault(str(path)) == full_fault(str(path)) == ""
    truncate(path)
    assert quick_fault(str(path)) == full_fault(str(path)) != ""
    for bad in (b"", b"text", content[:4]):
        path.write_bytes(bad)
        assert quick_fault(str(path)) != ""
    path.unlink()
    os.mkfifo(path)
    assert "FIFO" in quick_fault(str(path))


def test_sound_jpeg_and_png_files_are_not_decoded(tmp_path):
    for name in ("a.jpg", "a.png"):
        picture(0).save(tmp_path / name)
    assert [image_check.quick_fault(str(tmp_path / name), None) for name in ("a.jpg", "a.png")] == ["", ""]


def spoil(root):
    """Four of 20 images, in another class each; the first 5-shot episode does not need all of them."""
    for label in range(4):
        (path,) = root.glob(f"cls_0{label}/cls_0{label}_3.png")
        path.write_bytes(b"")
    return root


def test_a_run_tells_all_of_a_set_before_it_begins(dtrap, tmp_path, tiny_model):
    root = spoil(make_folder(tmp_path / "my photos", counts=(5, 5, 5, 5)))
    words = ["--config", "class_folders_1shot.yaml", "--data.root", root, *tiny_model, "--data.way", 2]
    words += ["--data.query", 4, "--protocol.episodes", 1, "--protocol.folder", tmp_path / "run"]
    status, _, err = dtrap("fit", *words)
    assert status == 2
    assert "my photos: 4 of 20 images cannot be read: " in err
    assert "cls_00_3.png (the file is empty)" in err
    assert "and 1 more" in err
    assert f"dtrap data check '{root}' --csv faults.csv" in err
    assert not (tmp_path / "run" / "results.jsonl").exists()
    status, out, _ = dtrap("data", "check", root, "--csv", tmp_path / "faults.csv")
    assert status == 1
    assert "folder" in out
    assert (tmp_path / "faults.csv").read_text().count("_3.png: the file is empty") == 4
    status, _, err = dtrap("fit", *words, "--data.query", 3, "--data.bad_images", "skip", "--trainer.max_epochs", 1)
    assert status == 0, err


def test_one_task_tells_all_without_a_run_and_without_an_episode(tmp_path):
    root = spoil(make_folder(tmp_path / "photos", counts=(5, 5, 5, 5)))
    data = FolderDataModule(root, preprocessing=Preprocessing(image_size=16))
    with pytest.raises(DtrapError) as told:
        data.support()
    assert all(f"cls_0{label}_3.png cannot be read" in str(told.value) for label in range(3))
    assert "And 1 more." in str(told.value)
    assert "episode" not in str(told.value)


def test_another_loader_is_not_asked(tmp_path):
    class Numbers(FolderDataModule):
        def load_image(self, position):
            return picture(position)

    root = spoil(make_folder(tmp_path / "photos", counts=(5, 5, 5, 5)))
    Numbers(root).check_images([0])
    with pytest.raises(DtrapError, match="4 of 20 images cannot be read"):
        FolderDataModule(root).check_images([0])


def test_images_that_need_a_value_range_are_checked_with_it(dtrap, tmp_path):
    root = tmp_path / "floats"
    for label in "ab":
        (root / label).mkdir(parents=True)
        for number in range(2):
            values = np.random.default_rng([ord(label), number]).uniform(-1000, 3000, (16, 16)).astype(np.float32)
            Image.fromarray(values).save(root / label / f"{number}.tif")
    FolderDataModule(root, value_range=[-1024, 3071]).check_images([0])
    assert dtrap("data", "check", root)[0] == 1
    status, out, _ = dtrap("data", "check", root, "--value_range", "-1024", 3071)
    assert status == 0, out
    truncate(root / "a" / "0.tif")
    with pytest.raises(DtrapError, match=f"dtrap data check {root} --value_range -1024 3071 --csv faults.csv"):
        FolderDataModule(root, value_range=[-1024, 3071]).check_images([0])
    status, out, _ = dtrap("data", "check", root, "--value_range", "-1024", 3071)
    assert (status, out.count("0.tif: ")) == (1, 1)
    status, _, err = dtrap("data", "check", root, "--value_range", 5, 5)
    assert status == 2
    assert "expected the values of black and white" in err
