"""Hooks of the documentation's build: where the package is found, and the list of the shipped configs."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
# mkdocstrings searches sys.path for a folder called `dtrap`, which the clone need not be called. Only the package's own
# files are linked: the root may also hold a virtual environment.
_PLACE = TemporaryDirectory()
_PACKAGE = Path(_PLACE.name, "dtrap")
_PACKAGE.mkdir()
for _path in ROOT.iterdir():
    if _path.suffix == ".py" or (_path / "__init__.py").exists():
        (_PACKAGE / _path.name).symlink_to(_path)
sys.path.insert(0, _PLACE.name)

from dtrap.configs import shipped_configs, title_of  # noqa: E402

MARK = "<!-- configs -->"
HEADINGS = {
    "": "Data sets",
    "all_way": "All classes at once",
    "backbones": "Backbones",
    "batches": "Mini-batches",
    "coop": "The eleven few-shot sets",
    "loggers": "Loggers",
    "methods": "Methods",
    "tuners": "Tuners",
}


def config_tables() -> str:
    """A table in Markdown for each folder of configs, with what each config is."""
    parts = []
    for folder, names in groupby(shipped_configs(), key=lambda name: name.rpartition("/")[0]):
        heading = HEADINGS.get(folder, folder.capitalize())
        rows = [f"| `{name}` | {title_of(name)} |" for name in names]
        parts.append("\n".join([f"## {heading}", "", "| config | what it is |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables where a page has the mark."""
    return markdown.replace(MARK, config_tables()) if MARK in markdown else markdown
