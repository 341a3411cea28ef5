"""A finished chart: its drawing as SVG text, the same in words, and the numbers as a small table."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from .drawing import Drawing


@dataclass(frozen=True)
class Table:
    """The numbers behind a chart, as text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Chart:
    """A drawing for a page, with what a reader needs who does not see it.

    Attributes:
        title: What the chart is about; plain text.
        svg: One `<svg>` element without script, style sheet or link to another file. It has the alternative text as its
            `aria-label`, and takes its colors of text and ground from the page's CSS variables `--chart-ink` and
            `--chart-paper`; without them it is dark on a white card.
        alt: Sentences that state what the chart shows, with its main numbers; plain text.
        note: How to read the chart and what it rests on; plain text.
        table: The numbers, where they are few.
        wide: Whether the drawing needs the full width of a page.
    """

    title: str
    svg: str
    alt: str
    note: str
    table: Table | None = None
    wide: bool = False

    def png(self) -> bytes:
        """Return the drawing on white as the content of a PNG file."""
        if not isinstance(self.svg, Drawing):
            raise TypeError("this chart was not drawn here")
        return self.svg.png()

    def html(self) -> str:
        """Return a `<figure>` with title, drawing, note and the table under a line that unfolds it."""
        kind = "chart wide" if self.wide else "chart"
        note = escape(self.note).replace(" %", "&nbsp;%")
        caption = f"<figcaption><strong>{escape(self.title)}</strong> {note}</figcaption>"
        # A part that scrolls must be in reach of the keyboard.
        drawing = f'<div class="drawing"{" tabindex=0" if self.wide else ""}>{self.svg}</div>'
        return f'<figure class="{kind}">{caption}{drawing}{self._table_html()}</figure>'

    def _table_html(self) -> str:
        if self.table is None:
            return ""
        head = "".join(f'<th scope="col">{escape(column)}</th>' for column in self.table.columns)
        body = "".join(
            f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
            for first, *cells in self.table.rows
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f'<details><summary>Numbers</summary><div class="numbers" tabindex=0>{table}</div></details>'


# Rules for the page that holds `Chart.html`: charts side by side where there is room, wide ones alone, and a chart that
# is the only one of its section next to its caption. A wide chart
# scrolls within its own frame on a narrow screen, so that its text stays readable and the page does not scroll.
CHART_RULES = """
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); gap: 1.5rem; }
figure.chart { margin: 0; min-width: 0; }
figure.chart.wide { grid-column: 1 / -1; }
figure.chart figcaption { font-size: .875rem; line-height: 1.4; margin-bottom: .4rem; }
figure.chart figcaption strong { display: block; font-size: 1rem; color: var(--chart-ink, inherit); }
figure.chart .drawing { overflow-x: auto; }
figure.chart .drawing svg { display: block; }
figure.chart.wide .drawing svg { min-width: 40rem; }
figure.chart .numbers { overflow-x: auto; max-height: 20rem; overflow-y: auto; font-size: .8125rem; }
@media (min-width: 60rem) {
figure.chart:only-child:not(.wide) { grid-column: 1 / -1; display: grid; column-gap: 1.5rem; align-content: start;
grid-template: "caption drawing" auto "numbers drawing" 1fr / minmax(0, 1fr) minmax(0, 35rem); }
figure.chart:only-child:not(.wide) figcaption { grid-area: caption; }
figure.chart:only-child:not(.wide) .drawing { grid-area: drawing; }
figure.chart:only-child:not(.wide) details { grid-area: numbers; }
}
figure.chart details summary { cursor: pointer; font-size: .8125rem; }
"""
