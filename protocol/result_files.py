"""What a run over a user's own images leaves to look at: confusion, accuracy per class, and the images in doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..console import print_table, say
from ..datamodules.few_shot import FewShotDataModule
from ..datamodules.images import ImageError
from ..errors import DtrapError
from ..files import no_formula
from .claims import REPEAT, TASK
from .class_results import (
    MOST_CLASSES,
    MOST_CONFUSED,
    ClassResults,
    class_table,
    confusion_table,
    most_confused,
    shown_classes,
)
from .image_results import ImageResults, read_results
from .predictions import name_of
from .run_folder import RESUMES, Row, RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image

CONFUSION, CLASSES, IMAGES, SHEET = "confusion", "per_class", "test_images", "wrong_or_unsure"
PIXELS = 240  # of an image on the sheet
NO_TEST = (
    "There are no test images, so no accuracy: {}--data.held_out 0.3 keeps three of ten images of each class for a "
    "test."
)
OTHERS = "--data.query_root FOLDER tests on others, or "


def of_own_images(data: FewShotDataModule) -> bool:
    """Whether a run has its tasks over all of a user's own images, so that they are no episodes."""
    return data.unit in (TASK, REPEAT)


@dataclass(frozen=True)
class MethodResults:
    """What a method's test says of classes and images.

    Attributes:
        name: The method.
        ending: What its files have before their ending: "" for the main method.
        classes: Counts of each class.
        images: Each test image; None if the run saved no predictions.
    """

    name: str
    ending: str
    classes: ClassResults
    images: ImageResults | None


class ResultFiles:
    """Writes and names the files in the folder `test` of a run over a user's own images.

    Args:
        folder: The run folder.
        data: The data module.
        methods: Names of the methods, the main one first.
        rows: Their rows.
    """

    def __init__(self, folder: RunFolder, data: FewShotDataModule, methods: Sequence[str], rows: Sequence[Row]) -> None:
        self.folder, self.data = folder, data
        self.results: list[MethodResults] = []
        for name in methods:
            own = [row for row in rows if row["method"] == name and not row.get("diverged")]
            stored = [(row["episode"], folder.predictions / _file_name(row)) for row in own]
            images = read_results(stored)
            classes = ClassResults.of(own, images)
            if classes is not None:
                ending = "" if name == methods[0] else f".{name}"
                self.results.append(MethodResults(name, ending, classes, images))

    @classmethod
    def of(
        cls, folder: RunFolder, data: FewShotDataModule, methods: Sequence[str], rows: Sequence[Row], *, new: bool
    ) -> ResultFiles | None:
        """Return the files of a run, written where it has new rows; None for episodes and seeds."""
        if not of_own_images(data):
            return None
        files = cls(folder, data, methods, rows)
        if new or not folder.test.exists():  # a run of an earlier version
            files.write()
        return files

    def path(self, kind: str, result: MethodResults) -> Path:
        """Return the path of a file."""
        return self.folder.test / f"{kind}{result.ending}.{'png' if kind == SHEET else 'csv'}"

    def write(self) -> None:
        """Write the files; where the images cannot be read now, there is no new sheet.

        Raises:
            DtrapError: A file cannot be written.
        """
        for result in self.results:
            classes = result.classes
            self._write(CONFUSION, result, classes.confusion_frame().to_csv(lineterminator="\n"))
            self._write(CLASSES, result, classes.frame().to_csv(index=False, float_format="%.2f", lineterminator="\n"))
            if result.images is not None:
                self._write(IMAGES, result, _csv(result.images))
                self._draw(result, result.images)

    def _write(self, kind: str, result: MethodResults, text: str) -> None:
        self.folder.write_text(self.path(kind, result), text)

    def _draw(self, result: MethodResults, images: ImageResults) -> None:
        from ..drawing import save_png
        from .result_sheet import result_sheet

        try:
            positions = {name_of(self.data, place): place for place in range(len(self.data.index.paths))}
        except DtrapError:  # the images are gone
            return

        def load(place: int) -> Image | None:
            try:
                image = self.data.load_image(positions[images.images[place]])
            except (ImageError, KeyError):
                return None
            image.thumbnail((PIXELS, PIXELS))
            return image

        method = f", {result.name}" if len(self.results) > 1 else ""
        figure = result_sheet(images, load, f"{self.data.title}{method}: test images in doubt")
        save_png(self.path(SHEET, result), figure, RESUMES)

    def show(self, console: Console) -> None:
        """Print the accuracy of each class and the confusion of the main method."""
        if not self.results:
            return
        found, names = self.results[0].classes, self.results[0].classes.names
        if len(self.results) > 1:
            say(console, f"Classes of '{self.results[0].name}' (the others are in the files):")
        print_table(class_table(found, with_zero_shot=found.zero_shot is not None), console)
        if len(names) > MOST_CLASSES:
            say(console, f"  the {len(shown_classes(found))} classes with the lowest accuracy of {len(names):,}")
        if found.tasks > 1:
            say(console, "  an image may be tested in several repeats, so the classes have no exact interval")
        if len(names) <= MOST_CONFUSED:
            print_table(confusion_table(found), console)
            say(console, "  rows: true class; columns: predicted class, by its number")
        errors = most_confused(found)
        if errors:
            say(console, f"Most frequent errors: {', '.join(errors)}")

    def lines(self) -> list[str]:
        """Return a line for each kind of file that there is, with its path; without a test how to get one."""
        if not self.data.has_query:
            others = OTHERS if hasattr(self.data, "query_root") else ""
            return [NO_TEST.format(others)]
        titles = {
            SHEET: "Images in doubt",
            CLASSES: "Accuracy per class",
            CONFUSION: "Confusion",
            IMAGES: "Each test image",
        }
        lines = []
        for kind, title in titles.items():
            paths = [path for result in self.results if (path := self.path(kind, result)).exists()]
            lines += [f"{title}: {', '.join(map(str, paths))}"] if paths else []
        return lines


def _file_name(row: Mapping[str, Any]) -> str:
    return f"episode_{row['episode']:04d}_{row.get('same_as') or row['method']}.safetensors"


def _csv(images: ImageResults) -> str:
    frame = images.frame()
    for column in frame.select_dtypes("object"):
        frame[column] = frame[column].map(no_formula)
    text: str = frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    return text
