"""AlignmentMonitor in a plain Trainer: the measures are those of dtrap.metrics, and the training does not notice it."""

import csv
import random

import numpy as np
import pytest
import quiet
import torch
from dtrap import metrics
from dtrap.callbacks import AlignmentMonitor, StageSwitch
from dtrap.callbacks.alignment_measures import MEASURES, SHIFTS
from dtrap.callbacks.feature_collector import _Thinned
from dtrap.datamodules import ShapesDataModule
from dtrap.datamodules.views import Preprocessing
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners import CoOp, LoRA, TipAdapter
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

STEPS = 5  # the stage ends after 3 of them


class States(Callback):
    """The tuner's values after every step."""

    def on_train_start(self, trainer, pl_module):
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.states.append({k: v.detach().clone() for k, v in pl_module.tuner.adapter_state().items()})


class Drawing(ShapesDataModule):
    """Draws from the global generators where the monitor asks for images, as loaders of strangers do."""

    def support_batches(self):
        torch.rand(1), np.random.rand(), random.random()
        return super().support_batches()


def shapes(module, shot=2, **settings):
    data = Drawing(way=3, shot=shot, query=4, **settings)
    data.preprocessing = Preprocessing.of(module.backbone)
    return data


def trained(module, data, monitor, *more, zero_shot=True, **settings):
    """A zero-shot test, a fit and a test; the values of every step."""
    states = States()
    trainer = Trainer(max_steps=STEPS, callbacks=[monitor, *more, states], **{**quiet.QUIET, **settings})
    if zero_shot:
        with module.zero_shot():
            trainer.test(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return states.states


def features_of(module, batch, views=False):
    """Image and text features and labels of plain images or of all views, without any code of the monitor."""
    plain = batch["view"] >= 0 if views else batch["view"] == 0
    with torch.no_grad():
        images = module.tuner.related_features(module.eval().image_features(batch["images"][plain]))
        return images, module.text_features(), batch["labels"][plain]


def expected(features, scale=100.0):
    images, texts, labels = features
    curve = metrics.gap_shift_curve(images, texts, labels, SHIFTS, logit_scale=scale)
    agreement = metrics.relation_agreement(images, texts, labels)
    fitted = metrics.cross_fitted_scale(images, texts, labels, SHIFTS)
    f, t = (x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True) for x in (images, texts))
    logits = scale * f @ t.T
    own = logits[np.arange(len(labels)), labels.numpy()]
    return {
        "modality_gap": metrics.modality_gap(images, texts),
        "centroid_gap": np.linalg.norm(f.mean(0) - t[labels.numpy()].mean(0)),
        "distribution_gap": metrics.distribution_gap(images, texts, labels),
        "relative_modality_gap": metrics.relative_modality_gap(images, texts, labels),
        "gap_drop": curve.loss[SHIFTS.index(0)] - curve.loss.min(),
        "least_shift": SHIFTS[int(curve.loss.argmin())],
        "alignment": ((f - t[labels.numpy()]) ** 2).sum(1).mean(),
        "uniformity": metrics.uniformity(images),
        "scatter_ratio": metrics.scatter_ratio(images, labels),
        "nearest_prototype_accuracy": metrics.nearest_prototype_accuracy(images, labels),
        "relation_rank_correlation": agreement.rank_correlation,
        "relation_divergence": agreement.divergence,
        "cross_entropy": (np.logaddexp.reduce(logits, axis=1) - own).mean(),
        "fitted_scale": fitted.scale,
        "fitted_cross_entropy": fitted.cross_entropy,
        "fitted_gap_drop": fitted.gap_drop,
    }


