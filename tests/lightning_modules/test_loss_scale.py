"""16-mixed with torch's gradient scaler on a CPU: an update that overflows is made, and one that is lost is counted."""

import math

import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import ShapesDataModule
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.finite import DivergedError
from dtrap.lightning_modules.tuners import FWT, LDC, LoRA, StepSPT
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from quiet import QUIET
from small_backbones import SMALL
from torch.amp import GradScaler


class Overflowing(GradScaler):
    """A scaler of float32 gradients that overflow above a limit, as those of float16 do."""

    def __init__(self, limit, init_scale=65536.0):
        super().__init__("cpu", init_scale=init_scale)
        self.limit = limit

    def _unscale_grads_(self, optimizer, inv_scale, found_inf, allow_fp16):
        found = super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        if self.get_scale() > self.limit:
            for value in found.values():
                value.fill_(1.0)
        return found


class InFloat32(MixedPrecision):
    """The scaler of 16-mixed without rounding, so that a run can be compared with one in 32-true."""

    def __init__(self, scaler):
        super().__init__("16-mixed", "cpu", scaler)

    def autocast_context_manager(self):
        return torch.autocast("cpu", enabled=False)


class Steps(Callback):
    """The values after each step, and the scheduler's rates."""

    def __init__(self):
        self.values, self.rates, self.progress = [], [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        parameters = [value.detach().flatten() for value in pl_module.tuner.trained_parameters()]
        buffers = [value.detach().float().flatten() for value in pl_module.tuner.buffers()]
        self.values.append(torch.cat(parameters + buffers))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.progress.append(pl_module.objective.progress)


def fit(backbone, tuner, scaler=None, epochs=4, plugin=InFloat32, **settings):
    torch.manual_seed(3)
    steps = Steps()
    module = FewShotClassifier(backbone, tuner, Objective())
    given = {"plugins": [plugin(scaler)]} if scaler is not None else {}
    trainer = Trainer(max_epochs=epochs, callbacks=[StageSwitch(), steps], **QUIET, **given, **settings)
    trainer.fit(module, datamodule=ShapesDataModule(shot=1, query=1, views=2))
    return module, trainer, steps


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tuner", [lambda: LoRA(rank=2, dropout=0.5), lambda: LDC(), lambda: FWT(LoRA(rank=2))])
def test_a_step_that_overflows_is_repeated_as_if_it_had_not(tmp_path, tuner):
    make = SMALL["open_clip CLIP ViT"]
    _, _, plain = fit(make(tmp_path), tuner())
    found, trainer, steps = fit(make(tmp_path), tuner(), Overflowing(5000.0))
    assert trainer.precision_plugin.scaler.get_scale() == 4096.0  # four halvings of 65536
    assert found.loss_scale.skipped == 0
    assert trainer.global_step == 4
    assert (steps.rates, steps.progress) == (plain.rates, plain.progress)
    for ours, theirs in zip(steps.values, plain.values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert not torch.equal(steps.values[0], steps.values[1])


def test_without_repeating_the_first_updates_would_be_lost(tiny_backbone, monkeypatch):
    """The scaler of these tests does what torch's does."""
    monkeypatch.setattr("dtrap.lightning_modules.loss_scale.LossScale.step", lambda self, make, *_: make())
    _, _, steps = fit(tiny_backbone, LoRA(rank=2), Overflowing(5000.0))
    assert torch.equal(steps.values[0], steps.values[3])


def test_an_update_of_accumulated_gradients_is_lost_and_counted(tiny_backbone):
    module, _, _ = fit(tiny_backbone, LoRA(rank=2), Overflowing(20000.0), accumulate_grad_batches=2)
    assert module.loss_scale.skipped == 2


def test_a_gradient_that_is_never_finite_ends_the_training(tiny_backbone):
    with pytest.raises(DivergedError, match=r"step 1 is not finite with any loss scale.*bf16-mixed or 32-true"):
        fit(tiny_backbone, LoRA(rank=2), Overflowing(0.0))


@pytest.mark.filterwarnings("ignore")
def test_own_steps_start_low_and_what_they_lose_is_counted(tiny_backbone):
    module, trainer, _ = fit(tiny_backbone, StepSPT(), Overflowing(5000.0), epochs=2)
    assert (module.loss_scale.skipped, trainer.precision_plugin.scaler.get_scale()) == (0, 1024.0)
    module, trainer, _ = fit(tiny_backbone, StepSPT(), Overflowing(300.0), epochs=2)
    assert (module.loss_scale.skipped, trainer.precision_plugin.scaler.get_scale()) == (2, 256.0)


def test_float16_itself_trains_on_a_cpu_and_keeps_its_scale(tiny_backbone):
    def half(scaler):
        return MixedPrecision("16-mixed", "cpu", scaler)

    module, _, steps = fit(tiny_backbone, LoRA(rank=2), GradScaler("cpu", init_scale=2.0**40), plugin=half)
    assert module.loss_scale.skipped == 0
    assert all(math.isfinite(float(value.sum())) for value in steps.values)
    assert not torch.equal(steps.values[0], steps.values[1])
