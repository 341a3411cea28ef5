"""A frozen vision-language model with a tuner: images and class prompts to logits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from ..errors import DtrapError, check_at_least
from .backbones.base import Backbone
from .backbones.peft_layers import adapter_modules
from .chunking import encode_in_chunks
from .contracts import check_backbone, check_rows, check_tokens
from .image_cache import FrozenImageFeatures
from .incoming import IncomingBatches, Stage, tell_input
from .objective import Objective
from .random_words import random_descriptions
from .stored_features import StoredImages
from .text_head import (
    ClassPrompts,
    FrozenTextFeatures,
    check_descriptions,
    check_distinct,
    class_prompts,
    prompt_texts,
    read_descriptions,
    tokenize_classes,
)
from .tracing import can_be_kept
from .tuners.base import Batch, Tuner
from .tuners.contract import check_state, check_tuner


class Rows(NamedTuple):
    """The identity of the rows of a batch.

    Attributes:
        sample_id: The batch's column [B], or None.
        view: The batch's column [B], or None.
        ids: [B, k], the identity of each row; None without `sample_id`.
        plain: Indices [M] of the rows with view 0; None without `view` or without such rows.
        every: Indices [B] of all rows; None without `view`.
    """

    sample_id: Tensor | None
    view: Tensor | None
    ids: Tensor | None
    plain: Tensor | None
    every: Tensor | None

    @classmethod
    def of(cls, batch: Batch) -> Rows:
        """Read the columns of a batch."""
        sample_id, view = batch.get("sample_id"), batch.get("view")
        columns = [column for column in (sample_id, view) if column is not None]
        ids = torch.stack(columns, dim=1) if sample_id is not None else None
        plain = (view == 0).nonzero().flatten() if view is not None else None
        every = torch.arange(len(view), device=view.device) if view is not None else None
        return cls(sample_id, view, ids, plain if plain is not None and len(plain) > 0 else None, every)


class TunedModel(LightningModule):
    """Backbone, tuner and text classifier head; features of frozen towers are computed once.

    Args:
        backbone: The pre-trained model, frozen except for the parameters that the tuner trains.
        tuner: The tuner; LoRA on the image tower if None.
        objective: The staged losses; their logit scale is also the model's.
        template: One or several templates with `{}` for the class name, averaged; None uses the data module's.
        descriptions: Sentences per class that replace the templates: a YAML or JSON file, or a mapping.
        image_chunk: Number of images per pass through the image tower; None means the whole batch.
        text_chunk: Number of class prompts per pass through a trained text tower; None means all.
        random_words: Replace the words of the descriptions by random ones, as the control of this number; None for no.

    Attributes:
        prompts: The prompts of the classes; None before `set_classes`.
        confusion: Counts [W, W] of a test (rows true, columns predicted).
        stored_images: Features of the frozen image tower, which may be on disk.
        keeps_passed: Whether a forward pass keeps its features for `ObservedModel`.

    Raises:
        DtrapError: The backbone or the tuner breaks its contract (see `contracts` and `tuners.contract`), or they do
            not fit each other.
    """

    def __init__(
        self,
        backbone: Backbone,
        tuner: Tuner | None,
        objective: Objective | None,
        template: str | Sequence[str] | None,
        descriptions: str | dict[str, list[str]] | None,
        image_chunk: int | None,
        text_chunk: int | None,
        random_words: int | None = None,
    ) -> None:
        super().__init__()
        for name, chunk in (("image_chunk", image_chunk), ("text_chunk", text_chunk)):
            if chunk is not None:
                check_at_least(name, chunk, 1)
        check_backbone(backbone)
        self.backbone = backbone.requires_grad_(False)
        if tuner is None:
            from .tuners.lora import LoRA  # here, so that other tuners do not need peft

            tuner = LoRA()
        check_tuner(tuner)
        self.tuner = tuner
        self._checked: set[str] = set()
        self.objective = objective if objective is not None else Objective()
        self.template = template
        self.descriptions = read_descriptions(descriptions) if isinstance(descriptions, str) else descriptions
        if isinstance(descriptions, Mapping):
            self.descriptions = check_descriptions(descriptions)
        self.random_words = random_words
        if random_words is not None:
            self.descriptions = self._random_descriptions(random_words)
        self.image_chunk, self.text_chunk = image_chunk, text_chunk
        self.tuner.attach(self.backbone)
        check_state(self.tuner)
        self.refuse_foreign_adapters()
        if self.tuner.own_prompts and (template is not None or descriptions is not None):
            warnings.warn(
                f"{self.tuner.name} learns its own prompt from the class names: template and descriptions are used in "
                "the zero-shot test only.",
                stacklevel=3,
            )
        self.objective.text_only = self.tuner.trains == {"text"}
        self.prompts: ClassPrompts | None = None
        self.confusion = MulticlassConfusionMatrix(num_classes=2)
        self._frozen_texts, self._frozen_images = FrozenTextFeatures(), FrozenImageFeatures()
        self.stored_images = StoredImages(self)
        self._zero_shot = False
        self._own_source: LightningDataModule | None = None  # of a member of several episodes in one Trainer
        self._evaluation_texts: Tensor | None = None
        self._passed: tuple[Tensor, Tensor] | None = None
        self._observing = False
        self.keeps_passed = False
        self._incoming: dict[Stage, IncomingBatches] = {}
        self._train_what_is_trained()
        self.train(False)

    def _random_descriptions(self, draw: int) -> dict[str, list[str]]:
        check_at_least("random_words", draw, 1)
        if self.descriptions is None:
            raise DtrapError(
                f"random_words is {draw}, but there are no descriptions whose words they could replace. Give them as "
                "--model.descriptions FILE, or leave --model.random_words out."
            )
        return random_descriptions(self.descriptions, draw)

    def refuse_foreign_adapters(self) -> None:
        """Raise a DtrapError if another tuner's adapters are in the backbone: they would change zero-shot features."""
        adapters = {id(value) for part in adapter_modules(self.backbone).values() for value in part.parameters(False)}
        if adapters - {id(value) for value in self.tuner.adapter_state().values()}:
            lora = any("lora_" in name for name, _ in self.backbone.named_parameters())
            kind = "LoRA adapters" if lora else "adapters"
            raise DtrapError(
                f"{self.backbone.identifier} has {kind} of another tuner than {self.tuner.name}, which would "
                "stay active. Pass the same tuner to both modules, or load the backbone again for this one."
            )

    def _train_what_is_trained(self) -> None:
        for parameter in self.tuner.trained_parameters():
            parameter.requires_grad_(True)

    def describe_training(self) -> str:
        """Return one line with the tuner, the number of trained parameters and their share of the model."""
        trained = sum(p.numel() for p in self.tuner.trained_parameters())
        who = f"{self.tuner.name} on {self.backbone.identifier}"
        if trained == 0:
            return f"{who}: built from each task's support images, frozen towers"
        # Parameters that are merged into the backbone, or copied from it, do not add to the size of the model.
        own = [] if self.tuner.merges_into_backbone else self.tuner.parameters()
        whole = sum({id(p): p.numel() for p in (*self.backbone.parameters(), *own)}.values())
        towers = " and ".join(f"{tower} tower" for tower in sorted(self.tuner.trains)) or "frozen towers"
        share = f"{trained:,} of {whole:,} parameters ({100 * trained / whole:.2f} %)"
        return f"{who}: trains {share}, {towers}"

    def train(self, mode: bool = True) -> TunedModel:
        """Set the tuner's mode; the frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        self.tuner.train(mode)
        return self

    def set_classes(
        self,
        class_names: Sequence[str],
        template: str | Sequence[str] = "a photo of a {}.",
        *,
        data_set: Sequence[str] = (),
    ) -> None:
        """Create the text classifier head; the module's own `template` or `descriptions` override this template.

        Args:
            class_names: The W names.
            template: One or several templates.
            data_set: Names of all classes of the data set that the task is drawn from. Text is cut behind the longest
                of their prompts, so that a class's text feature does not depend on the task's other classes.
        """
        own = template if self.template is None else self.template
        named = self.tuner.own_prompts  # the names must differ without the words of a template or a description
        prompts = class_prompts(class_names, own, self.backbone, self.descriptions, distinct=not named)
        self.set_prompts(prompts.measured(self.backbone, self._prompts_of(data_set, own), data_set))
        if named:
            self._check_names(class_names)

    def _prompts_of(self, data_set: Sequence[str], templates: str | Sequence[str]) -> list[str]:
        """Return the prompts of a data set's classes; none if one has a name that the task would refuse."""
        names = [name for name in dict.fromkeys(data_set) if self.descriptions is None or name in self.descriptions]
        try:
            texts = prompt_texts(names, templates, self.descriptions) if names else {}
        except DtrapError:  # said where the class is used
            return []
        return [prompt for of_class in texts.values() for prompt in of_class]

    def _check_names(self, class_names: Sequence[str]) -> None:
        """Raise a DtrapError for two names with the same tokens, which a learned context cannot tell apart."""
        names = {name: [f"{name.replace('_', ' ')}."] for name in class_names}
        try:
            tokens = tokenize_classes(names, self.backbone, distinct=False)
        except DtrapError:  # too long: the tuner says how much room its context leaves
            return
        check_distinct(names, tokens, self.backbone)

    def set_prompts(self, prompts: ClassPrompts) -> None:
        """Create the text classifier head from tokenized prompts."""
        check_tokens(self.backbone, prompts.tokens, len(prompts.prompts))
        self.prompts = prompts if prompts.length is not None else prompts.measured(self.backbone)
        self.confusion = MulticlassConfusionMatrix(num_classes=max(len(prompts.class_names), 2)).to(self.device)
        self._evaluation_texts = None

    @property
    def class_prompts(self) -> ClassPrompts:
        """The prompts of the classes.

        Raises:
            DtrapError: `set_classes` was not called.
        """
        if self.prompts is None:
            raise DtrapError("the module has no classes: call module.set_classes(class_names, template) first.")
        return self.prompts

    def incoming(self, batch: Any, stage: Stage) -> Batch:
        """Return the batch of a step with dtrap's keys, checked if it is not from a data module of dtrap.

        Raises:
            DtrapError: Its structure, images or labels are not as expected, or its loader is for another backbone.
        """
        if stage not in self._incoming:
            classes = len(self.class_prompts.class_names)
            self._incoming[stage] = IncomingBatches(self.backbone, classes, stage, self._trainer)
        taken = self._incoming[stage].take(batch)
        if not self._incoming[stage].trusted and "input" not in self._checked:
            self._checked.add("input")
            tell_input(taken["images"], self.backbone)
        return taken

    def finish_incoming(self) -> None:
        """Raise a DtrapError if a batch had values that its step did not wait for."""
        for batches in self._incoming.values():
            batches.finish()

    @property
    def query_views(self) -> int:
        """Number of fixed views of each query in a test."""
        return self.tuner.query_views

    def share_frozen(self, other: TunedModel) -> None:
        """Share another model's frozen-feature caches; both must have the same backbone and tuner."""
        self._frozen_texts, self._frozen_images = other._frozen_texts, other._frozen_images

    def encode_images(self, images: Tensor, ids: Tensor | None = None) -> Tensor:
        """Return the image tower's features [B, F] of normalized images [B, 3, H, W].

        Args:
            images: The images.
            ids: [B, k], the identity of each image within the data module. With ids a frozen tower encodes each image
                once, except in tests whose features need more than 1 GiB.
        """
        datamodule, device = self.data_source, images.device.type
        if "vision" in self.tuner.trains or ids is None or not getattr(datamodule, "fixed_views", False):
            return self._encode(images)
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        weight = next(self.backbone.parameters())
        source = (datamodule, getattr(datamodule, "episode", None), weight.device, weight.dtype, half)
        testing = not getattr(self._trainer, "training", False)
        if self._observing:  # in another batch a feature's last bits differ: nothing is cached that training would use
            known = self._frozen_images.known(source, ids)
            return self._encode_once(images, ids) if known is None else known
        frozen = self._frozen_images.of(source)
        return frozen(ids, lambda missing: self._encode_once(images[missing], ids[missing]), while_room=testing)

    def _encode_once(self, images: Tensor, ids: Tensor) -> Tensor:
        """Encode images by a frozen tower, or take their features from the store if they are the backbone's own."""
        # The functions are compared, not the methods, as in `_check_once`.
        by_tuner = getattr(self.tuner.image_features, "__func__", None) is not Tuner.image_features
        return self._encode(images) if by_tuner else self.stored_images(images, ids, self._encode)

    def _encode(self, images: Tensor) -> Tensor:
        if hasattr(images, "pixels"):  # images that are decoded now
            images = images.pixels()
        features = encode_in_chunks(
            lambda part: self.tuner.image_features(self.backbone, part), images, self.image_chunk
        )
        return self._check_once("image", features, len(images))

    def _check_once(self, kind: Literal["image", "text"], features: Tensor, rows: int) -> Tensor:
        """Check the first features of a kind: [rows, feature_dim] from the backbone, or the tuner's [rows, F]."""
        if kind not in self._checked and can_be_kept(features):
            self._checked.add(kind)
            method = f"{kind}_features"
            # The functions are compared, not the methods: FWT's methods are bound to its inner tuner.
            by_tuner = getattr(getattr(self.tuner, method), "__func__", None) is not getattr(Tuner, method)
            if by_tuner and (kind == "image" or "text" in self.tuner.trains):
                source, width = f"{type(self.tuner).__name__}.{method}", None
            else:
                source, width = f"{type(self.backbone).__name__}.encode_{kind}", self.backbone.feature_dim
            check_rows(source, features, rows, "images" if kind == "image" else "classes", width, finite=True)
        return features

    @property
    def data_source(self) -> Any:
        """The data module of the Trainer's current batches; None if they come from loaders."""
        if self._own_source is not None:
            return self._own_source
        # Private in Lightning: `trainer.datamodule` still holds the data module of an earlier fit or test, and
        # `self.trainer` raises an error without a Trainer.
        loop = getattr(self._trainer, "_active_loop", None)
        source = getattr(getattr(loop, "_data_source", None), "instance", None)
        return source if isinstance(source, LightningDataModule) else None

    def image_features(self, images: Tensor, ids: Tensor | None = None) -> Tensor:
        """Return the current image features [B, A] of normalized images [B, 3, H, W]; see `encode_images`."""
        if not self._zero_shot:
            adapted = self.tuner.adapt_image_features(self.encode_images(images, ids))
            check_rows(f"{type(self.tuner).__name__}.adapt_image_features", adapted, len(images), "images")
            return adapted
        if "vision" not in self.tuner.trains:
            return self.tuner.zero_shot_features(self.encode_images(images, ids))
        with self.tuner.disabled():
            if ids is None or not getattr(self.data_source, "fixed_views", False):
                return self._encode_zero_shot(images)
            return self.stored_images(images, ids, self._encode_zero_shot)

    def _encode_zero_shot(self, images: Tensor) -> Tensor:
        return encode_in_chunks(self.backbone.encode_image, images, self.image_chunk)

    def text_features(self) -> Tensor:
        """Return the current class text features [W, D]; a frozen text tower encodes each prompt once."""
        prompts = self.class_prompts
        if "text" not in self.tuner.trains:
            features = self._frozen_texts(self.backbone, prompts, self.device)
        elif self._zero_shot:
            with self.tuner.disabled():
                return self._frozen_texts(self.backbone, prompts, self.device)
        else:
            if prompts.tokens.device != self.device:
                with torch.inference_mode(False):  # a test may be the first to move them, and training needs them too
                    prompts = replace(prompts, tokens=prompts.tokens.to(self.device))
                if can_be_kept(prompts.tokens):
                    self.prompts = prompts
            features = self.tuner.text_features(self.backbone, prompts, self.text_chunk)
        return self._check_once("text", features, len(prompts.class_names))

    @contextmanager
    def zero_shot(self) -> Iterator[None]:
        """Within it, features, tests and predictions use the backbone without the tuner."""
        self._zero_shot = True
        try:
            yield
        finally:
            self._zero_shot = False

    @property
    def is_zero_shot(self) -> bool:
        """Whether the backbone is used without the tuner; see `zero_shot`."""
        return self._zero_shot

    def forward(self, images: Tensor, ids: Tensor | None = None) -> Tensor:
        """Return the logits [B, W] of normalized images [B, 3, H, W]; see `encode_images` for the ids."""
        texts = self._evaluation_texts if self._evaluation_texts is not None else self.text_features()
        features, scale = self.image_features(images, ids), self.objective.logit_scale
        if self.keeps_passed and can_be_kept(features, texts):
            self._passed = features, texts
        if self._zero_shot:
            return Tuner.logits(self.tuner, features, texts, scale)
        logits = self.tuner.logits(features, texts, scale)
        check_rows(f"{type(self.tuner).__name__}.logits", logits, len(images), "images", len(texts))
        return logits
