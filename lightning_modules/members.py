"""Members: the modules of several episodes that are trained side by side and share a backbone."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .divergence import DivergenceWatch
from .few_shot_classifier import FewShotClassifier
from .image_cache import FrozenImageFeatures
from .loss_scale import LossScale
from .steps import StepState, random_state, set_random_state
from .stored_features import StoredImages
from .text_head import ClassPrompts, FrozenTextFeatures
from .tuners.base import Batch, Tuner


def member_of(module: FewShotClassifier, source: Any, images: FrozenImageFeatures | None = None) -> FewShotClassifier:
    """Return a module for one of several episodes: as `module`, with its own objective, classes and results.

    The backbone is shared. So is the tuner, if it changes a tower (see `Tuner.stacked`); otherwise it is a copy.

    Args:
        module: The module of the run.
        source: The data module of the episode.
        images: What is known of the episode's images behind a frozen image tower.
    """
    member = copy.copy(module)
    # The registries of torch are dictionaries, which the copy shares.
    for registry in ("_modules", "_parameters", "_buffers"):
        member.__dict__[registry] = dict(module.__dict__[registry])
    member._own_source = source
    if not module.tuner.trains:
        member.tuner = copied_tuner(module)
    member.objective = copy.deepcopy(module.objective)
    member.objective._warned = module.objective._warned  # a warning is given once, not once for each episode
    for name in ("confusion", "ranking", "confidence", "kept_scores"):
        setattr(member, name, copy.deepcopy(getattr(module, name)))
    member._frozen_images = FrozenImageFeatures() if images is None else images
    member._frozen_texts = FrozenTextFeatures()
    member._frozen_texts._features = module._frozen_texts._features
    member.stored_images = StoredImages(member)
    member.stored_images.stores, member.stored_images.apart = module.stored_images.stores, module.stored_images.apart
    member.stored_images.offer(source)
    member.feature_watchers, member._incoming, member.test_predictions = [], {}, []
    member._rows = member._evaluation_texts = member._passed = None
    member._divergence, member._steps = DivergenceWatch(member), StepState(member)
    member.loss_scale = LossScale(member)
    return member


def copied_tuner(module: FewShotClassifier) -> Tuner:
    """Return a copy of a module's tuner that refers to the same backbone."""
    backbone = module.backbone
    shared = chain(backbone.modules(), backbone.parameters(), backbone.buffers())
    return copy.deepcopy(module.tuner, {id(part): part for part in shared})


class RandomNumbers:
    """Torch's global random numbers of one episode: as if it were alone, whatever others draw in between.

    Args:
        seed: Seed of the generators.
        device: Where numbers are drawn besides the CPU.

    Attributes:
        state: The states of the generators, between two uses.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        before = random_state(device)
        torch.manual_seed(seed)
        self.state = random_state(device)
        set_random_state(before)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it, the global generators are this episode's."""
        before = random_state(self.device)
        set_random_state(self.state)
        try:
            yield
        finally:
            self.state = random_state(self.device)
            set_random_state(before)


def joined_prompts(members: list[FewShotClassifier]) -> tuple[ClassPrompts, list[int]]:
    """Return the prompts of all members as those of one task, and the number of classes of each member in it.

    Members with fewer prompts than others get a last class of padding, so that all have the same number of rows. A
    tuner that builds its own prompts needs none: it has one for each class.
    """
    parts = []
    most = max(len(member.class_prompts.prompts) for member in members)
    for member in members:
        prompts = member.class_prompts
        lacking = most - len(prompts.prompts)
        if lacking and not member.tuner.own_prompts:
            prompts = replace(
                prompts,
                class_names=(*prompts.class_names, ""),
                prompts=prompts.prompts + prompts.prompts[:1] * lacking,
                per_class=(*prompts.per_class, lacking),
                lengths=None,
                tokens=torch.cat([prompts.tokens, prompts.tokens[:1].expand(lacking, -1)]),
            )
        parts.append(prompts)
    columns = {name: sum((getattr(part, name) for part in parts), ()) for name in ("class_names", "prompts")}
    per_class = tuple(chain.from_iterable(part.per_class for part in parts))
    device = members[0].device
    tokens = torch.cat([part.tokens.to(device) for part in parts])
    # The longest prompt is that of the data set, so that it is the same for all.
    lengths = [part.length for part in parts]
    length = None if None in lengths else max(number for number in lengths if number is not None)
    first = replace(parts[0], lengths=None, length=length, tokens=tokens, per_class=per_class, **columns)
    return first, [len(part.class_names) for part in parts]


def slice_of(state: Mapping[str, Tensor], member: int) -> dict[str, Tensor]:
    """Return the tensors of one episode from stacked ones."""
    return {name: value[member].detach().clone() for name, value in state.items()}


def rows_of_batches(batches: list[Batch]) -> Tensor:
    """Put the images of all members into one tensor, of which the batches become parts.

    Raises:
        ValueError: They have different numbers of rows.
    """
    sizes = {len(batch["images"]) for batch in batches}
    if len(sizes) > 1:
        raise ValueError(f"episodes of {sorted(sizes)} rows; expected the same number in each")
    images = torch.cat([batch["images"] for batch in batches])
    for batch, part in zip(batches, images.split(sizes.pop()), strict=True):
        batch["images"] = part
    return images


def add_groups(optimizer: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    """Add the parameters of another optimizer, to the groups with the same settings where there are such."""

    def settings(group: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in group.items() if name not in ("params", "param_names")}

    for group in other.param_groups:
        same = next((known for known in optimizer.param_groups if settings(known) == settings(group)), None)
        if same is None:
            optimizer.add_param_group(group)
        else:
            same["params"].extend(group["params"])
