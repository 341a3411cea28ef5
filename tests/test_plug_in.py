"""Single pieces in projects of strangers, written as a stranger would who has read the documentation only."""

import textwrap

import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import EuroSATDataModule
from dtrap.lightning_modules import losses
from layouts import make_eurosat
from lightning.pytorch import LightningModule, Trainer
from torch import nn


class Suppression:
    """What StageSwitch asks of an objective."""

    def __init__(self):
        self.progress, self.history = None, []

    def set_stage(self, progress):
        self.progress = progress
        self.history.append(progress)


class Stranger(LightningModule):
    """A small image encoder with learned class vectors; knows nothing of dtrap but the losses."""

    def __init__(self, anti_visual_weight=0.1, relation_weight=3.0):
        super().__init__()
        self.encoder = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(3 * 64, 16))
        self.classes = nn.Parameter(torch.randn(5, 16))
        self.objective = Suppression()
        self.weights = anti_visual_weight, relation_weight
        self.suppressed = []

    def training_step(self, batch, batch_idx):
        features, labels = self.encoder(batch["images"]), batch["labels"]
        loss = losses.cross_modal_loss(features, self.classes, labels, logit_scale=10.0)
        progress = self.objective.progress
        self.suppressed.append(progress is not None)
        if progress is not None:
            plain = batch["view"] == 0
            anti_visual = losses.anti_visual_loss(features, labels, num_classes=5, logit_scale=10.0)
            relations = losses.visual_relations(features, features[plain])
            target = losses.text_relations(self.classes, labels, labels[plain])
            fused = losses.fuse_relations(relations, target, progress)
            loss = (
                loss
                + self.weights[0] * anti_visual
                + self.weights[1] * losses.relation_alignment_loss(relations, fused, form="softmax")
            )
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fitted(tmp_path, **weights):
    torch.manual_seed(0)
    module = Stranger(**weights)
    data = EuroSATDataModule(tmp_path / "eurosat", shot=2, query=2)
    trainer = Trainer(
        max_epochs=5, callbacks=[StageSwitch()], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module


def test_losses_stage_switch_and_a_data_module_in_a_foreign_module(tmp_path):
    make_eurosat(tmp_path / "eurosat", per_class=4)
    module = fitted(tmp_path)
    assert module.suppressed == [True] * 6 + [False] * 4
    assert module.objective.history[1:7] == pytest.approx([i / 6 for i in range(6)])
    plain = fitted(tmp_path, anti_visual_weight=0.0, relation_weight=0.0)
    assert not torch.equal(module.classes, plain.classes)
    assert all(torch.isfinite(p).all() for p in module.parameters())


TUNER = """
    import torch
    from dtrap.lightning_modules.tuners import Tuner


    class ScaledFeatures(Tuner):
        '''Learns one factor per feature.'''

        name = "scaled"
        learning_rate = 0.05

        def __init__(self, start: float = 1.0) -> None:
            super().__init__()
            self.start = start

        @property
        def trains(self):
            return frozenset()

        def attach(self, backbone):
            if not hasattr(self, "scale"):
                self.scale = torch.nn.Parameter(torch.ones(backbone.feature_dim))

        def reset(self, seed, num_classes):
            torch.nn.init.constant_(self.scale, self.start)

        def adapter_state(self):
            return {"scale": self.scale}

        def adapt_image_features(self, features):
            return features * self.scale
"""


def test_a_tuner_from_elsewhere_is_chosen_in_yaml(dtrap, tmp_path, monkeypatch):
    (tmp_path / "tuner_of_mine.py").write_text(textwrap.dedent(TUNER))
    monkeypatch.syspath_prepend(tmp_path)
    overlay = "model:\n  tuner:\n    class_path: tuner_of_mine.ScaledFeatures\n    init_args:\n      start: 2.0\n"
    (tmp_path / "mine.yaml").write_text(overlay)
    words = ["--config", "demo.yaml", "--config", "mine.yaml", "--protocol.episodes", 2, "--trainer.max_epochs", 5]
    status, out, err = dtrap("fit", *words, "--protocol.save_adapters", "true", "--protocol.folder", "run")
    assert status == 0, err
    assert "scaled on tiny_clip/" in out
    assert "trains 96 of" in out
    adapters = sorted((tmp_path / "run" / "adapters").glob("*svl-ra.safetensors"))
    assert len(adapters) == 2
    status, _, err = dtrap("test", "--adapter", adapters[0])
    assert status == 2
    assert "If you trust that class, give it: --model.tuner tuner_of_mine.ScaledFeatures." in err
    status, out, err = dtrap("test", "--adapter", adapters[0], "--model.tuner", "tuner_of_mine.ScaledFeatures")
    assert status == 0, err
    assert "when it was saved" in out


def test_a_wrong_argument_of_such_a_tuner_is_named(dtrap, tmp_path, monkeypatch):
    (tmp_path / "tuner_of_mine2.py").write_text(textwrap.dedent(TUNER))
    monkeypatch.syspath_prepend(tmp_path)
    status, _, err = dtrap(
        "fit", "--config", "demo.yaml", "--model.tuner", "tuner_of_mine2.ScaledFeatures", "--model.tuner.begin", 2
    )
    assert status == 2
    assert "begin" in err
    assert "Traceback" not in err
