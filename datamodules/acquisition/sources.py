"""Sources of the data sets, as read from sources.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml

COOP_PAGE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


@dataclass(frozen=True)
class RemoteFile:
    """A file to download, and the file or folder that it becomes.

    Attributes:
        url: Address; its last part is the file's name.
        makes: File or folder under the root that exists once this file is downloaded and unpacked.
        checksum: `md5:...` or `sha256:...`; None if none is published.
        size: Number of bytes; None if it is not known exactly.
        archive: Whether to unpack it: the contents of `inside` go to the folder that holds `makes`.
        inside: Folder of the archive; the whole archive by default.
        nested: Archive within the archive to unpack instead.
    """

    url: str
    makes: str
    checksum: str | None = None
    size: int | None = None
    archive: bool = True
    inside: str = ""
    nested: str = ""

    @property
    def name(self) -> str:
        """Name of the file."""
        return PurePosixPath(self.url).name


@dataclass(frozen=True)
class Source:
    """The source of a data set.

    Attributes:
        title: Name of the set.
        page: Address of its home page.
        license: License as the home page states it.
        size: Size of the download, as text.
        folder: Folder of the set under the root.
        files: Files to download; empty if the set has to be downloaded by hand.
        present: Paths under the root, for a set without files; if one of them exists, the set does.
        by_hand: Instructions for a download by hand; `{root}` is replaced by the root.
        companions: Small files to download from CoOp's page into the folder.
    """

    title: str
    page: str
    license: str
    size: str
    folder: str
    files: list[RemoteFile] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    by_hand: str = ""
    companions: list[str] = field(default_factory=list)


def _read(path: Path) -> dict[str, Source]:
    facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {
        name: Source(**{**of_set, "files": [RemoteFile(**file) for file in of_set.get("files", ())]})
        for name, of_set in facts.items()
    }


SOURCES = _read(Path(__file__).with_name("sources.yaml"))
