"""The staged sum: which terms are active when, what is refused, what is warned about."""

import warnings

import pytest
import torch
from dtrap.errors import DtrapError
from dtrap.lightning_modules import Objective, losses
from dtrap.lightning_modules.objective import PlainRows
from torch import Generator

WAY = 3


def features(seed=0, rows=6, grad=True):
    return torch.randn(rows, 8, generator=Generator().manual_seed(seed)).double().requires_grad_(grad)


LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
TEXT = features(9, WAY, grad=False)


def plain_of(image):
    return PlainRows(image[:3], LABELS[:3])


def test_previous_relations_come_from_the_step_before_and_start_anew_with_each_stage():
    objective = Objective()
    first, second = features(1), features(2)
    objective.set_stage(0.0)
    assert "L_ra" not in objective(first, TEXT, LABELS, plain=plain_of(first))
    objective.set_stage(0.25)
    got = objective(second, TEXT, LABELS, plain=plain_of(second))["L_ra"]
    fused = losses.fuse_relations(
        losses.visual_relations(first, first[:3]), losses.text_relations(TEXT, LABELS, LABELS[:3]), 0.25
    )
    expected = losses.relation_alignment_loss(losses.visual_relations(second, second[:3]), fused)
    torch.testing.assert_close(got, expected)
    objective.set_stage(None)
    assert objective(first, TEXT, LABELS, plain=plain_of(first)).keys() == {"total", "L_vlm"}
    objective.set_stage(0.5)
    assert "L_ra" not in objective(first, TEXT, LABELS, plain=plain_of(first))


def test_current_relations_have_a_term_in_the_first_step_too():
    objective = Objective(relation_source="current", relation_form="softmax", relation_temperature=0.5)
    image = features(1)
    objective.set_stage(0.4)
    relations = losses.visual_relations(image, image[:3])
    fused = losses.fuse_relations(relations, losses.text_relations(TEXT, LABELS, LABELS[:3]), 0.4)
    expected = losses.relation_alignment_loss(relations, fused, form="softmax", temperature=0.5)
    torch.testing.assert_close(objective(image, TEXT, LABELS, plain=plain_of(image))["L_ra"], expected)


def test_the_total_is_the_weighted_sum():
    objective = Objective(anti_visual_weight=0.3, relation_weight=2.0, relation_source="current")
    objective.set_stage(0.5)
    terms = objective(features(), TEXT, LABELS)
    torch.testing.assert_close(terms["total"], terms["L_vlm"] + 0.3 * terms["L_ad"] + 2.0 * terms["L_ra"])


def test_a_tuners_own_classification_loss_takes_the_place_of_the_cross_modal_loss():
    objective = Objective()
    own = features().square().sum()
    assert objective(features(), TEXT, LABELS, classification_loss=own)["total"] == own


@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 9], [1, 0, 2, 3, 4, 5]])
def test_previous_relations_of_a_changed_batch_are_refused(ids):
    objective = Objective()
    objective.set_stage(0.0)
    objective(features(), TEXT, LABELS, row_ids=torch.arange(6))
    objective.set_stage(0.1)
    with pytest.raises(DtrapError, match="relation_source to 'current'"):
        objective(features(), TEXT, LABELS, row_ids=torch.tensor(ids))


def test_without_row_ids_changed_labels_tell_a_changed_batch():
    """Mini-batches of a stranger's loader: as many rows, but others."""
    objective = Objective()
    objective.set_stage(0.0)
    objective(features(), TEXT, LABELS)
    objective.set_stage(0.1)
    objective(features(1), TEXT, LABELS)
    with pytest.raises(DtrapError, match="relation_source to 'current'"):
        objective(features(2), TEXT, LABELS.flip(0))


def test_another_run_starts_outside_of_any_stage_and_with_the_same_draws():
    objective = Objective(relation_weight=0)
    objective.start(3)
    objective.set_stage(0.5)
    first = objective(features(), TEXT, LABELS)["L_ad"]
    objective.start(3)
    with pytest.warns(UserWarning, match="StageSwitch"):
        assert objective(features(), TEXT, LABELS).keys() == {"total", "L_vlm"}
    objective.set_stage(0.5)
    assert objective(features(), TEXT, LABELS)["L_ad"] == first


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"visual_term": "negated-visual"}, "visual_term is 'negated-visual'.*Did you mean 'negated_visual'"),
        ({"relation_source": "former"}, "relation_source is 'former'; expected one of previous, current"),
        ({"relation_form": "kl"}, "relation_form is 'kl'"),
        ({"relation_temperature": 0.0}, "relation_temperature"),
    ],
)
def test_unknown_settings_are_named(settings, told):
    with pytest.raises(DtrapError, match=told):
        Objective(**settings)


def test_without_a_stage_switch_the_terms_are_off_and_one_warning_says_so():
    objective = Objective()
    with pytest.warns(UserWarning, match="StageSwitch"):
        assert objective(features(), TEXT, LABELS).keys() == {"total", "L_vlm"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective(features(), TEXT, LABELS)
        Objective(anti_visual_weight=0, relation_weight=0)(features(), TEXT, LABELS)


def test_a_constant_term_is_computed_and_warned_about_once():
    """Text-only tuning: image features are constant, so L_ad is; the texts still carry L_vlm and L_ra."""
    objective = Objective(relation_source="current")
    text = TEXT.clone().requires_grad_()
    objective.set_stage(0.5)
    with pytest.warns(UserWarning, match="L_ad is constant"):
        terms = objective(features(grad=False), text, LABELS)
    assert terms["L_ra"].requires_grad
    assert not terms["L_ad"].requires_grad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective(features(grad=False), text, LABELS)


def test_no_gradient_in_any_term_is_an_error():
    objective = Objective()
    objective.set_stage(0.0)
    with pytest.raises(DtrapError, match="nothing to train"):
        objective(features(grad=False), TEXT, LABELS)


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, "svl-ra"),
        ({"anti_visual_weight": 0}, "ra"),
        ({"relation_weight": 0}, "svl"),
        ({"anti_visual_weight": 0, "relation_weight": 0}, "baseline"),
        ({"visual_term": "noise"}, "noise-ra"),
    ],
)
def test_the_method_is_named_by_its_weights(settings, method):
    assert Objective(**settings).method == method


def test_variants_of_the_visual_term():
    image = features()
    settings = {"num_classes": WAY, "logit_scale": 100.0}
    own = losses.visual_loss(image, LABELS, plain_features=image[:3], plain_labels=LABELS[:3], **settings)
    noise = losses.noise_prototype_loss(image, LABELS, generator=Generator().manual_seed(4), **settings)
    for term, expected in {"visual": own, "negated_visual": -own, "noise": noise}.items():
        objective = Objective(visual_term=term)
        objective.generator = Generator().manual_seed(4)
        objective.set_stage(0.0)
        torch.testing.assert_close(objective(image, TEXT, LABELS, plain=plain_of(image))["L_ad"], expected)


def test_lambda_defaults_to_the_branch_that_is_trained():
    objective = Objective()
    assert objective.effective_anti_visual_weight == 0.1
    objective.text_only = True
    assert objective.effective_anti_visual_weight == 0.001
    assert Objective(anti_visual_weight=0.7).effective_anti_visual_weight == 0.7
