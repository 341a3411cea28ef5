"""What `dtrap data check` found of one set."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..findings import Finding, counted, relative
from ..index import SPLITS, ImageIndex
from ..published import Published


@dataclass
class SetReport:
    """What was found of one set.

    Attributes:
        name: Its name in the catalog.
        index: Images that are there and have a label.
        published: Published numbers.
        faults: What stops a run, then unreadable images.
        differences: What differs from the published set, as a part of it does.
        notes: What else a user should know.
        unreadable: Number of images that cannot be decoded; None where decoding was not tried.
        lines: What else is printed below the findings, such as a table of the classes.
    """

    name: str
    index: ImageIndex
    published: Published
    faults: list[Finding]
    differences: list[Finding]
    notes: list[Finding]
    unreadable: int | None = None
    lines: list[str] = field(default_factory=list)

    def found(self) -> dict[str, int]:
        """Return the numbers of images: of each split, or of "all" without a split."""
        if self.index.splits is None:
            return {"all": len(self.index.paths)}
        counts = Counter(self.index.splits)
        return {split: counts[split] for split in SPLITS if split in counts or split in self.published.images}

    @property
    def findings(self) -> tuple[tuple[str, list[Finding]], ...]:
        """All that was found, by its kind."""
        return ("fault", self.faults), ("differs", self.differences), ("note", self.notes)

    def images_per_class(self) -> dict[str, int]:
        """Return the number of images of each class, in the order of the labels; a class may have none."""
        counts = Counter(self.index.labels)
        return {name: counts[label] for label, name in enumerate(self.index.class_names)}


def faults_of(index: ImageIndex, root: Path) -> list[Finding]:
    """Return what could not be read while the folders were listed."""
    cases = [f"{relative(path, root)}: {reason}" for path, reason in index.faults]
    found = counted(cases, "file or folder cannot be used", "files or folders cannot be used")
    return [found] if found else []


def notes_of(index: ImageIndex) -> list[Finding]:
    """Return the notes of a scan."""
    return [Finding(note) for note in index.notes]
