"""The model's validation, test and prediction."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import DtrapError
from .divergence import divergence_remedy
from .evaluation_metrics import Confidence, KeptScores, Ranking, evaluation_numbers, log_probabilities
from .finite import DivergedError, finite_rows
from .loader_counts import LoaderCounts, flat_loaders
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
        self._loaders: list[Any] = []
        self._of_loaders = LoaderCounts()
        self._repeats: dict[int, Repeats] = {}
        self._failure: DtrapError | None = None

    def on_validation_epoch_start(self) -> None:
        """Encode the class texts once for the whole loop."""
        with torch.no_grad():
            self._evaluation_texts = self.text_features()
        self.confusion.reset()
        self.ranking.start(wanted=False)
        self.confidence.start()
        self.kept_scores.start(kept=False)
        self._repeats, self._failure = {}, None
        self._begin_loaders("val_dataloaders")

    def _begin_loaders(self, name: str) -> None:
        """Count for each of several loaders, too."""
        self._loaders = flat_loaders(getattr(self._trainer, name, None))
        self._of_loaders.start(len(self._loaders), self.confusion)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count predictions in `confusion`."""
        self._count(self.incoming(batch, "validate"), dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy in percent and the number of images; see `on_test_epoch_end`."""
        self._log_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """Encode the class texts once for the whole test."""
        self.on_validation_epoch_start()
        self._begin_loaders("test_dataloaders")
        two = len(self.class_prompts.class_names) == 2
        self.ranking.start(wanted=two or getattr(self.data_source, "measures_auroc", False))
        self._of_loaders.rank(wanted=self.ranking.wanted)
        self.test_predictions = []
        self.kept_scores.start(kept=True, zero_shot=self._zero_shot)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count predictions in `confusion` [W, W] (rows true, columns predicted) and append to `test_predictions`."""
        predicted = self._count(self.incoming(batch, "test"), dataloader_idx)
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

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor | dict[str, Any]:
        """Return the class probabilities of a batch, or of images [B, 3, S, S] alone.

        Returns:
            The probabilities [B, W]. For a batch with `sample_id`, such as those of dtrap's data modules, a dictionary
            of `sample_id` [B], `probabilities` [B, W], `predicted` [B] (class numbers), `class_names` of the predicted
            classes, and the `labels` [B] of the batch if it has them. Several views of an image give one row.
        """
        taken = self.incoming(batch, "predict")
        if self.predicts != "probabilities":
            return self._raw_scores(taken["images"])
        scores = self._scores(taken)
        views = len(taken["images"]) // max(len(scores), 1)
        added = views > 1 and not self._zero_shot
        probabilities = scores / views if added else self.finite_scores(scores).softmax(dim=-1)
        if "sample_id" not in taken:
            return probabilities
        predicted = probabilities.argmax(dim=-1)
        names = [self.class_prompts.class_names[number] for number in predicted.tolist()]
        known = {"labels": batch["labels"][: len(scores)]} if isinstance(batch.get("labels"), Tensor) else {}
        identities = taken["sample_id"][: len(scores)]
        found = {"sample_id": identities, "probabilities": probabilities, "predicted": predicted, "class_names": names}
        return found | known

    def _raw_scores(self, images: Tensor) -> Tensor:
        """Return the scores [B, 1, W], or [B, 2, W] with those of the zero-shot model, as `predicts` says."""
        scores = self.finite_scores(self(images))
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

    def _count(self, batch: Batch, loader: int) -> Tensor | None:
        """Count the predictions of a batch; of several processes each image in one of them.

        An error of one process is raised at the end, in all of them: the others would wait for its results.
        """
        self._of_loaders.current = loader
        if processes(self._trainer) == 1:
            return self._count_predictions(batch)
        if loader not in self._repeats:
            self._repeats[loader] = Repeats(self._loaders[loader], self.trainer)
        batch = dict(self._repeats[loader].without(batch))
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
        self._of_loaders.update(scores, certain, labels, predicted, views=added)
        self.kept_scores.update(logits if added == views == 1 else certain, labels, rows.sample_id)
        return predicted

    def _scores(self, batch: Batch) -> Tensor:
        """Return the scores [b, W] of the images of a batch: logits, or the sum of its views' probabilities."""
        rows = Rows.of(batch)
        logits = self(batch["images"], rows.ids)
        views = int(rows.view.max()) + 1 if self.query_views > 1 and rows.view is not None else 1
        return self._add_views(logits, rows.sample_id, views) if views > 1 else logits

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
        for kept in (self.confidence, self.ranking, self.kept_scores, *self._of_loaders.kept):
            for name in kept.columns:
                setattr(kept, name, joined(getattr(kept, name), self._trainer))
        for confidence in (self.confidence, *self._of_loaders.confidences):
            confidence.loss = total(confidence.loss, self._trainer)

    def _log_evaluation(self, name: str) -> None:
        self._evaluation_texts = None
        self.finish_incoming()
        if processes(self._trainer) > 1:
            self._join_processes()
        classes = len(self.class_prompts.class_names)  # the confusion has room for two at least
        counts = self.confusion.compute().cpu()[:classes, :classes]
        numbers = {**evaluation_numbers(counts, self.confidence, self.ranking), "accuracy": float(self._accuracy())}
        numbers |= self._of_loaders.numbers(classes)
        # Equal in all processes; without `sync_dist` Lightning would warn that they might not be.
        shared = processes(self._trainer) > 1
        logged = {f"{name}/{key}": value for key, value in numbers.items()}
        self.log_dict(logged, sync_dist=shared, add_dataloader_idx=False)
