"""Repeat whole training runs of the authors' loop with our module, LoRA and StageSwitch."""

import json

import open_clip
import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.losses import cosines
from dtrap.lightning_modules.tuners import LoRA
from lightning.pytorch import Callback, Trainer
from reference_files import LORA_RUNS, assert_golden, golden
from safetensors.torch import save_file
from torch.utils.data import DataLoader

CLASSES = ["one", "two", "three", "four", "five"]


class Given(Callback):
    """Set what the authors' run drew (the start of LoRA, the prototypes of every step); record totals and rates."""

    def __init__(self, start, steps):
        self.start, self.steps, self.totals, self.rates = start, steps, [], []

    def on_fit_start(self, trainer, pl_module):
        pl_module.tuner.load_adapter_state(self.start)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        indices = torch.tensor(self.steps[trainer.global_step]["prototype_indices"])
        pl_module.objective.next_prototypes = indices
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.totals.append(float(outputs["loss"]))


@pytest.fixture(params=LORA_RUNS)
def run(request, tmp_path, monkeypatch):
    settings, arrays = golden(request.param)
    config, weights = tmp_path / "golden.json", tmp_path / "golden.safetensors"
    config.write_text(json.dumps(settings["open_clip_config"]))
    expected = open_clip.model.CLIP(**settings["open_clip_config"]).state_dict().keys()
    save_file({k[6:]: v.float().contiguous() for k, v in arrays.items() if k.startswith("model.")}, weights)
    assert {k[6:] for k in arrays if k.startswith("model.")} <= expected
    backbone = OpenCLIP(str(config), str(weights))
    monkeypatch.setattr(backbone, "tokenize", lambda prompts: arrays["tokens"].long())
    return settings, arrays, backbone


def normalized(images, backbone):
    images = images.double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (backbone.image_mean, backbone.image_std))
    return (images - mean) / std


def test_every_total_and_the_final_cosines_are_those_of_the_authors_loop(run):
    settings, arrays, backbone = run
    way, shot, views = settings["way"], settings["shot"], settings["views"]
    module = FewShotClassifier(
        backbone,
        LoRA(settings["encoder"], settings["rank"], settings["alpha"], 0.0, projections=settings["params"]),
        Objective(settings["lambda_ad"], settings["beta_ra"]),
        learning_rate=settings["learning_rate"],
    )
    module.set_classes(CLASSES)
    batch = {
        "images": normalized(arrays["support"].flatten(0, 2), backbone),
        "labels": torch.arange(way).repeat_interleave(shot).repeat(views),
        "view": torch.arange(views).repeat_interleave(way * shot),
        "sample_id": torch.arange(way * shot).repeat(views),
    }
    start = {f"model.{k[6:]}": v.double() for k, v in arrays.items() if k.startswith("start.")}
    start |= {
        k.replace("lora_A", "lora_B"): torch.zeros_like(module.tuner.adapter_state()[k.replace("_A", "_B")])
        for k in start
    }
    given = Given(start, settings["steps"])
    trainer = Trainer(
        precision="64-true",
        max_epochs=settings["epochs"],
        callbacks=[given, StageSwitch(rule="authors")],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch] * shot, batch_size=None))

    totals = torch.tensor([step["total"] for step in settings["steps"]], dtype=torch.float64)
    rates = torch.tensor([step["lr"] for step in settings["steps"]], dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(given.totals, dtype=torch.float64), totals, rtol=1e-8, atol=0)
    torch.testing.assert_close(torch.tensor(given.rates, dtype=torch.float64), rates, rtol=1e-12, atol=0)
    module.eval()
    with torch.no_grad():
        got = cosines(
            module.image_features(normalized(arrays["query"].flatten(0, 1), backbone)), module.text_features()
        )
    assert_golden(got, arrays["query_cosines"])
    accuracy = (got.argmax(1) == torch.arange(way).repeat_interleave(settings["queries"])).double().mean()
    assert 100 * float(accuracy) == pytest.approx(settings["query_accuracy"])
    for key, value in module.tuner.adapter_state().items():
        assert_golden(value.detach(), arrays[f"end.{key[6:]}"])
