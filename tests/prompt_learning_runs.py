"""Repeat the reference runs of CoOp and MaPLe through Lightning's Trainer."""

import copy
import json

import pytest
import torch
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP
from lightning.pytorch import Callback, Trainer
from open_clip.tokenizer import SimpleTokenizer
from reference_files import assert_golden, golden
from safetensors.torch import save_file
from torch.utils.data import DataLoader

UNUSED_TOKEN = 93


class Golden:
    """One run: `settings`, `arrays` and a backbone with the run's compact vocabulary."""

    def __init__(self, name, folder):
        self.settings, self.arrays = golden(name)
        config, weights = folder / "golden.json", folder / "golden.safetensors"
        config.write_text(json.dumps(self.settings["open_clip_config"]))
        model = {key[6:]: v.float().contiguous() for key, v in self.arrays.items() if key.startswith("model.")}
        save_file(model, weights)
        self.backbone = OpenCLIP(str(config), str(weights))
        self.backbone.tokenize = self.tokenize

    def tokenize(self, prompts):
        compact = {real: int(own) for own, real in self.settings["bpe_ids"].items()} | {0: 0}
        tokenizer = SimpleTokenizer(context_length=self.backbone.context_length)
        rows = tokenizer(prompts).tolist()
        return torch.tensor([[compact.get(token, UNUSED_TOKEN) for token in row] for row in rows])

    def values(self, prefix, rename):
        """Tensors of the file under our names."""
        return {rename(k[len(prefix) :]): v for k, v in self.arrays.items() if k.startswith(prefix)}

    def images(self, key):
        mean, std = (
            torch.tensor(v, dtype=torch.float64).view(3, 1, 1)
            for v in (self.backbone.image_mean, self.backbone.image_std)
        )
        return (self.arrays[key].flatten(0, 1).double() / 255 - mean) / std

    def module(self, tuner):
        objective = Objective(anti_visual_weight=0.0, relation_weight=0.0, logit_scale=self.settings["logit_scale"])
        module = FewShotClassifier(self.backbone, tuner, objective)
        module.set_classes(self.settings["class_names"])
        return module

    def fit(self, module, start):
        """Train on the file's mini-batches; return what was recorded."""
        seen = Seen(self, start)
        Trainer(
            precision="64-true",
            max_epochs=self.settings["optimiser"]["max_epoch"],
            callbacks=[seen],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, DataLoader(seen.batches, batch_size=None))
        return seen


class Batches(torch.utils.data.Dataset):
    """The mini-batches of the current epoch."""

    def __init__(self, golden):
        self.images, self.shot = golden.images("support"), golden.settings["shot"]
        self.steps, self.epoch = golden.settings["steps"], 0
        self.per_epoch = golden.settings["optimiser"]["steps_per_epoch"]

    def __len__(self):
        return self.per_epoch

    def __getitem__(self, number):
        rows = torch.tensor(self.steps[self.epoch * self.per_epoch + number]["indices"])
        return {"images": self.images[rows], "labels": rows // self.shot}


class Seen(Callback):
    """Set the start; record losses, rates, first gradients, and the features and logits before and after."""

    def __init__(self, golden, start):
        self.golden, self.start, self.batches = golden, start, Batches(golden)
        self.losses, self.rates, self.first_gradients, self.ends = [], [], {}, []

    def on_fit_start(self, trainer, pl_module):
        pl_module.tuner.load_adapter_state(self.start)

    def on_train_start(self, trainer, pl_module):
        self.ends.append(self.look(pl_module))

    def on_train_epoch_start(self, trainer, pl_module):
        self.batches.epoch = trainer.current_epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == 0:
            state = pl_module.tuner.adapter_state().items()
            self.first_gradients = {name: value.grad.clone() for name, value in state}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def on_train_end(self, trainer, pl_module):
        self.ends.append(self.look(pl_module))

    def look(self, module):
        with torch.no_grad():
            images, texts = module.image_features(self.golden.images("query")), module.text_features()
            logits = module.tuner.logits(images, texts, module.objective.logit_scale)
        return {"image_features": images, "text_features": texts, "logits": logits}


def in_double(backbone):
    """A copy in double precision."""
    double = copy.deepcopy(backbone).double()
    try:
        double.encode_text(double.tokenize(["cat"]))
    except RuntimeError:
        pytest.skip("older transformers: the text mask of CLIP overflows in double precision")
    return double


def assert_same_run(golden, module, seen, rename):
    """Compare every number of the file, to 1e-8."""
    steps = golden.settings["steps"]
    for key, got, tolerance in (("loss", seen.losses, 1e-8), ("lr", seen.rates, 1e-12)):
        expected = torch.tensor([step[key] for step in steps], dtype=torch.float64)
        torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), expected, rtol=tolerance, atol=0)
    rate = module.trainer.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx(golden.settings["rate_after_last_epoch"], rel=1e-12)
    labels = torch.arange(golden.settings["way"]).repeat_interleave(golden.settings["queries"])
    for when, values in zip(("start", "end"), seen.ends, strict=True):
        for name, value in values.items():
            assert_golden(value, golden.arrays[f"{when}_{name}"])
        accuracy = (values["logits"].argmax(dim=1) == labels).double().mean()
        assert 100 * float(accuracy) == pytest.approx(golden.settings[f"{when}_query_accuracy"])
    for prefix, got in (("first_grad.", seen.first_gradients), ("end.", module.tuner.adapter_state())):
        expected = golden.values(prefix, rename)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert_golden(got[name].detach(), value)


def tuned(backbone, tuner, names, **settings):
    """A classifier for classes of these names, with its tuner at the start."""
    module = FewShotClassifier(backbone, tuner, **settings)
    module.set_classes(names)
    module.start_task(0)
    return module


def randomize(tuner, scale, seed=1):
    """Fill the tuner with normal values of this standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    tuner.load_adapter_state(
        {k: scale * torch.randn(v.shape, generator=generator) for k, v in tuner.adapter_state().items()}
    )
