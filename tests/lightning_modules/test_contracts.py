"""Backbones and tuners of other projects that break the contract, through FewShotClassifier."""

import pytest
import torch
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones import Backbone
from dtrap.lightning_modules.tuners import FWT, CoOp, LinearHead, LoRA, Tuner
from feature_backbone import FeatureBackbone
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

CLASSES = ["cat", "dog", "bird"]
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BATCH = {"images": IMAGES, "labels": torch.tensor([0, 1, 2, 0])}


class Scale(Tuner):
    """A sound tuner of a stranger: one factor per feature."""

    name = "scale"

    @property
    def trains(self):
        return frozenset()

    def attach(self, backbone):
        self.scale = nn.Parameter(torch.ones(backbone.feature_dim))

    def reset(self, seed, num_classes):
        nn.init.ones_(self.scale)

    def adapter_state(self):
        return {"scale": self.scale}

    def adapt_image_features(self, features):
        return features * self.scale


def fit(backbone, tuner):
    module = FewShotClassifier(backbone, tuner)
    module.set_classes(CLASSES)
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader([BATCH] * 2, batch_size=None))
    return module


def test_a_sound_tuner_of_a_stranger_runs(tiny_backbone):
    assert fit(tiny_backbone, Scale())(IMAGES).shape == (4, 3)


def changed(base, **members):
    return type(f"My{base.__name__}", (base,), members)


TUNERS = {
    "name": ({"name": None}, "MyScale: the attribute `name` is missing"),
    "tower": ({"trains": frozenset({"visual"})}, "`trains` is frozenset.*visual.*'vision', 'text'"),
    "one tower": ({"trains": "vision"}, "`trains` is 'vision'; expected a frozenset"),
    "state": (
        {"adapter_state": lambda self: [self.scale]},
        r"MyScale\.adapter_state returned a list; expected a dictionary",
    ),
    "tower's features": (
        {"image_features": lambda self, backbone, images: backbone.encode_image(images).mean(0)},
        r"MyScale\.image_features returned a float32 tensor \[16\] for 4 images; expected .* \[4, any width\]",
    ),
    "features": (
        {"adapt_image_features": lambda self, features: features[:1]},
        r"MyScale\.adapt_image_features returned a float32 tensor \[1, 16\] for 4 images",
    ),
    "not finite": (
        {"image_features": lambda self, backbone, images: backbone.encode_image(images) / 0},
        r"MyScale\.image_features returned values that are not finite",
    ),
    "width": (
        {"adapt_image_features": lambda self, features: features[:, :8]},
        "image features have the width 8 and class texts 16.*override `logits`",
    ),
    "texts": (
        {
            "trains": frozenset({"text"}),
            "text_features": lambda self, backbone, prompts, chunk=None: backbone.encode_text(prompts.tokens)[:2],
        },
        r"MyScale\.text_features returned a float32 tensor \[2, 16\] for 3 classes",
    ),
    "logits": (
        {"logits": lambda self, features, texts, scale: texts @ features.T},
        r"MyScale\.logits returned a float32 tensor \[3, 4\] for 4 images; expected .* \[4, 3\]",
    ),
    "classes": (
        {"logits": lambda self, features, texts, scale: (features @ texts.T).argmax(dim=1)},
        r"MyScale\.logits returned a int64 tensor \[4\] for 4 images",
    ),
    "loss": (
        {"classification_loss": lambda self, features, *rest: features.sum(dim=1)},
        r"MyScale\.classification_loss returned a float32 tensor \[4\]; expected a scalar",
    ),
}


@pytest.mark.parametrize("case", TUNERS)
def test_a_tuner_that_breaks_the_contract_is_told_which_part(tiny_backbone, case):
    members, message = TUNERS[case]
    with pytest.raises(DtrapError, match=message):
        fit(tiny_backbone, changed(Scale, **members)())


def test_logits_are_checked_where_a_model_is_only_used(tiny_backbone):
    module = FewShotClassifier(tiny_backbone, changed(Scale, logits=lambda self, features, *rest: features)())
    module.set_classes(CLASSES)
    with pytest.raises(DtrapError, match=r"MyScale\.logits returned a float32 tensor \[4, 16\] .* \[4, 3\]"):
        module(IMAGES)


BACKBONES = {
    "missing": ({"feature_dim": property()}, "the attribute `feature_dim` is missing"),
    "type": ({"image_size": "32"}, "the attribute `image_size` is 32.*whole numbers"),
    "channels": ({"image_mean": (0.5,)}, r"the attribute `image_mean` is \(0.5,\)"),
    "images": (
        {"encode_image": lambda self, images: torch.ones(16)},
        r"My\w+\.encode_image returned a float32 tensor \[16\] for 4 images; expected .* \[4, 3072\]",
    ),
    "width": (
        {"encode_image": lambda self, images: torch.ones(len(images), 8)},
        r"My\w+\.encode_image returned a float32 tensor \[4, 8\] for 4 images; expected .* \[4, 3072\]",
    ),
    "texts": (
        {"encode_text": lambda self, tokens: torch.ones(16)},
        r"My\w+\.encode_text returned a float32 tensor \[3\] for 3 classes; expected .* \[3, 3072\]",
    ),
    "type of features": (
        {"encode_text": lambda self, tokens: torch.ones(len(tokens), 16, dtype=torch.int64)},
        r"My\w+\.encode_text returned a int64 tensor",
    ),
    "tokens": (
        {"tokenize": lambda self, prompts: torch.zeros(len(prompts), 3)},
        r"My\w+\.tokenize returned a float32 tensor \[3, 3\] for 3 prompts; expected an int64 tensor",
    ),
}


@pytest.mark.parametrize("case", BACKBONES)
def test_a_backbone_that_breaks_the_contract_is_told_which_part(case):
    members, message = BACKBONES[case]
    backbone = FeatureBackbone(torch.randn(3, 3072))
    own = {name: value for name, value in members.items() if not (callable(value) or isinstance(value, property))}
    backbone.__class__ = changed(FeatureBackbone, **{name: members[name] for name in members.keys() - own.keys()})
    vars(backbone).update(own)
    with pytest.raises(DtrapError, match=message):
        fit(backbone, LinearHead())


def test_other_objects_are_refused(tiny_backbone):
    with pytest.raises(DtrapError, match=r"backbone is a Linear; expected a subclass of .*Backbone"):
        FewShotClassifier(nn.Linear(2, 2))
    with pytest.raises(DtrapError, match=r"tuner is a Linear; expected a subclass of .*Tuner"):
        FewShotClassifier(tiny_backbone, nn.Linear(2, 2))


@pytest.mark.parametrize("make", [LoRA, lambda: CoOp(4), lambda: FWT(LoRA())], ids=["LoRA", "CoOp", "FWT"])
def test_the_backbones_part_is_checked_under_a_tuner_of_ours(tiny_backbone, make, monkeypatch):
    monkeypatch.setattr(type(tiny_backbone), "encode_image", lambda self, images: torch.ones(len(images), 8))
    module = FewShotClassifier(tiny_backbone, make())
    module.set_classes(CLASSES)
    name = "FWT.image_features|OpenCLIP.encode_image"
    with pytest.raises(DtrapError, match=rf"({name}) returned a float32 tensor \[4, 8\]|have the width 8"):
        module(IMAGES)


def test_every_attribute_of_a_backbone_is_checked():
    assert set(Backbone.__annotations__) == {
        "identifier", "image_size", "image_mean", "image_std", "context_length", "feature_dim", "logit_bias",
    }  # fmt: skip
