"""Hooks of the documentation's build: the list of the shipped configs, as `dtrap configs` prints it."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from dtrap.configs import shipped_configs, title_of

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
