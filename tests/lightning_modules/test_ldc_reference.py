"""Repeat two whole runs of LDC's authors through Lightning, on a ViT and on a ResNet."""

import json
from math import exp

import open_clip
import pytest
import torch
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners.ldc import LDC, BranchLogits
from lightning.pytorch import Callback, Trainer
from reference_files import assert_golden, golden
from safetensors.torch import save_file
from torch.utils.data import DataLoader

PARTS = {
    "visual.adapter.adapter_mlp": "mlp",
    **{f"visual.adapter.adapter_{k}": f"levels.{k - 1}" for k in (1, 2, 3, 4)},
    "adapter.adapter_1": "of_clip",
    "adapter.adapter_2": "of_fused",
    "adapter.adapter_3": "correction",
    "adapter.g_weight": "gate",
}
TERMS = ("ce_mlp", "ce_ada", "ce_total", "l1_mlp", "l1_ada")


class GivenStart(Callback):
    def __init__(self, start):
        self.start = start

    def on_fit_start(self, trainer, pl_module):
        pl_module.tuner.load_adapter_state(self.start | {"beta": torch.tensor(0.5, dtype=torch.float64)})


class Recorded(LDC):
    """Record the terms, logits and rates of its training steps."""

    def __init__(self):
        super().__init__()
        self.steps, self.branches, self.rates = [], [], []

    def loss_terms(self, *arguments):
        terms = super().loss_terms(*arguments)
        self.steps.append({name: float(term.detach()) for name, term in terms.items()})
        return terms

    def branch_logits(self, *arguments):
        branches = super().branch_logits(*arguments)
        if self.training:
            self.branches.append(BranchLogits(*(logits.detach() for logits in branches)))
        return branches

    def optimizer(self, parameters, learning_rate):
        optimizer = super().optimizer(parameters, learning_rate)
        optimizer.register_step_pre_hook(lambda self_, *_: self.rates.append(self_.param_groups[0]["lr"]))
        return optimizer


class Golden:
    """A reference run: settings, arrays, the backbone, and the adapters under our names."""

    def __init__(self, name, folder, monkeypatch):
        self.settings, self.arrays = golden(name)
        self.width, tokens = self.settings["dim"], self.arrays["in.tokens"].flatten(0, 1).long()
        config, weights = folder / "golden.json", folder / "golden.safetensors"
        config.write_text(json.dumps(self.settings["open_clip_config"]))
        names = open_clip.model.CLIP(**self.settings["open_clip_config"]).state_dict()
        state = {k: v.float() for k, v in self.under("in.model").items() if "adapter" not in k}
        for key in names.keys() - state.keys():
            assert key.endswith("num_batches_tracked")
            state[key] = names[key]
        save_file({k: v.contiguous() for k, v in state.items()}, weights)
        self.backbone = OpenCLIP(str(config), str(weights))
        monkeypatch.setattr(self.backbone, "tokenize", lambda prompts: tokens[: len(prompts)])

    def under(self, prefix):
        return {k[len(prefix) + 1 :]: v for k, v in self.arrays.items() if k.startswith(f"{prefix}.")}

    def adapters(self, prefix):
        found = {k: v for k, v in self.under(prefix).items() if "adapter" in k}
        ours = {}
        for key, value in found.items():
            part = next(part for part in PARTS if key.startswith(f"{part}."))
            ours[PARTS[part] + key.removeprefix(part)] = value
        assert len(ours) == len(found)
        return ours

    def images(self, split):
        images = self.arrays[f"in.{split}_images"].double() / 255
        statistics = self.backbone.image_mean, self.backbone.image_std
        mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in statistics)
        return (images - mean) / std

    def batch(self, split, rows=slice(None)):
        return {"images": self.images(split)[rows], "labels": self.arrays[f"in.{split}_labels"].long()[rows]}

    def module(self, tuner):
        scale = exp(float(self.arrays["in.model.logit_scale"].double()))
        module = FewShotClassifier(
            self.backbone, tuner, Objective(0.0, 0.0, logit_scale=scale), learning_rate=self.settings["learning_rate"]
        )
        classes = [f"class {number}" for number in range(self.settings["way"])]
        module.set_classes(classes, [f"{{}} {number}." for number in range(self.settings["prompts"])])
        return module

    def check_logits(self, module, split, prefix, names):
        with torch.no_grad():
            features, texts = module.image_features(self.images(split)), module.text_features()
            branches = module.tuner.branch_logits(features, texts, module.objective.logit_scale)
        ours = {"clip": branches.clip, "mlp": branches.mlp, "ada": branches.deconfused, "total": branches.total}
        for name in names:
            assert_golden(ours[name], self.arrays[f"{prefix}{name}_logits"])
        return features, branches, ours


