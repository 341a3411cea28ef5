"""Time and size of `dtrap report --html` on 20 synthetic runs of 800 episodes with two methods each.

    python benchmarks/report.py [--runs 20] [--episodes 800] [--monitor]

With `--monitor` every row has the values and curves of AlignmentMonitor, too.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dtrap.protocol.summary import summarize

SETS = ("ISIC", "EuroSAT", "CropDisease", "ChestX")
METHODS = ("svl-ra", "baseline")
MEASURES = (
    "modality_gap", "centroid_gap", "distribution_gap", "relative_modality_gap", "gap_drop", "least_shift", "alignment",
    "uniformity", "scatter_ratio", "nearest_prototype_accuracy", "relation_rank_correlation", "relation_divergence",
    "cross_entropy", "fitted_scale", "fitted_cross_entropy", "fitted_gap_drop",
)  # fmt: skip


def row_of(numbers, episode, method, seed, *, monitor):
    """A row of 75 queries in five of ten classes."""
    classes = numbers.sample([f"class {number}" for number in range(10)], 5)
    confusion = [[0] * 5 for _ in range(5)]
    for true in range(5):
        for _ in range(15):
            confusion[true][true if numbers.random() < 0.6 else numbers.randrange(5)] += 1
    right = sum(confusion[n][n] for n in range(5))
    steps = [round(n * 249 / 49) for n in range(50)]

    def course():
        return [numbers.random() for _ in steps]

    row = {
        "episode": episode, "method": method, "seed": seed, "classes": classes, "support_images": 5,
        "zero_shot_accuracy": 40.0, "accuracy": 100 * right / 75, "test_images": 75, "binomial_interval": [0.0, 100.0],
        "cross_entropy": numbers.random(), "calibration_error": 10 * numbers.random(),
        "per_class": {name: 100 * confusion[n][n] / 15 for n, name in enumerate(classes)}, "confusion": confusion,
        "losses": {"boundary": {"total": numbers.random()}, "end": {"total": numbers.random()}}, "seconds": 3.2,
        "terms": {
            "step": steps, "total": course(), "L_vlm": course(),
            "L_ad": [v if s < 150 else None for v, s in zip(course(), steps, strict=True)],
            "L_ra": [v if 0 < s < 150 else None for v, s in zip(course(), steps, strict=True)], "stage": [0, 150],
        },
    }  # fmt: skip
    if monitor:
        shifts = [n / 10 - 1 for n in range(21)]
        row["alignment"] = [
            {
                "step": step, "moment": moment,
                **{images: {name: numbers.random() for name in MEASURES} for images in ("query", "support")},
                "curve": {"shifts": shifts}
                | {name: [numbers.random() for _ in shifts] for name in ("distance", "loss", "accuracy")},
            }
            for step, moment in ((0, "start"), (150, "switch"), (250, "end"))
        ]  # fmt: skip
    return row


def write_run(folder, title, seed, episodes, *, monitor):
    """Write one run folder."""
    numbers = random.Random(seed)
    rows = [
        row_of(numbers, episode, method, seed, monitor=monitor) for episode in range(episodes) for method in METHODS
    ]
    classes = {row["episode"]: row["classes"] for row in rows if row["method"] == METHODS[0]}
    for row in rows:
        row["per_class"] = dict(zip(classes[row["episode"]], row["per_class"].values(), strict=True))
        row["classes"] = classes[row["episode"]]
    data = {"class_path": "dtrap.datamodules.ISICDataModule", "init_args": {"way": 5, "shot": 1, "seed": seed}}
    settings = {
        "data": data,
        "model": {"learning_rate": 2e-4, "tuner": {"class_path": "LoRA", "init_args": {"rank": 16}}},
    }
    identity = {"main": METHODS[0], "data_files": title, "methods": dict.fromkeys(METHODS, settings)}
    summary = summarize(rows, f"{title} 5-way 1-shot", METHODS, episodes=episodes) | {"protocol": "5-way 1-shot"}
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "identity.json").write_text(json.dumps(identity))
    (folder / "summary.json").write_text(json.dumps(summary))


def main():
    """Write the runs, make the page in a process of its own and print its time and size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=800)
    parser.add_argument("--monitor", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder for the runs and the page; a temporary one if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = options.keep or Path(temporary)
        runs = [place / f"run_{number:02d}" for number in range(options.runs)]
        for number, run in enumerate(runs):
            if not run.exists():
                title = SETS[number % 4]
                write_run(run, title, 1 + number // 4, options.episodes, monitor=options.monitor)
        page = place / "page.html"
        told = "print('torch' in sys.modules, file=sys.stderr)"
        code = f"import sys\nfrom dtrap.cli import main\ntry:\n main()\nfinally:\n {told}"
        started = time.monotonic()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", code, "report", *map(str, runs), "--html", str(page)],
            check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        seconds = time.monotonic() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        size = sum(run.joinpath("results.jsonl").stat().st_size for run in runs)
        print(
            f"{options.runs} runs x {options.episodes} episodes x {len(METHODS)} methods, {size / 1e6:.0f} MB of rows"
        )
        print(f"page {page.stat().st_size / 1e6:.2f} MB, {seconds:.1f} s ({processor:.1f} s of one core)")
        print(f"torch imported: {done.stderr.strip().endswith('True')}")


if __name__ == "__main__":
    main()
