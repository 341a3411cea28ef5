"""The rules of our own for the end of the stage, and the weights by the lengths of gradients."""

import json

import numpy as np
import pytest
import quiet
import torch
from dtrap.callbacks import NearDomainWarning, StageSwitch
from dtrap.callbacks.switch_rules import GapRule, GradientRule
from dtrap.datamodules import ShapesDataModule
from dtrap.datamodules.views import Preprocessing
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.objective import ObjectiveStep
from dtrap.lightning_modules.tuners import LoRA
from lightning.pytorch import Trainer
from torch.nn import functional as F


def features(seed=0, rows=15, way=5, dim=8):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, dim, generator=generator, requires_grad=True)
    return images, torch.randn(way, dim, generator=generator), torch.arange(way).repeat(rows // way)


def step_of(gap, agreement=None):
    """Features whose best shift lies elsewhere, the more the larger `gap` is."""
    images, texts, labels = features(1)
    offset = torch.zeros(8)
    offset[0] = gap
    return ObjectiveStep((images + offset).detach(), texts, labels, agreement)


def drop(step, scale=100.0):
    f = step.image_features.double().numpy()
    t = step.text_features.double().numpy()
    f, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (f, t))
    g = f.mean(0) - t.mean(0)
    g /= np.linalg.norm(g)
    losses = []
    for d in np.arange(-20, 21) / 20:
        a, b = f - d / 2 * g, t + d / 2 * g
        logits = (
            scale * (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
        )
        logits -= logits.max(axis=1, keepdims=True)
        losses.append(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(f)), step.labels.numpy()]))
    return losses[20] - min(losses)


def test_gap_rule_ends_after_a_tenth_of_the_run_without_a_smaller_gap():
    total = 100  # looked at every 2 steps
    small, large = step_of(0.0), step_of(3.0)
    if drop(small) > drop(large):
        small, large = large, small
    assert drop(small) < drop(large)
    rule = GapRule(total, 100.0)
    ends = [step for step in range(1, 81) if rule.ended(step, small if 30 <= step < 34 else large)]
    # The gap of step 30 is the smallest; from step 40 on it is a tenth of the run ago. Before, the first look at
    # step 2 is a tenth ago at step 12, but the stage does not end before step 20.
    assert ends[0] == 20
    fresh = GapRule(total, 100.0)
    ends = [step for step in range(1, 81) if fresh.ended(step, small if 18 <= step < 34 else large)]
    assert ends[0] == 28


def test_gradient_rule_ends_when_the_mean_cosine_of_fifty_steps_is_not_positive():
    rule, cosines, ends = GradientRule(500, 100.0), [], []
    for step in range(1, 401):
        cosines.append(1.0 if step <= 120 else -0.5)
        if rule.ended(step, step_of(0.0, torch.tensor(cosines[-1]))):
            ends.append(step)
    first = next(step for step in range(100, 401) if step % 10 == 0 and np.mean(cosines[step - 50 : step]) <= 0)
    assert ends[0] == first


def test_the_agreement_is_the_cosine_of_the_gradients_at_the_features():
    objective = Objective(anti_visual_weight=0.5, relation_weight=0.0)
    objective.set_stage(0.0)
    objective.watched = "gradients"
    images, texts, labels = features()
    terms = objective(images, texts, labels)
    first, whole = (torch.autograd.grad(terms[name], images, retain_graph=True)[0] for name in ("L_vlm", "total"))
    assert float(objective.seen.agreement) == pytest.approx(
        float(F.cosine_similarity(first.flatten(), whole.flatten(), dim=0))
    )
    assert not objective.seen.image_features.requires_grad


def test_gradient_ratio_makes_the_gradients_of_the_terms_rho_times_as_long():
    objective = Objective(gradient_ratio=0.25, relation_source="current", relation_form="softmax")
    objective.set_stage(0.5)
    images, texts, labels = features()
    terms = objective(images, texts, labels)
    length = {
        name: torch.autograd.grad(terms[name], images, retain_graph=True)[0].norm().item()
        for name in terms
        if name.startswith("L_")
    }
    assert float(terms["lambda"]) == pytest.approx(0.25 * length["L_vlm"] / length["L_ad"], rel=1e-5)
    assert float(terms["beta"]) == pytest.approx(0.25 * length["L_vlm"] / length["L_ra"], rel=1e-5)
    expected = terms["L_vlm"] + terms["lambda"] * terms["L_ad"] + terms["beta"] * terms["L_ra"]
    assert float(terms["total"]) == pytest.approx(float(expected), rel=1e-6)


