"""Measure how well `--reject` finds images of none of the classes: classes that a classifier has not seen.

    python tools/rejection_study.py FOLDER [FOLDER ...] --repeats 4 [-- OPTIONS OF dtrap fit]

Each folder has one folder per class. A repeat draws half of the classes; a classifier is tuned on a third of their
images, its thresholds come from another third, and the last third and all images of the other classes are predicted.
Prints a table in Markdown: the area under the ROC curve, and the rejected shares of images of known and of unknown
classes at 5 % and 10 %.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from dtrap import Classifier
from dtrap.cli import main
from dtrap.protocol import mean_interval
from dtrap.protocol.rejection import thresholds_of
from dtrap.protocol.statistics import binomial_interval
from torchmetrics.functional.classification import binary_auroc

RATES = (0.05, 0.1)
KINDS = ("tuned", "zero_shot")


def draw(folder: Path, place: Path, rng: random.Random) -> None:
    """Link the images of one repeat into train, held_out, known and unknown."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    chosen = set(rng.sample(classes, len(classes) // 2))
    for each in classes:
        images = sorted(path for path in each.iterdir() if path.is_file())
        rng.shuffle(images)
        third = len(images) // 3
        parts = {"train": images[:third], "held_out": images[third : 2 * third], "known": images[2 * third :]}
        for part, own in parts.items() if each in chosen else [("unknown", images)]:
            (place / part / each.name).mkdir(parents=True)
            for image in own:
                (place / part / each.name / image.name).symlink_to(image.resolve())


def fit(place: Path, words: list[str]) -> Classifier:
    """Tune a classifier and load it."""
    command = ["fit", "--config", "folder.yaml", "--data.root", str(place / "train")]
    command += ["--data.query_root", str(place / "held_out"), "--protocol.folder", str(place / "run"), *words]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(command)
    return Classifier.load(place / "run")


def area(known: pd.Series, unknown: pd.Series) -> float:
    """Return the area under the ROC curve in percent: 50 is a guess, 100 tells all apart."""
    values = torch.tensor([*known, *unknown], dtype=torch.float64)
    is_known = torch.tensor([1] * len(known) + [0] * len(unknown))
    # The values as ranks: torchmetrics would take values outside of [0, 1] for logits and lose digits.
    ranks = values.unique(return_inverse=True)[1].double() / len(values)
    return 100 * float(binary_auroc(ranks, is_known))


def measure(classifier: Classifier, place: Path, areas: Any, counts: Any) -> None:
    """Add the figures of one repeat."""
    for kind in KINDS:
        similar = {
            part: classifier.predict(place / part, reject=RATES[0], reject_by=kind)
            for part in ("train", "known", "unknown")
        }
        known, unknown = similar["known"]["similarity"], similar["unknown"]["similarity"]
        areas[f"{kind} similarity"].append(area(known, unknown))
        if kind == "tuned":
            name = "confidence" if "confidence" in similar["known"] else "score"
            areas["confidence"].append(area(similar["known"][name], similar["unknown"][name]))
        training = torch.tensor(similar["train"]["similarity"].to_numpy())
        card = classifier.card.rejection or {}
        for source, values in (("held-out", card[kind]), ("training", thresholds_of(training))):
            for rate in RATES:
                value = values[card["rates"].index(rate)]
                for part, found in (("known", known), ("unknown", unknown)):
                    below = counts[kind, source, rate, part]
                    below[0] += int((found < value).sum())
                    below[1] += len(found)


def share(count: list[int]) -> str:
    """Return a share with its exact interval."""
    found = binomial_interval(*count)
    return f"{found.mean:.1f} ({found.low:.1f} to {found.high:.1f})"


def run(folder: Path, repeats: int, words: list[str]) -> None:
    """Measure one data set and print its rows."""
    areas: Any = defaultdict(list)
    counts: Any = defaultdict(lambda: [0, 0])
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary)
            draw(folder, place, random.Random(repeat))
            measure(fit(place, words), place, areas, counts)
    print(f"\n{folder.name}, {repeats} repeats")
    for name, values in areas.items():
        print(f"AUROC of the {name}: {mean_interval(values)}")
    print("| similarity | thresholds from | rate | known rejected, % | unknown rejected, % |\n|---|---|---|---|---|")
    for kind in KINDS:
        for source in ("held-out", "training"):
            for rate in RATES:
                both = [share(counts[kind, source, rate, part]) for part in ("known", "unknown")]
                print(f"| {kind} | {source} | {100 * rate:g} % | {' | '.join(both)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    words = sys.argv[1:]
    own = words.index("--") if "--" in words else len(words)
    given, options = parser.parse_args(words[:own]), words[own + 1 :]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for each in given.folders:
        run(each, given.repeats, options or ["--config", "backbones/tiny.yaml", "--trainer.max_epochs", "10"])
