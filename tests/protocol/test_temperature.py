"""The temperature and the thresholds of an adapter's card, against independent formulas."""

import math

import numpy as np
import pytest
import torch
from dtrap.errors import DtrapError
from dtrap.protocol.rejection import RATES, describe_thresholds, threshold_of, thresholds_of
from dtrap.protocol.temperature import best_temperature, fit_temperature
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax


def scores_of(images, classes=4, sharpness=20.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    scores = rng.normal(size=(images, classes))
    scores[np.arange(images), labels] += 1
    return torch.tensor(sharpness * scores), torch.tensor(labels)


def platt(log_temperature, scores, labels):
    """Cross-entropy with the targets (N + 1) / (N + 2)."""
    logs = log_softmax(scores.numpy() / math.exp(log_temperature), axis=1)
    right = (len(labels) + 1) / (len(labels) + 2)
    own = logs[np.arange(len(labels)), labels.numpy()]
    others = (logs.sum(axis=1) - own) / (logs.shape[1] - 1)
    return -(right * own + (1 - right) * others).mean()


@pytest.mark.parametrize("images", [2, 13, 400])
def test_the_temperature_has_the_least_loss(images):
    scores, labels = scores_of(images)
    found = minimize_scalar(platt, bounds=(math.log(0.01), math.log(100)), args=(scores, labels), method="bounded")
    assert platt(math.log(best_temperature(scores, labels)), scores, labels) <= found.fun + 1e-9


def test_an_overconfident_model_becomes_calibrated():
    scores, labels = scores_of(2000)
    fitted = fit_temperature(scores.float(), labels)
    assert fitted.images == 2000
    assert fitted.temperature > 10
    assert fitted.cross_entropy_after < fitted.cross_entropy_before / 3
    assert fitted.calibration_error_after < 6 < 20 < fitted.calibration_error_before


def test_images_that_are_all_right_do_not_make_certain():
    for margin in (0.1, 20.0, 5000.0):
        labels = torch.arange(10) % 3
        scores = margin * torch.nn.functional.one_hot(labels, 3).double()
        fitted = fit_temperature(scores, labels)
        highest = (scores / fitted.temperature).softmax(dim=1).amax()
        assert 0.01 <= fitted.temperature <= 100
        if fitted.temperature < 100:
            assert float(highest) == pytest.approx(11 / 12, abs=1e-6)
        assert all(map(math.isfinite, fitted))


def test_scores_without_meaning_end_at_the_limit():
    labels = torch.arange(10) % 2
    wrong = 50.0 * torch.nn.functional.one_hot(1 - labels, 2).double()
    assert best_temperature(wrong, labels) == 100
    assert best_temperature(torch.zeros(10, 2).double(), labels) == 100
    assert fit_temperature(wrong[:1], labels[:1]) is None
    assert fit_temperature(torch.zeros(5, 1), torch.zeros(5).long()) is None


def test_own_images_are_rejected_at_most_at_the_stated_rate():
    rng = np.random.default_rng(3)
    rejected = {rate: [] for rate in RATES}
    for _ in range(300):
        own, new = torch.tensor(rng.normal(size=99)), rng.normal(size=50)
        for rate, value in zip(RATES, thresholds_of(own), strict=True):
            rejected[rate].append((new < value).mean())
    for rate, shares in rejected.items():
        assert np.mean(shares) == pytest.approx(rate, abs=0.01)


def test_few_images_have_the_lowest_rate_that_they_allow():
    card = describe_thresholds({"tuned": torch.tensor([0.3, 0.1, 0.2])}, "training")
    found = threshold_of(card, 0.05, "tuned", "x")
    assert (found.value, found.expected, found.images) == (pytest.approx(0.1), 0.25, 3)
    assert "25.0 % of the classes' own images, from 3 training images (more than 5 %" in str(found)
    assert "more of new ones will be rejected" in str(found)
    assert (
        threshold_of(describe_thresholds({"tuned": torch.rand(999)}, "held-out"), 0.05, "tuned", "x").expected == 0.05
    )


@pytest.mark.parametrize(
    ("card", "rate", "kind", "told"),
    [
        (None, 0.05, "tuned", "no thresholds"),
        ({"rates": [0.05], "images": 3, "source": "training"}, 0.05, "tuned", "Train the adapter again"),
        (
            {"rates": [0.05], "images": 3, "source": "training", "zero_shot": [0.1]},
            0.05,
            "tuned",
            "--reject_by zero_shot",
        ),
        ({"rates": [0.05], "images": 3, "source": "training", "tuned": [0.1]}, 0.1, "tuned", "expected one of 0.05"),
        ({"rates": [0.05], "images": 3, "source": "training", "tuned": []}, 0.05, "tuned", "do not belong together"),
        ({"rates": ["a"], "images": 3, "source": "training"}, 0.05, "tuned", "not as dtrap writes them"),
        ({}, 0.05, "cosine", "expected one of tuned, zero_shot"),
    ],
)
def test_a_card_without_the_threshold_is_said(card, rate, kind, told):
    with pytest.raises(DtrapError, match=told):
        threshold_of(card, rate, kind, "x")
