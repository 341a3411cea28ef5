import numpy as np
import pytest
import torch
from dtrap.datamodules.views import CLIP_MEAN, CLIP_STD, Preprocessing, fixed_views
from dtrap.errors import DtrapError
from layouts import picture
from PIL import Image, ImageEnhance, ImageOps

SMALL = Preprocessing(image_size=32)


def _reference_views(image, size, rng):
    """The views by PIL alone, written from the paper's protocol."""

    def rotate(picture):
        return picture.rotate(rng.uniform(-45, 45), resample=Image.Resampling.NEAREST)

    def jitter(picture):
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            picture = enhance(picture).enhance(rng.uniform(0.6, 1.4))
        return picture

    def flip(picture):
        return ImageOps.mirror(picture) if rng.random() < 0.5 else picture

    plain = image.resize((size, size), Image.Resampling.BILINEAR)
    pictures = [plain, flip(jitter(rotate(plain))), rotate(plain), jitter(plain), flip(plain)]
    pixels = np.stack([np.asarray(p, dtype=np.float64) / 255 for p in pictures])
    return ((pixels - CLIP_MEAN) / CLIP_STD).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("seed", range(6))
def test_views_agree_with_pillow(seed):
    image = picture(seed, (60, 41))
    views = fixed_views(image, SMALL, 5, np.random.default_rng(seed))
    expected = _reference_views(image, 32, np.random.default_rng(seed))
    assert views.shape == (5, 3, 32, 32)
    assert views.dtype == torch.float32
    np.testing.assert_allclose(views.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_fewer_views_are_the_first_of_five(count):
    every = fixed_views(picture(0), SMALL, 5, np.random.default_rng(3))
    assert torch.equal(fixed_views(picture(0), SMALL, count, np.random.default_rng(3)), every[:count])


def test_views_do_not_touch_the_global_generators():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    fixed_views(picture(0), SMALL, 5, np.random.default_rng(0))
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_flip_happens_about_half_of_the_time():
    image = picture(0, (32, 32))
    plain = SMALL.to_tensor(image)
    flips = [not torch.equal(fixed_views(image, SMALL, 5, np.random.default_rng(s))[4], plain) for s in range(60)]
    assert 18 <= sum(flips) <= 42


@pytest.mark.parametrize("count", [0, 6])
def test_number_of_views_is_checked(count):
    with pytest.raises(DtrapError, match=rf"views is {count}; expected 1 .* to 5"):
        fixed_views(picture(0), SMALL, count, np.random.default_rng(0))


def test_preprocessing_is_read_from_a_backbone():
    class Tower:
        image_size, image_mean, image_std = 48, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    assert Preprocessing.of(Tower()) == Preprocessing(48, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert Preprocessing.of(object()) is None
    grey = Image.new("RGB", (10, 20), (255, 255, 255))
    assert torch.equal(Preprocessing.of(Tower()).to_tensor(grey), torch.full((3, 48, 48), 2.0))
