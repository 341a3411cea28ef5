"""One task: which images it has, and these images decoded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ..errors import DtrapError, visible
from .ahead import DecodedAhead
from .batches import Batch, Share, Views, decode, to_batch
from .collection import ImageCollection, unreadable_error
from .images import ImageError
from .index import listing
from .lazy_images import Pixels, lazy_batch
from .views import draw_views

# Of pictures that are decoded ahead.
MOST_BYTES = 2**29


@dataclass(frozen=True)
class Task:
    """Classes and images of one episode.

    Lists have one entry per class of the task; images are positions in the index.

    Attributes:
        classes: Index into `ImageIndex.class_names` of each class.
        support: Support images of each class.
        query: Query images of each class.
        spare: Images that replace unreadable ones, in this order.
        query_spare: The same for queries that come from a split of their own; None where `spare` serves both.
        validation: Validation images of each class; None without validation.
    """

    classes: list[int]
    support: list[list[int]]
    query: list[list[int]]
    spare: list[list[int]]
    query_spare: list[list[int]] | None = None
    validation: list[list[int]] | None = None


@dataclass(eq=False)
class Episode:
    """A task and its images, decoded at the first use.

    Args:
        data: The images.
        task: Which of them take part.
        number: Number of the episode, for messages.
        generator: Returns the generator of an image's views for its position in the index.
        views: Fixed views of a support image.
        query_views: Fixed views of a query image.
        fixed_numbers: Whether an unreadable image must be replaced; otherwise it may be left out.

    Attributes:
        preprocessing: Size, normalization and resizing of its images.
    """

    data: ImageCollection
    task: Task
    number: int
    generator: Callable[[int], np.random.Generator]
    views: int
    query_views: int
    fixed_numbers: bool

    def __post_init__(self) -> None:
        task, self.preprocessing = self.task, self.data.preprocessing
        self._spare = [iter(spare) for spare in task.spare]
        self._query_spare = self._spare if task.query_spare is None else [iter(spare) for spare in task.query_spare]
        self._support: Batch | None = None
        self._shared: tuple[Share, Batch] | None = None
        self._query: Batch | None = None
        self._validation: Batch | None = None
        self._moved: dict[tuple[torch.device, torch.dtype, int], Batch] = {}
        self._ahead: DecodedAhead | None = None
        self._states: dict[int, bytes | None] = {}

    def decode_ahead(self) -> None:
        """Start to decode the images in threads; what uses them first waits for those that are not ready."""
        validation = self.task.validation or []
        groups = (self.task.support, self.views), (self.task.query, self.query_views), (validation, self.query_views)
        wanted = [(position, count) for images, count in groups for of_class in images for position in of_class]
        if sum(count for _, count in wanted) * 3 * self.preprocessing.image_size**2 > MOST_BYTES:
            return
        undecoded = [(position, count) for position, count in wanted if not self._is_known(position, count)]
        jobs = (((position, count), partial(self._draw_views, count, position)) for position, count in undecoded)
        self._ahead = DecodedAhead(jobs, self.data.num_workers)

    def forget_ahead(self) -> None:
        """Decode no further image before it is used."""
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead = None

    def _decoded(self, positions: list[int], count: int) -> dict[int, Views | ImageError]:
        """Return `count` views of each image, in order, or the error that kept it from being read."""
        done: dict[int, Views | ImageError] = {}
        if self._ahead is not None:
            taken = ((position, self._ahead.take((position, count), self.data.warn_once)) for position in positions)
            done = {position: result for position, result in taken if result is not None}
        missing = [position for position in positions if position not in done]
        done |= decode(missing, partial(self._draw_views, count), self.data.num_workers) if missing else {}
        return {position: done[position] for position in positions}

    def support(self) -> Batch:
        """Return the support batch of V*M rows on the CPU: view slowest, then class, then shot."""
        if self._support is None:
            self._support = self._decode(self.task.support, self.views, 1, self._spare, "support")
        return self._support

    def support_share(self, share: Share) -> Batch:
        """Return the rows of the support batch that a process has, the same tensors at every call.

        Raises:
            DtrapError: There are fewer rows than processes.
        """
        whole = self.support()
        if share.processes == 1:
            return whole
        if self._shared is None or self._shared[0] != share:
            share.check(len(whole["labels"]), "rows of the support batch")
            self._shared = share, {name: column[share.rows] for name, column in whole.items()}
        return self._shared[1]

    def query_in_views(self) -> Batch:
        """Return the query batch in `query_views` fixed views each, view slowest; the first view is plain."""
        if self._query is None:
            if self.data.bad_images == "skip":
                self.support()  # support images take their spares first
            self._query = self._decode(self.task.query, self.query_views, 0, self._query_spare, "test")
        return self._query

    def validation_in_views(self) -> Batch:
        """Return the validation batch in `query_views` fixed views each, view slowest; unreadable images are left out.

        Raises:
            DtrapError: The task has no validation images, or none can be read.
        """
        if self._validation is None:
            images = self.task.validation or []
            self._validation = self._decode(images, self.query_views, 0, None, "validation")
        return self._validation

    def moved(self, batch: Batch, device: torch.device, move: Callable[[], Batch]) -> Batch:
        """Return a batch on a device; the support batch is moved once per device and type.

        Args:
            batch: Any batch.
            device: Where it goes.
            move: Moves it.
        """
        # Recognized by its ids, because a precision plugin may have rebuilt the dictionary around them.
        known = [each for each in (self._support, self._shared and self._shared[1]) if each is not None]
        if not any(batch.get("sample_id") is each["sample_id"] for each in known):
            return move()
        key = (device, batch["images"].dtype, len(batch["labels"]))
        if key not in self._moved:
            self._moved[key] = move()
        return self._moved[key]

    def feature_keys(self, rows: Sequence[Sequence[int]]) -> list[bytes | None] | None:
        """Return what identifies the pixels of rows (position, view) among all files, by state of the file and draw.

        A row has None if its file has no state, or if there was something to say of it, which must be said again.
        None for all where the pixels do not come from files alone.
        """
        kind = type(self.data)
        if not kind.opens_files or not kind.load_image.__module__.startswith("dtrap."):
            return None
        return [self._key(position, view) for position, view in rows]

    def _key(self, position: int, view: int) -> bytes | None:
        state = self._state(position)
        if state is None or self.data.index.paths[position] in self.data.remarked:
            return None
        # The generator before its first number stands for seed, episode and image.
        drawn = repr(self.generator(position).bit_generator.state) if view > 0 else ""
        return hashlib.blake2b(state + f"{view} {drawn}".encode(), digest_size=16).digest()

    def _state(self, position: int) -> bytes | None:
        """Return place, size and times of a file as they were before it was first read; None if it has none."""
        if position not in self._states:
            path = os.path.abspath(self.data.index.paths[position])
            try:
                found = os.stat(path)
            except OSError:
                self._states[position] = None
            else:
                numbers = found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
                self._states[position] = os.fsencode(path) + str(numbers).encode()
        return self._states[position]

    def _is_known(self, position: int, count: int) -> bool:
        """Whether the features of all views of an image are known, so that its file was readable."""
        known = self.data.known_features
        if known is None:
            return False
        keys = self.feature_keys([(position, view) for view in range(count)])
        return keys is not None and all(key is not None and known(key) for key in keys)

    def _draw_later(self, views: int, positions: list[int]) -> dict[int, Views]:
        """Draw the views of images that were taken for known.

        Raises:
            DtrapError: A file cannot be read any more.
        """
        found = decode(positions, partial(self._draw_views, views), self.data.num_workers)
        faults = [str(result) for result in found.values() if isinstance(result, ImageError)]
        if faults:
            raise unreadable_error(faults, self._place)
        return {position: result for position, result in found.items() if not isinstance(result, ImageError)}

    def _draw_views(self, views: int, position: int) -> Views:
        self._state(position)
        return draw_views(self.data.load_image(position), self.preprocessing, views, self.generator(position))

    def _decode(
        self, images: list[list[int]], count: int, needed: int, spare: list[Iterator[int]] | None, part: str
    ) -> Batch:
        """Decode `count` views of the images of each class; spares replace unreadable ones, if there are to be any."""
        chosen = images
        views: dict[int, Views] = {}
        faults: dict[int, ImageError] = {}
        known: set[int] = set()
        while waiting := [p for positions in chosen for p in positions if p not in views and p not in known]:
            known.update(p for p in waiting if self._is_known(p, count))
            waiting = [p for p in waiting if p not in known]
            for position, result in self._decoded(waiting, count).items():
                if isinstance(result, ImageError):
                    faults[position] = result
                else:
                    views[position] = result
            if faults and self.data.bad_images == "error":
                raise unreadable_error([str(fault) for fault in faults.values()], self._place)
            chosen = [self._replace(label, p, faults, spare) for label, p in enumerate(chosen)]
        for label, positions in enumerate(chosen):
            if len(positions) < needed:
                raise self._too_few_readable(label)
        lost = [self._name(k) for k, (named, left) in enumerate(zip(images, chosen, strict=True)) if named and not left]
        if any(chosen) and lost:
            self.data.warn_once(f"no readable {part} image, so the accuracy does not cover them: {listing(lost)}")
        if not any(chosen):
            raise DtrapError(f"{self.data.title}: none of the {part} images can be read. Replace them.")
        # A test in inference mode may be the first to ask for the support; training cannot use inference tensors.
        with torch.inference_mode(False):
            if known:
                flat = [position for positions in chosen for position in positions]
                pixels = Pixels(flat, count, views, partial(self._draw_later, count), self.preprocessing)
                return lazy_batch(chosen, pixels)
            return to_batch(chosen, views, self.preprocessing)

    def _replace(
        self, label: int, positions: list[int], faults: dict[int, ImageError], spares: list[Iterator[int]] | None
    ) -> list[int]:
        """Return the positions of a class with unreadable ones replaced, or left out where numbers may differ."""
        kept: list[int] = []
        for position in positions:
            if position not in faults:
                kept.append(position)
                continue
            self.data.unreadable(position, str(faults[position]), self._place)
            spare = None if spares is None else next(spares[label], None)
            if spare is not None:
                kept.append(spare)
            elif self.fixed_numbers and spares is not None:
                raise self._too_few_readable(label)
        return kept

    @property
    def _place(self) -> str:
        """What the images are for, in a message; empty for the one task over a user's images."""
        return f"episode {self.number} of {self.data.title}" if self.fixed_numbers else ""

    def _name(self, label: int) -> str:
        return self.data.index.class_names[self.task.classes[label]]

    def _too_few_readable(self, label: int) -> DtrapError:
        return DtrapError(
            f"{self._place or self.data.title}: too few readable images of class '{self._name(label)}', for example "
            f"{visible(self.data.skipped_images[-1][0])} is unreadable. Replace it or add images."
        )
