"""Images that are decoded when their pixels are first used."""

import torch
from dtrap.datamodules.batches import split_batch, to_batch
from dtrap.datamodules.lazy_images import LazyImages, Pixels, lazy_batch
from dtrap.datamodules.views import Preprocessing
from PIL import Image

POSITIONS, SMALL = [[4, 2], [7]], Preprocessing(image_size=8)


def picture(position, view):
    return Image.new("RGB", (8, 8), (position * 20, view * 50, 9))


def batches():
    """The lazy batch, the same one decoded, and the positions that were drawn so far."""
    drawn = []

    def draw(positions):
        drawn.extend(positions)
        return {position: [picture(position, view) for view in range(2)] for position in positions}

    eager = to_batch(POSITIONS, {p: [picture(p, 0), picture(p, 1)] for p in (4, 2, 7)}, SMALL)
    return lazy_batch(POSITIONS, Pixels([4, 2, 7], 2, {}, draw, SMALL)), eager, drawn


def test_size_type_device_and_choices_need_no_pixels():
    lazy, eager, drawn = batches()
    images = lazy["images"]
    assert images.shape == eager["images"].shape
    assert (images.dtype, images.device, len(images), images.ndim) == (torch.float32, torch.device("cpu"), 6, 4)
    assert images.to("cpu") is images
    assert images[1:3].to(torch.float64).dtype == torch.float64
    assert all(torch.equal(lazy[name], eager[name]) for name in ("labels", "view", "sample_id"))
    for part, same in zip(split_batch(lazy, 2, 2), split_batch(eager, 2, 2), strict=True):
        assert torch.equal(part["sample_id"], same["sample_id"])
        assert isinstance(part["images"], LazyImages)
    assert drawn == []


def test_rows_are_drawn_once_and_only_those_asked_for():
    lazy, eager, drawn = batches()
    rows = torch.tensor([5, 1])
    assert torch.equal(lazy["images"][rows].to(torch.float64) + 1, eager["images"][rows].double() + 1)
    assert sorted(drawn) == [2, 7]
    assert torch.equal(lazy["images"], eager["images"])
    assert torch.equal(lazy["images"][rows][:1], eager["images"][rows][:1])
    assert sorted(drawn) == [2, 4, 7]
    for part, same in zip(split_batch(lazy, 2, 2), split_batch(eager, 2, 2), strict=True):
        assert torch.equal(part["images"], same["images"])


def test_any_function_of_torch_sees_the_pixels():
    lazy, eager, _ = batches()
    with torch.inference_mode():
        seen = torch.nn.functional.conv2d(lazy["images"], torch.ones(1, 3, 2, 2))
    assert torch.equal(seen, torch.nn.functional.conv2d(eager["images"], torch.ones(1, 3, 2, 2)))
    assert not lazy["images"].pixels().is_inference()
    assert type(lazy["images"] * 1) is torch.Tensor
    assert (lazy["images"].numpy() == eager["images"].numpy()).all()
    assert float(lazy["images"][0].sum()) == float(eager["images"][0].sum())
