"""Published data sets: one reader that a run and `dtrap data check` share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

from .few_shot import FewShotDataModule
from .findings import Findings
from .index import ImageIndex
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
        return replace(index, notes=tuple(note.text for note in findings.notes))