def assert_measured(values, features, scale=100.0, views=None):
    wanted = {name: float(value) for name, value in expected(features, scale).items()}
    if views is not None:  # of the support, all of them count in the scatter
        wanted["scatter_ratio"] = float(metrics.scatter_ratio(views[0], views[2]))
    assert list(values) == list(MEASURES)
    assert values == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_start_switch_and_end_are_measured_on_queries_and_plain_support(tiny_backbone, tmp_path):
    module = FewShotClassifier(tiny_backbone, LoRA(rank=2))
    data, monitor = shapes(module), AlignmentMonitor(curve=True)
    states = trained(module, data, monitor, StageSwitch(), logger=CSVLogger(tmp_path, name="", version=""))
    values = monitor.row_values()
    assert values["alignment_features"] == "logits"
    start, switch, end = values["alignment"]
    assert [(entry["step"], entry["moment"]) for entry in (start, switch, end)] == [
        (0, "start"), (3, "switch"), (5, "end"),
    ]  # fmt: skip
    assert all(entry["images"] == {"query": 12, "support": 6} for entry in values["alignment"])
    for state, entry in ((states[2], switch), (states[-1], end)):
        module.tuner.load_adapter_state(state)
        assert_measured(entry["query"], features_of(module, data.query()))
        views = features_of(module, data.support(), views=True)
        assert_measured(entry["support"], features_of(module, data.support()), views=views)
    with module.zero_shot():
        assert_measured(start["query"], features_of(module, data.query()))
        views = features_of(module, data.support(), views=True)
        assert_measured(start["support"], features_of(module, data.support()), views=views)
    curve = metrics.gap_shift_curve(*features_of(module, data.query()), SHIFTS)
    assert end["curve"]["loss"] == pytest.approx(curve.loss.tolist(), rel=1e-5)
    assert end["curve"]["shifts"] == list(SHIFTS)
    assert end["query"]["gap_drop"] != switch["query"]["gap_drop"] != start["query"]["gap_drop"]
    with (tmp_path / "metrics.csv").open() as file:
        logged = {int(row["step"]): row for row in csv.DictReader(file) if row["support.gap_drop"]}
    assert {0, 3, 5} == logged.keys()
    assert float(logged[3]["support.gap_drop"]) == pytest.approx(switch["support"]["gap_drop"])


def runs(make, monitor, **settings):
    """The values of every step, the predictions and the state of all generators after a seeded training."""
    module = make()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    states = trained(module, shapes(module, **settings), monitor, StageSwitch())
    modes = [part.training for part in module.modules()]
    return states, module.test_predictions, module.confusion.compute(), modes, (
        torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate(),
    )  # fmt: skip


@pytest.mark.parametrize("case", ["LoRA with dropout", "CoOp", "mini-batches"])
def test_a_training_is_the_same_to_the_bit_with_the_monitor(tiny_clip_files, case):
    def make():
        backbone = OpenCLIP(*map(str, tiny_clip_files))
        tuner = CoOp(context_tokens=2) if case == "CoOp" else LoRA(rank=2, dropout=0.5)
        objective = Objective(relation_source="current") if case == "mini-batches" else None
        return FewShotClassifier(backbone, tuner, objective)

    settings = {"batch_size": 10} if case == "mini-batches" else {}
    monitor = AlignmentMonitor(every_n_steps=1, accuracy_fifths=True)
    with_it, without = runs(make, monitor, **settings), runs(make, Callback(), **settings)
    for one, other in zip(with_it[0], without[0], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(a, b) for a, b in zip(with_it[1], without[1], strict=True))
    assert torch.equal(with_it[2], without[2])
    assert with_it[3:] == without[3:]
    moments = [(entry["step"], entry["moment"]) for entry in monitor.row_values()["alignment"]]
    assert moments == [(0, "start"), (1, None), (2, None), (3, "switch"), (4, None), (5, "end")]
    assert all(entry["query"] and entry["support"] for entry in monitor.entries)


def test_accuracy_at_fifths_is_that_of_the_values_after_these_steps(tiny_backbone):
    module = FewShotClassifier(tiny_backbone, LoRA(rank=2), learning_rate=0.05)
    data, monitor = shapes(module), AlignmentMonitor(["gap_drop"], support=False, accuracy_fifths=True)
    states = trained(module, data, monitor)
    values = monitor.row_values()
    accuracies = []
    for state in states:
        module.tuner.load_adapter_state(state)
        images, texts, labels = features_of(module, data.query())
        near = metrics.gap_shift_curve(images, texts, labels, [0.0]).accuracy
        accuracies.append(100 * float(near))
    assert values["accuracy_at"] == {"step": [1, 2, 3, 4, 5], "accuracy": pytest.approx(accuracies)}
    assert len(set(accuracies)) > 1
    assert all(entry["support"] == {} and list(entry["query"]) == ["gap_drop"] for entry in values["alignment"])
    # Without a StageSwitch the switch is where it would be by default.
    assert [entry["step"] for entry in values["alignment"]] == [0, 3, 5]


@pytest.mark.parametrize(("switch", "step"), [(StageSwitch(rule="authors"), 3), (StageSwitch("1/5", "4/5"), 4)])
def test_the_switch_is_the_end_of_the_stage_also_where_nothing_is_suppressed(tiny_backbone, switch, step):
    module = FewShotClassifier(tiny_backbone, LoRA(rank=2), Objective(0.0, 0.0))
    monitor = AlignmentMonitor(["modality_gap"])
    trained(module, shapes(module), monitor, switch, zero_shot=False)
    moments = {entry["moment"]: entry for entry in monitor.row_values()["alignment"]}
    assert moments["switch"]["step"] == step
    assert moments["start"]["query"] == {}  # no zero-shot test has seen the queries
    assert moments["start"]["support"] != {}


def test_a_second_fit_begins_anew(tiny_backbone):
    module = FewShotClassifier(tiny_backbone, LoRA(rank=2, dropout=0.0))
    monitor = AlignmentMonitor(["gap_drop"])
    trained(module, shapes(module, seed=1), monitor)
    first = monitor.row_values()["alignment"]
    trained(module, shapes(module, seed=2), monitor)
    second = monitor.row_values()["alignment"]
    fresh = AlignmentMonitor(["gap_drop"])
    trained(module, shapes(module, seed=2), fresh)
    assert second == fresh.row_values()["alignment"] != first


def test_a_tuner_without_steps_and_without_cosines_says_related(tiny_backbone):
    module = FewShotClassifier(tiny_backbone, TipAdapter(), Objective(0.0, 0.0))
    data, monitor = shapes(module), AlignmentMonitor()
    trained(module, data, monitor)
    values = monitor.row_values()
    assert values["alignment_features"] == "related"
    assert [entry["moment"] for entry in values["alignment"]] == ["start", "end"]
    for entry in values["alignment"]:
        assert_measured(entry["query"], features_of(module, data.query()))
        assert entry["support"]["gap_drop"] is not None


def test_a_measure_that_does_not_exist_for_an_image_a_class_is_null(tiny_backbone):
    module = FewShotClassifier(tiny_backbone, LoRA(rank=2))
    monitor = AlignmentMonitor(["nearest_prototype_accuracy", "fitted_scale", "gap_drop", "scatter_ratio"])
    trained(module, shapes(module, shot=1), monitor)
    support = monitor.row_values()["alignment"][-1]["support"]
    assert (support["nearest_prototype_accuracy"], support["fitted_scale"]) == (None, None)
    assert support["scatter_ratio"] > 0  # of the views
    assert support["gap_drop"] is not None


def test_loaders_of_strangers(tiny_backbone):
    """Mini-batches have no plain support, a loader with one batch has; queries are measured in tests."""
    module = FewShotClassifier(tiny_backbone, LoRA(rank=2), Objective(0.0, 0.0))
    module.set_classes(["cat", "dog"])
    generator = torch.Generator().manual_seed(1)
    rows = [(torch.randn(3, 32, 32, generator=generator), number % 2) for number in range(6)]
    for size, support in ((6, True), (3, False)):
        monitor = AlignmentMonitor(["gap_drop"])
        trainer = Trainer(max_epochs=2, callbacks=[monitor], **quiet.QUIET)
        if support:
            trainer.fit(module, DataLoader(rows, batch_size=size))
        else:
            with pytest.warns(UserWarning, match="no method `support_batches`"):
                trainer.fit(module, DataLoader(rows, batch_size=size))
        trainer.test(module, DataLoader(rows, batch_size=4), verbose=False)
        moments = {entry["moment"]: entry for entry in monitor.row_values()["alignment"]}
        assert moments["end"]["images"] == ({"query": 6, "support": 6} if support else {"query": 6})
        if support:
            assert moments["end"]["query"] == pytest.approx(moments["end"]["support"], rel=1e-4)


def test_of_very_many_images_every_second_or_fourth_is_kept():
    rows = _Thinned(most=10)
    for start in range(0, 33, 3):
        rows.add(torch.arange(start, start + 3))
    assert rows.joined()[0].tolist() == list(range(0, 33, 4))


def test_mistakes_are_named():
    with pytest.raises(DtrapError, match=r"measures is 'gap'.*gap_drop"):
        AlignmentMonitor(["gap"])
    with pytest.raises(DtrapError, match="measures is empty"):
        AlignmentMonitor([])
    with pytest.raises(DtrapError, match="every_n_steps is 0"):
        AlignmentMonitor(every_n_steps=0)
    with pytest.raises(DtrapError, match=r"LightningModule has no features .*FewShotClassifier"):
        AlignmentMonitor().setup(None, LightningModule(), "fit")
