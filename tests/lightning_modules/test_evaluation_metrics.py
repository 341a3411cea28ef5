"""Balanced accuracy, macro-F1 and AUROC of a test, against definitions written out here."""

import pytest
import torch
from dtrap.lightning_modules.evaluation_metrics import Ranking, balanced_metrics


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
