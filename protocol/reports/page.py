"""One HTML page with everything of a report, readable without a network and without JavaScript."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ...errors import visible
from .charts import CHART_RULES, Chart
from .figures import Section, chart_sections
from .pictures import Errors, feature_section, picture_section
from .report import Report
from .what_was_run import page_versions, run_records, study_commands

LONGEST_TEXT = 600


def page(report: Report) -> str:
    """Return the HTML page of a report; the same runs give the same page."""
    comparison = report.comparison
    results = Section("results", "Results", tables=report.tables)
    sections = [results, *chart_sections(comparison, report.studies), feature_section(comparison)]
    sections.append(picture_section(comparison))
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=report.title,
            sections=sections,
            left_out=report.left_out,
            notes=report.notes,
            records=list(run_records(comparison)),
            study_commands=study_commands([study.folder for study in report.studies]),
            versions=page_versions(),
            rules=Markup(CHART_RULES),
        )
    )


@cache
def _environment() -> Environment:
    # jinja2 comes with torch. It escapes every value that is not marked as HTML, so that none can be forgotten.
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["shown"] = _shown
    found.filters["drawn"] = _drawn
    found.tests["errors"] = lambda value: isinstance(value, Errors)
    return found


def _shown(value: Any) -> str:
    """Return a text without control characters, and not longer than a reader reads."""
    text = visible(str(value), keep="\n")
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def _drawn(chart: Chart) -> Markup:
    # The chart itself has escaped its texts.
    return Markup(chart.html())
