"""The interface of tuners: the parameters that are trained, and the features and logits that they change."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle

from ...errors import DtrapError
from ...keywords import KeepsArguments
from .. import losses
from ..backbones.base import Backbone, Tower
from ..chunking import encode_in_chunks
from ..contracts import check_rows
from ..text_head import ClassPrompts, average_prompts
from .dassl import DasslTraining as DasslTraining

Batch = dict[str, Tensor]
ENCODERS: dict[str, tuple[Tower, ...]] = {"vision": ("vision",), "text": ("text",), "both": ("vision", "text")}


class SteppedModule(Protocol):
    """The part of a LightningModule that a tuner with its own steps uses.

    Attributes:
        backbone: The frozen `Backbone`.
        objective: The `Objective` with the staged losses.
        image_chunk: Number of images per pass through the image tower; None means all.
        trainer: Lightning's Trainer.
    """

    backbone: Any
    objective: Any
    image_chunk: int | None
    trainer: Any

    def optimizers(self) -> Any:
        """Return the tuner's optimizers, in the order of `Tuner.optimizer`."""

    def manual_backward(self, loss: Tensor) -> None:
        """Run the backward pass of a loss, scaled if the precision requires it."""

    def text_features(self) -> Tensor:
        """Return the class text features [W, D]."""


@dataclass(frozen=True)
class TaskData:
    """The data of a task that a tuner receives before its first step.

    Attributes:
        labels: Classes [N] of the support rows, in the order view, class, shot.
        text_features: Class text features [W, D].
        encoded: `Tuner.image_features` [N, F] of the support rows; None if the tuner trains the image tower.
        images: The normalized support rows [N, 3, H, W] if the tuner trains the image tower, else None.
        view: View [N] of each row, 0 is plain; None if the loader has no views.
        sample_id: Identity [N] of each row's image; None if the loader has none.
        query_images: Unlabeled images [V*Q, 3, H, W] of the queries, view slowest; None unless `transductive`.
    """

    labels: Tensor
    text_features: Tensor
    encoded: Tensor | None = None
    images: Tensor | None = None
    view: Tensor | None = None
    sample_id: Tensor | None = None
    query_images: Tensor | None = None


