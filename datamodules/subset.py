"""The images that the all-way protocol trains on: drawn from a seed, or listed in a file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DtrapError
from ..parsing import read_json
from .batches import Views, decode
from .collection import ImageCollection
from .grouped_subset import check_apart, split_apart
from .images import ImageError
from .index import listing
from .published_draws import is_draw, read_draw

logger = logging.getLogger(__name__)

SUBSET_FORMAT = "dtrap-subset/1"
MOST_VALIDATION = 4
PARTS = ("train", "val")
EXPECTED = "Expected the subset.json of an all-way run, or a folder of 2SFS' draws."
_SUBSET = 10  # first part of the spawn key, different from those of episodes and training streams

Positions = list[list[int]]


@dataclass(frozen=True)
class Subset:
    """Positions in the index of one seed's images, one list per class.

    Attributes:
        classes: Index into `ImageIndex.class_names` of each class.
        train: K images of each class, fewer where it has fewer.
        val: min(K, 4) images.
        test: The published test split, or all remaining images.
    """

    classes: list[int]
    train: Positions
    val: Positions
    test: Positions


def choose_subset(data: ImageCollection, shot: int, seed: int, file: Path | None) -> Subset:
    """Return the images of a seed, from a subset file if there is one.

    A class without a training image is an error, or left out with `small_classes` "skip".

    Args:
        data: The images.
        shot: Training images K of each class.
        seed: The seed.
        file: The subset file; None to draw them.

    Raises:
        DtrapError: A class has no training image, no class has a test image, or the subset file does not fit.
    """
    subset = draw_subset(data, shot, seed) if file is None else read_subset(data, shot, seed, file)
    wanted = "a training image" if file is None else f"a training image in {file}"
    kept = data.large_classes([len(images) for images in subset.train], 1, wanted)
    if len(kept) < 2:
        raise DtrapError(
            f"{data.title}: {len(kept)} class(es) under {data.root} have a training image; expected at least 2. Add "
            "images or correct --data.root."
        )
    names = data.index.class_names
    few = [f"'{names[label]}' has {len(subset.train[label])}" for label in kept if len(subset.train[label]) < shot]
    if few:
        data.warn_once(f"fewer than {shot} training images: {listing(few)}")
    untested = [names[label] for label in kept if not subset.test[label]]
    if len(untested) == len(kept):
        raise DtrapError(
            f"{data.title}: no image is left to test on after {shot} for training and up to "
            f"{min(shot, MOST_VALIDATION)} for validation of each class. Lower --data.shot, add images, or train one "
            "classifier on all images: --config folder.yaml."
        )
    if untested:
        data.warn_once(f"no test image, so the accuracy does not cover them: {listing(untested)}")
    parts = ([images[label] for label in kept] for images in (subset.train, subset.val, subset.test))
    return Subset(kept, *parts)


def draw_subset(data: ImageCollection, shot: int, seed: int) -> Subset:
    """Draw the images of a seed for all classes. A class's images do not depend on the other classes.

    With `bad_images` "skip" the next image of the class replaces an unreadable one.
    """
    published = data.index.splits is not None
    labels = range(len(data.index.class_names))
    held = min(shot, MOST_VALIDATION)
    rngs = [np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_SUBSET, label))) for label in labels]
    training = data.positions_in("train") if published else data.positions
    train = [rng.permutation(found).tolist() for rng, found in zip(rngs, training, strict=True)]
    if data.group_of is not None:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_SUBSET, len(labels))))
        return Subset([*labels], *split_apart(data, _pools(data, train, rngs), (shot, held), rng, _read_all(data)))
    if not published:
        train = _readable(data, train, shot + held)
        rest = [np.sort(np.asarray(order[shot + held :], dtype=int)).tolist() for order in train]
        return Subset([*labels], _first(train, shot), _first(train, held, shot), rest)
    found = [rng.permutation(found).tolist() for rng, found in zip(rngs, data.positions_in("val"), strict=True)]
    val = _first(_readable(data, found, held), held)
    # ImageNet has no validation split: the next training images replace it.
    train = _readable(data, train, shot if all(val) else shot + held)
    val = [own or more for own, more in zip(val, _first(train, held, shot), strict=True)]
    return Subset([*labels], _first(train, shot), val, [found.tolist() for found in data.positions_in("test")])


def _pools(data: ImageCollection, train: Positions, rngs: Sequence[np.random.Generator]) -> list[Positions]:
    """Return the images that training, validation and test are drawn from, in the order of the draw."""
    if data.index.splits is None:
        return [train, train, train]
    val = [rng.permutation(found).tolist() for rng, found in zip(rngs, data.positions_in("val"), strict=True)]
    val = [own or more for own, more in zip(val, train, strict=True)]
    return [train, val, [found.tolist() for found in data.positions_in("test")]]


def _read_all(data: ImageCollection) -> Callable[[Positions], Positions]:
    return lambda orders: _readable(data, orders, len(data.index.paths))


def _first(orders: Positions, count: int, start: int = 0) -> Positions:
    return [order[start : start + count] for order in orders]


def _readable(data: ImageCollection, orders: Positions, count: int) -> Positions:
    """Drop unreadable images from each order until its first `count` can be read, with `bad_images` "skip".

    Otherwise nothing is read; an unreadable image raises an error with the batch that has it.
    """

    def read(position: int) -> Views:
        data.load_image(position)
        return []

    checked: set[int] = set()
    while data.bad_images == "skip":
        waiting = [position for order in orders for position in order[:count] if position not in checked]
        if not waiting:
            break
        logger.info("%s: reading %d images to leave out those that cannot be read", data.title, len(waiting))
        found = decode(waiting, read, data.num_workers)
        faults = {position: str(error) for position, error in found.items() if isinstance(error, ImageError)}
        checked.update(waiting)
        for position, reason in faults.items():
            data.unreadable(position, reason)
        if faults:
            orders = [[position for position in order if position not in faults] for order in orders]
    return orders


def subset_content(data: ImageCollection, shot: int, subsets: Mapping[int, Subset]) -> dict[str, Any]:
    """Return the content of a subset file: relative paths of training and validation images per seed and class."""
    names, relative = data.index.class_names, data.index.relative
    seeds = {
        str(seed): {
            part: {
                names[label]: [relative(position) for position in positions]
                for label, positions in zip(subset.classes, getattr(subset, part), strict=True)
            }
            for part in PARTS
        }
        for seed, subset in subsets.items()
    }
    return {"format": SUBSET_FORMAT, "set": data.title, "shot": shot, "seeds": seeds}


def read_subset(data: ImageCollection, shot: int, seed: int, path: Path) -> Subset:
    """Return the images of a seed listed in a file, in its order; the test images are those of the test split.

    Without a published split all images that the file does not list are test images.

    Raises:
        DtrapError: It is not a subset file, lacks the seed, or lists classes or images that the data do not have.
    """
    index, positions = data.index, {}
    used: set[int] = set()
    for part, classes in _chosen_files(data, shot, seed, path).items():
        odd = set(classes) - set(index.class_names)
        if data.small_classes == "error":
            odd ^= set(index.class_names) - set(classes)
        if odd:
            example = f"for example {sorted(odd)[:1]}"
            raise DtrapError(f"subset {path}: its classes are not those of {data.title}, {example}. {EXPECTED}")
        many = [name for name, files in classes.items() if part == "train" and len(files) > shot]
        if many:
            count = len(classes[many[0]])
            raise DtrapError(f"subset {path}: {count} training images of class {many[0]!r}; expected at most {shot}.")
        files = [classes.get(name, []) for name in index.class_names]
        positions[part] = [_positions(data, path, label, of_class, used) for label, of_class in enumerate(files)]
    train, val = (_readable(data, positions[part], len(index.paths)) for part in PARTS)
    rest = data.positions_in("test") if index.splits is not None else data.positions
    test = [[position for position in of_class.tolist() if position not in used] for of_class in rest]
    if data.group_of is not None:
        test = check_apart(data, train, val, test, str(path))
    return Subset([*range(len(index.class_names))], train, val, test)


def _chosen_files(data: ImageCollection, shot: int, seed: int, path: Path) -> Mapping[str, Mapping[str, Sequence[str]]]:
    """Return the relative paths by part and class as in the file, or as in a published draw."""
    if is_draw(path):
        return read_draw(data, shot, seed, path)
    if not path.is_file():  # a pipe would wait for ever
        what = "is a folder" if path.is_dir() else "is a pipe or device" if path.exists() else "does not exist"
        raise DtrapError(f"subset {path} {what}. {EXPECTED}")
    try:
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != SUBSET_FORMAT:
            raise ValueError(f"its format is not {SUBSET_FORMAT}")
        seeds = {name: {part: _lists(seed[part]) for part in PARTS} for name, seed in content["seeds"].items()}
        made_for = content["set"], content["shot"]
    except KeyError as error:
        raise DtrapError(f"subset {path}: {error} is missing. {EXPECTED}") from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DtrapError(f"subset {path}: not a subset file ({error}). {EXPECTED}") from error
    if made_for != (data.title, shot):
        raise DtrapError(
            f"subset {path} was made for {made_for[0]} ({made_for[1]} per class); this run uses {data.title} "
            f"({shot}). Use the subset.json of such a run, or give its --data.shot."
        )
    if str(seed) not in seeds:
        raise DtrapError(
            f"subset {path} has no seed {seed}, only {listing(list(seeds))}. Give --data.all_way.seeds with these."
        )
    return seeds[str(seed)]


def _lists(classes: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    for name, files in classes.items():
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise ValueError(f"the images of {name!r} are not a list of paths")
    return dict(classes)


def _positions(data: ImageCollection, path: Path, label: int, files: Sequence[str], used: set[int]) -> list[int]:
    """Return the positions of the files of a class and add them to those that are used.

    Raises:
        DtrapError: A file is not among the data, of another class, of the published test split, or listed twice.
    """
    index, name = data.index, data.index.class_names[label]
    lost = [file for file in files if index.position(file) is None]
    if lost:
        raise DtrapError(
            f"subset {path}: image {lost[0]!r} of class {name!r} is not under {data.root} ({len(lost)} such image(s) "
            "of this class). Use the data that the subset was drawn from."
        )
    positions = [position for file in files if (position := index.position(file)) is not None]
    for position in positions:
        wrong = index.labels[position] != label
        tested = index.splits is not None and index.splits[position] == "test"
        if wrong or tested or position in used:
            fault = "of another class" if wrong else "of the test split" if tested else "listed twice"
            file = index.relative(position)
            raise DtrapError(
                f"subset {path}: image {file!r} of class {name!r} is {fault}. Use the file as a run wrote it."
            )
        used.add(position)
    return positions
