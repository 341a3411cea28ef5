"""What a tuner is: which parameters are trained and what they change on the way from image and text to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...errors import DtrapError
from .. import losses
from ..backbones.base import Backbone, Tower
from ..text_head import ClassPrompts, average_prompts


class Tuner(nn.Module, ABC):
    """A way of adapting a frozen backbone to a task of W classes.

    `FewShotClassifier` calls `attach` once, `reset` before each task, `prepare_task` before a task's first step, and in
    every step `image_features`, `text_features` and `classification_loss`; for predictions `logits`. A tuner that only
    changes features (LoRA, CoOp, MaPLe) leaves the last three as they are.

    Attributes:
        name: Short name for file names and adapter cards.
        transductive: Whether it sees the unlabelled queries; its results are marked so.
        learning_rate: The rate of its own optimiser where no other is asked for.
    """

    name: str
    transductive: bool = False
    learning_rate: float = 2e-4

    @property
    @abstractmethod
    def trains(self) -> frozenset[Tower]:
        """The towers whose features change with training; features of the others are computed once."""

    @abstractmethod
    def attach(self, backbone: Backbone) -> None:
        """Put the tuner's parameters into, or on top of, the frozen backbone; does nothing the second time."""

    @abstractmethod
    def reset(self, seed: int, num_classes: int) -> None:
        """Start anew for a task of `num_classes` classes, drawing the start from `seed` alone."""

    @abstractmethod
    def adapter_state(self) -> dict[str, Tensor]:
        """All that has to be saved, by name: what is trained as the parameters themselves, the rest as buffers."""

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Take the values of a saved `adapter_state`.

        Raises:
            DtrapError: Names or shapes are not this tuner's.
        """
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
        """The parameters that the optimiser gets."""
        return [value for value in self.adapter_state().values() if isinstance(value, nn.Parameter)]

    def prepare_task(self, image_features: Tensor, text_features: Tensor, labels: Tensor) -> None:
        """Build what a task needs from its support features [N, D], texts [W, D] and labels [N]; nothing by default."""

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it, the backbone gives its zero-shot features."""
        yield

    def image_features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Image features [B, D] of images [B, 3, H, W]."""
        return backbone.encode_image(images)

    def text_features(self, backbone: Backbone, prompts: ClassPrompts) -> Tensor:
        """Class text features [W, D]; the tokens are on the backbone's device."""
        return average_prompts(backbone.encode_text(prompts.tokens), prompts.per_class)

    def logits(self, image_features: Tensor, text_features: Tensor, logit_scale: float) -> Tensor:
        """Logits [B, W]; the scaled cosine to the class texts by default."""
        return logit_scale * losses.cosines(image_features, text_features)

    def classification_loss(
        self, image_features: Tensor, text_features: Tensor, labels: Tensor, logit_scale: float
    ) -> Tensor:
        """The loss that L_ad and L_ra are added to; cross-entropy of `logits` by default, which is L_vlm."""
        return nn.functional.cross_entropy(self.logits(image_features, text_features, logit_scale), labels)

    def optimizer(self, parameters: list[nn.Parameter], learning_rate: float) -> Optimizer:
        """AdamW with weight decay 0.01 and betas 0.9, 0.999, as the authors' code has for LoRA."""
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-2, betas=(0.9, 0.999))

    def scheduler(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """Cosine over eight times the run down to 1e-6, stepped every step, as in the authors' code."""
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8 * total_steps, eta_min=1e-6)
