"""What torch traces leaves nothing in the caches: a real forward pass afterwards gives the real logits."""

import warnings
from contextlib import suppress

import pytest
import torch
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tracing import can_be_kept
from dtrap.lightning_modules.tuners import CoOp, LoRA, MaPLe, TipAdapterF
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

TUNERS = {"LoRA": LoRA, "CoOp": lambda: CoOp(context_tokens=4), "MaPLe": MaPLe, "Tip-Adapter-F": TipAdapterF}
IMAGES = torch.linspace(-1, 1, 2 * 3 * 48 * 48).view(2, 3, 48, 48)


class Forward(torch.nn.Module):
    """Without Lightning's properties, which need a Trainer."""

    def __init__(self, module):
        super().__init__()
        self.backbone, self.module = module.backbone, (module,)

    def forward(self, images):
        return self.module[0](images)


def fake(module):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        module(mode.from_tensor(IMAGES))


WAYS = {
    "export": lambda module: torch.export.export(Forward(module), (IMAGES,)),
    "compile": lambda module: torch.compile(module.forward, backend="eager")(IMAGES),
    "jit.trace": lambda module: torch.jit.trace(Forward(module), (IMAGES,)),
    "FakeTensorMode": fake,
    "make_fx": lambda module: make_fx(module.forward, tracing_mode="fake", _allow_non_fake_inputs=True)(IMAGES),
    "func.vmap": lambda module: torch.func.vmap(lambda image: module(image[None])[0])(IMAGES),
    "inference_mode": lambda module: torch.inference_mode()(module.forward)(IMAGES),
}
# What cannot be traced before a first pass: tokens and features of a trained text tower are checked by their values.
WORKS = {("LoRA", way) for way in WAYS} - {("LoRA", "make_fx")} | {("Tip-Adapter-F", "export")}


def make(tuner):
    module = FewShotClassifier(OpenCLIP("tiny_clip.json", "tiny_clip.safetensors"), TUNERS[tuner]())
    module.set_classes(["heart", "circle"])
    module.tuner.reset(0, 2)
    return module


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tuner", TUNERS)
def test_a_real_pass_works_after_a_traced_one(tuner, way):
    expected, module = make(tuner)(IMAGES), make(tuner)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if (tuner, way) in WORKS:
            WAYS[way](module)
        else:
            with suppress(Exception):
                WAYS[way](module)
    found = module(IMAGES)
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, expected)
    if found.requires_grad:
        found.sum().backward()


def test_what_may_be_cached():
    """Fails where torch no longer has the private parts that are asked."""
    seen = []
    assert can_be_kept(IMAGES)
    with FakeTensorMode() as mode:
        seen.append(can_be_kept(IMAGES))
        stand_in = mode.from_tensor(IMAGES)
    torch.func.vmap(lambda image: seen.append(can_be_kept(image)) or image)(IMAGES)
    assert seen == [False, False]
    assert not can_be_kept(stand_in)
