"""Images with more than 8 bits, several pages or several pictures: read with the right values, refused, or said."""

import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from dtrap.datamodules import FolderDataModule, Preprocessing, UnlabeledImages
from dtrap.datamodules.images import open_image
from dtrap.errors import DtrapError
from layouts import make_folder, picture
from PIL import Image, TiffImagePlugin
from torchvision.io import decode_png, read_file

RAMP = np.linspace(0, 4095, 256, dtype=np.uint16).reshape(16, 16)  # 12 bits
DARK = "come out dark.*--data.value_range \\[0,4095\\]"


def gray(path, *arguments):
    return np.asarray(open_image(path, *arguments))[..., 0]


def strict(path, *arguments):
    """The gray values of a picture that is read without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return gray(path, *arguments)


def save_color_png(path, values, significant_bits=None):
    """A PNG with 16 bits in each of several channels, which Pillow cannot write."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    bits = b"" if significant_bits is None else chunk(b"sBIT", bytes([significant_bits] * channels))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + bits + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_twelve_bits_in_sixteen_warn_and_are_scaled_by_the_option(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(RAMP).save(path)
    with pytest.warns(UserWarning, match=DARK):
        assert gray(path).max() == 15
    assert (strict(path, [0, 4095]) == RAMP // 16).all()
    assert strict(path, [500, 4000]).min() == 0
    assert strict(path, [0.0, 8190.0]).max() in (127, 128)


def test_full_sixteen_bits_are_divided_by_256_with_and_without_the_option(tmp_path):
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert (strict(tmp_path / "a.png") == values // 256).all()
    assert (strict(tmp_path / "a.png", [0, 65535]) == values // 256).all()


def test_a_range_that_cuts_off_many_pixels_is_said(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="many pixels are darker than black or brighter than white"):
        gray(tmp_path / "a.png", [0, 1023])


@pytest.mark.parametrize("shifted", [False, True])
def test_the_significant_bits_of_a_png_are_followed_where_they_were_not_shifted(tmp_path, shifted):
    values = RAMP[..., None] << 4 | RAMP[..., None] >> 8 if shifted else RAMP[..., None]
    assert (strict(save_color_png(tmp_path / "a.png", values, 12)) == RAMP // 16).all()


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_color_of_sixteen_bits(tmp_path, channels):
    values = np.repeat(RAMP[..., None], channels, axis=2)
    values[..., 0] = RAMP[::-1]
    if channels in (2, 4):
        values[..., -1] = 65535
    path = save_color_png(tmp_path / "a.png", values)
    assert decode_png(read_file(str(path)), "UNCHANGED").dtype == torch.uint16
    with pytest.warns(UserWarning, match=DARK):
        assert gray(path).max() == 15
    opened = np.asarray(open_image(path, [0, 4095]))
    assert (opened[..., 0] == RAMP[::-1] // 16).all()
    assert (opened[..., 1] == (RAMP[::-1] if channels == 2 else RAMP) // 16).all()
    values[..., :] *= 16
    values[..., -1] = 65535 if channels in (2, 4) else values[..., -1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (np.asarray(open_image(save_color_png(path, values)))[..., 0] == RAMP[::-1] // 16).all()


def test_color_of_sixteen_bits_is_upright(tmp_path):
    path = save_color_png(tmp_path / "a.png", np.repeat(RAMP[:8, :, None], 3, axis=2))
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + chunk + whole[33:])
    assert open_image(path, [0, 4095]).size == (8, 16)


def save_tiff(path, image, **tags):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, (kind, value) in tags.items():
        info[int(tag[1:])] = value
        info.tagtype[int(tag[1:])] = kind
    image.save(path, tiffinfo=info)
    return path


@pytest.mark.parametrize("tag", ["t281", "t341"])
def test_a_tiff_that_states_its_greatest_value_is_scaled_by_it(tmp_path, tag):
    path = save_tiff(tmp_path / "a.tif", Image.fromarray(RAMP), **{tag: (3, 4095)})
    assert (strict(path) == RAMP // 16).all()
    # The greatest value of this picture alone is not a range.
    path = save_tiff(tmp_path / "b.tif", Image.fromarray(RAMP), **{tag: (3, 4001)})
    with pytest.warns(UserWarning, match=DARK):
        assert gray(path).max() == 15


def test_a_tiff_of_twelve_bits(tmp_path):
    """Written by hand: Pillow reads, but does not write, 12 bits."""
    values = [0, 4095, 2048, 16]
    bits = "".join(f"{value:012b}" for value in values)
    strip = int(bits, 2).to_bytes(6, "big")
    entries = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 6)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in entries)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 14) + strip + directory + b"\0\0\0\0")
    assert strict(tmp_path / "a.tif")[0].tolist() == [0, 255, 128, 1]


def test_a_tiff_where_zero_is_white(tmp_path):
    path = save_tiff(tmp_path / "a.tif", Image.fromarray(np.array([[0, 65535, 25700]], dtype=np.uint16)))
    whole = path.read_bytes()
    black_is_zero, white_is_zero = (struct.pack("<HHIHH", 262, 3, 1, kind, 0) for kind in (1, 0))
    assert whole.count(black_is_zero) == 1
    path.write_bytes(whole.replace(black_is_zero, white_is_zero))
    assert strict(path)[0].tolist() == [255, 0, 155]


def test_signed_and_large_values_need_a_range(tmp_path):
    Image.fromarray(np.array([[-1024, 0, 3071]], dtype=np.int32)).save(tmp_path / "ct.tif")
    with pytest.raises(DtrapError, match=r"from -1024 to 3071.*--data.value_range \[-1024,3071\]"):
        open_image(tmp_path / "ct.tif")
    assert strict(tmp_path / "ct.tif", [-1024, 3071])[0].tolist() == [0, 64, 255]
    Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save(tmp_path / "large.tif")
    with pytest.raises(DtrapError, match=r"from 0 to 70000"):
        open_image(tmp_path / "large.tif")


def test_floating_point_pixels_are_read_with_a_range(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0.0, 0.5, 1.0, 2.0]], dtype=np.float32)).save(path)
    assert gray(path, [0, 1])[0].tolist() == [0, 128, 255, 255]
    Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32)).save(path)
    with pytest.raises(DtrapError, match="not finite"):
        open_image(path, [0, 1])