class Tuner(KeepsArguments, nn.Module, ABC):
    """A method that adapts a frozen backbone to a task of W classes.

    From an image to its logits: `image_features` is the image tower's part [B, F], computed once per image if the tower
    is frozen. `adapt_image_features` is applied to it: [B, A]. `logits` combines the result with the texts. L_ad and
    L_ra are computed on `related_features` of it. By default F = A = D and each step is the identity.

    `FewShotClassifier` calls `attach` once, `reset` before each task, and `prepare_task` before it creates the
    optimizer. It checks shapes and types and raises a DtrapError if a method returns something else.

    Attributes:
        name: Short name for file names and adapter cards.
        transductive: Whether it uses the unlabeled queries; its results are marked.
        needs_task: Whether `prepare_task` must be called.
        trains_itself: Whether it makes its own steps in `own_step`, with its own optimizers.
        query_views: Number of fixed views of each query in a test, whose probabilities are added up.
        learning_rate: Default rate of its own optimizer.
        own_prompts: Whether it builds the class prompts itself, from the class names alone.
        chooses: Whether to call `choose` if there is a validation split.
        least_rows: Least number of rows of a training batch.
        weighs_classes: Whether its own `classification_loss` or `own_step` takes `class_weights`, as `cross_entropy`
            does.
        class_weights: Weight [W] of each class of the task; None for equal ones. Set before a fit.
        merges_into_backbone: Whether it changes weights of the backbone only, so that it can be exported.
        side_by_side: Whether several episodes can be trained in one step: with copies of the tuner if both towers are
            frozen, otherwise with `stacked`.
    """

    name: str
    transductive: bool = False
    needs_task: bool = False
    trains_itself: bool = False
    query_views: int = 1
    learning_rate: float = 2e-4
    own_prompts: bool = False
    chooses: bool = False
    least_rows: int = 1
    weighs_classes: bool = False
    class_weights: Tensor | None = None
    merges_into_backbone: bool = False
    side_by_side: bool = False
    _attached_to: tuple[Backbone, ...] = ()  # in a tuple, so that the backbone is not a submodule of the tuner
    _is_disabled = False

    @property
    @abstractmethod
    def trains(self) -> frozenset[Tower]:
        """The towers whose features change with training; the features of the others are computed once.

        A subclass may define a class attribute instead of a property. With "text" alone, lambda has the default of the
        text branch.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments as JSON-able values, without tensors, which are saved with the adapter."""
        names = inspect.signature(type(self).__init__).parameters
        values = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return {name: value for name, value in values.items() if not isinstance(value, Tensor | nn.Module)}

    @property
    def takes_class_weights(self) -> bool:
        """Whether `class_weights` have an effect: the loss is this class's, or says that it `weighs_classes`."""
        own = type(self).classification_loss is not Tuner.classification_loss or self.trains_itself
        return self.weighs_classes or not own

    @abstractmethod
    def attach(self, backbone: Backbone) -> None:
        """Add the tuner's parameters to the frozen backbone or on top of it; does nothing on a second call.

        Raises:
            DtrapError: The tuner does not support this backbone; the message says why.
        """

    @abstractmethod
    def reset(self, seed: int, num_classes: int) -> None:
        """Reset for a task of `num_classes` classes; all random numbers depend on `seed` only."""

    def adapter_state(self) -> dict[str, Tensor]:
        """Return all tensors to save, by name: the trained ones as the parameters themselves, others as buffers.

        By default these are all parameters and persistent buffers of this module.
        """
        state = self.state_dict(keep_vars=True)
        # A batch norm with a momentum counts its batches, but does not use the number.
        return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}

    def make_room(self, state: dict[str, Tensor]) -> None:
        """Allocate tensors whose shape depends on the task in the shapes of a saved state; nothing by default."""

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Load the values of a saved `adapter_state`.

        Raises:
            DtrapError: Names or shapes differ from this tuner's.
        """
        self.make_room(state)
        own = self.adapter_state()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())
            raise DtrapError(
                f"the adapter does not fit the tuner {self.name}: {len(odd)} names differ, such as {odd[0]!r}. "
                "Load it with the backbone and the tuner settings of its training (its config.yaml)."
            )
        for key, value in own.items():
            if value.shape != state[key].shape:
                raise DtrapError(
                    f"the adapter does not fit the tuner {self.name}: {key} is {list(state[key].shape)}, expected "
                    f"{list(value.shape)}. Load it with the tuner settings of its training."
                )
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(state[key])

    def resume_state(self) -> dict[str, Any]:
        """Return what a training step depends on besides `adapter_state` and torch's global generator.

        Part of Lightning's checkpoints, as tensors and plain values; nothing by default.
        """
        return {}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Restore what `resume_state` returned, before the first step of a resumed fit; nothing by default."""

    def stacked(self, states: Sequence[Mapping[str, Tensor]]) -> AbstractContextManager[None]:
        """Return a context in which `adapter_state` is [E, ...], from the states of E episodes; for tuners of a tower.

        Rows that go through a tower belong to the episodes that `chunking.side_by_side` says.
        """
        raise NotImplementedError

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters for the optimizer; none if `prepare_task` is the whole training."""
        return [value for value in self.adapter_state().values() if isinstance(value, nn.Parameter)]

    def prepare_task(self, task: TaskData) -> None:
        """Build the state for a task from its support images, without gradients; nothing by default."""

    def choose(self, image_features: Tensor, text_features: Tensor, labels: Tensor, logit_scale: float) -> None:
        """Choose hyperparameters on a validation split after training; nothing by default.

        Called if the tuner `chooses` and there is a validation split.

        Args:
            image_features: `adapt_image_features` [B, A] of the validation images.
            text_features: [W, D].
            labels: [B].
            logit_scale: tau.
        """

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it, the backbone returns its zero-shot features.

        By default this only sets `_is_disabled`, for tuners whose `image_features` skips their change then.
        """
        self._is_disabled = True
        try:
            yield
        finally:
            self._is_disabled = False

    def image_features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Return the image tower's features [B, F] of images [B, 3, H, W]."""
        return backbone.encode_image(images)

    def adapt_image_features(self, features: Tensor) -> Tensor:
        """Adapt `image_features` [B, F] to [B, A]; part of every training step even if the tower is frozen."""
        return features

    def zero_shot_features(self, features: Tensor) -> Tensor:
        """Return the backbone's own features [B, D] from `image_features` [B, F] of a frozen image tower."""
        return features

    def related_features(self, image_features: Tensor) -> Tensor:
        """Return the features [B, any width] for L_ad and L_ra, from `adapt_image_features` [B, A]."""
        return image_features

    def text_features(self, backbone: Backbone, prompts: ClassPrompts, chunk: int | None = None) -> Tensor:
        """Return class text features [W, D], at most `chunk` prompts per pass; tokens are on the backbone's device."""
        return average_prompts(encode_in_chunks(backbone.encode_text, prompts.used_tokens, chunk), prompts.per_class)

    def logits(self, image_features: Tensor, text_features: Tensor, logit_scale: float) -> Tensor:
        """Return logits [B, W]; by default the scaled cosines to the class texts.

        Raises:
            DtrapError: Image and text features have different widths.
        """
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
        """Return the scalar loss that L_ad and L_ra are added to; by default L_vlm, the cross-entropy of `logits`."""
        logits = self.logits(image_features, text_features, logit_scale)
        check_rows(f"{type(self).__name__}.logits", logits, len(labels), "images", len(text_features))
        return self.cross_entropy(logits, labels)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of logits [B, W], its mean over rows weighed by `class_weights` if there are any."""
        weights = self.class_weights
        weights = None if weights is None else weights.to(logits.device, logits.dtype)
        return nn.functional.cross_entropy(logits, labels, weight=weights)

    def own_step(self, module: SteppedModule, batch: Batch) -> dict[str, Tensor]:
        """Make one step of a tuner that `trains_itself`; return the terms with their "total"."""
        raise NotImplementedError

    def optimizer(self, parameters: list[nn.Parameter], learning_rate: float) -> Optimizer | list[Optimizer]:
        """Return AdamW with weight decay 0.01 and betas 0.9, 0.999, as the authors' code has for LoRA.

        A list of optimizers is allowed only if the tuner `trains_itself`.
        """
        # One call for all parameters, not ten for each. The GPU default is as fast, and can clip float16 gradients.
        kinds = {(parameter.device.type, parameter.dtype) for parameter in parameters}
        fused = True if kinds <= {("cpu", torch.float32), ("cpu", torch.float64)} else None
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-2, betas=(0.9, 0.999), fused=fused)

    def scheduler(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LRScheduler | None:
        """Return a cosine over eight times the run down to 1e-6, stepped every step, as in the authors' code."""
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8 * total_steps, eta_min=1e-6)


