"""A fit that is resumed from a Lightning checkpoint ends like the fit that was not interrupted."""

import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import ShapesDataModule
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.tuners import (
    FWT,
    LDC,
    CLIPAdapter,
    CoOp,
    FullFineTuning,
    LinearHead,
    LoRA,
    LPPlusPlus,
    MaPLe,
    StepSPT,
    TipAdapterF,
)
from lightning.pytorch import Callback, Trainer
from quiet import QUIET
from small_backbones import open_clip_vit

STEPS = 10
TUNERS = {
    "LoRA": lambda: LoRA(rank=2, dropout=0.0),
    "LoRA, text": lambda: LoRA("text", rank=2, dropout=0.0),
    "LoRA, both": lambda: LoRA("both", rank=2, dropout=0.0),
    "LoRA with dropout": lambda: LoRA(rank=2, dropout=0.5),
    "CoOp": lambda: CoOp(context_tokens=4),
    "CoOp of each class": lambda: CoOp(context_tokens=2, class_specific=True),
    "MaPLe": MaPLe,
    "CLIP-Adapter": CLIPAdapter,
    "Tip-Adapter-F": TipAdapterF,
    "LP++": lambda: LPPlusPlus(alpha_every=3),
    "LDC": LDC,
    "linear head": LinearHead,
    "full, vision": FullFineTuning,
    "full, both": lambda: FullFineTuning("both"),
    "StepSPT": StepSPT,
    "FWT around LoRA": lambda: FWT(LoRA(rank=2, dropout=0.25)),
}


class EveryStep(Callback):
    """Saves a checkpoint after every step."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.folder / f"{trainer.fit_loop.epoch_loop.total_batch_idx + 1}.ckpt")


class Terms(Callback):
    """The terms of every step."""

    def __init__(self):
        self.terms = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.terms.append({name: float(value) for name, value in outputs.items() if name != "loss"})


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("backbone")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tuner", TUNERS)
def test_a_fit_resumed_at_any_step_equals_the_uninterrupted_one(tmp_path, backbone_folder, tuner):
    def fit(*callbacks, **options):
        torch.manual_seed(len(options))  # as another process would start
        module = FewShotClassifier(open_clip_vit(backbone_folder), TUNERS[tuner]())
        data = ShapesDataModule(shot=2, query=1, views=2)
        terms = Terms()
        trainer = Trainer(max_epochs=STEPS // 2, callbacks=[StageSwitch(), terms, *callbacks], **QUIET)
        trainer.fit(module, datamodule=data, **options)
        return {name: value.detach() for name, value in module.tuner.adapter_state().items()}, terms.terms

    expected, terms = fit(EveryStep(tmp_path))
    assert len(terms) == STEPS
    for step in range(1, STEPS + 1):
        found, rest = fit(ckpt_path=tmp_path / f"{step}.ckpt", weights_only=True)
        assert rest == terms[step:], step
        assert found.keys() == expected.keys()
        wrong = [name for name, value in expected.items() if not torch.equal(found[name], value)]
        assert not wrong, step
