"""`dtrap data check` and `show` of a user's own images: copies, class names, sizes and tables."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from dtrap.datamodules.inspection.fingerprints import fingerprint
from dtrap.datamodules.inspection.near_copies import near_copies
from layouts import make_class_folders, truncate
from PIL import Image, ImageOps

REAL = Path(__file__).parents[4] / "shared" / "real" / "images"


def scene(number, side=96):
    """A picture with large and small structure of its own."""
    rng = np.random.default_rng(number)
    parts = [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for size in (4, 9, 30)]
    scaled = [np.asarray(Image.fromarray(part).resize((side, side), Image.Resampling.BICUBIC), float) for part in parts]
    return Image.fromarray(np.average(scaled, axis=0, weights=(3, 2, 1)).astype(np.uint8))


@pytest.fixture
def photos(tmp_path):
    """Two classes of six pictures that are all different."""
    for label, name in enumerate(("maple", "oak")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            scene(10 * label + number).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


COPIES = {
    "half": lambda image: (image.resize((48, 48)), {"quality": 90}),
    "double": lambda image: (image.resize((192, 192)), {"quality": 90}),
    "compressed": lambda image: (image, {"quality": 40}),
    "mirrored": lambda image: (ImageOps.mirror(image), {"quality": 90}),
    "all": lambda image: (ImageOps.mirror(image.resize((48, 48))), {"quality": 60}),
}


@pytest.mark.parametrize("change", COPIES)
def test_copies_across_classes_are_faults_and_in_the_csv(dtrap, photos, tmp_path, change):
    assert dtrap("data", "check", photos)[0] == 0
    image, options = COPIES[change](Image.open(photos / "maple" / "3.png"))
    image.save(photos / "oak" / "copy.jpg", **options)
    status, out, err = dtrap("data", "check", photos, "--csv", tmp_path / "found.csv")
    assert status == 1, err
    assert "1 pair of images shows the same in different classes" in out
    assert ("(mirrored, " in out) == (change in ("mirrored", "all"))
    (pair,) = [row for row in rows(tmp_path / "found.csv") if row["first"]]
    assert (pair["kind"], pair["first"], pair["second"]) == ("fault", "maple/3.png", "oak/copy.jpg")


def test_copies_across_splits_and_within_a_class(dtrap, tmp_path):
    for split, start in (("train", 0), ("test", 50)):
        for label, name in enumerate(("maple", "oak")):
            (tmp_path / "p" / split / name).mkdir(parents=True)
            for number in range(3):
                scene(start + 10 * label + number).save(tmp_path / "p" / split / name / f"{number}.png")
    shutil.copy(tmp_path / "p/train/oak/0.png", tmp_path / "p/test/oak/again.png")
    scene(50).resize((60, 60)).save(tmp_path / "p/test/maple/smaller.png")
    status, out, _ = dtrap("data", "check", tmp_path / "p")
    assert status == 1
    assert "1 pair of images shows the same in different splits, so that an accuracy is too high" in out
    assert "train/oak/0.png and test/oak/again.png (the same content)" in out
    assert "1 pair of images shows the same within a class\n" in out
    assert "        3        4  maple" in out
    quick = dtrap("data", "check", tmp_path / "p", "--quick")[1]
    assert "again.png (the same content)" in quick
    assert "smaller.png" not in quick
    status, out, err = dtrap("data", "show", tmp_path / "p", "--output", tmp_path / "sheet.png")
    assert status == 0, err
    assert "p · 2 classes · 14 images" in out
    assert Image.open(tmp_path / "sheet.png").width > 300


def test_plain_fields_gradients_and_noise_are_no_copies(tmp_path):
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, 64)[None, :, None] * np.ones((64, 1, 1))
    pictures = [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue", "white", "black", "#808080")]
    pictures += [Image.fromarray((ramp * color).astype(np.uint8)) for color in ((255, 0, 0), (0, 0, 255), (60, 60, 60))]
    pictures += [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(20)]
    found = []
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
        found.append(fingerprint(str(tmp_path / f"{number}.png")))
    assert list(near_copies(found)) == []
    assert [(pair.first, pair.second) for pair in near_copies([found[0], None, found[9], found[0]])] == [(0, 3)]


def test_class_names_sizes_and_unreadable_images(dtrap, tmp_path):
    long = "very " * 80 + "long"
    folders = ["Great_Tit", "great tit", "07", long[:200], "красный"]
    make_class_folders(tmp_path / "p", folders, 2)
    make_class_folders(tmp_path / "p", ["sparrow"], 30)
    truncate(tmp_path / "p" / "07" / "07_1.jpg")
    (tmp_path / "p" / "07" / "notes.txt").write_text("x")
    status, out, _ = dtrap("data", "check", tmp_path / "p", "--template", "very " * 40 + "old photo of a {}.")
    assert status == 1
    assert "prompt of more than CLIP's 77 tokens" in out
    assert "'Great_Tit', 'great tit'" in out
    assert "1 class name has no letter" in out
    assert "1 class name is not in Latin letters" in out
    assert "07/07_1.jpg: " in out
    assert "1 file left out: 1 .txt" in out
    assert "classes of very different sizes: 30 images of 'sparrow', 2 of '07'" in out
    assert "sizes: 24 x 18 (39)" in out
    assert "modes: RGB (39)" in out


def test_a_table_with_splits_and_groups(dtrap, photos, tmp_path):
    table = tmp_path / "labels.csv"
    lines = [
        f"{path.relative_to(photos)},{path.parent.name},{'test' if path.stem == '5' else 'train'},{path.stem}"
        for path in sorted(photos.rglob("*.png"))
    ]
    table.write_text("path,label,split,patient\n" + "\n".join(lines) + "\nmaple/99.png,oak,train,9\n")
    status, out, err = dtrap("data", "check", photos, "--table", table)
    assert (status, err) == (1, "")
    assert "99.png" in out
    table.write_text("path,label,split,patient\n" + "\n".join(lines) + "\n")
    status, out, _ = dtrap("data", "check", photos, "--table", table)
    assert status == 0, out
    assert "train 10 · test 2" in out
    assert dtrap("data", "check", photos, "--table", table, "--label_column", "none")[0] == 1
    status, _, err = dtrap("data", "check", photos, "--label_column", "label")
    assert (status, "Give it: --table FILE" in err) == (2, True)
    assert dtrap("data", "show", photos, "--table", table, "--output", tmp_path / "t.png")[0] == 0


def test_own_classes_with_a_name_of_eurosat_are_own(dtrap, photos):
    (photos / "maple").rename(photos / "Forest")
    status, out, _ = dtrap("data", "check", photos)
    assert status == 0, out
    assert "Forest" in out
    assert "eurosat" not in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["show", "isic"], "dtrap data show isic ROOT"),
        (["show", "nowhere"], "nowhere does not exist"),
        (["show", "isic", ".", "."], "expected [NAME] ROOT"),
        (["check", ".", "--template", "a photo"], "expected texts that contain {}"),
    ],
)
def test_mistakes(dtrap, words, told):
    status, _, err = dtrap("data", *words)
    assert status == 2
    assert told in err


@pytest.mark.skipif(not REAL.is_dir(), reason="no real samples in ../shared/real")
def test_no_false_alarm_on_real_images_and_copies_of_them_are_found():
    for folder, ending in (("EuroSAT", "jpg"), ("ChestX", "png")):
        paths = sorted(REAL.joinpath(folder).rglob(f"*.{ending}"))[::2]
        assert list(near_copies([fingerprint(str(path)) for path in paths])) == []


def test_names_that_are_not_utf8_are_in_the_csv(dtrap, photos, tmp_path):
    image = photos / "maple" / "0.png"
    shutil.copy(image, os.fsencode(photos / "oak") + b"/\xe9.png")
    status, out, err = dtrap("data", "check", photos, "--csv", tmp_path / "found.csv")
    assert (status, err) == (1, "")
    assert "oak/\\udce9.png (the same content)" in out
    assert [row["second"] for row in rows(tmp_path / "found.csv") if row["first"]] == ["oak/\\udce9.png"]
