"""Write the table of tuners and backbones in `docs/reference/tuners.md` from the outcome of `test_every_pair.py`.

python tools/tuner_table.py            # run the tests, write the table between the page's two marks
python tools/tuner_table.py --check    # only check that the table is what the tests record

Needs pytest and the package with its `test` extra.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests" / "lightning_modules" / "test_every_pair.py"
PAGE = ROOT / "docs" / "reference" / "tuners.md"
BEGIN, END = "<!-- tuner table: made by tools/tuner_table.py -->", "<!-- end of the tuner table -->"

Outcomes = dict[tuple[str, str, str], str]


def run_tests(report: Path) -> None:
    """Run every pair and write pytest's report to `report`; raise CalledProcessError if a test fails."""
    words = [sys.executable, "-m", "pytest", str(TESTS), f"--junitxml={report}", "-o", "junit_family=xunit1"]
    subprocess.run(words, check=True, cwd=ROOT)


def read_report(report: Path) -> Outcomes:
    """Return the outcome by backbone, tuner and method, in the order of the tests."""
    found: Outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        properties = {p.get("name"): p.get("value", "") for p in case.iter("property")}
        if "outcome" in properties:
            key = tuple(str(properties[name]) for name in ("backbone", "tuner", "method"))
            found[key] = str(properties["outcome"])  # type: ignore[index]
    return found


def cell(outcome: str, reasons: list[str]) -> str:
    """Return the text of a cell; each reason of a refusal gets one number."""
    if outcome.startswith("works"):
        constant = outcome.split()[1:]
        if constant == ["untrained"]:
            return "works (nothing to train)"
        return "works" if not constant else f"works ({', '.join(constant)} constant)"
    # The backbone's name and the like differ between equal reasons.
    reason = re.sub(r"\S*(?:\.json|/)\S*|'[^']*'", "…", outcome.removeprefix("refused: "))
    if reason not in reasons:
        reasons.append(reason)
    return f"refused [{reasons.index(reason) + 1}]"


def table(outcomes: Outcomes) -> str:
    """Return the table in Markdown: a row per tuner and method, a column per backbone, the reasons below."""
    backbones, tuners, methods = (list(dict.fromkeys(key[i] for key in outcomes)) for i in range(3))
    reasons: list[str] = []
    lines = [f"| tuner | | {' | '.join(backbones)} |", "|---" * (len(backbones) + 2) + "|"]
    for tuner in tuners:
        for method in methods:
            cells = [cell(outcomes[backbone, tuner, method], reasons) for backbone in backbones]
            lines.append(f"| {tuner} | {method} | {' | '.join(cells)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n".join([*lines, "", *notes])


def main() -> int:
    """Write or check the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page differs")
    parser.add_argument("--report", type=Path, help="a report of these tests (--junitxml) instead of running them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = arguments.report or Path(folder) / "report.xml"
        if arguments.report is None:
            run_tests(report)
        made = table(read_report(report))
    text = PAGE.read_text(encoding="utf-8")
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        print(f"{PAGE} has no '{BEGIN}' … '{END}'", file=sys.stderr)
        return 1
    wanted = f"{before}{BEGIN}\n{made}\n{END}{after}"
    if arguments.check:
        print("the table is up to date" if text == wanted else "the table is out of date")
        return int(text != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
