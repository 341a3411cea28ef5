"""Published data sets: one reader that a run and `dtrap data check` share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

from ..errors import DtrapError
from .few_shot import FewShotDataModule
from .findings import Findings
from .index import ImageIndex, first_of, not_found
from .places import FolderTree, unread
from .views import TestPreprocessing


class Published:
    """Published numbers of a data set.

    Args:
        classes: Number of classes.
        **images: Number of images of "all", or of "train", "val" and "test"; none where these are not published.
    """

    def __init__(self, classes: int, **images: int) -> None:
        self.classes, self.images = classes, images


class PublishedDataModule(FewShotDataModule):
    """Episodes of a published data set; a subclass reads it in `read`.

    Attributes:
        published: Published numbers of classes and images.
    """

    published: ClassVar[Published]
    all_way_preprocessing: ClassVar[TestPreprocessing] = "squash"  # as the paper's code treats its four sets

    @cached_property
    def tree(self) -> FolderTree:
        """The folders below the root, listed when the set is in none of its usual places."""
        return FolderTree(self.root)

    def nothing(self, looked_for: Sequence[str], what: str, signs: Sequence[str] = ()) -> DtrapError:
        """Return the error for a set that is not under the root, with what is there instead.

        Args:
            looked_for: Official places under the root.
            what: What was not found.
            signs: Further places by which a folder above the root is recognized.
        """
        root = self.root.absolute()
        above = next((folder for folder in list(root.parents)[:3] if first_of(folder, [*signs, *looked_for])), None)
        higher = f" It is in a folder above: --data.root {above}." if above else ""
        return not_found(self.root, looked_for, self.title, what, higher or unread(self.tree))

    @abstractmethod
    def read(self, findings: Findings) -> ImageIndex:
        """Read paths and labels as far as possible and record what is wrong; no image is decoded.

        Raises:
            DataNotFound: Nothing of the set is under the root.
            DtrapError: The set cannot be read any further.
        """

    def scan(self) -> ImageIndex:
        """Read paths and labels.

        Raises:
            DtrapError: The set is not under the root, or something is wrong with it; the first fault.
        """
        skipped = [name for name in ("bad_images", "small_classes") if getattr(self, name) == "skip"]
        findings = Findings(f"{self.title} under {self.root}", stop=True, skipped=skipped)
        index = self.read(findings)
        self.__dict__.pop("tree", None)  # worker processes do not need it
        return replace(index, notes=index.notes + tuple(note.brief for note in findings.notes))
