"""Losses, relations, gradients, totals and schedules agree with the numbers of the authors' code."""

import pytest
import torch
from dtrap.callbacks.stage_switch import suppressed_progress
from dtrap.lightning_modules import Objective, losses
from dtrap.lightning_modules.objective import PlainRows
from reference_files import STEP_FILES, assert_golden, expected_of_step, read_json


def tensors(case, step):
    dtype = getattr(torch, case["dtype"])
    image = torch.tensor(step["image_features"], dtype=dtype, requires_grad=True)
    plain = torch.tensor(step["noaug_features"], dtype=dtype, requires_grad=True)
    text = torch.tensor(case["text_features_raw"], dtype=dtype, requires_grad=case["text_requires_grad"])
    return image, plain, text, torch.tensor(case["labels"]), torch.tensor(case["noaug_labels"])


@pytest.mark.parametrize("name", STEP_FILES)
def test_losses_and_gradients_agree_with_the_authors_numbers(name):
    case = read_json(name)
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if case["dtype"] == "float64" else {"rtol": 1e-4, "atol": 1e-6}
    previous = None
    for step in case["steps"]:
        image, plain, text, labels, plain_labels = tensors(case, step)
        expected = {k: expected_of_step(v, image.dtype) for k, v in step["expected"].items() if v is not None}

        def same(actual, key, expected=expected):
            assert_golden(actual, expected[key], **tolerance)

        scale = case["logit_scale"]
        vlm = losses.cross_modal_loss(image, text, labels, logit_scale=scale)
        indices = torch.tensor(step["proto_indices"])
        ad = losses.anti_visual_loss(
            image, labels, num_classes=case["way"], prototype_indices=indices, logit_scale=scale
        )
        relations = losses.visual_relations(image, plain)
        same(vlm, "L_vlm")
        same(ad, "L_ad")
        same(relations, "A_v")
        if step["A_prev"] is not None:
            previous = torch.tensor(step["A_prev"], dtype=image.dtype)
        total = vlm + case["beta"] * ad if step["stage"] != "cross_modal_only" else vlm
        if "L_ra" in expected:
            target = losses.text_relations(text, labels, plain_labels)
            fused = losses.fuse_relations(previous, target, 1 - step["fuse_weight"])
            ra = losses.relation_alignment_loss(relations, fused)
            same(fused, "A_fuse")
            same(ra, "L_ra")
            if step["stage"] == "both":
                total = total + case["gamma"] * ra
        same(total, "total")
        inputs = {"grad_image_features": image, "grad_noaug_features": plain}
        if case["text_requires_grad"]:
            inputs["grad_text_features_raw"] = text
        for key, gradient in zip(
            inputs, torch.autograd.grad(total, list(inputs.values()), allow_unused=True), strict=True
        ):
            same(gradient if gradient is not None else torch.zeros_like(inputs[key]), key)
        previous = relations.detach()


def test_the_objective_gives_the_same_totals_as_the_authors_code():
    case = read_json("w5s1v1d32_f64")
    objective = Objective(anti_visual_weight=case["beta"], relation_weight=case["gamma"])
    for step in case["steps"][:2]:
        image, plain, text, labels, plain_labels = tensors(case, step)
        objective.set_stage(step["iteration"] / 6)
        objective.next_prototypes = torch.tensor(step["proto_indices"])
        terms = objective(image, text, labels, plain=PlainRows(plain, plain_labels))
        assert ("L_ra" in terms) == (step["stage"] == "both")
        torch.testing.assert_close(
            terms["total"], torch.tensor(step["expected"]["total"], dtype=image.dtype), rtol=1e-9, atol=0
        )


def test_the_authors_schedule_is_reproduced_step_by_step():
    window = {"start": 0, "stop": 0.6, "rule": "authors"}
    for schedule in read_json("schedules")["schedules"]:
        total = schedule["total_iters"]
        progress = [suppressed_progress(i, total, **window) for i in range(total)]
        inside = [i for i, p in enumerate(progress) if p is not None]
        assert inside == list(range(schedule["n_iters_with_ad"]))
        assert max(schedule["stage_boundary_iter"], 1) == len(inside)
        weights = schedule["fuse_weight"]
        assert [progress[i] for i in inside] == pytest.approx([1 - weights[i] for i in inside], abs=1e-12)