@pytest.fixture(params=["ldc_vit_w6s3", "ldc_rn_w5s3"])
def run(request, tmp_path, monkeypatch):
    return Golden(request.param, tmp_path, monkeypatch)


def test_levels_fusion_and_all_logits_at_the_start_are_the_authors(run):
    module = run.module(LDC()).double().eval()
    module.start_task(0)
    module.tuner.load_adapter_state(run.adapters("in.model") | {"beta": torch.tensor(0.5)})
    features, branches, _ = run.check_logits(module, "test", "out.start.", ("clip", "mlp", "ada", "total"))
    assert_golden(module.tuner.related_features(features), run.arrays["out.start.fused"])
    assert_golden(branches.gate, run.arrays["out.start.gate"])
    with torch.no_grad():
        levels = module.tuner.level_features(module.encode_images(run.images("test")[:4]))
    for number, level in enumerate(levels, start=1):
        assert_golden(level, run.arrays[f"out.start.level_{number}"])


def test_the_whole_training_is_the_authors(run):
    settings, arrays, tuner = run.settings, run.arrays, Recorded()
    module = run.module(tuner)
    epochs = [order.split(settings["batch_size"]) for order in arrays["in.order"].long()]
    batches = [run.batch("train", rows) for epoch in epochs for rows in epoch]
    trainer = Trainer(
        precision="64-true",
        max_epochs=1,
        callbacks=[GivenStart(run.adapters("in.model"))],
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None), DataLoader([run.batch("val")], batch_size=None))

    assert len(tuner.steps) == settings["steps_total"]
    for number, (step, expected) in enumerate(zip(tuner.steps, settings["steps"], strict=True)):
        for name in TERMS:
            assert step[name] == pytest.approx(expected[name], rel=1e-8), (number, name)
        assert sum(step.values()) == pytest.approx(expected["total"], rel=1e-8)
        assert tuner.rates[number] == pytest.approx(expected["lr"], rel=1e-12)
        assert float(tuner.branches[number].gate.mean()) == pytest.approx(expected["gate_mean"], rel=1e-8)
    first = tuner.branches[0]
    for name, got in (("clip", first.clip), ("mlp", first.mlp), ("ada", first.deconfused), ("total", first.total)):
        assert_golden(got, arrays[f"out.step0.{name}_logits"])
    state, end = tuner.adapter_state(), run.adapters("out.end.model")
    assert state.keys() - end.keys() == {"beta"}
    for name, value in end.items():
        assert_golden(state[name].detach(), value)
    check_the_end(run, module, trainer)
    check_every_beta(run, module)


def check_the_end(run, module, trainer):
    settings = run.settings
    module.double().eval()
    run.check_logits(module, "val", "out.end.val_", ("mlp", "ada"))
    _, _, ours = run.check_logits(module, "test", "out.end.test_", ("clip", "mlp", "ada", "total"))
    assert float(module.tuner.beta) == settings["val"]["best_beta"]
    with torch.no_grad():
        ours["fused"] = module(run.images("test"))
        validated = module(run.images("val"))
    assert_golden(ours["fused"], run.arrays["out.end.test_fused_logits"])
    labels = run.arrays["in.test_labels"]
    for name, logits in ours.items():
        accuracy = 100 * float((logits.argmax(1) == labels).double().mean())
        assert accuracy == pytest.approx(settings["test_accuracy"][name]), name
    best = 100 * float((validated.argmax(1) == run.arrays["in.val_labels"]).double().mean())
    assert best == pytest.approx(settings["val"]["best_accuracy"])
    result = trainer.test(module, DataLoader([run.batch("test")], batch_size=None), verbose=False)
    assert result[0]["test/accuracy"] == pytest.approx(settings["test_accuracy"]["fused"])


def check_every_beta(run, module):
    images, labels, validation = run.images("val"), run.arrays["in.val_labels"], run.settings["val"]
    with torch.no_grad():
        features, texts = module.image_features(images), module.text_features()
        for beta, expected in zip(validation["beta_grid"], validation["accuracy_per_beta"], strict=True):
            module.tuner.beta.fill_(beta)
            logits = module.tuner.logits(features, texts, module.objective.logit_scale)
            assert 100 * float((logits.argmax(1) == labels).double().mean()) == pytest.approx(expected), beta
