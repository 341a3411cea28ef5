"""How often each class of a test was right, and what it was taken for: tables for the console and for files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table
from rich.text import Text

from ..files import no_formula
from ..lightning_modules.exact_interval import exact_interval
from .image_results import ImageResults
from .run_folder import Row

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_CONFUSED = 10  # classes up to which the console shows the confusion
MOST_CLASSES = 20  # that the console lists; of more, the worst
WORST = 10
NAME_WIDTH = 40


@dataclass(frozen=True)
class ClassResults:
    """Counts of a method's test over all its tasks.

    Attributes:
        names: Names of the W classes.
        confusion: Counts [W, W]: rows true classes, columns predicted ones.
        zero_shot: Right images of each class [W] without the tuner; None if unknown.
        tasks: Number of tasks; in several, an image may count several times.
    """

    names: list[str]
    confusion: npt.NDArray[np.int64]
    zero_shot: npt.NDArray[np.int64] | None
    tasks: int

    @classmethod
    def of(cls, rows: Sequence[Row], images: ImageResults | None) -> ClassResults | None:
        """Return the counts of a method's rows; None if no row has any, or their classes differ."""
        tested = [row for row in rows if row.get("confusion") and row.get("classes")]
        if not tested or any(row["classes"] != tested[0]["classes"] for row in tested):
            return None
        names = list(tested[0]["classes"])
        confusion = np.sum([np.asarray(row["confusion"], dtype=np.int64) for row in tested], axis=0)
        zero_shot = None
        if images is not None and images.zero_shot is not None and len(images.labels) == confusion.sum():
            right = images.zero_shot.first == images.labels
            zero_shot = np.bincount(images.labels[right], minlength=len(names))
        return cls(names, confusion, zero_shot, len(tested))

    @property
    def images(self) -> npt.NDArray[np.int64]:
        """Test images of each class [W]."""
        return self.confusion.sum(axis=1)

    @property
    def right(self) -> npt.NDArray[np.int64]:
        """Right ones of each class [W]."""
        return np.diag(self.confusion)

    def intervals(self, right: Sequence[int] | npt.NDArray[np.int64]) -> list[tuple[float, float] | None]:
        """Return the exact 95% interval of each class; None without images, or where an image may count twice."""
        counts = zip(right, self.images, strict=True)
        return [exact_interval(int(r), int(n)) if n and self.tasks == 1 else None for r, n in counts]

    def frame(self) -> DataFrame:
        """Return one line for each class: test images, right ones, accuracy in percent with the exact 95% interval."""
        import pandas

        columns: dict[str, Any] = {"class": list(map(no_formula, self.names)), "test_images": self.images}
        counts = {"": self.right} if self.zero_shot is None else {"": self.right, "zero_shot_": self.zero_shot}
        for prefix, right in counts.items():
            ends = self.intervals(right)
            columns[f"{prefix}right"] = right
            columns[f"{prefix}accuracy"] = [_percent(r, n) for r, n in zip(right, self.images, strict=True)]
            columns[f"{prefix}low"] = [None if end is None else end[0] for end in ends]
            columns[f"{prefix}high"] = [None if end is None else end[1] for end in ends]
        return pandas.DataFrame(columns)

    def confusion_frame(self) -> DataFrame:
        """Return the confusion: a line for each true class, a column for each predicted one."""
        import pandas

        names = list(map(no_formula, self.names))
        return pandas.DataFrame(self.confusion, index=pandas.Index(names, name="class"), columns=names)


def class_table(found: ClassResults, *, with_zero_shot: bool = True) -> Table:
    """Return the accuracy of each class with what it rests on; of more than 20 classes the worst 10."""
    table = Table(box=box.SIMPLE)
    table.add_column("class", no_wrap=True)
    for title in ("right", "accuracy", "95 %, exact", *(["zero-shot"] if with_zero_shot else [])):
        table.add_column(title, justify="right", no_wrap=True)
    ends = found.intervals(found.right)
    for place in shown_classes(found):
        images, right = int(found.images[place]), int(found.right[place])
        interval = ends[place]
        cells = [
            _name(found.names[place]),
            f"{right} of {images}" if images else "no test image",
            f"{100 * right / images:.1f} %" if images else "",
            "" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}",
        ]
        if with_zero_shot:
            known = images and found.zero_shot is not None
            cells.append(f"{int(found.zero_shot[place])} of {images}" if known else "")  # type: ignore[index]
        table.add_row(*map(Text, cells))
    return table


def shown_classes(found: ClassResults) -> list[int]:
    """Return the classes that the console lists: all, or of many the tested ones with the lowest accuracy."""
    if len(found.names) <= MOST_CLASSES:
        return list(range(len(found.names)))
    tested = [place for place in range(len(found.names)) if found.images[place]]
    return sorted(tested, key=lambda place: found.right[place] / found.images[place])[:WORST]


def confusion_table(found: ClassResults) -> Table:
    """Return the confusion with numbered columns, so that it stays narrow."""
    table = Table(box=box.SIMPLE)
    table.add_column("true class", no_wrap=True)
    for number in range(1, len(found.names) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for number, (name, counts) in enumerate(zip(found.names, found.confusion, strict=True), start=1):
        cells = [str(count) if count else "·" for count in counts.tolist()]
        table.add_row(Text(f"{number:>2} {_name(name)}"), *map(Text, cells))
    return table


def most_confused(found: ClassResults, most: int = 3) -> list[str]:
    """Return the most frequent errors, such as "River taken for Highway (4 of 9)"."""
    wrong = found.confusion - np.diag(found.right)
    places = [int(place) for place in np.argsort(-wrong, axis=None, kind="stable")[:most] if wrong.flat[place] > 0]
    pairs = [divmod(place, len(found.names)) for place in places]
    return [
        f"{_name(found.names[row])} taken for {_name(found.names[column])} ({wrong[row, column]} of "
        f"{found.images[row]})"
        for row, column in pairs
    ]


def _percent(right: int, images: int) -> float | None:
    return 100.0 * int(right) / int(images) if images else None


def _name(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH // 2]}…{name[-NAME_WIDTH // 2 + 1 :]}"
