"""The LightningModule: a vision-language model, a tuner, the text classifier head and the objective."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from ..errors import DtrapError
from .backbones.base import Backbone
from .chunking import encode_in_chunks
from .objective import Objective, PlainRows
from .text_head import ClassPrompts, FrozenTextFeatures, class_prompts
from .tuners import LoRA, Tuner

Batch = dict[str, Tensor]


class Rows(NamedTuple):
    """Which rows a batch has.

    Attributes:
        sample_id: The batch's own column [B], None where it has none.
        view: Likewise.
        ids: [B, k] what tells a row from others; None without `sample_id`.
        plain: Numbers [M] of the rows with view 0; None where the batch does not tell or has none.
    """

    sample_id: Tensor | None
    view: Tensor | None
    ids: Tensor | None
    plain: Tensor | None

    @classmethod
    def of(cls, sample_id: Tensor | None, view: Tensor | None) -> Rows:
        """From the columns of a batch."""
        columns = [column for column in (sample_id, view) if column is not None]
        ids = torch.stack(columns, dim=1) if sample_id is not None else None
        plain = (view == 0).nonzero().flatten() if view is not None else None
        return cls(sample_id, view, ids, plain if plain is not None and len(plain) > 0 else None)


class FewShotClassifier(LightningModule):
    """Tunes a frozen vision-language model to the classes of one few-shot task.

    Each `Trainer.fit` is one task: the tuner starts anew, from the data module's episode. Batches are dictionaries with
    `images` [B, 3, H, W] and `labels` [B], and for full-batch training `view` and `sample_id` [B]; rows with view 0 are
    the plain ones that relations are taken against (all rows, where there is no `view`). Class names and template come
    from the data module, or from `set_classes` for loaders that have none.

    Args:
        backbone: The pre-trained model; it stays frozen.
        tuner: What is trained; LoRA on the image tower where None.
        objective: The staged losses; the paper's where None. `StageSwitch` in the Trainer's callbacks drives it.
        template: One or several templates with `{}` for the class name, averaged; None takes the data module's.
        learning_rate: Rate of the tuner's own optimiser; None is the tuner's default.
        optimizer: An optimiser in place of the tuner's own; brings its own rate.
        lr_scheduler: A schedule in place of the tuner's own, stepped every optimiser step.
        image_chunk: Images that go through the image tower at a time; None is the whole batch. Bounds the memory.
        plain_views: "reuse" takes the plain rows from the same forward pass; "encode" encodes the plain images a second
            time with other dropout masks, as the authors' code does (of a frozen image tower that would be the same).
        start_seed: Seed of the tuner's start for every task; None takes each episode's own.
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
    ) -> None:
        super().__init__()
        if optimizer is not None and learning_rate is not None:
            raise DtrapError(
                f"learning_rate is {learning_rate} and an optimizer is given too: the rate of an own optimizer is its "
                "init_args.lr. Leave one of the two out."
            )
        if image_chunk is not None and image_chunk < 1:
            raise DtrapError(f"image_chunk is {image_chunk}; expected at least 1 image, or null for the whole batch.")
        if plain_views not in ("reuse", "encode"):
            raise DtrapError(f"plain_views is {plain_views!r}; expected 'reuse' or 'encode'.")
        self.backbone = backbone.requires_grad_(False)
        self.tuner = tuner if tuner is not None else LoRA()
        self.objective = objective if objective is not None else Objective()
        self.template = template
        self.learning_rate = learning_rate
        self.own_optimizer = optimizer
        self.own_lr_scheduler = lr_scheduler
        self.image_chunk = image_chunk
        self.plain_views = plain_views
        self.start_seed = start_seed
        self.tuner.attach(self.backbone)
        for parameter in self.tuner.trained_parameters():
            parameter.requires_grad_(True)
        self.objective.text_only = self.tuner.trains == {"text"}
        self.prompts: ClassPrompts | None = None
        self.confusion = MulticlassConfusionMatrix(num_classes=2)
        self.test_predictions: list[Tensor] = []
        self._frozen_texts = FrozenTextFeatures()
        self._support_features: tuple[Tensor, Tensor] | None = None
        self._rows: Rows | None = None
        self._evaluation_texts: Tensor | None = None
        self._zero_shot = False
        self._prepared = False
        self.train(False)

    # What is trained

    def describe_training(self) -> str:
        """One line: tuner, trained parameters and their share of the whole model."""
        trained = sum(p.numel() for p in self.tuner.trained_parameters())
        parameters = {id(p): p.numel() for p in (*self.backbone.parameters(), *self.tuner.trained_parameters())}
        whole = sum(parameters.values())
        towers = " and ".join(f"{tower} tower" for tower in sorted(self.tuner.trains)) or "neither tower"
        share = f"{trained:,} of {whole:,} parameters ({100 * trained / whole:.2f} %)"
        return f"{self.tuner.name} on {self.backbone.identifier}: trains {share}, {towers}"

    def train(self, mode: bool = True) -> FewShotClassifier:
        """Switch the tuner's mode; the frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        self.tuner.train(mode)
        return self

    def set_classes(self, class_names: Sequence[str], template: str | Sequence[str] = "a photo of a {}.") -> None:
        """Make the text classifier head for these classes; the module's own `template` goes before this one."""
        self.prompts = class_prompts(class_names, self.template or template, self.backbone)
        self.confusion = MulticlassConfusionMatrix(num_classes=max(len(class_names), 2)).to(self.device)
        self._evaluation_texts = None

    def setup(self, stage: str) -> None:
        """Take the classes of the data module's task; before a fit, start the tuner anew."""
        self._evaluation_texts = None
        datamodule = getattr(self.trainer, "datamodule", None)
        names = getattr(datamodule, "class_names", None)
        if names is not None:
            template = getattr(datamodule, "template", "a photo of a {}.")
            self.set_classes(names, template)
        if self.prompts is None:
            raise DtrapError(
                f"{type(datamodule).__name__ if datamodule else 'The loader'} offers no class_names: call "
                "module.set_classes(class_names, template) before, or give the data module `class_names`."
            )
        if stage == "fit":
            episode_seed = getattr(datamodule, "episode_seed", None)
            self.start_task(episode_seed("tuner") if episode_seed is not None else int(torch.randint(2**31, ())))

    def start_task(self, seed: int) -> None:
        """Start the tuner and the draws of L_ad anew from `seed`."""
        self.tuner.reset(seed if self.start_seed is None else self.start_seed, len(self._class_prompts.class_names))
        self.objective.start(seed)
        self._support_features = None
        self._rows = None
        self._prepared = False

    @property
    def _class_prompts(self) -> ClassPrompts:
        if self.prompts is None:
            raise DtrapError("the module has no classes yet: call module.set_classes(class_names, template) first.")
        return self.prompts

    # Features

    def image_features(self, images: Tensor) -> Tensor:
        """Image features [B, D] of normalised images, as tuned so far."""
        if self._zero_shot:
            with self.tuner.disabled():
                return encode_in_chunks(self.backbone.encode_image, images, self.image_chunk)
        return encode_in_chunks(lambda part: self.tuner.image_features(self.backbone, part), images, self.image_chunk)

    def text_features(self) -> Tensor:
        """Class text features [W, D], as tuned so far; of a frozen text tower each prompt is encoded once only."""
        prompts = self._class_prompts
        if "text" not in self.tuner.trains:
            return self._frozen_texts(self.backbone, prompts, self.device)
        if self._zero_shot:
            with self.tuner.disabled():
                return self._frozen_texts(self.backbone, prompts, self.device)
        if prompts.tokens.device != self.device:
            self.prompts = prompts = replace(prompts, tokens=prompts.tokens.to(self.device))
        return self.tuner.text_features(self.backbone, prompts)

    @contextmanager
    def zero_shot(self) -> Iterator[None]:
        """Within it, features, tests and predictions are those of the backbone without the tuner."""
        self._zero_shot = True
        try:
            yield
        finally:
            self._zero_shot = False

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, W] of normalised images [B, 3, H, W]."""
        texts = self._evaluation_texts if self._evaluation_texts is not None else self.text_features()
        features, scale = self.image_features(images), self.objective.logit_scale
        if self._zero_shot:
            return Tuner.logits(self.tuner, features, texts, scale)
        return self.tuner.logits(features, texts, scale)

    # Training

    def on_fit_start(self) -> None:
        """Put the tuner, not the backbone, in training mode."""
        self.train()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One step of the objective; the terms are logged by the paper's names."""
        labels, rows = batch["labels"], self._rows_of(batch)
        features, texts = self._training_features(batch, rows.ids), self.text_features()
        if not self._prepared:
            self.tuner.prepare_task(features.detach(), texts.detach(), labels)
            self._prepared = True
        terms = self.objective(
            features,
            texts,
            labels,
            plain=self._plain_rows(batch, features, rows.plain),
            row_ids=rows.ids,
            classification_loss=self.tuner.classification_loss(features, texts, labels, self.objective.logit_scale),
        )
        self.log_dict({f"train/{name}": term.detach() for name, term in terms.items()}, batch_size=len(labels))
        return {"loss": terms["total"], **{name: term.detach() for name, term in terms.items()}}

    def _rows_of(self, batch: Batch) -> Rows:
        """The batch's rows; those of the step before where its columns are the very same tensors.

        The full batch comes again in every step, and to look at its values would wait for the device.
        """
        sample_id, view = batch.get("sample_id"), batch.get("view")
        if self._rows is None or self._rows.sample_id is not sample_id or self._rows.view is not view:
            self._rows = Rows.of(sample_id, view)
        return self._rows

    def _training_features(self, batch: Batch, row_ids: Tensor | None) -> Tensor:
        if "vision" in self.tuner.trains or row_ids is None or not self._fixed_views:
            return self.image_features(batch["images"])
        known = self._support_features
        if known is None or not (known[0] is row_ids or torch.equal(known[0], row_ids)):
            with torch.no_grad():
                self._support_features = known = row_ids, self.image_features(batch["images"])
        return known[1]

    @property
    def _fixed_views(self) -> bool:
        return getattr(getattr(self.trainer, "datamodule", None), "fixed_views", False)

    def _plain_rows(self, batch: Batch, features: Tensor, plain: Tensor | None) -> PlainRows | None:
        if plain is None or self.objective.progress is None:
            return None
        again = self.plain_views == "encode" and "vision" in self.tuner.trains and self.objective.relation_weight != 0
        plain_features = self.image_features(batch["images"][plain]) if again else features[plain]
        return PlainRows(plain_features, batch["labels"][plain])

    def configure_optimizers(self) -> Any:
        """The tuner's optimiser and schedule, or the given ones; the schedule goes on every step.

        Raises:
            DtrapError: The tuner's schedule needs the length of the run, which is unknown.
        """
        parameters = self.tuner.trained_parameters()
        if self.own_optimizer is not None:
            optimizer = self.own_optimizer(parameters)
        else:
            rate = self.learning_rate if self.learning_rate is not None else self.tuner.learning_rate
            optimizer = self.tuner.optimizer(parameters, rate)
        if self.own_lr_scheduler is not None:
            scheduler = self.own_lr_scheduler(optimizer)
        else:
            scheduler = self.tuner.scheduler(optimizer, self._total_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _total_steps(self) -> int:
        total = self.trainer.estimated_stepping_batches
        if not isfinite(total) or total < 0:  # -1 is Lightning's answer for a loader without length
            raise DtrapError(
                f"the schedule of the tuner {self.tuner.name} needs the length of the run, which is unknown. Set "
                "Trainer(max_steps=...), or max_epochs where the loader has a length, or give an lr_scheduler."
            )
        return int(total)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen backbone out of Lightning's checkpoints."""
        kept, state = self._adapter_names(), checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Complete a checkpoint with the frozen backbone.

        Raises:
            DtrapError: It does not hold exactly what this tuner saves.
        """
        odd = sorted(self._adapter_names() ^ checkpoint["state_dict"].keys())
        if odd:
            raise DtrapError(
                f"the checkpoint does not fit the tuner {self.tuner.name}: {len(odd)} names differ, such as "
                f"{odd[0]!r}. Load it with the backbone and the tuner settings that it was trained with."
            )
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}

    def _adapter_names(self) -> set[str]:
        """Names in the state dict of what the tuner saves."""
        saved = {id(value) for value in self.tuner.adapter_state().values()}
        return {name for name, value in self.state_dict(keep_vars=True).items() if id(value) in saved}

    # Evaluation

    def on_test_epoch_start(self) -> None:
        """Encode the class texts once for the whole test."""
        with torch.no_grad():
            self._evaluation_texts = self.text_features()
        self.confusion.reset()
        self.test_predictions = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count predictions into `confusion` [W, W] (rows true, columns predicted); keep them in `test_predictions`."""
        predicted = self(batch["images"]).argmax(dim=-1)
        self.test_predictions.append(predicted.cpu())
        self.confusion.update(predicted, batch["labels"])

    def on_test_epoch_end(self) -> None:
        """Log the accuracy in percent."""
        self._evaluation_texts = None
        counts = self.confusion.compute()
        self.log("test/accuracy", 100.0 * counts.diag().sum() / counts.sum().clamp(min=1))

    def on_predict_epoch_start(self) -> None:
        """Encode the class texts once for all predictions."""
        with torch.no_grad():
            self._evaluation_texts = self.text_features()

    def on_predict_epoch_end(self) -> None:
        """Forget the class texts."""
        self._evaluation_texts = None

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Probabilities [B, W] of the classes."""
        return self(batch["images"]).softmax(dim=-1)
