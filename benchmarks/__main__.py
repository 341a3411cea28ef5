"""`python -m benchmarks`: how fast dtrap is, compared with a plain formulation and with an earlier commit."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .figures import Part, Report, failed, line, markdown
from .measuring import NotRunError
from .settings import ROOT, Settings

PACKAGES = ("torch", "lightning", "open_clip_torch", "ray")


def all_parts() -> list[Part]:
    """Return every part, in the order in which they are run."""
    from . import episodes, gpu, loading, memory, processes, query, start_up, steps

    return [part for each in (steps, gpu, query, memory, start_up, episodes, loading, processes) for part in each.PARTS]


def parse(words: list[str] | None, parts: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all of them, or some of {', '.join(parts)}; "
                        "`step` stands for all that begin with `step.`")  # fmt: skip
    parser.add_argument("--model", choices=("vit", "tiny"), default="vit", help="ViT-B/16, or the demo's for a try")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", help="32-true; on a GPU 16-mixed, as the authors")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument(
        "--repeats", type=int, default=10, help="samples of each figure, of which the median counts (10)"
    )
    parser.add_argument("--minutes", type=float, help="time for all parts; those that it does not suffice for are left")
    parser.add_argument("--before", metavar="FOLDER", help="a checkout of an earlier commit, measured in turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures in FILE and add to those in it")
    parser.add_argument("--table", nargs="+", type=Path, metavar="FILE", help="measure nothing; print these files")
    parser.add_argument("--markdown", action="store_true", help="print a table in Markdown")
    given = parser.parse_args(words)
    unknown = [each for each in given.parts if not any(selects(each, part) for part in parts)]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; expected some of {', '.join(parts)}")
    if given.before is not None and not (Path(given.before) / "lightning_modules").is_dir():
        parser.error(f"--before is {given.before}; expected a checkout of dtrap (git worktree add FOLDER COMMIT)")
    return given


def selects(word: str, part: str) -> bool:
    """Return whether a word of the command line stands for a part."""
    return part == word or part.startswith(f"{word}.")


def commit_of(folder: str | Path) -> str:
    """Return the short commit of a checkout, with a plus if files were changed."""
    asked = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    """Return the name of the processor and the number of its cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (each.split(":", 1)[1].strip() for each in lines if each.startswith("model name"))
    return f"{next(names, platform.processor() or platform.machine())}, {os.cpu_count()} cores"


def installed(package: str) -> str:
    """Return the version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def new_report(settings: Settings) -> Report:
    """Return an empty report of this machine."""
    import torch

    machine = torch.cuda.get_device_name() if settings.device == "cuda" else processor()
    conditions: dict[str, Any] = {"machine": machine, "host": processor()}
    conditions |= {key: getattr(settings, key) for key in ("device", "model", "threads", "precision")}
    run = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit_of(ROOT),
        "before": commit_of(settings.before) if settings.before is not None else None,
        "repeats": settings.repeats,
        "versions": {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES},
        "load": os.getloadavg()[0],
    }
    return Report(conditions, [run])


def run_parts(chosen: list[Part], settings: Settings, report: Report, path: Path | None) -> list[str]:
    """Measure each part, print its figures and keep them; return the names of the parts that failed."""
    broken = []
    for part in chosen:
        reason = ""
        try:
            if settings.device not in part.devices and not settings.tiny:
                raise NotRunError(f"not measured on {settings.device}")
            if settings.seconds_left < 60 * part.minutes:
                raise NotRunError("the time is up")
            part.measure(settings, report)
        except NotRunError as error:
            reason = str(error)
        except RuntimeError as error:  # of a process, or out of a GPU's memory; the other parts can be measured
            reason = f"failed: {str(error).strip()[-600:]}"
            broken.append(part.name)
        print(f"{part.name}{f': not run ({reason})' if reason else ''}")
        for figure in part.figures:
            if not reason or figure.name in report.figures:
                print(f"  {line(figure, report)}", flush=True)
        if path is not None:
            kept = Report.read(path) if path.exists() else Report(report.conditions)
            names = {figure.name for figure in part.figures}
            fresh = {name: found for name, found in report.figures.items() if name in names}
            latest = kept.runs[-1:] == report.runs
            if latest:
                kept.figures |= {name: found | {"run": len(kept.runs) - 1} for name, found in fresh.items()}
            else:
                kept.merge(Report(report.conditions, report.runs, fresh))
            kept.write(path)
    return broken


def measure(given: argparse.Namespace, parts: list[Part]) -> int:
    """Run the chosen parts; return 1 if a figure misses its bar."""
    import warnings

    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(given.threads)
    precision = given.precision or ("16-mixed" if given.device == "cuda" else "32-true")
    chosen = [part for part in parts if not given.parts or any(selects(word, part.name) for word in given.parts)]
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(given.model, given.device, given.threads, given.repeats, precision, given.before, folder)
        if given.minutes is not None:
            settings.deadline = time.monotonic() + 60 * given.minutes
        report = new_report(settings)
        if given.json is not None and given.json.exists():
            Report.read(given.json).merge(report)  # refuses another machine before anything is measured
        broken = run_parts(chosen, settings, report, given.json)
    if given.markdown:
        print(markdown(chosen, [report if given.json is None else Report.read(given.json)]))
    missed = broken + failed((figure for part in chosen for figure in part.figures), report)
    print(f"FAIL: {', '.join(missed)}" if missed else "No measured figure misses its bar.")
    return 1 if missed else 0


def show(given: argparse.Namespace, parts: list[Part]) -> int:
    """Print the figures of files."""
    reports = [Report.read(path) for path in given.table]
    chosen = [part for part in parts if not given.parts or any(selects(word, part.name) for word in given.parts)]
    if given.markdown:
        print(markdown(chosen, reports))
        return 0
    for path, report in zip(given.table, reports, strict=True):
        print(path)
        for part in chosen:
            print(*(f"  {line(figure, report)}" for figure in part.figures), sep="\n")
    return 0


def main(words: list[str] | None = None) -> int:
    """Run the command line; return its status."""
    parts = all_parts()
    given = parse(words, [part.name for part in parts])
    try:
        return measure(given, parts) if given.table is None else show(given, parts)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
