"""A callback that measures how images and class texts are aligned, before, during and after a training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from ..errors import DtrapError, check_at_least, check_one_of
from ..metrics.features import Features
from .alignment_measures import MEASURES, measure
from .feature_collector import FeatureCollector, gathered, on_cpu, support_features
from .stage_switch import StageSwitch, run_length, steps_done

FIFTHS = 5


class AlignmentMonitor(FeatureCollector):
    """Measure alignment and visual discriminability at the start, at the switch and at the end of a training.

    The measures are those of `dtrap.metrics`, on the queries and on the plain support images; the scatter ratio of the
    support is that of all its views. At the start they are of the model without the tuner.

    The switch is the end of the suppressed stage of the Trainer's `StageSwitch`, whatever the weights of the losses, so
    that plain fine-tuning is measured at the same step; without one it is after 3/5 of the steps. A stage that a rule
    of its own ends is measured one step later. Queries at start and end are those of the zero-shot test and of the
    test, which are not computed again. The queries of a whole test split (the all-way protocol) and those of foreign
    loaders are measured in tests only.

    A training and its results are the same with and without this callback. It writes `alignment` into the row of an
    episode and, in a Trainer with loggers, such as "query.gap_drop" at the step into each logger. Cosines are those of
    the features that L_ad and L_ra see, at the objective's scale. With tuners whose logits are no cosines (Tip-Adapter,
    LP++, LDC, StepSPT, a linear head) they are not the scores of the test; the row's `alignment_features` says
    "related" then, and otherwise "logits".

    Args:
        measures: Names of the measures; None for all.
        every_n_steps: Also measure after every so many steps; costs a pass over the queries each time.
        support: Whether to measure the support images, too.
        curve: Whether to keep the queries' gap-shift curve.
        accuracy_fifths: Whether to test the queries after 1/5, 2/5, 3/5 and 4/5 of the steps, too, as the authors print
            it; costs as much as four tests.

    Raises:
        DtrapError: A measure is unknown, `every_n_steps` is not positive, or the module is not a FewShotClassifier.

    Attributes:
        entries: What was measured in the last fit; see "Result rows" in the documentation.
        accuracy_at: Steps and accuracies in percent.
    """

    def __init__(
        self,
        measures: list[str] | None = None,
        every_n_steps: int | None = None,
        support: bool = True,
        curve: bool = False,
        accuracy_fifths: bool = False,
    ) -> None:
        super().__init__()
        if measures is not None and not measures:
            raise DtrapError(f"AlignmentMonitor: measures is empty; expected some of {', '.join(MEASURES)}, or null.")
        for name in measures or ():
            check_one_of("AlignmentMonitor: measures", name, MEASURES)
        if every_n_steps is not None:
            check_at_least("AlignmentMonitor: every_n_steps", every_n_steps, 1, "step")
        self.measures, self.every_n_steps = measures, every_n_steps
        self.support, self.curve, self.accuracy_fifths = support, curve, accuracy_fifths
        self._reset()

    def _reset(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.accuracy_at: dict[int, float] = {}
        self._total: int | None = None
        self._step = 0
        self._support_known = False
        self._batch: Any = None
        self._kind: str | None = None

    @property
    def names(self) -> Sequence[str]:
        """The names of the measures."""
        return list(MEASURES) if self.measures is None else self.measures

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the module; reset at the start of a fit, but keep what a zero-shot test before it has seen."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._reset()

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far, for Lightning's checkpoints."""
        return {"entries": self.entries, "accuracy_at": self.accuracy_at, "support": self._support_known}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what was measured before a checkpoint."""
        self.entries, self.accuracy_at = state_dict["entries"], state_dict["accuracy_at"]
        self._support_known = state_dict["support"]

    # The moments

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the queries of the zero-shot test; find the step of the switch."""
        self._total = run_length(trainer)
        self._step = steps_done(trainer, pl_module)
        self._take_zero_shot(trainer, pl_module)

    def _take_zero_shot(self, trainer: Trainer, pl_module: LightningModule) -> None:
        features, self.zero_shot_features = self.zero_shot_features, None
        if features is not None:
            self._add(trainer, pl_module, 0, "start", "query", features)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure if this step is one of the moments."""
        self._batch = batch
        before, self._step = self._step, steps_done(trainer, pl_module)
        # After the first step: only then does training itself encode the images of a frozen tower, for all to use.
        self._measure_start(trainer, pl_module)
        if self._step == before:  # a part of an accumulated gradient
            return
        switch = self._switch(trainer)
        if switch and self._step >= switch and all(entry["moment"] != "switch" for entry in self.entries):
            self._measure(trainer, pl_module, "switch")
        elif self.every_n_steps and self._step % self.every_n_steps == 0 and self._step != self._total:
            self._measure(trainer, pl_module, None)
        if self.accuracy_fifths and self._step in self._fifths():
            self._test_queries(trainer, pl_module)

    def _switch(self, trainer: Trainer) -> int | None:
        """Return the number of steps after which the suppressed stage is over; None if the run has no length."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        stage = next((callback for callback in callbacks if isinstance(callback, StageSwitch)), None)
        return None if self._total is None else (stage or StageSwitch()).last_step(self._total)

    def _fifths(self) -> list[int]:
        return [] if self._total is None else [number * self._total // FIFTHS for number in range(1, FIFTHS)]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the support at the end, unless a test of the same data follows, after which it is measured."""
        self._measure_start(trainer, pl_module)
        if not getattr(pl_module.data_source, "has_query", False):
            self._measure_support(trainer, pl_module, self._step, "end")

    def tested(self, trainer: Trainer, pl_module: LightningModule, features: Features) -> None:
        """Measure the end: the queries of the test, and the support in the same state."""
        self._add(trainer, pl_module, self._step, "end", "query", features)
        if self._support_known:
            self._measure_support(trainer, pl_module, self._step, "end")
        if self.accuracy_fifths:
            counts: Any = pl_module.confusion.compute()  # type: ignore[union-attr, operator]
            self.accuracy_at[self._step] = 100.0 * int(counts.diag().sum()) / max(int(counts.sum()), 1)

    # Measuring

    def _measure_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.support and not self._support_known:
            self._support_known = True
            self._measure_support(trainer, pl_module, 0, "start", zero_shot=True)

    def _measure(self, trainer: Trainer, pl_module: Any, moment: str | None) -> None:
        queries = pl_module.query_batches()
        if queries is not None:
            features = gathered(trainer, pl_module, on_cpu(pl_module.observe(queries)))
            self._add(trainer, pl_module, self._step, moment, "query", features)
        self._measure_support(trainer, pl_module, self._step, moment)

    def _measure_support(
        self, trainer: Trainer, pl_module: LightningModule, step: int, moment: str | None, *, zero_shot: bool = False
    ) -> None:
        if not self.support:
            return
        features = support_features(pl_module, self._batch, zero_shot=zero_shot, views="scatter_ratio" in self.names)
        if features is not None:
            self._add(trainer, pl_module, step, moment, "support", features)
        elif moment == "start":
            warnings.warn(
                "AlignmentMonitor: the support images are not measured: the loader yields mini-batches, and the data "
                "module has no method `support_batches` that returns batches of all plain support images. Add one, or "
                "use AlignmentMonitor(support=False).",
                stacklevel=2,
            )

    def _test_queries(self, trainer: Any, pl_module: Any) -> None:
        queries = pl_module.query_batches(streamed=True)
        if queries is not None:
            hits = torch.tensor(pl_module.observed_hits(queries), device=pl_module.device)
            right, images = trainer.strategy.reduce(hits, reduce_op="sum").tolist()
            self.accuracy_at[self._step] = 100.0 * right / images

    def _add(
        self, trainer: Trainer, pl_module: Any, step: int, moment: str | None, part: str, features: Features
    ) -> None:
        """Measure features and write them into the entry of a moment and the loggers."""
        self._kind = "logits" if pl_module.has_cosine_logits else "related"
        entry = next((e for e in self.entries if (e["step"], e["moment"]) == (step, moment)), None)
        if entry is None:
            entry = {"step": step, "moment": moment, "query": {}, "support": {}, "images": {}}
            self.entries.append(entry)
        curve = self.curve and part == "query"
        values, points = measure(features, self.names, pl_module.objective.logit_scale, curve=curve)
        plain = features.labels if features.plain is None else features.labels[features.plain]
        entry[part], entry["images"][part] = values, len(plain)
        if points is not None:
            entry["curve"] = points
        logged = {f"{part}.{name}": value for name, value in values.items() if value is not None}
        for logger in trainer.loggers if trainer.is_global_zero and logged else []:
            logger.log_metrics(logged, step=step)

    def row_values(self) -> dict[str, Any]:
        """Return what a row keeps: `alignment`, and `accuracy_at` if it was asked for."""
        values: dict[str, Any] = {}
        if self.entries:
            order = {"start": 0, None: 1, "switch": 1, "end": 2}
            entries = sorted(self.entries, key=lambda entry: (entry["step"], order[entry["moment"]]))
            values |= {"alignment": entries, "alignment_features": self._kind}
        if self.accuracy_at:
            steps = sorted(self.accuracy_at)
            values["accuracy_at"] = {"step": steps, "accuracy": [self.accuracy_at[step] for step in steps]}
        return values
