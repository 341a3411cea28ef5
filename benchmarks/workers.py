"""Episodes per minute with several worker processes of one thread, compared with one; the same rows are required.

Each run is `dtrap fit` on the demo with a fresh folder. Start-up is left out: the time goes from the first row of each
worker to the last row. The runs alternate; the figure is the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import verdict

BAR = 1.7


def run(folder: Path, workers: int, episodes: int) -> tuple[float, list[str], float]:
    """Run the demo; return rows per minute, the rows without their times, and the seconds before the first row."""
    words = ["fit", "--config", "demo.yaml", "--protocol.episodes", str(episodes), "--protocol.folder", str(folder)]
    words += ["--trainer.accelerator", "cpu", "--protocol.workers", str(workers)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "dtrap", *words], env=environment, stdout=subprocess.DEVNULL, cwd=folder.parent
    )
    began, times, results = time.monotonic(), [], folder / "results.jsonl"
    while process.poll() is None:
        written = results.read_bytes().count(b"\n") if results.exists() else 0
        times += [time.monotonic()] * (written - len(times))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"dtrap fit ended with status {process.returncode}")
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    times += [time.monotonic()] * (len(rows) - len(times))
    kept = sorted(json.dumps({k: v for k, v in row.items() if k != "seconds"}, sort_keys=True) for row in rows)
    return 60 * (len(rows) - workers) / (times[-1] - times[workers - 1]), kept, times[0] - began


def main() -> int:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ratios, expected, same = [], None, True
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            speeds = {}
            for workers in (1, arguments.workers):
                speed, rows, start = run(Path(folder) / f"{number}_{workers}", workers, arguments.episodes)
                expected = expected or rows
                same, speeds[workers] = same and rows == expected, speed
                print(
                    f"{workers} workers: {speed:.1f} method-episodes a minute, {start:.0f} s until the first",
                    flush=True,
                )
            ratios.append(speeds[arguments.workers] / speeds[1])
    ratio = statistics.median(ratios)
    print(f"same rows: {verdict(same)}")
    print(f"{arguments.workers} workers / 1: {ratio:.2f} (bar {BAR}): {verdict(ratio >= BAR)}")
    return 0 if same and ratio >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