def test_color_tiff_of_sixteen_bits_cannot_be_scaled(tmp_path):
    entries = [(256, 1), (257, 1), (258, 0), (259, 1), (262, 2), (273, 0), (277, 3), (278, 1), (279, 6)]
    start = 8 + 2 + 12 * len(entries) + 4
    entries[2], entries[5] = (258, start), (273, start + 6)
    fields = b"".join(struct.pack("<HHII", t, 3 if t == 258 else 4, 3 if t == 258 else 1, v) for t, v in entries)
    content = b"II*\0" + struct.pack("<IH", 8, len(entries)) + fields + b"\0\0\0\0"
    (tmp_path / "a.tif").write_bytes(content + struct.pack("<HHH", 16, 16, 16) + struct.pack("<HHH", 4095, 16, 0))
    with pytest.warns(UserWarning, match=DARK):
        open_image(tmp_path / "a.tif")
    with pytest.raises(DtrapError, match="only 8 of a color TIFF can be read; save it as PNG"):
        open_image(tmp_path / "a.tif", [0, 4095])


def test_eight_bits_are_read_as_they_are(tmp_path):
    Image.fromarray(np.full((4, 4), 9, dtype=np.uint8)).save(tmp_path / "night.png")
    assert strict(tmp_path / "night.png", [0, 4095]).max() == 9


def test_a_tiff_with_several_pages_is_refused(tmp_path):
    bands = [picture(seed).convert("L") for seed in range(4)]
    bands[0].save(tmp_path / "bands.tif", save_all=True, append_images=bands[1:])
    with pytest.raises(DtrapError, match=r"bands\.tif cannot be read: it has 4 pages, such as bands"):
        open_image(tmp_path / "bands.tif")


def test_a_tiff_with_a_thumbnail_is_read(tmp_path):
    thumbnail = picture(0, (6, 4))
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}
    picture(0).save(tmp_path / "a.tif", save_all=True, append_images=[thumbnail])
    whole = open_image(tmp_path / "a.tif")
    assert np.array_equal(np.asarray(whole), np.asarray(picture(0)))


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_of_an_animation_the_first_picture_is_used_and_said(tmp_path, ending):
    frames = [Image.new("RGB", (16, 16), color) for color in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="only the first picture of an animation is used"):
        red, _, blue = open_image(tmp_path / f"a.{ending}").getpixel((8, 8))
    assert (red > 200, blue < 60) == (True, True)


def test_an_image_of_a_phone_with_a_second_picture_is_no_animation(tmp_path):
    picture(0).save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[picture(1)])
    strict(tmp_path / "a.jpg")


@pytest.mark.parametrize("value", [[0], [4095, 0], [0, float("nan")], [0, 0], "12", ["0", "4095"], [0, 1, 2]])
def test_the_option_is_checked(tmp_path, value):
    for make in (FolderDataModule, lambda root, value_range: UnlabeledImages(root, Preprocessing(), value_range)):
        with pytest.raises(DtrapError, match=r"value_range is .*; expected the values of black and white"):
            make(tmp_path, value_range=value)


def make_deep_folder(root):
    for number, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for image in range(2):
            Image.fromarray(np.roll(RAMP, 40 * number + image)).save(root / name / f"{image}.png")
    return root


def test_a_data_module_passes_the_option_on_and_warns_once(tmp_path, caplog):
    root = make_deep_folder(tmp_path / "deep")
    small = Preprocessing(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    dark = FolderDataModule(root, views=1, preprocessing=small)
    assert dark.support()["images"].max() == pytest.approx(15 / 255)
    lines = [record.getMessage() for record in caplog.records if "come out dark" in record.getMessage()]
    assert len(lines) == 1
    assert "0.png" in lines[0]
    caplog.clear()
    scaled = FolderDataModule(root, views=1, preprocessing=small, value_range=[0, 4095])
    assert scaled.support()["images"].max() == 1
    assert not caplog.records
    images = UnlabeledImages(root, small, value_range=[0, 4095])
    assert next(iter(images.batches()))["images"].max() == 1
    dark = UnlabeledImages(root, small)
    assert next(iter(dark.batches()))["images"].max() == pytest.approx(15 / 255)
    assert len([record for record in caplog.records if "come out dark" in record.getMessage()]) == 1


def test_a_folder_of_eight_bits_is_read_as_before(tmp_path):
    root = make_folder(tmp_path / "photos")
    plain, ranged = (FolderDataModule(root, views=1, value_range=value).support() for value in (None, [0, 4095]))
    assert torch.equal(plain["images"], ranged["images"])
