"""StageSwitch on LightningModules of strangers: which steps are suppressed and with which progress."""

from fractions import Fraction

import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.callbacks.stage_switch import suppressed_progress
from dtrap.errors import DtrapError
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset


class Recorder:
    def __init__(self):
        self.calls = []

    def set_stage(self, progress):
        self.calls.append(progress)


class Foreign(LightningModule):
    def __init__(self, objective=None):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        if objective is not None:
            self.objective = objective

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, callback, batches=5, **settings):
    settings = {"max_epochs": 2, **settings}
    trainer = Trainer(
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, DataLoader(torch.randn(batches, 2), batch_size=1))
    return module


def test_the_first_three_fifths_are_suppressed():
    calls = fit(Foreign(Recorder()), StageSwitch()).objective.calls
    assert calls == [None, *(i / 6 for i in range(6)), None, None, None, None]


def test_steps_are_optimizer_steps_so_accumulated_batches_share_one():
    calls = fit(Foreign(Recorder()), StageSwitch(), batches=4, accumulate_grad_batches=2).objective.calls
    assert calls == [None, 0.0, 0.0, 0.5, 0.5, None, None, None, None]


def test_max_steps_ends_the_run_too():
    calls = fit(Foreign(Recorder()), StageSwitch(stop="1/2"), batches=5, max_epochs=-1, max_steps=4).objective.calls
    assert calls == [None, 0.0, 0.5, None, None]


class TwoOptimisers(Foreign):
    def __init__(self, objective):
        super().__init__(objective)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            self.manual_backward(self.layer(batch).sum())
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([parameter], lr=0.1) for parameter in self.layer.parameters()]


@pytest.mark.parametrize("length", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 20}])
def test_two_optimizers_that_step_in_each_batch_do_not_shorten_the_stage(length):
    calls = fit(TwoOptimisers(Recorder()), StageSwitch(), batches=5, **length).objective.calls
    assert calls == [None, *(i / 6 for i in range(6)), None, None, None, None]


def test_a_resumed_run_goes_on_within_the_stage(tmp_path):
    whole = fit(Foreign(Recorder()), StageSwitch()).objective.calls[1:]
    module, callback = Foreign(Recorder()), StageSwitch()
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, callbacks=[callback], enable_checkpointing=False, **quiet)
    loader = DataLoader(torch.randn(5, 2), batch_size=1)
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    module = Foreign(Recorder())
    trainer = Trainer(max_epochs=2, callbacks=[callback], enable_checkpointing=False, **quiet)
    trainer.fit(module, loader, ckpt_path=tmp_path / "half.ckpt")
    assert module.objective.calls[1:] == whole[5:]


def test_a_second_fit_with_the_same_callback_starts_anew():
    callback = StageSwitch()
    first = fit(Foreign(Recorder()), callback).objective.calls
    assert fit(Foreign(Recorder()), callback).objective.calls == first


@pytest.mark.parametrize(
    ("start", "stop", "inside"),
    [(0, "3/5", range(0, 6)), ("1/5", 0.8, range(2, 8)), ("2/5", 1, range(4, 10)), (0, 0, [])],
)
def test_windows_of_the_timing_study(start, stop, inside):
    calls = fit(Foreign(Recorder()), StageSwitch(start, stop)).objective.calls[1:]
    assert [i for i, p in enumerate(calls) if p is not None] == list(inside)
    if inside:
        assert calls[inside[0]] == 0


@pytest.mark.parametrize("total", range(1, 200))
def test_the_boundary_is_exact_where_floating_point_is_not(total):
    settings = {"start": Fraction(0), "stop": Fraction(str(0.6))}
    inside = [i for i in range(total) if suppressed_progress(i, total, **settings) is not None]
    assert len(inside) == 3 * total // 5


@pytest.mark.parametrize("total", [5, 10, 250, 1250])
def test_both_rules_agree_where_the_run_is_a_multiple_of_five(total):
    settings = {"start": Fraction(0), "stop": Fraction(3, 5)}
    for step in range(total):
        assert suppressed_progress(step, total, **settings) == suppressed_progress(
            step, total, rule="authors", **settings
        )


def test_authors_rule_never_divides_by_zero():
    assert suppressed_progress(0, 1, start=Fraction(0), stop=Fraction(3, 5), rule="authors") == 0


def test_a_module_without_an_objective_is_told_what_is_missing():
    with pytest.raises(DtrapError, match=r"Foreign has no attribute `objective`.*set_stage"):
        fit(Foreign(), StageSwitch())
    with pytest.raises(DtrapError, match="an `objective` without `set_stage`"):
        fit(Foreign(objective=object()), StageSwitch())


def test_a_run_without_a_known_length_is_an_error():
    with pytest.raises(DtrapError, match="max_epochs"):
        fit(Foreign(Recorder()), StageSwitch(), max_epochs=-1)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(torch.randn(5, 2))


def test_a_loader_without_length_needs_max_steps():
    module, endless = Foreign(Recorder()), DataLoader(Endless(), batch_size=1)
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with pytest.raises(DtrapError, match="max_steps"):
        Trainer(max_epochs=2, callbacks=[StageSwitch()], **settings).fit(module, endless)
    module.objective.calls.clear()
    Trainer(max_epochs=2, max_steps=5, callbacks=[StageSwitch()], **settings).fit(module, endless)
    assert module.objective.calls[1:] == [0, 1 / 3, 2 / 3, None, None]


@pytest.mark.parametrize(
    "arguments",
    [
        {"start": 0.7, "stop": 0.6},
        {"stop": 1.5},
        {"stop": "three"},
        {"start": -0.1},
        {"rule": "paper"},
        {"stop": 0.5, "rule": "authors"},
    ],
)
def test_wrong_windows_are_named(arguments):
    with pytest.raises(DtrapError, match="StageSwitch"):
        StageSwitch(**arguments)
