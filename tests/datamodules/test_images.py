import numpy as np
import pytest
from dtrap.datamodules.images import open_image
from dtrap.datamodules.walk import list_images
from dtrap.errors import DtrapError
from layouts import picture, truncate
from PIL import Image


def test_grey_is_repeated_over_three_channels(tmp_path):
    picture(0).convert("L").save(tmp_path / "a.png")
    opened = np.asarray(open_image(tmp_path / "a.png"))
    assert opened.shape == (18, 24, 3)
    assert (opened == np.asarray(picture(0).convert("L"))[..., None]).all()


def test_cmyk_keeps_its_colours(tmp_path):
    Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert stored.mode == "CMYK"
    assert np.abs(np.asarray(open_image(tmp_path / "a.jpg")).astype(int) - (200, 30, 60)).max() < 8


def test_transparent_palette_entry_becomes_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 2), 1)
    image.save(tmp_path / "a.png", transparency=0)
    opened = open_image(tmp_path / "a.png")
    assert opened.mode == "RGB"
    assert opened.getpixel((1, 2)) == (200, 100, 50)
    assert opened.getpixel((0, 0)) == (255, 255, 255)


def test_opaque_palette(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "a.gif")
    assert open_image(tmp_path / "a.gif").getpixel((0, 0)) == (200, 100, 50)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, ending):
    values = np.array([[0, 255, 256, 25700, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    opened = np.asarray(open_image(tmp_path / f"a.{ending}"))
    assert opened[0, :, 0].tolist() == [0, 0, 1, 100, 255]


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_rotation_is_applied(tmp_path, orientation):
    upright = picture(1)
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.transpose(turn[orientation]).save(tmp_path / "a.png", exif=exif)
    assert (np.asarray(open_image(tmp_path / "a.png")) == np.asarray(upright)).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_truncated_file_is_named(tmp_path, name):
    picture(0, (100, 80)).save(tmp_path / name)
    truncate(tmp_path / name)
    with pytest.raises(DtrapError, match=rf"{name} cannot be read"):
        open_image(tmp_path / name)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DtrapError, match=r"none\.jpg does not exist"):
        open_image(tmp_path / "none.jpg")


def test_text_and_empty_files_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    for name in ("text.jpg", "empty.jpg"):
        with pytest.raises(DtrapError, match=rf"{name} cannot be read: not an image"):
            open_image(tmp_path / name)


def test_decompression_bomb_is_named(tmp_path, monkeypatch):
    picture(0).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DtrapError, match=r"large\.png cannot be read.*decompression bomb"):
        open_image(tmp_path / "large.png")


def test_float_pixels_are_refused_with_the_remedy(tmp_path):
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DtrapError, match=r"a\.tif.*save it with 8 or 16 bits"):
        open_image(tmp_path / "a.tif")


def test_listing_takes_endings_in_any_case_and_no_hidden_files(tmp_path):
    for name in ("b.JPG", "a.png", "c.Jpeg", ".hidden.jpg", "notes.txt", "within/d.png", ".trash/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert list_images(tmp_path) == [str(tmp_path / name) for name in ("a.png", "b.JPG", "c.Jpeg")]
    within = str(tmp_path / "within" / "d.png")
    assert list_images(tmp_path, recursive=True) == [*list_images(tmp_path), within]
