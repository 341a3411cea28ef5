"""StepSPT's alignment: confident rows, partners, the two losses, and label propagation."""

import pytest
import torch
from dtrap.lightning_modules.tuners.distribution_alignment import (
    confident_rows,
    diversity_loss,
    find_partners,
    information_loss,
    label_propagation,
)
from reference_files import assert_golden, golden


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)


def test_label_propagation_is_the_authors():
    settings, arrays = golden("stepspt_w5s2")
    scores = sum(label_propagation(logits) for logits in arrays["end.query_logits"])
    assert_golden(scores, arrays["end.scores_lp"])
    right = scores.argmax(dim=1) == torch.arange(settings["way"]).repeat_interleave(settings["queries"])
    assert float(100 * right.double().mean()) == pytest.approx(settings["accuracy_lp"])


def test_half_of_the_rows_are_confident():
    certain = torch.tensor([0.5, 0.9, 0.7, 0.99, 0.6])
    probabilities = torch.stack([certain, 1 - certain], dim=1)
    assert confident_rows(probabilities).tolist() == [False, True, True, True, False]
    assert confident_rows(probabilities[:1]).tolist() == [True]


def on_circle(*degrees):
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_a_partner_is_the_first_confident_row_of_the_walk():
    bank = on_circle(0.0, 10.0, 19.0, 40.0, 300.0)
    confident = torch.tensor([False, False, False, True, True])
    assert find_partners(5 * bank, bank, confident).tolist() == [3, 3, 3, 4, 3]
    nearest_to_others = on_circle(301.0, 301.0, 301.0, 301.0, 1.0)
    assert find_partners(nearest_to_others, bank, confident).tolist() == [3, 3, 3, 3, 3]


def test_a_walk_ends_where_every_other_row_is_unsure():
    bank = on_circle(0.0, 10.0, 20.0)
    assert find_partners(bank, bank, torch.tensor([False, False, True])).tolist() == [2, 2, 0]
    assert find_partners(bank[:1], bank[:1], torch.tensor([True])).tolist() == [0]


def test_information_and_diversity_at_their_extremes():
    sure = torch.eye(4, dtype=torch.float64).repeat(3, 1)
    even = torch.full((12, 4), 0.25, dtype=torch.float64)
    log4 = torch.tensor(4.0, dtype=torch.float64).log()
    torch.testing.assert_close(information_loss(sure, sure), -log4)
    close(information_loss(even, sure), 0 * log4)
    torch.testing.assert_close(diversity_loss(even), -log4, rtol=0, atol=1e-4)
    close(diversity_loss(sure[:1].expand(12, 4)), torch.tensor(1 + 1e-5, dtype=torch.float64).log())


def test_equal_queries_propagate_to_equal_scores():
    scores = label_propagation(torch.ones(6, 3))
    assert scores.isfinite().all()
