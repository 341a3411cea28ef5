"""Few-shot draws that others published: 2SFS' JSON Lines files are read, CoOp's pickled ones are refused."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import DtrapError
from .collection import ImageCollection
from .index import ImageIndex, listing
from .text_files import read_lines

# Farina et al. 2025, "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages": one file for each number
# of shots, seed and part, in the folder split_fewshot of a set; ImageNet has no file for validation.
NAME = re.compile(r"shot_(\d+)-seed_(\d+)_(train|val)\.jsonl")
EXAMPLE = "shot_{}-seed_{}_train.jsonl"
PICKLES = (".pkl", ".pickle")
_PICKLE_MARK = b"\x80"  # protocol 2 and later
_KIND = "a JSON Lines file of 2SFS"


class DrawnImage(NamedTuple):
    """One line of a file.

    Attributes:
        path: As in the file, with `/`: the set's folder and what follows.
        label: Number of the class in the file.
        name: Class name in the file.
        place: File and line, for messages.
    """

    path: str
    label: int
    name: str
    place: str


def is_draw(path: Path) -> bool:
    """Whether a `subset` is a published draw: a folder of such files, one of them, or a pickle, which is refused."""
    if path.is_dir():
        return any(file.suffix.lower() in (".jsonl", *PICKLES) for file in path.iterdir())
    if path.suffix.lower() in (".jsonl", *PICKLES):
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(1) == _PICKLE_MARK


def read_draw(data: ImageCollection, shot: int, seed: int, path: Path) -> dict[str, dict[str, list[str]]]:
    """Return the images of a seed: relative paths, as the index has them, by part ("train", "val") and class.

    An image that a file names several times, as 2SFS does where a class has fewer images than shots, counts once. An
    image that the data do not have keeps the path of the file.

    Args:
        data: The images.
        shot: Training images K of each class.
        seed: The seed.
        path: The folder of the files, or one of them, next to which the others are.

    Raises:
        DtrapError: There is no file for these shots and this seed, it is a pickle or has another form, or one of its
            classes has images of two classes of the data.
    """
    train, val = _files(path, shot, seed)
    parts = {"train": [*_read(train)], "val": [*_read(val)] if val.is_file() else []}
    places = _Places(data.index)
    found = {row: places.find(row.path) for rows in parts.values() for row in rows}
    classes = _classes(data, found)
    drawn: dict[str, dict[str, list[str]]] = {}
    for part, rows in parts.items():
        of_class: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            position = found[row]
            of_class[classes[row.label]].append(row.path if position is None else data.index.relative(position))
        drawn[part] = {name: [*dict.fromkeys(files)] for name, files in of_class.items()}
        repeated = [name for name, files in of_class.items() if len(files) > len(drawn[part][name])]
        if repeated:
            data.warn_once(f"{train.parent}: images that the draw has several times count once: {listing(repeated)}")
    if not val.is_file():
        data.warn_once(f"{val} does not exist, so there are no validation images")
        drawn["val"] = {name: [] for name in drawn["train"]}
    return drawn


def _files(path: Path, shot: int, seed: int) -> tuple[Path, Path]:
    """Return the files of training and validation images."""
    refuse_pickle(path)
    if not path.is_dir():
        name = NAME.fullmatch(path.name)
        if name is None:
            raise DtrapError(
                f"subset {path}: expected a name such as {EXAMPLE.format(shot, seed)}, which says shots and seed, or "
                "the folder of such files. Give it the name that 2SFS gave it."
            )
        if int(name[1]) != shot:
            raise DtrapError(
                f"subset {path} is a draw of {name[1]} shots; this run uses {shot}. Give --data.shot {name[1]}"
            )
    folder = path if path.is_dir() else path.parent
    train = folder / EXAMPLE.format(shot, seed)
    if not train.is_file():
        names = [NAME.fullmatch(file.name) for file in sorted(folder.iterdir())]
        there = [f"{name[1]} shots seed {name[2]}" for name in names if name and name[3] == "train"]
        pickles = [file for file in folder.iterdir() if file.suffix in PICKLES]
        if pickles and not there:
            refuse_pickle(pickles[0])
        raise DtrapError(
            f"subset {path} has no {train.name}; found: {listing(there, 8) or 'no such file'}. Give --data.shot and "
            "--data.all_way.seeds with what there is, or add the file."
        )
    return train, folder / train.name.replace("_train", "_val")


def refuse_pickle(path: Path) -> None:
    """Raise a DtrapError for a pickle, as CoOp's few-shot draws are: reading one can run any program."""
    if not path.is_file():  # a pipe would wait for ever
        return
    with path.open("rb") as file:
        pickled = file.read(1) == _PICKLE_MARK
    if pickled or path.suffix.lower() in PICKLES:
        raise DtrapError(
            f"subset {path} is a pickle, as CoOp's draws are. It is not read, because a pickle can run any program. "
            "Convert it to JSON Lines with the script in docs/how-to/train-on-all-classes.md (Published draws), and "
            "give the folder: --data.subset split_fewshot"
        )


def _read(path: Path) -> Iterator[DrawnImage]:
    """Yield the lines of a file.

    Raises:
        DtrapError: It is not a text file, or a line has another form.
    """
    lines, _ = read_lines(path, _KIND)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        match row:
            case {"_impath": str(file), "_label": int(label), "_classname": str(name)} if file and label is not True:
                yield DrawnImage(file.replace("\\", "/"), int(label), name, f"{path}, line {number}")
            case _:
                raise DtrapError(
                    f"subset {path}, line {number}: expected an object with _impath, _label and _classname, as 2SFS "
                    f"writes it, found {line.strip()[:60]!r}. Use the published file."
                )


class _Places:
    """Positions of images by paths that begin at some folder above or below the root.

    Args:
        index: The images.
    """

    def __init__(self, index: ImageIndex) -> None:
        self.index = index
        self.ends: dict[str, int | None] = {}
        for position, path in enumerate(index.paths):
            end = _end(Path(path).as_posix())
            self.ends[end] = None if end in self.ends else position

    def find(self, path: str) -> int | None:
        """Return the position of the image whose relative path is the longest end of a path, or None."""
        parts = path.split("/")
        for start in range(len(parts)):
            for root in range(max(1, len(self.index.roots))):
                position = self.index.position("/".join([str(root), *parts[start:]]))
                if position is not None:
                    return position
        return self.ends.get(_end(path))


def _end(path: str) -> str:
    """Return folder and file of a path, in lower case."""
    return "/".join(path.split("/")[-2:]).casefold()


def _classes(data: ImageCollection, found: dict[DrawnImage, int | None]) -> dict[int, str]:
    """Return the class of the data of each label of a draw: that of its images.

    Raises:
        DtrapError: A label has images of two classes, or two labels have images of one.
    """
    index = data.index
    classes: dict[int, str] = {}
    labels: dict[str, int] = {}
    for row, position in found.items():
        if position is None:
            continue
        name = index.class_names[index.labels[position]]
        other = classes.setdefault(row.label, name)
        first = labels.setdefault(name, row.label)
        if other != name or first != row.label:
            also = f"{row.label} is '{other}' in a line before" if other != name else f"'{name}' has label {first} too"
            raise DtrapError(
                f"subset {row.place}: {row.path} is of the class '{name}' of {data.title}, but label {also}. Use "
                "a draw of this data set."
            )
    return {row.label: row.name for row in found} | classes