def test_a_term_whose_weight_is_0_stays_off_with_a_gradient_ratio():
    objective = Objective(anti_visual_weight=0.0, gradient_ratio=0.25, relation_source="current")
    objective.set_stage(0.5)
    terms = objective(*features())
    assert terms.keys() == {"total", "L_vlm", "L_ra", "beta"}
    assert objective.method == "ra-rho_0.25"


@pytest.mark.parametrize("rule", ["gap", "gradient"])
def test_a_run_says_at_which_step_the_stage_ended(dtrap, tmp_path, rule):
    words = ["fit", "--config", "demo.yaml", "--protocol.compare", "null", "--protocol.episodes", "1"]
    words += ["--trainer.max_epochs", "20", "--data.query", "2", "--stage_switch.rule", rule]
    status, _, errors = dtrap(*words, "--protocol.folder", str(tmp_path / "run"))
    assert status == 0, errors
    (row,) = [json.loads(line) for line in (tmp_path / "run/results.jsonl").read_text().splitlines()]
    assert 4 <= row["switch_step"] <= 16


def test_p_keeps_its_denominator_and_stops_at_1():
    switch = StageSwitch(rule="gap")
    switch._total, switch._seen = 100, GapRule(100, 100.0)
    assert [switch._progress(step) for step in (0, 30, 60, 75)] == [0, 0.5, 1, 1]
    switch.ended = 70
    assert [switch._progress(step) for step in (69, 70)] == [1, None]


def test_a_rule_looks_once_after_every_step_also_with_accumulated_gradients(tiny_backbone, monkeypatch):
    looks, ended = [], GapRule.ended
    monkeypatch.setattr(GapRule, "ended", lambda self, step, seen: looks.append(step) or ended(self, step, seen))
    module = FewShotClassifier(tiny_backbone, LoRA(rank=2), Objective(relation_source="current"))
    data = ShapesDataModule(way=3, shot=2, query=2, batch_size=10)
    data.preprocessing = Preprocessing.of(tiny_backbone)
    switch = StageSwitch(rule="gap")
    Trainer(max_steps=6, accumulate_grad_batches=2, callbacks=[switch], **quiet.QUIET).fit(module, datamodule=data)
    assert looks == list(range(1, switch.ended + 1))


def test_rules_of_our_own_need_the_default_stage_and_an_objective_that_keeps_its_steps():
    with pytest.raises(DtrapError, match="rule 'gap' needs start 0 and stop 3/5"):
        StageSwitch(stop=0.5, rule="gap")


def test_a_near_domain_is_named_and_nothing_is_changed(dtrap, tmp_path):
    words = [
        "fit",
        "--config",
        "demo.yaml",
        "--protocol.compare",
        "null",
        "--protocol.episodes",
        "1",
        "--data.query",
        "2",
    ]
    words += ["--trainer.max_epochs", "3", "--data.domain", "source"]
    watched = ["--protocol.folder", str(tmp_path / "a"), "--trainer.callbacks+", "dtrap.callbacks.NearDomainWarning"]
    with pytest.warns(UserWarning, match="this domain looks near"):
        status, _, errors = dtrap(*words, *watched)
    assert status == 0, errors
    dtrap(*words, "--protocol.folder", str(tmp_path / "b"))
    rows = [json.loads((tmp_path / name / "results.jsonl").read_text()) for name in "ab"]
    assert rows[0]["near_domain"]["near"] is True
    assert "near_domain" not in rows[1]
    assert rows[0]["losses"] == rows[1]["losses"]


def test_a_resumed_run_still_says_whether_its_domain_looked_near(tiny_backbone, tmp_path):
    data = ShapesDataModule(way=3, shot=2, query=2)
    data.preprocessing = Preprocessing.of(tiny_backbone)
    module, found = FewShotClassifier(tiny_backbone, LoRA(rank=2)), []
    for steps, path in ((2, None), (4, tmp_path / "2.ckpt")):
        near = NearDomainWarning()
        trainer = Trainer(max_steps=steps, callbacks=[near, StageSwitch()], **quiet.QUIET)
        trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True if path else None)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        found.append(near.row_values())
    assert found[0] == found[1] != {}
