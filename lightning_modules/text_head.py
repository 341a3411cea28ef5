"""Class names and templates become class prompts; class prompts become class text features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DtrapError
from .backbones.base import Backbone
from .losses import normalise


@dataclass(frozen=True)
class ClassPrompts:
    """The prompts of a task's classes, every class with the same number of them.

    Attributes:
        class_names: The W names.
        prompts: The W * P prompts, class by class.
        tokens: [W * P, context_length] int64.
    """

    class_names: tuple[str, ...]
    prompts: tuple[str, ...]
    tokens: Tensor

    @property
    def per_class(self) -> int:
        """P, the number of prompts of each class."""
        return len(self.prompts) // len(self.class_names)


def class_prompts(class_names: Sequence[str], templates: str | Sequence[str], backbone: Backbone) -> ClassPrompts:
    """Prompts and tokens: `{}` in a template is the class name, with `_` replaced by a space.

    Raises:
        DtrapError: No class, a class named twice, a template without `{}`, or a prompt too long for the model.
    """
    templates = [templates] if isinstance(templates, str) else list(templates)
    if not templates or any("{}" not in template for template in templates):
        raise DtrapError(f"template is {templates}; expected texts that contain {{}} for the class name.")
    if not class_names:
        raise DtrapError("no class names: a text classifier needs at least one class.")
    repeated = sorted({name for name in class_names if list(class_names).count(name) > 1})
    if repeated:
        raise DtrapError(f"class name {repeated[0]!r} stands twice; two classes with one prompt cannot be told apart.")
    prompts = [t.replace("{}", name.replace("_", " ")) for name in class_names for t in templates]
    return ClassPrompts(tuple(class_names), tuple(prompts), backbone.tokenize(prompts))


def average_prompts(prompt_features: Tensor, per_class: int) -> Tensor:
    """Class features [W, D] from prompt features [W * P, D]: the mean of the normalised prompts of a class."""
    if per_class == 1:
        return prompt_features
    return normalise(prompt_features).unflatten(0, (-1, per_class)).mean(dim=1)


class FrozenTextFeatures:
    """Prompt features of a frozen text tower, each prompt encoded once for as long as this object lives.

    Prompts are encoded one by one: in a batch, the last bits would depend on which others are in it, and so an
    episode's result on the episodes before it.
    """

    def __init__(self) -> None:
        self._features: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, backbone: Backbone, prompts: ClassPrompts, device: torch.device) -> Tensor:
        """Class features [W, D] on `device`, without gradient, in the backbone's own precision."""
        dtype = next(backbone.parameters()).dtype
        keys = [(prompt, dtype) for prompt in prompts.prompts]
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for key, tokens in zip(keys, prompts.tokens, strict=True):
                if key not in self._features:
                    self._features[key] = backbone.encode_text(tokens[None].to(device))[0]
        features = torch.stack([self._features[key].to(device) for key in keys])
        return average_prompts(features, prompts.per_class)
