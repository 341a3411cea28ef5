"""The model's validation, test and prediction."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import DtrapError
from .divergence import divergence_remedy
from .evaluation_metrics import Confidence, KeptScores, Ranking, balanced_metrics, log_probabilities
from .exact_interval import exact_interval
from .finite import DivergedError, finite_rows
from .several_processes import Repeats, first_failure, joined, processes, total
from .tuned_model import Rows, TunedModel
from .tuners.base import Batch


class EvaluatedModel(TunedModel):
    """A tuned model whose predictions are counted and measured; see `TunedModel` for the arguments.

    Attributes:
        test_predictions: The predicted classes of each batch of the last test, on the CPU.
        ranking: The scores of the last test, where the area under the ROC curve is measured.
        confidence: What the last validation or test says of the class probabilities.
        kept_scores: The scores of the last test with the tuner, where they are wanted.
        predicts: What `predict_step` returns: "probabilities" [B, W], "scores" [B, 1, W], the logits, or "both scores"
            [B, 2, W], those with and without the tuner.
        logs_steps: Whether each training step logs its terms, which takes a millisecond or two.
        device_work: Returns the context of what the device computes outside of a batch, so that it can be timed.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.test_predictions: list[Tensor] = []
        self.ranking = Ranking()
        self.confidence = Confidence()
        self.kept_scores = KeptScores()
        self.predicts: Literal["probabilities", "scores", "both scores"] = "probabilities"
        self.logs_steps = True
        self.device_work: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._repeats: Repeats | None = None
        self._failure: DtrapError | None = None

    def on_validation_epoch_start(self) -> None:
        """Encode the class texts once for the whole loop."""
        with torch.no_grad():
            self._evaluation_texts = self.text_features()
        self.confusion.reset()
        self.ranking.start(wanted=False)
        self.confidence.start()
        self.kept_scores.start(kept=False)
        self._repeats, self._failure = None, None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Count predictions in `confusion`."""
        self._count(self.incoming(batch, "validate"), "val_dataloaders")

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy in percent and the number of images; see `on_test_epoch_end`."""
        self._log_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """Encode the class texts once for the whole test."""
        self.on_validation_epoch_start()
        two = len(self.class_prompts.class_names) == 2
        self.ranking.start(wanted=two or getattr(self.data_source, "measures_auroc", False))
        self.test_predictions = []
        self.kept_scores.start(kept=not self._zero_shot)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Count predictions in `confusion` [W, W] (rows true, columns predicted) and append to `test_predictions`."""
        predicted = self._count(self.incoming(batch, "test"), "test_dataloaders")
        if predicted is not None:
            self.test_predictions.append(predicted.cpu())

    def on_test_epoch_end(self) -> None:
        """Log the accuracy in percent, the number of images, and what goes with it (see `evaluation_metrics`)."""
        self._log_evaluation("test")

    on_predict_epoch_start = on_validation_epoch_start

    def on_predict_epoch_end(self) -> None:
        """Drop the class texts."""
        self._evaluation_texts = None
        self.finish_incoming()

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the class probabilities [B, W] of a batch, or of images [B, 3, S, S] alone; see `predicts`."""
        images = self.incoming(batch, "predict")["images"]
        scores = self.finite_scores(self(images))
        if self.predicts == "probabilities":
            return scores.softmax(dim=-1)
        if self.predicts == "scores":
            return scores[:, None]
        texts, self._evaluation_texts = self._evaluation_texts, None
        with self.zero_shot():
            zero_shot = self.finite_scores(self(images))
        self._evaluation_texts = texts
        return torch.stack([scores, zero_shot.to(scores.dtype)], dim=1)

    def finite_scores(self, scores: Tensor) -> Tensor:
        """Return scores [B, W], all of which are numbers: others have no highest class.

        Warn once of images whose highest score several classes share: the first of these is taken.

        Raises:
            DivergedError: Scores are not finite with the tuner.
            DtrapError: Scores are not finite without it.
        """
        shared = (scores == scores.amax(dim=-1, keepdim=True)).sum(dim=-1) > 1
        count, ties = torch.stack([~finite_rows(scores), shared]).sum(dim=1).tolist()
        if count == 0:
            if ties:
                self.objective.warn_once(
                    "ties",
                    f"the highest score of {ties} of {len(scores)} images is that of several classes, and the first of "
                    "them counts as predicted. Use --trainer.precision 32-true, or check the trained features.",
                )
            return scores
        reason = f"the scores of {count} of {len(scores)} images are not finite"
        if self._zero_shot:
            raise DtrapError(
                f"{self.backbone.identifier}, zero-shot: {reason}. Check the weights, the images, "
                "--model.objective.logit_scale and --trainer.precision."
            )
        raise DivergedError(reason, divergence_remedy(self))

    def _count(self, batch: Batch, loaders: str) -> Tensor | None:
        """Count the predictions of a batch; of several processes each image in one of them.

        An error of one process is raised at the end, in all of them: the others would wait for its results.
        """
        if processes(self._trainer) == 1:
            return self._count_predictions(batch)
        if self._repeats is None:
            self._repeats = Repeats(getattr(self.trainer, loaders), self.trainer)
        batch = dict(self._repeats.without(batch))
        if self._failure is not None or not len(batch["labels"]):
            return None
        try:
            return self._count_predictions(batch)
        except DtrapError as error:
            self._failure = error
            return None

    def _count_predictions(self, batch: Batch) -> Tensor:
        """Predict a class for each row, or for each image if the tuner adds up its views, and count in `confusion`."""
        rows = Rows.of(batch)
        logits = self(batch["images"], rows.ids)
        views = int(rows.view.max()) + 1 if self.query_views > 1 and rows.view is not None else 1
        scores = self.finite_scores(self._add_views(logits, rows.sample_id, views) if views > 1 else logits)
        predicted = scores.argmax(dim=-1)
        labels, added = batch["labels"][: len(predicted)], 1 if self._zero_shot else views
        self.confusion.update(predicted, labels)
        self.ranking.update(scores, labels, views=added)
        # From the logits: the sum of probabilities may be 0 for a class where its logarithm is a number.
        certain = log_probabilities(logits.unflatten(0, (views, -1))[:added])
        self.confidence.update(certain, labels, predicted)
        self.kept_scores.update(logits if added == views == 1 else certain, labels, rows.sample_id)
        return predicted

    def _add_views(self, logits: Tensor, images: Tensor | None, views: int) -> Tensor:
        """Return scores [b, W] of the images from logits [V*b, W] of their views."""
        if images is None or not torch.equal(images, images[: len(images) // views].repeat(views)):
            raise DtrapError(
                f"the tuner {self.tuner.name} adds up the views of a query, but a batch of {len(logits)} rows is not "
                f"{views} views of the same images, view slowest. Use all views of every image, or no `view`."
            )
        per_view = logits.unflatten(0, (views, -1))
        return per_view[0] if self._zero_shot else per_view.softmax(dim=-1).sum(dim=0)

    def _accuracy(self) -> float:
        """Return the accuracy in percent of the rows that were counted in `confusion`."""
        counts = self.confusion.compute()
        return 100.0 * int(counts.diag().sum()) / max(int(counts.sum()), 1)

    def _join_processes(self) -> None:
        """Put together what each process has counted; afterwards all have the results of all images.

        Raises:
            DtrapError: Of one of the processes.
        """
        failure = first_failure(self._failure, self._trainer)
        if failure is not None:
            raise failure
        self.test_predictions = joined(self.test_predictions, self._trainer)
        for kept in (self.confidence, self.ranking, self.kept_scores):
            for name in kept.columns:
                setattr(kept, name, joined(getattr(kept, name), self._trainer))
        self.confidence.loss = total(self.confidence.loss, self._trainer)

    def _log_evaluation(self, name: str) -> None:
        self._evaluation_texts = None
        self.finish_incoming()
        if processes(self._trainer) > 1:
            self._join_processes()
        classes = len(self.class_prompts.class_names)  # the confusion has room for two at least
        counts = self.confusion.compute().cpu()[:classes, :classes]
        right, images = int(counts.diag().sum()), int(counts.sum())
        numbers = {"accuracy": float(self._accuracy()), "images": float(images), **balanced_metrics(counts)}
        if images:
            numbers["accuracy_low"], numbers["accuracy_high"] = exact_interval(right, images)
        numbers |= self.confidence.measures(images)
        if self.ranking.auroc is not None:
            numbers["auroc"] = self.ranking.auroc
        # Equal in all processes; without `sync_dist` Lightning would warn that they might not be.
        shared = processes(self._trainer) > 1
        self.log_dict({f"{name}/{key}": value for key, value in numbers.items()}, sync_dist=shared)
