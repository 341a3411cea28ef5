"""Balanced accuracy, macro-F1, AUROC, cross-entropy and calibration error, against definitions written out here."""

import pickle

import numpy as np
import pytest
import torch
from dtrap.lightning_modules.evaluation_metrics import Confidence, Ranking, balanced_metrics, log_probabilities
from scipy.special import logsumexp
from torchmetrics.classification import MulticlassCalibrationError


def test_balanced_accuracy_and_macro_f1_of_unequal_classes():
    confusion = torch.tensor([[8, 2, 0], [1, 1, 0], [0, 3, 1]])
    found = balanced_metrics(confusion)
    recall = [8 / 10, 1 / 2, 1 / 4]
    precision = [8 / 9, 1 / 6, 1 / 1]
    f1 = [2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True)]
    assert found["balanced_accuracy"] == pytest.approx(100 * sum(recall) / 3)
    assert found["macro_f1"] == pytest.approx(100 * sum(f1) / 3)


def test_equal_classes_have_their_accuracy_alone():
    assert balanced_metrics(torch.tensor([[1, 2], [0, 3]])) == {}


def test_a_class_without_images_is_left_out_of_the_balanced_accuracy():
    found = balanced_metrics(torch.tensor([[3, 1, 0], [0, 0, 0], [1, 0, 1]]))
    assert found["balanced_accuracy"] == pytest.approx(100 * (3 / 4 + 1 / 2) / 2)
    assert found["macro_f1"] == pytest.approx(100 * (3 / 4 + 0 + 2 / 3) / 3)


def pairs_in_order(scores, labels):
    """Share of pairs of a positive and a negative in the right order, ties counting half."""
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    return 100 * float(sum(pairs)) / len(pairs)


def test_auroc_of_two_classes_is_the_share_of_ordered_pairs_also_where_probabilities_saturate():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (40,), generator=generator)
    logits = torch.randn(40, 2, generator=generator) * 2 + 18 * torch.tensor([-0.5, 0.5])
    ranking = Ranking()
    ranking.start(wanted=True)
    ranking.update(logits[:25], labels[:25])
    ranking.update(logits[25:], labels[25:])
    assert (logits.softmax(-1)[:, 1] == 1).sum() > 1  # tied in single precision
    assert ranking.auroc == pytest.approx(pairs_in_order(logits[:, 1] - logits[:, 0], labels), abs=1e-4)


def test_auroc_of_more_classes_is_the_mean_of_one_against_the_rest_over_classes_with_images():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (60,), generator=generator)
    logits = torch.randn(60, 4, generator=generator)
    ranking = Ranking()
    ranking.start(wanted=True)
    ranking.update(logits, labels)
    probabilities = logits.softmax(-1)
    areas = [pairs_in_order(probabilities[:, c], (labels == c).long()) for c in range(3)]
    assert ranking.auroc == pytest.approx(sum(areas) / 3, abs=1e-4)


def test_nothing_is_kept_unless_it_is_wanted_and_one_class_has_no_auroc():
    ranking = Ranking()
    ranking.update(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
    assert ranking.auroc is None
    ranking.start(wanted=True)
    ranking.update(torch.randn(4, 2), torch.zeros(4, dtype=torch.long))
    assert ranking.auroc is None


def measured(logits, labels):
    """Cross-entropy and calibration error of logits [V, N, W] in two batches."""
    confidence = Confidence()
    for part in (slice(0, 7), slice(7, None)):
        logs = log_probabilities(logits[:, part])
        confidence.update(logs, labels[part], logs.argmax(dim=-1))
    return confidence.measures(len(labels))


def test_cross_entropy_of_added_views_is_that_of_the_mean_probability_also_where_it_is_0_in_float32():
    generator = torch.Generator().manual_seed(2)
    logits, labels = 100 * torch.randn(3, 20, 4, generator=generator), torch.randint(4, (20,), generator=generator)
    assert (logits.softmax(-1).sum(0) == 0).any()
    exact = np.exp(logits.double().numpy() - logsumexp(logits.double().numpy(), axis=2, keepdims=True)).mean(axis=0)
    found = measured(logits, labels)
    assert found["cross_entropy"] == pytest.approx(-np.log(exact[range(20), labels]).mean(), rel=1e-9)
    expected = MulticlassCalibrationError(4, n_bins=15)(torch.from_numpy(exact), labels)
    assert found["calibration_error"] == pytest.approx(100 * float(expected), rel=1e-6)


def test_one_class_is_certain_and_another_number_of_images_has_no_measures():
    logits, labels = torch.randn(1, 9, 1), torch.zeros(9, dtype=torch.long)
    assert measured(logits, labels) == {"cross_entropy": 0.0, "calibration_error": 0.0}
    confidence = Confidence()
    assert confidence.measures(0) == {}
    logs = log_probabilities(logits)
    confidence.update(logs, labels, labels)
    assert confidence.measures(10) == {}  # a subclass that counts on its own


def test_a_test_keeps_a_sum_and_two_numbers_for_each_image():
    confidence = Confidence()
    logs = log_probabilities(torch.randn(1, 8, 1000))
    confidence.update(logs, torch.zeros(8, dtype=torch.long), logs.argmax(dim=-1))
    assert len(pickle.dumps(confidence)) < 2000
