"""Find the image file that a cell of a user's table names, below the root and nowhere else."""

from __future__ import annotations

import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from .index import listing, normal
from .walk import IMAGE_ENDINGS, walk

_WEB = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_DRIVE = re.compile(r"[a-zA-Z]:[\\/]|\\\\")

# Other spellings of a path, by what is said of it.
CASE, ELSEWHERE = "with other capital letters", "in another folder"


class TableImages:
    """The image files below a root, found by the texts that a table may have for them.

    A path is relative to the root, or absolute and inside it; it may lack the ending of the file. Where there is no
    such file, the name in other letters and then the file's name alone are looked for. Nothing is opened.

    Args:
        root: Folder of the images.

    Attributes:
        unusual: Cells by what is unusual about the place where their file was found.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.found = walk(root)
        self.unusual: defaultdict[str, list[str]] = defaultdict(list)
        self._bases = dict.fromkeys((os.path.abspath(root), os.path.realpath(root)))
        start = len(os.path.join(root, ""))
        self._relative = {path: normal(path[start:].replace(os.sep, "/")) for path in self.found.images}
        self._tables: dict[tuple[bool, bool, bool], dict[str, list[str]]] = {}

    def find(self, cell: str) -> tuple[str | None, str]:
        """Return the path of an image, or None and why there is none."""
        if _WEB.match(cell):
            return None, "it is a web address; expected a file"
        relative, reason = self._inside(cell)
        if relative is None:
            return None, reason
        own_name = f"{os.path.basename(os.path.realpath(self.root))}/"
        tries = [(relative, False, False, ""), (relative, True, False, CASE)]
        if relative.startswith(own_name):
            tries.append((relative[len(own_name) :], False, False, ""))
        tries += [(posixpath.basename(relative), False, True, ELSEWHERE)]
        for text, folded, by_name, unusual in tries:
            files = self._files(text, folded=folded, by_name=by_name)
            if len(files) > 1:
                names = listing([self._relative[path] for path in files], 3)
                return None, f"several files may be meant: {names}"
            if files:
                if unusual:
                    self.unusual[unusual].append(cell)
                return files[0], ""
        return None, self._not_there(relative)

    def unused(self, paths: Iterable[str]) -> list[str]:
        """Return the images that are not among some paths, relative to the root."""
        used = set(paths)
        return [relative for path, relative in self._relative.items() if path not in used]

    def _inside(self, cell: str) -> tuple[str | None, str]:
        """Return a path as seen from the root, or None and why it is outside."""
        outside = None, "it is outside of the root"
        if "\0" in cell:
            return None, "it has a zero byte"
        if _DRIVE.match(cell):
            return outside
        text = normal(cell)
        if "\\" in text and not self._files(posixpath.normpath(text), folded=False, by_name=False):
            text = text.replace("\\", "/")
        if os.path.isabs(text):
            full = os.path.normpath(text)
            base = next((base for base in self._bases if full.startswith(os.path.join(base, ""))), None)
            if base is None:
                return outside
            text = full[len(os.path.join(base, "")) :].replace(os.sep, "/")
        text = posixpath.normpath(text)
        return outside if text == ".." or text.startswith("../") else (text, "")

    def _files(self, text: str, *, folded: bool, by_name: bool) -> list[str]:
        """Return the files with a path or name; without its ending only where none has it with the ending."""
        spell: Callable[[str], str] = str.casefold if folded or by_name else str
        whole, stems = (self._table(spell, by_name=by_name, stems=stems) for stems in (False, True))
        return whole.get(spell(text)) or stems.get(spell(text), [])

    def _table(self, spell: Callable[[str], str], *, by_name: bool, stems: bool) -> dict[str, list[str]]:
        key = (spell is not str, by_name, stems)
        if key not in self._tables:
            found: defaultdict[str, list[str]] = defaultdict(list)
            for path, relative in self._relative.items():
                name = posixpath.basename(relative) if by_name else relative
                found[spell(posixpath.splitext(name)[0] if stems else name)].append(path)
            self._tables[key] = found
        return self._tables[key]

    def _not_there(self, relative: str) -> str:
        """Return why a path has no image: what is there instead, if anything is."""
        path = os.path.join(self.root, relative)
        fault = next((reason for entry, reason in self.found.faults if entry == path), None)
        if fault is not None:
            return fault
        ending = posixpath.splitext(relative)[1].lower()
        if os.path.isdir(path):
            return "it is a folder"
        if os.path.lexists(path) and ending not in IMAGE_ENDINGS:
            return f"{ending or 'a file without an ending'} is not a kind of image that is read"
        return "no such file"
