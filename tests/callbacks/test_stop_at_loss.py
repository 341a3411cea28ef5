"""StopAtLoss ends a fit at the final support loss of another method, in a plain Trainer and in a run."""

import json

import numpy as np
import pytest
import quiet
import torch
from dtrap.callbacks import StopAtLoss
from dtrap.callbacks.stop_at_loss import FinalLoss, window_steps
from dtrap.errors import DtrapError
from lightning.pytorch import Callback, LightningModule, Trainer
from run_folders import rows_of
from torch.utils.data import DataLoader

LOSSES = [5.0, 4.0, 6.0, 3.0, 3.5, 2.0, 2.5, 1.0, 0.5, 0.25]


class Foreign(LightningModule):
    """The losses of a list, step by step."""

    def __init__(self, named=True):
        super().__init__()
        self.layer, self.named = torch.nn.Linear(1, 1), named

    def training_step(self, batch, batch_idx):
        loss = LOSSES[self.trainer.global_step] + 0 * self.layer(batch).sum()
        return {"loss": loss, "L_vlm": loss} if self.named else loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(*callbacks, module=None, **settings):
    trainer = Trainer(max_epochs=len(LOSSES), callbacks=[*callbacks], **quiet.QUIET, **settings)
    trainer.fit(module or Foreign(), DataLoader(torch.zeros(1, 1)))
    return trainer


@pytest.mark.parametrize(
    ("window", "goal", "steps"),
    [(0.1, 3.2, 4), (0.2, 3.2, 6), (0.3, 3.0, 6), (0.25, 3.2, 6), (1.0, 3.0, 10), (0.1, 0, 10)],
)
def test_a_fit_ends_where_the_mean_of_its_last_steps_has_come_down(window, goal, steps):
    stop = StopAtLoss("other", window)
    key = "window" if window == 0.1 else f"window_{window:g}"
    stop.use_row([{"method": "x"}, {"method": "other", "losses": {key: {"L_vlm": goal}}}])
    final = FinalLoss([window])
    trainer = fit(stop, final)
    width = int(window * len(LOSSES))
    means = [np.mean(LOSSES[end - width : end]) for end in range(width, len(LOSSES) + 1)]
    reached = next((width + number for number, mean in enumerate(means) if mean <= goal), None)
    assert trainer.global_step == (reached or len(LOSSES)) == steps
    assert stop.row_values() == {"stop_at_loss": {"reference": "other", "loss": goal, "step": reached}}
    assert final.row_values()["losses"][key]["L_vlm"] == pytest.approx(np.mean(LOSSES[steps - width : steps]))


def test_a_window_is_a_whole_number_of_steps():
    assert [window_steps(0.1, total) for total in (250, 10, 19, 3)] == [25, 1, 1, 1]
    assert window_steps(0.3, 10) == 3  # in floating point 0.3 * 10 may be less


def test_what_cannot_work_is_named():
    for arguments, message in (
        (("",), "reference is empty"),
        (("x", 0), "window is 0"),
        (("x", 1.5), "window is 1.5"),
    ):
        with pytest.raises(DtrapError, match=message):
            StopAtLoss(*arguments)
    with pytest.raises(DtrapError, match="nobody gave the row of 'svl-ra'"):
        fit(StopAtLoss("svl-ra"))
    with pytest.raises(DtrapError, match="no row of 'svl-ra' in this episode; there are: baseline"):
        StopAtLoss("svl-ra").use_row([{"method": "baseline"}])
    with pytest.raises(DtrapError, match=r"has no mean loss over the last 0\.1 of its steps"):
        StopAtLoss("svl-ra").use_row([{"method": "svl-ra", "losses": {"end": {"L_vlm": 1.0}}}])
    stop = StopAtLoss("x")
    stop.use_row([{"method": "x", "losses": {"window": {"L_vlm": 1.0}}}])
    with pytest.raises(DtrapError, match="training_step of Foreign returned no 'L_vlm'"):
        fit(stop, module=Foreign(named=False))


def test_a_reference_that_diverged_ends_nothing_and_is_told():
    stop = StopAtLoss("x")
    with pytest.warns(UserWarning, match="'x' diverged in this episode"):
        stop.use_row([{"method": "x", "diverged": "the loss is not finite", "losses": {}}])
    assert fit(stop).global_step == len(LOSSES)
    assert stop.row_values()["stop_at_loss"] == {"reference": "x", "loss": None, "step": None}


