"""Several episodes of one method in one Trainer: each step makes one pass through a trained tower for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from .chunking import encode_in_chunks, side_by_side
from .few_shot_classifier import FewShotClassifier
from .finite import first_not_finite
from .loss_scale import LossScale
from .members import RandomNumbers, add_groups, joined_prompts, rows_of_batches, slice_of
from .optimization import make_optimizer, with_schedule

READ_EVERY = 50  # steps between two looks at the losses on a device other than the CPU


class AllStages:
    """The stage of the objectives of all members, which `StageSwitch` sets as that of one."""

    def __init__(self, members: list[FewShotClassifier]) -> None:
        self.members = members

    @property
    def suppresses(self) -> bool:
        """Whether L_ad or L_ra has a weight other than 0."""
        return self.members[0].objective.suppresses

    def set_stage(self, progress: float | None) -> None:
        """Set the position of the next step in the suppressed stage."""
        for member in self.members:
            member.objective.set_stage(progress)


class SideBySide(LightningModule):
    """Train the members of several episodes in one step, with the results that each has alone, up to rounding.

    The frozen layers see the rows of all episodes as one batch; the tuner's matrices are stacked. Losses, previous
    relations, prototypes and random numbers are each member's own. The sum of the totals has one backward pass; the
    optimizer works element by element, so that the episodes do not mix.

    A member whose loss is not finite is left out from then on; the others go on.

    Args:
        members: The modules of the episodes, made by `member_of` of one module.

    Attributes:
        terms: The terms of every member in the last step.
        lost: Members whose training diverged.
    """

    def __init__(self, members: list[FewShotClassifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)  # so that they go to its device and get its precision
        self.each = members
        self.stacks = bool(members[0].tuner.trains)
        self.objective = AllStages(members)
        self.terms: list[dict[str, Tensor]] = []
        self.lost: set[int] = set()
        self._unread: list[tuple[int, Tensor]] = []
        self._states: list[dict[str, Tensor]] = []
        self._context = ExitStack()
        self._random: list[RandomNumbers] = []
        self._images: Tensor | None = None
        self._at_start: list[Any] = []
        self.loss_scale = LossScale(self)

    @property
    def tuner(self) -> Any:
        """The tuner of the first member; that of all where it is stacked."""
        return self.each[0].tuner

    def setup(self, stage: str) -> None:
        """Start the task of every member."""
        for member in self.each:
            member.trainer = self.trainer
            source: Any = member.data_source
            random = RandomNumbers(source.episode_seed("training"), self.trainer.strategy.root_device)
            self._random.append(random)
            with random.used():
                member.setup(stage)
            self._states.append({name: value.detach().clone() for name, value in member.tuner.adapter_state().items()})

    def configure_optimizers(self) -> Any:
        """Return one optimizer with one schedule for all members."""
        first = self.each[0]
        if self.stacks:
            self._context.enter_context(self.tuner.stacked(self._states))
            return first.configure_optimizers()
        for member, random in zip(self.each, self._random, strict=True):
            with random.used():
                member.prepare_task()
        made = [make_optimizer(member, member.tuner.trained_parameters()) for member in self.each]
        for other in made[1:]:
            add_groups(made[0], other)
        return with_schedule(first, made[0])

    def on_fit_start(self) -> None:
        """Set the tuners, but not the backbone, to training mode."""
        for member in self.each:
            member.on_fit_start()

    def on_train_start(self) -> None:
        """Move the support batches to the device, once for the whole training."""
        self.batches = []
        for member in self.each:
            member._full_batch = True
            member.on_train_start()
            source: Any = member.data_source
            self.batches.append(member.on_device(source.support()))
        if "vision" in self.tuner.trains:
            self._images = rows_of_batches(self.batches)
        if "text" in self.tuner.trains:
            self._prompts, self._classes = joined_prompts(self.each)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keep what a repetition of the step needs, where a loss scale may ask for one."""
        self.loss_scale.begin()
        if self.loss_scale.scaler is not None:
            states = (member.objective.get_extra_state() for member in self.each)
            self._at_start = list(zip(states, (random.state for random in self._random), strict=True))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make Lightning's step, again if a gradient overflowed in 16-mixed."""
        self.loss_scale.step(partial(super().optimizer_step, *args, **kwargs), self._read, self._restart_step)

    def _restart_step(self) -> None:
        for member, random, (objective, state) in zip(self.each, self._random, self._at_start, strict=True):
            member.objective.set_extra_state(objective)
            random.state = state

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return the sum of the members' totals."""
        terms = self._terms_together() if self.stacks else self._terms_apart()
        self.terms = [{name: term.detach() for name, term in of_member.items()} for of_member in terms]
        totals = torch.stack([of_member["total"] for of_member in terms])
        self._look_at(totals.detach())
        kept = [number for number in range(len(self.each)) if number not in self.lost]
        if not kept:
            self.trainer.should_stop = True
        # Without members left, a sum of nothing that has a gradient.
        return {"loss": totals[kept].sum() if kept else 0.0 * totals.nan_to_num().sum()}

    def _terms_apart(self) -> list[dict[str, Tensor]]:
        """The terms of heads on frozen features, one episode after another."""
        found = []
        for member, random, batch in zip(self.each, self._random, self.batches, strict=True):
            with random.used():
                found.append(member.terms(batch))
        return found

    def _terms_together(self) -> list[dict[str, Tensor]]:
        """The terms with one pass through each trained tower."""
        count, first = len(self.each), self.each[0]
        if self._images is None:
            parts = zip(self.each, self.batches, strict=True)
            images = [member.image_features(batch["images"], member.rows_of(batch).ids) for member, batch in parts]
        else:
            with side_by_side(range(count), self._seeds()):
                encoded = encode_in_chunks(
                    lambda part: self.tuner.image_features(first.backbone, part), self._images, first.image_chunk
                )
            images = [self.tuner.adapt_image_features(part) for part in encoded.chunk(count)]
        if "text" in self.tuner.trains:
            chunk = None if first.text_chunk is None else first.text_chunk * count
            with side_by_side(range(count), self._seeds()):
                joined = self.tuner.text_features(first.backbone, self._prompts, chunk)
            named = zip(joined.split(self._classes), self.each, strict=True)
            texts = [part[: len(member.class_prompts.class_names)] for part, member in named]
        else:
            texts = [member.text_features() for member in self.each]
        found = []
        for number, (member, batch) in enumerate(zip(self.each, self.batches, strict=True)):
            with self.at_work(number):
                found.append(
                    member.terms_of(images[number], texts[number], batch, member.rows_of(batch), batch["labels"])
                )
        return found

    def _seeds(self) -> list[int]:
        """Draw the seed of each member's pass as `encode_in_chunks` does for one alone."""
        seeds = []
        for random in self._random:
            with random.used():
                seeds.append(int(torch.randint(2**62, ())))
        return seeds

    @contextmanager
    def at_work(self, number: int) -> Iterator[None]:
        """Within it, the tuner is that of one member, and so are the random numbers."""
        with side_by_side([number]) if self.stacks else nullcontext(), self._random[number].used():
            yield

    # Divergence

    def _look_at(self, totals: Tensor) -> None:
        """Leave members out whose total is not finite, without waiting for the device in every step."""
        self._unread.append((self.global_step, totals))
        # A scaler of gradients waits in every step, and would skip the steps of all for a loss that is not finite.
        if self.loss_scale.scaler is not None or totals.device.type == "cpu" or len(self._unread) >= READ_EVERY:
            self._read()

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        if unread:
            finite = torch.stack([totals for _, totals in unread]).isfinite().all(dim=0).tolist()
            self.lost |= {number for number, sound in enumerate(finite) if not sound}

    def on_after_backward(self) -> None:
        """Keep the gradients of lost members from a scaler, which skips the step of all for one that is not finite."""
        if self.loss_scale.scaler is None or not self.lost or not self.stacks:
            return
        lost = list(self.lost)
        for parameter in self.tuner.trained_parameters():
            if parameter.grad is not None:
                parameter.grad[lost] = 0

    def on_train_end(self) -> None:
        """Look at the last losses and at what was trained."""
        self._read()
        moments = [state for optimizer in self.trainer.optimizers for state in optimizer.state.values()]
        for number in range(len(self.each)):
            trained = dict(self.state_of(number))
            if self.stacks:
                for position, state in enumerate(moments):
                    trained |= {
                        f"{position} {k}": v[number] for k, v in state.items() if torch.is_tensor(v) and v.dim()
                    }
            if first_not_finite(trained) is not None:
                self.lost.add(number)

    def state_of(self, number: int) -> dict[str, Tensor]:
        """Return the tuner's state of a member."""
        if self.stacks:
            return slice_of(self.tuner.adapter_state(), number)
        state = self.each[number].tuner.adapter_state()
        return {name: value.detach().clone() for name, value in state.items()}

    def end(self) -> list[dict[str, Tensor]]:
        """Return the states of all members; the tuner is as before."""
        states = [self.state_of(number) for number in range(len(self.each))]
        self._context.close()
        return states
