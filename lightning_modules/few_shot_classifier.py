"""The LightningModule: a vision-language model, a tuner, the text classifier head and the objective."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from ..errors import DtrapError, check_number, check_one_of
from .backbones.base import Backbone
from .batch_checks import check_tuner_batches, read_batch_kind, warn_unstated
from .callback_checks import check_callbacks, refuse_rate_finder, warn_of_old_lightning
from .class_balance import balance_classes, check_class_weights
from .contracts import check_loss
from .data_parallel import SharedBatch, prepare_processes, warn_batch_norms
from .divergence import DivergenceWatch
from .loss_scale import LossScale
from .objective import Objective, PlainRows
from .observed_model import ObservedModel
from .optimization import make_optimizer, with_schedule
from .optimizer_check import check_optimizer
from .saved import SECTION, adapter_names, describe_module, fitting_content, rebuild_module
from .several_processes import gathered, processes
from .steps import StepState
from .task_data import all_names, query_batch, support_batches, task_data
from .tuned_model import Rows
from .tuners.base import Batch, Tuner

if TYPE_CHECKING:
    from typing_extensions import Self


class FewShotClassifier(ObservedModel):
    """Tune a frozen vision-language model to the classes of one few-shot task.

    Each `Trainer.fit` is one task: it resets the tuner with the seed of the data module's episode. Batches are
    dictionaries with `images` [B, 3, H, W] and `labels` [B], and for full-batch training `view` and `sample_id` [B];
    other loaders may yield pairs (images, labels) or the keys `image` and `label`. Rows with view 0 are the plain ones
    that relations are computed against; without `view` these are all rows. Class names and template come from the data
    module, or from `set_classes` for loaders without them. A validation loader is optional: it gives "val/accuracy",
    and some tuners choose hyperparameters on it after training.

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
        random_words: A number from 1 replaces every word of the descriptions by a random common word, other words for
            other numbers; the class name stays. This is the control for descriptions; None for no control.
        final_rate: If given, a cosine over the whole run that ends at this rate replaces the tuner's schedule.
        image_chunk: Number of images per pass through the image tower; None means the whole batch. Limits the memory.
        text_chunk: Number of class prompts per pass through a trained text tower; None means all.
        plain_views: "reuse" takes the plain rows from the same forward pass. "encode" encodes the plain images a second
            time with other dropout masks, as the authors' code does; no difference with a frozen image tower.
        start_seed: Seed of the tuner's start in every task; None uses each episode's own.
        class_weights: Weights of classes with different numbers of training images in the cross-entropy: "balanced"
            gives all classes the same weight together; a number in (0, 1) is beta of the effective number of images
            (see `class_balance.class_weights`); None weighs all images alike.

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
        random_words: int | None = None,
        class_weights: Literal["balanced"] | float | None = None,
    ) -> None:
        warn_of_old_lightning()
        super().__init__(backbone, tuner, objective, template, descriptions, image_chunk, text_chunk, random_words)
        if optimizer is not None and learning_rate is not None:
            raise DtrapError(f"learning_rate is {learning_rate}, but an optimizer is given too; set its init_args.lr.")
        replaced = optimizer is not None or lr_scheduler is not None or final_rate is not None
        if self.tuner.trains_itself and replaced:
            raise DtrapError(
                f"the tuner {self.tuner.name} has its own optimizers. Remove optimizer, lr_scheduler and final_rate."
            )
        if optimizer is not None:
            check_optimizer(optimizer, self.tuner.trained_parameters())
        if final_rate is not None and lr_scheduler is not None:
            raise DtrapError(f"final_rate is {final_rate}, but an lr_scheduler is given too. Remove one of the two.")
        if learning_rate is not None:
            check_number("learning_rate", learning_rate, above=0)
        if final_rate is not None:
            check_number("final_rate", final_rate, least=0)
        check_one_of("plain_views", plain_views, ("reuse", "encode"))
        check_class_weights(class_weights, self.tuner)
        self.learning_rate = learning_rate
        self.own_optimizer = optimizer
        self.own_lr_scheduler = lr_scheduler
        self.final_rate = final_rate
        self.plain_views, self.start_seed, self.class_weights = plain_views, start_seed, class_weights
        self.automatic_optimization = not self.tuner.trains_itself
        self._rows: Rows | None = None
        self._shared: SharedBatch | None = None
        self._full_batch: bool | None = None
        self._divergence = DivergenceWatch(self)
        self.loss_scale = LossScale(self)
        self._prepared = False
        self._steps = StepState(self)
        self.anchor: torch.nn.Parameter | None = None  # for DDP, where the tuner has no parameter

    def setup(self, stage: str) -> None:
        """Read the classes of the data module's task; before a fit, reset the tuner."""
        self._evaluation_texts = None
        self.feature_watchers.clear()
        self._incoming.clear()
        self.anchor = None
        self.refuse_foreign_adapters()
        datamodule = self.data_source
        if (names := getattr(datamodule, "class_names", None)) is not None:
            self.set_classes(names, getattr(datamodule, "template", "a photo of a {}."), data_set=all_names(datamodule))
        if self.prompts is None:
            raise DtrapError(
                f"{type(datamodule).__name__ if datamodule else 'The loader'} has no class_names. Call "
                "module.set_classes(class_names, template) first, or give the data module `class_names`."
            )
        if stage == "fit":
            check_tuner_batches(self.tuner, datamodule)
            check_callbacks(self, self._trainer, datamodule)
        if stage == "fit" and self.tuner.trains_itself and self.trainer.max_steps != -1:
            raise DtrapError(
                f"max_steps is {self.trainer.max_steps}, but the tuner {self.tuner.name} makes several optimizer steps "
                "of its own with all support rows, so it could end between them. Give --trainer.max_epochs instead."
            )
        if stage == "fit":
            episode_seed = getattr(datamodule, "episode_seed", None)
            seed = episode_seed("tuner") if episode_seed is not None else int(torch.randint(2**31, ()))
            shared = processes(self._trainer) > 1
            self.start_task(self.trainer.strategy.broadcast(seed) if shared else seed)  # each draws the prototypes
            if shared:
                prepare_processes(self)

    def start_task(self, seed: int) -> None:
        """Reset the tuner and the draws of L_ad with `seed`."""
        self.tuner.reset(seed if self.start_seed is None else self.start_seed, len(self.class_prompts.class_names))
        self._train_what_is_trained()
        self.objective.start(seed)
        self._divergence.reset()
        self.loss_scale.reset()
        self._prepared = False
        self._steps = StepState(self)

    # Training

    def configure_optimizers(self) -> Any:
        """Return the tuner's optimizer and schedule, or the given ones; the schedule is stepped every step.

        Raises:
            DtrapError: The tuner's schedule needs the length of the run, which is unknown.
        """
        balance_classes(self)
        self.prepare_task()
        parameters = self.tuner.trained_parameters()
        if not parameters:
            refuse_rate_finder(self._trainer, f"the tuner {self.tuner.name} has nothing to train. Choose another one")
            return None
        optimizer = make_optimizer(self, parameters)
        return optimizer if isinstance(optimizer, list) else with_schedule(self, optimizer)

    def prepare_task(self) -> None:
        """Let the tuner build its state from the support images, unless it was loaded from a checkpoint."""
        if not self.tuner.needs_task or self._prepared:
            return
        self._prepared = True
        self.train(False)
        # Before the precision's context, which would change the type of the images that the data module draws.
        self.trainer.fit_loop.setup_data()
        query = query_batch(self) if self.tuner.transductive else None
        batches = support_batches(self)
        with self.device_work(), torch.no_grad(), self.trainer.precision_plugin.forward_context():
            self.tuner.prepare_task(task_data(self, batches, query))
        self._train_what_is_trained()

    def on_fit_start(self) -> None:
        """Set the tuner, but not the backbone, to training mode."""
        self.train()
        if processes(self.trainer) > 1:
            warn_batch_norms(self)

    def on_train_start(self) -> None:
        """Check that the objective fits the batches; stop before the first step if the tuner has nothing to train."""
        self._steps.start()
        self.loss_scale.start()
        if self.tuner.trained_parameters():
            self._full_batch = read_batch_kind(self)
            return
        self.trainer.should_stop = True
        given: dict[str, Any] = {"learning_rate": self.learning_rate, "optimizer": self.own_optimizer}
        given["class_weights"] = self.class_weights
        unused = [name for name, value in given.items() if value is not None]
        unused += ["L_ad and L_ra"] if self.objective.suppresses else []
        if unused:
            self.objective.warn_once(
                "untrained", f"{self.tuner.name} has nothing to train, so {', '.join(unused)} have no effect."
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keep what the step depends on, for a checkpoint that is written before its end."""
        self._steps.begin()
        self.loss_scale.begin()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The step is done."""
        self.loss_scale.end()
        self._steps.end()

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor] | None:
        """Compute the objective and log its terms by the paper's names; None if nothing is trained."""
        if not self.tuner.trained_parameters():
            return None
        batch = self.incoming(batch, "train")
        with self._divergence.naming_overflow():
            terms = self.tuner.own_step(self, batch) if self.tuner.trains_itself else self.terms(batch)
        self._divergence.add(terms["total"])
        logged = {name: term.detach() for name, term in terms.items()}
        if self.logs_steps:
            self.log_dict({f"train/{name}": term for name, term in logged.items()}, batch_size=len(batch["labels"]))
        return {"loss": terms["total"], **logged}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make Lightning's step, again if a gradient overflowed in 16-mixed; another overflow in it is named."""
        with self._divergence.naming_overflow():
            make = partial(super().optimizer_step, *args, **kwargs)
            self.loss_scale.step(make, self._divergence.check_losses, self._steps.restart)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the objective for a batch on the device, without the steps of a tuner of its own."""
        labels, rows = batch["labels"], self.rows_of(batch)
        if processes(self._trainer) == 1:
            features = self.image_features(batch["images"], rows.ids)
        else:  # each process computes the whole loss, of the rows of all
            shared, own = self._shared_batch(batch, rows), rows
            features = shared.encode(lambda: self.image_features(batch["images"], own.ids))
            labels, rows = shared.labels, shared.rows
        return self.terms_of(features, self.text_features(), batch, rows, labels)

    def terms_of(self, features: Tensor, texts: Tensor, batch: Batch, rows: Rows, labels: Tensor) -> dict[str, Tensor]:
        """Return the terms of the objective for image features [N, A] and class texts [W, D].

        Args:
            features: Those of the rows; in one process the rows are the batch's.
            texts: The class texts.
            batch: The batch of this process.
            rows: The identity of the rows.
            labels: Classes [N] of the rows.
        """
        related = self.tuner.related_features(features)
        # Before the loss: autograd adds up gradients in an order that follows the order of these calls.
        plain = self._plain_rows(batch, related, rows, labels)
        loss = self.tuner.classification_loss(features, texts, labels, self.objective.logit_scale)
        check_loss(f"{type(self.tuner).__name__}.classification_loss", loss)
        return self.objective(related, texts, labels, plain=plain, row_ids=rows.ids, classification_loss=loss)

    def rows_of(self, batch: Batch) -> Rows:
        """Return the batch's rows; those of the previous step if its columns are the same tensors."""
        # The full batch is the same in every step, and reading its values would wait for the device.
        known = self._rows
        if known is None or known.sample_id is not batch.get("sample_id") or known.view is not batch.get("view"):
            self._rows = known = Rows.of(batch)
        return known

    def _shared_batch(self, batch: Batch, rows: Rows) -> SharedBatch:
        """Return the part of a batch that this process has; that of the previous step if the rows are the same."""
        if self._shared is None or self._shared.own is not rows or self._shared.own_labels is not batch["labels"]:
            self._shared = SharedBatch(batch["labels"], rows, self.global_rank, processes(self._trainer))
        return self._shared

    def _plain_rows(self, batch: Batch, related: Tensor, rows: Rows, labels: Tensor) -> PlainRows | None:
        """Return s and z: the plain rows of the full batch, or all rows of a mini-batch; None if not needed."""
        plain = rows.plain if self._full_batch else rows.every
        if self.objective.progress is None or plain is None:
            return None
        if self._full_batch is None and rows.plain is not None and len(rows.plain) < len(plain):
            warn_unstated(self.objective)
        features = related[plain]
        if self.plain_views == "encode" and "vision" in self.tuner.trains and self.objective.relation_weight != 0:
            features = self._encode_again(batch["images"], plain)
        return PlainRows(features, labels[plain])

    def _encode_again(self, images: Tensor, plain: Tensor) -> Tensor:
        """Return the related features of plain rows, from a second forward pass."""

        def encode(own: Tensor) -> Tensor:
            return self.image_features(images[own])

        if processes(self._trainer) == 1 or self._shared is None:
            return self.tuner.related_features(encode(plain))
        return self.tuner.related_features(self._shared.encode_again(plain, encode))

    def on_train_epoch_end(self) -> None:
        """Check the values of batches that no step has waited for."""
        self.finish_incoming()

    def on_train_end(self) -> None:
        """Check that the result is finite; let the tuner choose hyperparameters if there is a validation split."""
        self._divergence.check_trained()
        if not self.tuner.chooses or not self.trainer.val_dataloaders:
            return
        self.train(False)
        features, labels = [], []
        loaders = CombinedLoader(self.trainer.val_dataloaders, mode="sequential")
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            for batch in (self.on_device(batch, "validate") for batch, _, _ in iter(loaders)):
                features.append(self.image_features(batch["images"], Rows.of(batch).ids))
                labels.append(batch["labels"])
            texts, scale = self.text_features(), self.objective.logit_scale
            images, classes = (gathered(torch.cat(each), self.trainer, self.device) for each in (features, labels))
            self.finite_scores(self.tuner.logits(images, texts, scale))
            self.tuner.choose(images, texts, classes, scale)

    # Lightning's checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop the frozen backbone from Lightning's checkpoints; add what creates and resumes the module.

        Raises:
            DtrapError: The training has diverged.
        """
        self._divergence.check_trained()
        kept, state = adapter_names(self), checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name in kept}
        checkpoint[SECTION] = {**describe_module(self), "steps": self._steps.save()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the frozen backbone to a checkpoint; in a fit, restore what the next step depends on.

        Raises:
            DtrapError: The checkpoint does not contain exactly what this tuner saves, or it belongs to another
                backbone, tuner setting or class.
        """
        saved, section = fitting_content(self, checkpoint)
        if getattr(self._trainer, "training", False):
            self._steps.load(None if section is None else section.get("steps"))
        checkpoint["state_dict"] = {**self.state_dict(), **saved}
        self._prepared = not self.tuner.transductive

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """Create the module of a checkpoint, ready to predict, and load its values.

        The backbone's weights are not in the checkpoint: they are read from where they were, and must be the same.

        Args:
            checkpoint_path: The file, or an open one.
            map_location: Device to load to, as for `torch.load`; the CPU if None.
            hparams_file: Not supported; the settings are in the checkpoint.
            strict: Not used; the values must be exactly those of the tuner.
            weights_only: False also reads Python objects of your own callbacks, and runs their code.
            **kwargs: Arguments of this class that replace the checkpoint's, such as a tuner of your own.

        Raises:
            DtrapError: The file is not such a checkpoint, or a part of it is needed as an argument.
        """
        if hparams_file is not None:
            raise DtrapError("hparams_file is not supported: the settings are in the checkpoint. Pass arguments.")
        return rebuild_module(cls, checkpoint_path, map_location, weights_only is not False, kwargs)