def test_a_fit_that_is_resumed_from_its_end_makes_no_further_step(tmp_path):
    class Saves(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    stop = StopAtLoss("other", 0.2)
    row = [{"method": "other", "losses": {"window_0.2": {"L_vlm": 3.2}}}]
    stop.use_row(row)
    assert fit(stop, Saves()).global_step == 6
    for saved in (3, 6):
        resumed = StopAtLoss("other", 0.2)
        resumed.use_row(row)
        trainer = Trainer(max_epochs=len(LOSSES), callbacks=[resumed], **quiet.QUIET)
        trainer.fit(Foreign(), DataLoader(torch.zeros(1, 1)), ckpt_path=tmp_path / f"{saved}.ckpt", weights_only=True)
        assert trainer.global_step == 6
        assert resumed.row_values() == stop.row_values()


def test_an_accumulated_gradient_is_not_cut_in_its_middle():
    stop = StopAtLoss("other")
    stop.use_row([{"method": "other", "losses": {"window": {"L_vlm": 4.5}}}])
    trainer = Trainer(max_epochs=len(LOSSES), callbacks=[stop], accumulate_grad_batches=3, **quiet.QUIET)
    trainer.fit(Foreign(), DataLoader(torch.zeros(3, 1)))  # every step has three batches with its loss
    assert (stop.step, trainer.global_step, trainer.fit_loop.epoch_loop.total_batch_idx + 1) == (2, 2, 6)


def test_a_second_row_of_a_diverged_reference_replaces_the_first():
    stop = StopAtLoss("x")
    stop.use_row([{"method": "x", "losses": {"window": {"L_vlm": 3.0}}}])
    with pytest.warns(UserWarning, match="'x' diverged"):
        stop.use_row([{"method": "x", "diverged": "the loss is not finite", "losses": {}}])
    assert fit(stop).global_step == len(LOSSES)


class Losses(Callback):
    """L_vlm of every step of every fit of this process."""

    fits: list = []  # noqa: RUF012

    def on_train_start(self, *_):
        self.fits.append([])

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.fits[-1].append(float(outputs["L_vlm"]))


def overlay(folder, name, **arguments):
    stop = {"class_path": "dtrap.callbacks.StopAtLoss", "init_args": arguments}
    objective = {"class_path": "dtrap.lightning_modules.Objective",
                 "init_args": {"anti_visual_weight": 0.0, "relation_weight": 0.0}}  # fmt: skip
    content = {"protocol": {"method": name}, "model": {"objective": objective}, "trainer": {"callbacks+": stop}}
    (folder / f"{name}.yaml").write_text(json.dumps(content))


@pytest.fixture
def demo(tiny_model):
    return [
        "fit", "--config", "demo.yaml", *tiny_model, "--data.query", 2, "--protocol.folder", "run",
        "--protocol.episodes", 1, "--trainer.max_epochs", 20, "--model.learning_rate", 0.01,
        "--config", "monitors/alignment.yaml",
    ]  # fmt: skip


def test_an_overlay_stops_at_the_main_method_and_keeps_the_monitor_of_the_main_config(dtrap, demo, tmp_path):
    overlay(tmp_path, "stopped", reference="svl-ra", window=0.2)
    status, _, err = dtrap(*demo, "--protocol.compare", "[methods/baseline.yaml, stopped.yaml]")
    assert status == 0, err
    rows = {row["method"]: row for row in rows_of(tmp_path / "run")}
    reference, plain, stopped = (rows[name] for name in ("svl-ra", "baseline", "stopped"))
    goal = reference["losses"]["window_0.2"]["L_vlm"]
    assert stopped["stop_at_loss"]["loss"] == goal
    step = stopped["stop_at_loss"]["step"]
    assert 4 <= step < 20
    assert stopped["stopped_early"] == f"after {step} of 20 epochs"
    assert stopped["losses"]["window_0.2"]["L_vlm"] <= goal
    # L_vlm of plain fine-tuning at every step, of which the stopped fit is the beginning.
    terms = dict(zip(plain["terms"]["step"], plain["terms"]["L_vlm"], strict=True))
    means = [np.mean([terms[i] for i in range(end - 4, end)]) for end in range(4, 21)]
    assert next(4 + number for number, mean in enumerate(means) if mean <= goal) == step
    moments = [entry["moment"] for entry in stopped["alignment"]]
    assert moments == ["start", *(["switch"] if step >= 12 else []), "end"]
    assert stopped["alignment"][-1]["step"] == step
    assert [entry["step"] for entry in plain["alignment"]] == [0, 12, 20]


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        ("[other.yaml]", "its reference 'nobody' is not a method of this run; before it run: svl-ra"),
        ("[before.yaml, methods/baseline.yaml]", "its reference 'baseline' does not run before it"),
        ("[own.yaml]", "its reference 'own' does not run before it"),
    ],
)  # fmt: skip
def test_a_reference_that_does_not_run_before_is_refused_before_anything_is_written(
    dtrap, demo, tmp_path, compare, message
):
    for name, reference in (("other", "nobody"), ("before", "baseline"), ("own", "own")):
        overlay(tmp_path, name, reference=reference)
    status, _, err = dtrap(*demo, "--protocol.compare", compare)
    assert status == 2
    assert message in err
    assert not (tmp_path / "run" / "results.jsonl").exists()
