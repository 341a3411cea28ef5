"""Count the code lines of the package: no blank lines, comments or docstrings.

    python tools/count_code_lines.py [CHECKOUT]

Tests, benchmarks, tools and docs are left out. Prints one line per folder and the total.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

LEFT_OUT = {"tests", "benchmarks", "tools", "docs", "build", "dist"}
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> set[int]:
    """Return the numbers of the lines that hold code; a string over several lines counts with each of them."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - docstring_lines(source)


def docstring_lines(source: str) -> set[int]:
    """Return the numbers of the lines of all docstrings of a module, its classes and its functions."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            lines.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def package_files(checkout: Path) -> list[Path]:
    """Return the Python files of the package, relative to the checkout."""
    files = (path.relative_to(checkout) for path in checkout.rglob("*.py"))
    return sorted(path for path in files if path.parts[0] not in LEFT_OUT and not path.parts[0].startswith("."))


def main() -> None:
    """Count the code lines of a checkout."""
    parser = argparse.ArgumentParser(description="Count the code lines of the package.")
    parser.add_argument("checkout", type=Path, nargs="?", default=Path(__file__).parents[1], help="default: this one")
    parser.add_argument("--files", action="store_true", help="print a line per file as well")
    options = parser.parse_args()
    folders: Counter[str] = Counter()
    for path in package_files(options.checkout):
        count = len(code_lines((options.checkout / path).read_text(encoding="utf-8")))
        folders[path.parent.as_posix()] += count
        if options.files:
            print(f"{count:6} {path}")
    for folder, count in sorted(folders.items()):
        print(f"{count:6} {folder}/")
    print(f"{folders.total():6} in total")


if __name__ == "__main__":
    main()
