"""What a tuner is: which parameters are trained and what they change on the way from image and text to logits."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...errors import DtrapError
from .. import losses
from ..backbones.base import Backbone, Tower
from ..chunking import encode_in_chunks
from ..contracts import check_rows
from ..text_head import ClassPrompts, average_prompts

Batch = dict[str, Tensor]


class SteppedModule(Protocol):
    """What a tuner that makes its steps itself needs of the LightningModule that it is in."""

    @property
    def backbone(self) -> Any:
        """The frozen model, a `Backbone`."""

    @property
    def objective(self) -> Any:
        """The staged losses, an `Objective`."""

    @property
    def image_chunk(self) -> int | None:
        """Images that go through the image tower at a time."""

    @property
    def trainer(self) -> Any:
        """Lightning's Trainer."""

    def optimizers(self) -> Any:
        """The tuner's optimizers, in the order of its `optimizer`."""

    def manual_backward(self, loss: Tensor) -> None:
        """Go back from the loss, scaled where the precision asks for it."""

    def text_features(self) -> Tensor:
        """Class text features [W, D]."""


@dataclass(frozen=True)
class TaskData:
    """What a tuner gets to see of a task before its first step.

    Attributes:
        labels: Classes [N] of the support rows, in the order view, class, shot.
        text_features: Class text features [W, D].
        encoded: `Tuner.image_features` [N, F] of the support rows; None where the tuner trains the image tower.
        images: The support rows [N, 3, H, W], normalized, where the tuner trains the image tower, else None.
        view: Their views [N], 0 is plain; None where the loader tells none.
        sample_id: What tells their images apart [N]; None where the loader tells none.
        query_images: Images [V*Q, 3, H, W] of the queries, without labels, view slowest; None unless `transductive`.
    """

    labels: Tensor
    text_features: Tensor
    encoded: Tensor | None = None
    images: Tensor | None = None
    view: Tensor | None = None
    sample_id: Tensor | None = None
    query_images: Tensor | None = None


