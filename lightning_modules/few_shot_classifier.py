"""The LightningModule: a vision-language model, a tuner, the text classifier head and the objective."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from math import isfinite
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from ..errors import DtrapError, check_one_of
from .backbones.base import Backbone
from .contracts import check_loss
from .evaluation_metrics import Ranking, balanced_metrics
from .objective import Objective, PlainRows
from .tuned_model import Rows, TunedModel
from .tuners.base import Batch, TaskData, Tuner


class FewShotClassifier(TunedModel):
    """Tune a frozen vision-language model to the classes of one few-shot task.

    Each `Trainer.fit` is one task: it resets the tuner with the seed of the data module's episode. Batches are
    dictionaries with `images` [B, 3, H, W] and `labels` [B], and for full-batch training `view` and `sample_id` [B].
    Rows with view 0 are the plain ones that relations are computed against; without `view` these are all rows. Class
    names and template come from the data module, or from `set_classes` for loaders without them. A validation loader is
    optional: it gives "val/accuracy", and some tuners choose hyperparameters on it after training.

    Args:
        backbone: The pre-trained model, frozen except for the parameters that the tuner trains.
        tuner: The tuner; LoRA on the image tower if None.
        objective: The staged losses; the paper's if None. The callback `StageSwitch` controls the stage.
        template: One or several templates with `{}` for the class name, averaged; None uses the data module's.
        descriptions: Sentences per class, averaged, that replace the templates: a YAML or JSON file
            {class: [sentences]}, or such a mapping.
        learning_rate: Rate of the tuner's own optimizer; None uses the tuner's default.
        optimizer: An optimizer that replaces the tuner's own and sets its own rate.
        lr_scheduler: A schedule that replaces the tuner's own, stepped after every optimizer step.
        final_rate: If given, a cosine over the whole run that ends at this rate replaces the tuner's schedule.
        image_chunk: Number of images per pass through the image tower; None means the whole batch. Limits the memory.
        text_chunk: Number of class prompts per pass through a trained text tower; None means all.
        plain_views: "reuse" takes the plain rows from the same forward pass. "encode" encodes the plain images a second
            time with other dropout masks, as the authors' code does; no difference with a frozen image tower.
        start_seed: Seed of the tuner's start in every task; None uses each episode's own.

    Raises:
        DtrapError: Options that exclude each other or have no valid value; also the errors of `TunedModel`.
    """

    def __init__(
        self,
        backbone: Backbone,
        tuner: Tuner | None = None,
        objective: Objective | None = None,
        template: str | Sequence[str] | None = None,
        learning_rate: float | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        image_chunk: int | None = None,
        plain_views: Literal["reuse", "encode"] = "reuse",
        start_seed: int | None = None,
        text_chunk: int | None = 32,
        descriptions: str | dict[str, list[str]] | None = None,
        final_rate: float | None = None,
    ) -> None:
        super().__init__(backbone, tuner, objective, template, descriptions, image_chunk, text_chunk)
        if optimizer is not None and learning_rate is not None:
            raise DtrapError(f"learning_rate is {learning_rate}, but an optimizer is given too; set its init_args.lr.")
        if self.tuner.trains_itself and (optimizer is not None or lr_scheduler is not None):
            raise DtrapError(f"the tuner {self.tuner.name} has its own optimizers. Remove optimizer and lr_scheduler.")
        if final_rate is not None and lr_scheduler is not None:
            raise DtrapError(f"final_rate is {final_rate}, but an lr_scheduler is given too. Remove one of the two.")
        if learning_rate is not None and not learning_rate > 0:
            raise DtrapError(f"learning_rate is {learning_rate}; expected more than 0, or null for the tuner's own.")
        check_one_of("plain_views", plain_views, ("reuse", "encode"))
        self.learning_rate = learning_rate
        self.own_optimizer = optimizer
        self.own_lr_scheduler = lr_scheduler
        self.final_rate = final_rate
        self.plain_views = plain_views
        self.start_seed = start_seed
        self.automatic_optimization = not self.tuner.trains_itself
        self.test_predictions: list[Tensor] = []
        self.ranking = Ranking()
        self._rows: Rows | None = None
        self._prepared = False

    def setup(self, stage: str) -> None:
        """Read the classes of the data module's task; before a fit, reset the tuner."""
        self._evaluation_texts = None
        self.refuse_foreign_adapters()
        datamodule = self.data_source
        names = getattr(datamodule, "class_names", None)
        if names is not None:
            self.set_classes(names, getattr(datamodule, "template", "a photo of a {}."))
        if self.prompts is None:
            raise DtrapError(
                f"{type(datamodule).__name__ if datamodule else 'The loader'} has no class_names. Call "
                "module.set_classes(class_names, template) first, or give the data module `class_names`."
            )
        if stage == "fit" and self.tuner.trains_itself:
            self._check_own_steps(datamodule)
        if stage == "fit":
            episode_seed = getattr(datamodule, "episode_seed", None)
            self.start_task(episode_seed("tuner") if episode_seed is not None else int(torch.randint(2**31, ())))

    def _check_own_steps(self, datamodule: Any) -> None:
        """Refuse mini-batches and `max_steps` for a tuner that steps its own optimizers."""
        reason = f"the tuner {self.tuner.name} makes several optimizer steps of its own with all support rows"
        if getattr(datamodule, "batch_size", None) is not None:
            raise DtrapError(f"batch_size is {datamodule.batch_size}, but {reason}. Set data.batch_size to null.")
        if getattr(datamodule, "streams", False):
            raise DtrapError(f"the all-way protocol streams mini-batches, but {reason}. Use episodes or another tuner.")
        if self.trainer.max_steps != -1:
            raise DtrapError(
                f"max_steps is {self.trainer.max_steps}, but {reason}, so it could end between them. Set "
                "trainer.max_epochs instead."
            )

    def start_task(self, seed: int) -> None:
        """Reset the tuner and the draws of L_ad with `seed`."""
        self.tuner.reset(seed if self.start_seed is None else self.start_seed, len(self.class_prompts.class_names))
        self._train_what_is_trained()
        self.objective.start(seed)
        self._prepared = False

    # Training

    def configure_optimizers(self) -> Any:
        """Return the tuner's optimizer and schedule, or the given ones; the schedule is stepped every step.

        Raises:
            DtrapError: The tuner's schedule needs the length of the run, which is unknown.
        """
        self._prepare_task()
        parameters = self.tuner.trained_parameters()
        if not parameters:
            return None
        if self.own_optimizer is not None:
            optimizer: Any = self.own_optimizer(parameters)
        else:
            rate = self.learning_rate if self.learning_rate is not None else self.tuner.learning_rate
            optimizer = self.tuner.optimizer(parameters, rate)
        if isinstance(optimizer, list):
            return optimizer
        if self.own_lr_scheduler is not None:
            scheduler: Any = self.own_lr_scheduler(optimizer)
        elif self.final_rate is not None:
            total = self._run_length()[0]
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total, eta_min=self.final_rate)
        else:
            scheduler = self.tuner.scheduler(optimizer, *self._run_length())
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _run_length(self) -> tuple[int, int]:
        """Return the number of optimizer steps of the run and of one epoch."""
        total = self.trainer.estimated_stepping_batches
        if not isfinite(total) or total < 0:  # -1 is Lightning's answer for a loader without length
            raise DtrapError(
                f"the schedule of the tuner {self.tuner.name} needs the length of the run, which is unknown. Set "
                "Trainer(max_steps=...), or max_epochs if the loader has a length, or pass an lr_scheduler."
            )
        batches = self.trainer.num_training_batches
        if not isfinite(batches):
            return int(total), int(total)
        return int(total), max(-(-int(batches) // self.trainer.accumulate_grad_batches), 1)

    def _prepare_task(self) -> None:
        """Let the tuner build its state from the support images, unless it was loaded from a checkpoint."""
        if not self.tuner.needs_task or self._prepared:
            return
        self._prepared = True
        self.train(False)
        # Before the precision's context, which would change the type of the images that the data module draws.
        self.trainer.fit_loop.setup_data()
        query = self._query_batch() if self.tuner.transductive else None
        batches = self._support_batches()
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            self.tuner.prepare_task(self._task_data(batches, query))
        self._train_what_is_trained()

    def _support_batches(self) -> Iterable[Batch]:
        """Return all support rows once."""
        batches = getattr(self.data_source, "support_batches", None)
        if batches is not None:  # the loader repeats the full batch, or streams without end
            return batches()
        length = self.trainer.num_training_batches
        if not isfinite(length):
            raise DtrapError(
                f"the tuner {self.tuner.name} reads all training images before its first step, but the loader has no "
                "length. Use a loader with a length, or set Trainer(limit_train_batches=...) to a number."
            )
        loader: Any = self.trainer.train_dataloader
        return islice(iter(loader), int(length))

    def _task_data(self, batches: Iterable[Batch], query: Batch | None) -> TaskData:
        parts = []
        for batch in map(self._on_device, batches):
            part = {name: batch[name] for name in ("labels", "view", "sample_id") if name in batch}
            if "vision" in self.tuner.trains:
                part["images"] = batch["images"]
            else:
                part["encoded"] = self.encode_images(batch["images"], self._rows_of(batch).ids)
            parts.append(part)
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        query_images = None if query is None else self._on_device(query)["images"]
        return TaskData(**columns, text_features=self.text_features(), query_images=query_images)

    def _query_batch(self) -> Batch:
        datamodule = self.data_source
        if not getattr(datamodule, "has_query", False):
            raise DtrapError(
                f"the tuner {self.tuner.name} is transductive: it adapts to unlabeled queries, but there are none. Use "
                "a data module with queries (--data.query, or --data.query_root of a folder), or another tuner."
            )
        return datamodule.query_in_views()

    def _on_device(self, batch: Batch) -> Any:
        """Convert and move a batch as the Trainer does before a step."""
        converted = self.trainer.precision_plugin.convert_input(batch)
        return self.trainer.strategy.batch_to_device(converted, self.device)

    def on_fit_start(self) -> None:
        """Set the tuner, but not the backbone, to training mode."""
        self.train()

    def on_train_start(self) -> None:
        """Stop before the first step if the tuner has nothing to train."""
        if self.tuner.trained_parameters():
            return
        self.trainer.should_stop = True
        if self.objective.suppresses:
            self.objective.warn_once(
                "untrained", f"{self.tuner.name} has nothing to train, so L_ad and L_ra have no effect."
            )

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor] | None:
        """Compute the objective and log its terms by the paper's names; None if nothing is trained."""
        if not self.tuner.trained_parameters():
            return None
        terms = self.tuner.own_step(self, batch) if self.tuner.trains_itself else self._terms(batch)
        logged = {name: term.detach() for name, term in terms.items()}
        self.log_dict({f"train/{name}": term for name, term in logged.items()}, batch_size=len(batch["labels"]))
        return {"loss": terms["total"], **logged}

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        labels, rows = batch["labels"], self._rows_of(batch)
        features, texts = self.image_features(batch["images"], rows.ids), self.text_features()
        related = self.tuner.related_features(features)
        # Before the loss: autograd adds up gradients in an order that follows the order of these calls.
        plain = self._plain_rows(batch, related, rows.plain)
        loss = self.tuner.classification_loss(features, texts, labels, self.objective.logit_scale)
        check_loss(f"{type(self.tuner).__name__}.classification_loss", loss)
        return self.objective(related, texts, labels, plain=plain, row_ids=rows.ids, classification_loss=loss)

    def _rows_of(self, batch: Batch) -> Rows:
        """Return the batch's rows; those of the previous step if its columns are the same tensors."""
        # The full batch is the same in every step, and reading its values would wait for the device.
        known = self._rows
        if known is None or known.sample_id is not batch.get("sample_id") or known.view is not batch.get("view"):
            self._rows = known = Rows.of(batch)
        return known

    def _plain_rows(self, batch: Batch, related: Tensor, plain: Tensor | None) -> PlainRows | None:
        if plain is None or self.objective.progress is None:
            return None
        features = related[plain]
        if self.plain_views == "encode" and "vision" in self.tuner.trains and self.objective.relation_weight != 0:
            features = self.tuner.related_features(self.image_features(batch["images"][plain]))
        return PlainRows(features, batch["labels"][plain])

    def on_train_end(self) -> None:
        """Let the tuner choose hyperparameters if there is a validation split."""
        if not self.tuner.chooses or not self.trainer.val_dataloaders:
            return
        self.train(False)
        features, labels = [], []
        loaders = CombinedLoader(self.trainer.val_dataloaders, mode="sequential")
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            for batch in map(self._on_device, (batch for batch, _, _ in iter(loaders))):
                features.append(self.image_features(batch["images"], Rows.of(batch).ids))
                labels.append(batch["labels"])
            texts, scale = self.text_features(), self.objective.logit_scale
            self.tuner.choose(torch.cat(features), texts, torch.cat(labels), scale)

    # Lightning's checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop the frozen backbone from Lightning's checkpoints."""
        kept, state = self._adapter_names(), checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the frozen backbone to a checkpoint.

        Raises:
            DtrapError: The checkpoint does not contain exactly what this tuner saves.
        """
        saved = checkpoint["state_dict"]
        self.tuner.make_room({name.removeprefix("tuner."): value for name, value in saved.items()})
        odd = sorted(self._adapter_names() ^ saved.keys())
        if odd:
            raise DtrapError(
                f"the checkpoint does not fit the tuner {self.tuner.name}: {len(odd)} names differ, such as "
                f"{odd[0]!r}. Load it with the backbone and the tuner settings that it was trained with."
            )
        checkpoint["state_dict"] = {**self.state_dict(), **saved}
        self._prepared = not self.tuner.transductive

    def _adapter_names(self) -> set[str]:
        """Return the state-dict names of the tensors that the tuner saves."""
        saved = {id(value) for value in self.tuner.adapter_state().values()}
        return {name for name, value in self.state_dict(keep_vars=True).items() if id(value) in saved}

    # Evaluation

    def _count_predictions(self, batch: Batch) -> Tensor:
        """Predict a class for each row, or for each image if the tuner adds up its views, and count in `confusion`."""
        rows = Rows.of(batch)
        scores, labels = self(batch["images"], rows.ids), batch["labels"]
        views = int(rows.view.max()) + 1 if self.query_views > 1 and rows.view is not None else 1
        if views > 1:
            scores = self._add_views(scores, rows.sample_id, views)
        predicted = scores.argmax(dim=-1)
        self.confusion.update(predicted, labels[: len(predicted)])
        self.ranking.update(scores, labels[: len(predicted)], views=1 if self._zero_shot else views)
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

    def _log_evaluation(self, name: str) -> None:
        self._evaluation_texts = None
        classes = len(self.class_prompts.class_names)  # the confusion has room for two at least
        counts = self.confusion.compute().cpu()[:classes, :classes]
        numbers = {"accuracy": 100.0 * float(counts.diag().sum() / counts.sum().clamp(min=1))}
        numbers |= {"images": float(counts.sum()), **balanced_metrics(counts)}
        if self.ranking.auroc is not None:
            numbers["auroc"] = self.ranking.auroc
        self.log_dict({f"{name}/{key}": value for key, value in numbers.items()})

    def on_validation_epoch_start(self) -> None:
        """Encode the class texts once for the whole loop."""
        with torch.no_grad():
            self._evaluation_texts = self.text_features()
        self.confusion.reset()
        self.ranking.start(wanted=False)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count predictions in `confusion`."""
        self._count_predictions(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy in percent and the number of images; see `on_test_epoch_end`."""
        self._log_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """Encode the class texts once for the whole test."""
        self.on_validation_epoch_start()
        two = len(self.class_prompts.class_names) == 2
        self.ranking.start(wanted=two or getattr(self.data_source, "measures_auroc", False))
        self.test_predictions = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count predictions in `confusion` [W, W] (rows true, columns predicted) and append to `test_predictions`."""
        self.test_predictions.append(self._count_predictions(batch).cpu())

    def on_test_epoch_end(self) -> None:
        """Log the accuracy in percent, the number of images, and what stands beside it (see `evaluation_metrics`)."""
        self._log_evaluation("test")

    on_predict_epoch_start = on_validation_epoch_start

    def on_predict_epoch_end(self) -> None:
        """Drop the class texts."""
        self._evaluation_texts = None

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the class probabilities [B, W]."""
        return self(batch["images"]).softmax(dim=-1)