class _ClassHead(Tuner):
    """A trained head on the frozen image feature, allocated for the number of classes.

    Attributes:
        per_class: Names of its parameters [W].
        weight: [W, D]; without rows before `reset`.
    """

    trains: frozenset[Tower] = frozenset()
    per_class: tuple[str, ...] = ("bias",)
    weight: nn.Parameter

    def attach(self, backbone: Backbone) -> None:
        """Create a head of the feature width, without classes.

        Raises:
            DtrapError: This tuner is attached to a backbone with another feature width.
        """
        if hasattr(self, "weight"):
            check_width(self, self.weight.shape[1], backbone)
        else:
            self.weight = nn.Parameter(next(backbone.parameters()).new_empty(0, backbone.feature_dim))

    def make_head(self, num_classes: int) -> None:
        """Allocate the head for this number of classes, unless it has that number."""
        if len(self.weight) != num_classes:
            self.weight = nn.Parameter(self.weight.new_empty(num_classes, self.weight.shape[1]))
            for name in self.per_class:
                setattr(self, name, nn.Parameter(self.weight.new_empty(num_classes)))

    def make_room(self, state: dict[str, Tensor]) -> None:
        """Allocate the head for the saved number of classes."""
        if "weight" in state:
            self.make_head(len(state["weight"]))


AnyTuner = TypeVar("AnyTuner", bound=Tuner)


def attach_once(attach: Callable[[AnyTuner, Backbone], None]) -> Callable[[AnyTuner, Backbone], None]:
    """Let a tuner's `attach` do nothing on a second call, and raise a DtrapError for another backbone."""

    @wraps(attach)
    def checked(tuner: AnyTuner, backbone: Backbone) -> None:
        if not tuner._attached_to:
            attach(tuner, backbone)
            tuner._attached_to = (backbone,)
        elif tuner._attached_to[0] is not backbone:
            name = type(tuner).__name__
            raise DtrapError(f"{name}: this tuner is attached to another backbone; create a new {name}() for this one.")

    return checked


def check_width(tuner: Tuner, width: int, backbone: Backbone) -> None:
    """Raise a DtrapError if a tuner for features of `width` is attached to a backbone with another width."""
    if backbone.feature_dim != width:
        name = type(tuner).__name__
        raise DtrapError(
            f"{name}: this tuner takes features of width {width}, but {backbone.identifier} has "
            f"{backbone.feature_dim}; create a new {name}() for this backbone."
        )


def draw(parameter: Tensor, initialize: Callable[..., Tensor], *arguments: float, generator: Generator) -> None:
    """Fill a parameter by a function of `torch.nn.init`, which receives the arguments and the generator.

    The numbers are drawn on the CPU in torch's default type: other devices and types draw others from the same seed.
    """
    with torch.no_grad():
        parameter.copy_(initialize(torch.empty(parameter.shape), *arguments, generator=generator))


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Within it, the hooks of these handles are registered; a generator registers them on entry."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield
