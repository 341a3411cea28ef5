"""Runs in processes of their own, whose rows are timed as they come: workers, and the feature store."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from .episodes import needs
from .figures import Figure, Part, Report
from .loading import make_folders
from .measuring import NotRunError
from .settings import ROOT, Settings
from .start_up import checkpoint

STORE_TUNERS = ("tip_adapter_f", "lpp", "linear_head")


def time_rows(settings: Settings, name: str, *words: str, workers: int = 1) -> tuple[float, float]:
    """Run `dtrap fit`; return the seconds before its first row, and rows per minute after the first of each worker.

    Wall time: workers work at the same time. Where several methods run, their rows count alike.

    Raises:
        RuntimeError: The run failed.
    """
    folder = Path(settings.folder) / name
    results = folder / "results.jsonl"
    accelerator = "gpu" if settings.device == "cuda" else "cpu"
    command = [sys.executable, "-m", "dtrap", "fit", *words, "--trainer.accelerator", accelerator]
    command += ["--protocol.folder", str(folder)]
    started, moments = time.monotonic(), []
    errors = Path(settings.folder) / f"{name}.log"
    with errors.open("w") as log:
        process = subprocess.Popen(command, env=settings.environment(), cwd=ROOT, stdout=log, stderr=log)
        ended = False
        while not ended:
            ended = process.poll() is not None
            rows = results.read_bytes().count(b"\n") if results.exists() else 0
            moments += [time.monotonic()] * (rows - len(moments))
            time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(errors.read_text()[-2000:])
    if len(moments) <= workers:
        raise NotRunError(f"the run had {len(moments)} rows; expected more than one for each worker")
    return moments[0] - started, 60 * (len(moments) - workers) / (moments[-1] - moments[workers - 1])


def rows_of(settings: Settings, name: str) -> list[str]:
    """Return the rows of a run without their times, in an order of their own."""
    rows = map(json.loads, (Path(settings.folder) / name / "results.jsonl").read_text().splitlines())
    return sorted(json.dumps({k: v for k, v in row.items() if k != "seconds"}, sort_keys=True) for row in rows)


def measure_workers(settings: Settings, report: Report) -> None:
    """Add the episodes per minute of two workers and of one, each of one thread, in turn.

    Raises:
        RuntimeError: A run failed, or has other rows than the first one.
    """
    needs("workers")
    if find_spec("ray") is None:
        raise NotRunError("ray is not installed")
    episodes, epochs = (4, 1) if settings.tiny else (200, 100)
    words = ["--config", "demo.yaml", "--protocol.episodes", str(episodes), "--trainer.max_epochs", str(epochs)]
    starts: dict[int, list[float]] = {1: [], 2: []}
    rates: dict[int, list[float]] = {1: [], 2: []}
    for number in range(min(settings.repeats, 3)):
        for workers in (1, 2):
            name = f"workers_{workers}_{number}"
            given = [*words, "--protocol.workers", str(workers)]
            seconds, rate = time_rows(settings, name, *given, workers=workers)
            starts[workers].append(seconds)
            rates[workers].append(rate / 2)  # two methods
            if rows_of(settings, name) != rows_of(settings, "workers_1_0"):
                raise RuntimeError(f"{workers} workers have other rows than one")
    for workers in (1, 2):
        report.add(f"workers.start.{workers}", starts[workers])
        report.add(f"workers.rate.{workers}", rates[workers])
    report.add("workers.ratio", [two / one for one, two in zip(rates[1], rates[2], strict=True)])


def measure_store(settings: Settings, report: Report, tuner: str) -> None:
    """Add the episodes per minute of a tuner on a frozen image tower without the store and with one that is full."""
    needs("feature_store")
    root, store = Path(settings.folder) / "store_images", Path(settings.folder) / "store"
    if not root.exists():
        make_folders(root, 200)
    words = ["--config", "eurosat_1shot.yaml", "--config", f"tuners/{tuner}.yaml", "--data.root", str(root)]
    words += [*checkpoint(settings), "--protocol.episodes", "3"]
    if settings.tiny:
        words += ["--trainer.max_epochs", "2"]
    found = {}
    for name, value in (("without", "false"), ("filling", str(store)), ("full", str(store))):
        run = time_rows(settings, f"{tuner}_{name}", *words, "--protocol.feature_store", value)
        found[name] = run[1]
    report.add(f"store.{tuner}.without", found["without"])
    report.add(f"store.{tuner}.full", found["full"])
    report.add(f"store.{tuner}.ratio", found["full"] / found["without"])


def _store(tuner: str) -> Part:
    return Part(
        f"store.{tuner}",
        lambda settings, report: measure_store(settings, report, tuner),
        (
            Figure(f"store.{tuner}.without", f"{tuner} without a feature store", "episodes/min"),
            Figure(f"store.{tuner}.full", f"{tuner}, all views in the store", "episodes/min"),
            Figure(f"store.{tuner}.ratio", f"{tuner}: times as many episodes with the store", "times", least=10),
        ),
        devices=("cpu",),
    )


PARTS = (
    Part(
        "workers",
        measure_workers,
        (
            Figure("workers.rate.1", "200 demo episodes, one worker of one thread", "episodes/min"),
            Figure("workers.rate.2", "the same, two workers", "episodes/min"),
            Figure("workers.ratio", "Two workers: times as many episodes a minute", "times", 1.7),
            Figure("workers.start.1", "one worker: wall time until the first row, left out above", "s"),
            Figure("workers.start.2", "two workers: the same", "s"),
        ),
        devices=("cpu",),
    ),
    *map(_store, STORE_TUNERS),
)