class Tuner(nn.Module, ABC):
    """A way of adapting a frozen backbone to a task of W classes.

    From an image to its logits: `image_features` is the tower's part [B, F], computed once per image where the tower is
    frozen; `adapt_image_features` is what stands on top [B, A]; `logits` are made of that and the texts. L_ad and L_ra
    act on `related_features` of it. F = A = D and everything is the identity but for the tuners that say otherwise.

    `FewShotClassifier` calls `attach` once, `reset` before each task, and `prepare_task` before the optimizer is made.

    Attributes:
        name: Short name for file names and adapter cards.
        transductive: Whether it sees the unlabeled queries; its results are marked so.
        needs_task: Whether `prepare_task` has to be called.
        trains_itself: Whether it makes its steps itself in `own_step`, with optimizers of its own.
        query_views: Fixed views of each query that a test takes; their probabilities are added up.
        learning_rate: The rate of its own optimizer where no other is asked for.
        own_prompts: Whether it makes the class prompts itself, of the class names alone.
        chooses: Whether `choose` is to be called where there is a validation split.
        merges_into_backbone: Whether it changes nothing but weights of the backbone, so that it can be exported.
    """

    name: str
    transductive: bool = False
    needs_task: bool = False
    trains_itself: bool = False
    query_views: int = 1
    learning_rate: float = 2e-4
    own_prompts: bool = False
    chooses: bool = False
    merges_into_backbone: bool = False

    @property
    @abstractmethod
    def trains(self) -> frozenset[Tower]:
        """The towers whose features change with training; features of the others are computed once.

        Lambda's default follows it: that of the text branch where only "text" is in it.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that it was made with, as plain values; tensors, which are saved, are left out."""
        names = inspect.signature(type(self).__init__).parameters
        values = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return {name: value for name, value in values.items() if not isinstance(value, Tensor | nn.Module)}

    @abstractmethod
    def attach(self, backbone: Backbone) -> None:
        """Put the tuner's parameters into, or on top of, the frozen backbone; does nothing the second time.

        Raises:
            DtrapError: The tuner does not go with this backbone; the message says why.
        """

    @abstractmethod
    def reset(self, seed: int, num_classes: int) -> None:
        """Start anew for a task of `num_classes` classes, drawing the start from `seed` alone."""

    @abstractmethod
    def adapter_state(self) -> dict[str, Tensor]:
        """All that has to be saved, by name: what is trained as the parameters themselves, the rest as buffers."""

    def make_room(self, state: dict[str, Tensor]) -> None:
        """Give own tensors the shapes of a saved state, where they depend on the task; nothing by default."""

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Take the values of a saved `adapter_state`.

        Raises:
            DtrapError: Names or shapes are not this tuner's.
        """
        self.make_room(state)
        own = self.adapter_state()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())
            raise DtrapError(
                f"the adapter does not fit the tuner {self.name}: {len(odd)} names differ, such as {odd[0]!r}. "
                "Load it with the backbone and the tuner settings that it was trained with (its config.yaml)."
            )
        for key, value in own.items():
            if value.shape != state[key].shape:
                raise DtrapError(
                    f"the adapter does not fit the tuner {self.name}: {key} is {list(state[key].shape)}, expected "
                    f"{list(value.shape)}. Load it with the tuner settings that it was trained with."
                )
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(state[key])

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimizer gets; none where `prepare_task` is all the training there is."""
        return [value for value in self.adapter_state().values() if isinstance(value, nn.Parameter)]

    def prepare_task(self, task: TaskData) -> None:
        """Build what a task needs from its support images; nothing by default. Gradients are off."""

    def choose(self, image_features: Tensor, text_features: Tensor, labels: Tensor, logit_scale: float) -> None:
        """Choose hyper-parameters on a validation split, after training; nothing by default.

        Called where it `chooses` and the loaders have a validation split.

        Args:
            image_features: [B, A] of the validation images, as `adapt_image_features` gives them.
            text_features: [W, D].
            labels: [B].
            logit_scale: tau.
        """

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it, the backbone gives its zero-shot features."""
        yield

    def image_features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """The image tower's part: features [B, F] of images [B, 3, H, W]."""
        return backbone.encode_image(images)

    def adapt_image_features(self, features: Tensor) -> Tensor:
        """What stands on top of the image tower: [B, A] from `image_features` [B, F]."""
        return features

    def zero_shot_features(self, features: Tensor) -> Tensor:
        """The backbone's own features [B, D] out of `image_features` [B, F] of a frozen image tower."""
        return features

    def related_features(self, image_features: Tensor) -> Tensor:
        """What L_ad and L_ra act on: [B, any width] from `adapt_image_features` [B, A]."""
        return image_features

    def text_features(self, backbone: Backbone, prompts: ClassPrompts, chunk: int | None = None) -> Tensor:
        """Class text features [W, D], at most `chunk` prompts at a time; the tokens are on the backbone's device."""
        return average_prompts(encode_in_chunks(backbone.encode_text, prompts.tokens, chunk), prompts.per_class)

    def logits(self, image_features: Tensor, text_features: Tensor, logit_scale: float) -> Tensor:
        """Logits [B, W]; the scaled cosine to the class texts by default."""
        if image_features.shape[-1] != text_features.shape[-1]:
            raise DtrapError(
                f"{type(self).__name__}: image features have the width {image_features.shape[-1]} and class texts "
                f"{text_features.shape[-1]}; expected one width for their cosines. Return features of the same width, "
                "or override `logits`."
            )
        return logit_scale * losses.cosines(image_features, text_features)

    def classification_loss(
        self, image_features: Tensor, text_features: Tensor, labels: Tensor, logit_scale: float
    ) -> Tensor:
        """The loss that L_ad and L_ra are added to; cross-entropy of `logits` by default, which is L_vlm."""
        logits = self.logits(image_features, text_features, logit_scale)
        check_rows(f"{type(self).__name__}.logits", logits, len(labels), "images", len(text_features))
        return nn.functional.cross_entropy(logits, labels)

    def own_step(self, module: SteppedModule, batch: Batch) -> dict[str, Tensor]:
        """One step of a tuner that `trains_itself`: the terms, "total" among them."""
        raise NotImplementedError

    def optimizer(self, parameters: list[nn.Parameter], learning_rate: float) -> Optimizer | list[Optimizer]:
        """AdamW with weight decay 0.01 and betas 0.9, 0.999, as the authors' code has for LoRA.

        Several optimizers only where the tuner `trains_itself`.
        """
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-2, betas=(0.9, 0.999))

    def scheduler(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LRScheduler | None:
        """Cosine over eight times the run down to 1e-6, stepped every step, as in the authors' code."""
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8 * total_steps, eta_min=1e-6)


def another_backbone(tuner: Tuner) -> DtrapError:
    """The error for a tuner that is attached and gets another backbone."""
    name = type(tuner).__name__
    return DtrapError(f"{name}: this tuner is attached to another backbone; make a new {name}() for this one.")


def check_width(tuner: Tuner, width: int, backbone: Backbone) -> None:
    """Refuse an attached tuner of features of `width` on a backbone of another; raises a DtrapError."""
    if backbone.feature_dim != width:
        name = type(tuner).__name__
        raise DtrapError(
            f"{name}: this tuner takes features of width {width}, and {backbone.identifier} gives "
            f"{backbone.feature_dim}; make a new {name}() for this backbone."
        )


def warmup_cosine(
    optimizer: Optimizer, total_steps: int, steps_per_epoch: int, *, warmup_rate: float = 1e-5
) -> LRScheduler:
    """CoOp's schedule, stepped every step but changing per epoch: one epoch at `warmup_rate`, then a cosine.

    With E epochs in all, epoch e >= 1 has the rate lr / 2 * (1 + cos(pi * (e - 1) / E)): the cosine starts anew after
    the warm-up but spans all E epochs, so that it never reaches 0 (Dassl's schedule, as CoOp runs it).
    """
    epochs = max(-(-total_steps // steps_per_epoch), 1)
    factors: list[Callable[[int], float]] = []
    for group in optimizer.param_groups:
        rate = group["lr"]

        def factor(step: int, rate: float = rate) -> float:
            epoch = step // steps_per_epoch
            return warmup_rate / rate if epoch == 0 else 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))

        factors.append(factor)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
