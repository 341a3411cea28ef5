"""The gap shift on 500 pairs of real CLIP features, against the formulas of Liang et al. evaluated in float64."""

import json

import numpy as np
import pytest
import torch
from dtrap.metrics import gap_direction, gap_shift_curve, modality_gap
from reference_files import FULL
from safetensors.torch import load_file

FOLDER = FULL / "real_features"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="real CLIP features not installed")
BATCH = 50
TOLERANCE = 1e-6


@pytest.fixture(scope="module", params=["clip", "clip_random"])
def pairs(request):
    """Images, texts and the expected numbers of a network."""
    tensors = load_file(FOLDER / "clip_coco.safetensors")
    expected = json.loads((FOLDER / "gap_shift.json").read_text())["sets"][request.param]
    return tensors[f"{request.param}.image"], tensors[f"{request.param}.text"], expected


def test_the_gap(pairs):
    images, texts, expected = pairs
    assert float(modality_gap(images, texts)) == pytest.approx(expected["gap"], abs=TOLERANCE)


@pytest.mark.parametrize(("sides", "name"), [("both", "two_sided"), ("image", "one_sided")])
def test_distance_and_accuracy_of_one_call_on_all_pairs(pairs, sides, name):
    images, texts, expected = pairs
    curve = gap_shift_curve(images, texts, torch.arange(500), expected["curves"][name]["d"], sides=sides)
    np.testing.assert_allclose(curve.distance, expected["curves"][name]["distance"], atol=TOLERANCE)
    np.testing.assert_allclose(curve.accuracy, expected["curves"][name]["R@1"], atol=TOLERANCE)
    assert float(curve.distance[20]) == pytest.approx(float(modality_gap(images, texts)), abs=TOLERANCE)  # d = 0


@pytest.mark.parametrize(("sides", "name"), [("both", "two_sided"), ("image", "one_sided")])
def test_loss_is_the_mean_of_ten_calls_along_the_direction_of_all(pairs, sides, name):
    images, texts, expected = pairs
    direction = gap_direction(images, texts)
    for scale, losses in expected["curves"][name]["loss"].items():
        curves = [
            gap_shift_curve(
                images[start : start + BATCH],
                texts[start : start + BATCH],
                torch.arange(BATCH),
                expected["curves"][name]["d"],
                sides=sides,
                direction=direction,
                logit_scale=float(scale),
            )
            for start in range(0, 500, BATCH)
        ]
        mean = torch.stack([curve.loss for curve in curves]).mean(dim=0)
        np.testing.assert_allclose(mean, losses, atol=TOLERANCE)
