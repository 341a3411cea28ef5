"""Tables of a report as text: for the terminal, Markdown and LaTeX."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.table import Table
from rich.text import Text

from ...errors import visible

# Columns of numbers that fit on a page of paper; more are set in blocks below each other.
MOST_COLUMNS = 8
HEAD_WIDTH = 16
BEST = "*"
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "^": r"\textasciicircum{}",
    "_": r"\_", "~": r"\textasciitilde{}", "%": r"\%", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': "''", "`": r"\textasciigrave{}", "±": r"$\pm$",
    "×": r"$\times$", "−": "$-$", "…": r"\ldots{}", "·": r"\textperiodcentered{}", "\u00a0": "~",
}  # fmt: skip
_LATEX_SAFE = re.compile(r"[ -~\u00a1-\u017f]")


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: Its text.
        best: Whether it is the best of its column.
    """

    text: str
    best: bool = False


@dataclass(frozen=True)
class TextTable:
    """A table of texts.

    Attributes:
        caption: What it shows.
        head: Titles of the columns; a line end separates what stands below each other.
        rows: The rows, each as long as the head.
        notes: Sentences that stand below it.
        texts: Number of columns, from the left, that are texts; the others are numbers.
        key: Short name without blanks.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = field(default_factory=list)
    texts: int = 1
    key: str = "table"


def to_rich(table: TextTable, title: bool = True) -> Table:
    """Return a table for the console, the best of a column marked with a star."""
    found = Table(box=box.SIMPLE, title=Text(table.caption) if title else None, title_justify="left")
    for place, name in enumerate(table.head):
        justify = "left" if place < table.texts else "right"
        head = Text("\n".join(_head(name, place < table.texts)))
        found.add_column(head, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in table.rows:
        found.add_row(*(Text(f"{cell.text} {BEST}" if cell.best else cell.text) for cell in row))
    return found


def to_markdown(table: TextTable) -> str:
    """Return a table of GitHub's Markdown with its caption and notes, the best of a column in bold."""
    head = [markdown_text(name.replace("\n", ", ")) for name in table.head]
    lines = [f"**{markdown_text(table.caption)}**", "", _markdown_row(head)]
    lines.append(_markdown_row([":---" if place < table.texts else "---:" for place in range(len(head))]))
    for row in table.rows:
        lines.append(
            _markdown_row(
                [f"**{markdown_text(cell.text)}**" if cell.best else markdown_text(cell.text) for cell in row]
            )
        )
    lines += [f"\n{markdown_text(note)}" for note in table.notes]
    return "\n".join(lines) + "\n"


def to_latex(table: TextTable) -> str:
    """Return a table environment for booktabs, the best of a column in bold.

    Wide tables are cut into blocks of columns below each other, each with the columns of text.
    """
    columns = list(range(table.texts, len(table.head)))
    blocks = [columns[start : start + MOST_COLUMNS] for start in range(0, len(columns), MOST_COLUMNS)] or [[]]
    parts = [_latex_block(table, [*range(table.texts), *block]) for block in blocks]
    notes = [rf"\par\smallskip{{\scriptsize {_latex(note)}\par}}" for note in table.notes]
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{_latex(table.caption)}}}",
            rf"\label{{tab:{re.sub(r'[^a-z0-9]+', '-', table.key.lower())}}}",
            "\n\\par\\medskip\n".join(parts),
            *notes,
            r"\end{table}",
            "",
        ]
    )


def latex_document(tables: Sequence[TextTable]) -> str:
    """Return all tables with a first comment on how to include them."""
    parts = [to_latex(table) for table in tables]
    lines = ["% \\usepackage{booktabs} and \\usepackage{textcomp} in the preamble; then \\input this file."]
    if not all(_LATEX_SAFE.match(character) or character == "\n" for part in parts for character in part):
        lines.append("% It has characters of other scripts: compile with xelatex or lualatex and a font that has them.")
    return "\n".join([*lines, "", *parts])


def _head(name: str, is_text: bool) -> list[str]:
    """Lines of a column's title; those of numbers are narrow."""
    return [part for line in name.split("\n") for part in ([line] if is_text else textwrap.wrap(line, HEAD_WIDTH))]


def _latex_block(table: TextTable, places: Sequence[int]) -> str:
    form = "".join("l" if place < table.texts else "r" for place in places)
    heads = [_head(table.head[place], place < table.texts) for place in places]
    height = max(map(len, heads), default=0)
    lines = [
        " & ".join(_latex(head[row]) if row < len(head) else "" for head in heads) + r" \\" for row in range(height)
    ]
    body = [" & ".join(_latex_cell(row[place]) for place in places) + r" \\" for row in table.rows]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{@{{}}{form}@{{}}}}",
            r"\toprule",
            *lines,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _latex_cell(cell: Cell) -> str:
    return rf"\textbf{{{_latex(cell.text)}}}" if cell.best else _latex(cell.text)


def _latex(text: str) -> str:
    # An empty group keeps a cell that begins with a bracket from being read as the argument of the line end before it.
    text = "".join(_LATEX.get(character, character) for character in visible(text)).replace("--", "-{}-")
    return f"{{}}{text}" if text.startswith(("[", "*")) else text


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown_text(text: str) -> str:
    """Escape all that Markdown and HTML in it would read: entities work everywhere, also where a backslash does not."""
    text = re.sub(r"([\\`*_\[\]~$])", r"\\\1", visible(text))
    text = re.sub(r"^(\s*\d*)([#+.)-])(?=\s|$)", r"\1\\\2", text)  # a heading or an item of a list
    for character, entity in {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "://": ":&#47;/"}.items():
        text = text.replace(character, entity)
    return text
