"""The summary of a run: the numbers of summary.json, and the lines on the console."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..console import print_table
from . import claims
from .claims import counted, percent, points
from .measured import START, TESTED, ZERO_SHOT, measure_of, measured_values
from .run_folder import Row
from .statistics import CORRECTED, Interval, binomial_interval, mean_interval, paired_difference, resampling_ratio

# Measures that the second table shows, as far as there are any; the first has those of accuracy.
SHOWN = ("cross_entropy", "calibration_error", "query.gap_drop")
TITLE_WIDTH = 20


def summarize(
    rows: Sequence[Row],
    description: str,
    methods: Sequence[str],
    *,
    episodes: int,
    support_images: int | None = None,
    unit: str = "episode",
) -> dict[str, Any]:
    """Compute the numbers of a run over the episodes 0 .. episodes - 1; other episodes and methods do not count.

    Args:
        rows: Result rows as `ResultRows.read` returns them; accuracies in percent.
        description: The task, such as "ISIC 5-way 5-shot".
        methods: Names of the methods, in the order of the output; differences are the first minus each other.
        episodes: Number of requested episodes.
        support_images: Number of training images of an episode, where the rows do not say it.
        unit: What an episode is called: "episode", "seed" in the all-way protocol, or "repeat" of held-out images.

    Returns:
        `description`, `unit`, `episodes`, `support_images`, `seconds` (all rows together), `methods` {name:
        `episodes`, `diverged` [...], `support_images`, `test_images`, `test_images_each` [least, most], `classes`,
        `untested_classes`, `accuracy`, `zero_shot_accuracy`, `per_class` {class: `mean`, `episodes`, `images`},
        `seconds`, of repeats `resampled` (test images per training image), and where measured `balanced_accuracy`,
        `macro_f1`, `auroc` and every other name of `row_measures`}, `differences` {name: ...} of accuracies, and
        `measure_differences` {name: {measure: ...}}. Accuracies, measures and differences are an `Interval` as a
        dictionary, or None. Diverged episodes count in no mean.
    """
    chosen = {name: [row for row in rows if row["method"] == name and row["episode"] < episodes] for name in methods}
    values = {name: measured_values(found) for name, found in chosen.items()}
    first, ratio = values[methods[0]], resampling_ratio(row for found in chosen.values() for row in found)
    summaries = {name: _method_summary(chosen[name], unit) for name in methods}
    return {
        "description": description,
        "unit": unit,
        "episodes": episodes,
        "support_images": support_images,
        "seconds": sum(summary["seconds"] for summary in summaries.values()),
        "methods": summaries,
        "differences": {name: _differences(first, values[name], ratio).get("accuracy") for name in methods[1:]},
        "measure_differences": {name: _differences(first, values[name], ratio) for name in methods[1:]},
    }


summarise = summarize  # the name in dtrap 0.1.0


def render(summary: Mapping[str, Any], console: Console) -> None:
    """Print the result line of each method and, for several methods, tables with the paired differences.

    Lines are neither cut nor wrapped at any width of the console, and have no colors.
    """
    if len(summary["methods"]) > 1:
        print_table(_table(summary), console)
        if any(method.get(name) for method in summary["methods"].values() for name in SHOWN):
            print_table(_measures_table(summary), console)
    for line in result_lines(summary):
        console.print(Text(line), soft_wrap=True)


def result_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return one line per method: description, episodes, test images, accuracy with its interval, zero-shot accuracy.

    The method's name follows the description if there are several methods or it is transductive. An unfinished run has
    `37 of 400 episodes`. A run without held-out images has no accuracy. Diverged episodes and classes without test
    images are named.
    """
    several = len(summary["methods"]) > 1
    lines = []
    for name, method in summary["methods"].items():
        named = several or name.endswith("transductive")
        start = [summary["description"], name] if named else [summary["description"]]
        lines.append(" · ".join(part for part in start + _claims(summary, method) if part))
    return lines


def difference_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return one line per method with its paired differences: `svl-ra minus baseline, paired: +0.09 ± 1.23 (15 pairs)`.

    Those of the other measures follow: ` · cross-entropy -0.742 ± 0.170 nats`.
    """
    first = next(iter(summary["methods"]))
    lines = []
    for name, found in summary["differences"].items():
        if found:
            parts = [f"{first} minus {name}, paired: {points(found)}"]
            for key, difference in summary.get("measure_differences", {}).get(name, {}).items():
                if key in SHOWN:
                    measure = measure_of(key)
                    text = claims.change(difference, measure, found["count"], symbol=measure.difference_unit)
                    parts.append(f"{measure.title} {text}")
            lines.append(" · ".join(parts))
    return lines


def _claims(summary: Mapping[str, Any], method: Mapping[str, Any]) -> list[str]:
    done, asked, unit = method["episodes"], summary["episodes"], summary["unit"]
    count = f"{done} of {counted(asked, unit)}" if done < asked else counted(asked, unit)
    count = "" if unit == claims.TASK and asked == 1 else count
    if done == 0:
        return [count, "no result yet"]
    left_out = claims.diverged(method, unit)
    images = method.get("support_images") or summary["support_images"]
    if method["accuracy"] is None:
        trained = "" if images is None else f"trained on {counted(images, 'image')}"
        reason = "no accuracy" if left_out else "no held-out images, so no accuracy"
        return [count if asked > 1 or left_out else "", trained, left_out, reason]
    tested = claims.tested(method.get("test_images_each"), done)
    if asked == 1 and images is not None and tested:
        tested = f"trained on {counted(images, 'image')}, tested on {method['test_images']:,}"
    zero_shot = method["zero_shot_accuracy"]
    compared = "" if zero_shot is None else f"  (zero-shot {percent(zero_shot, unit)})"
    others = [f"{title} {percent(method[key], unit)}" for key, title in claims.MEASURES.items() if method.get(key)]
    beside = ", ".join([*_measured(method, unit), *others])
    accuracy = f"{percent(method['accuracy'], unit, said=True)}{compared}"
    notes = [left_out, claims.copied(method), claims.untested(method), claims.skipped(method)]
    return [count, tested, accuracy, beside, *notes]


def _measured(method: Mapping[str, Any], unit: str) -> list[str]:
    """Return such as `cross-entropy 2.062 ± 0.120 nats (zero-shot 1.602 ± 0.030)` for what is measured."""
    parts = []
    for key in TESTED[1:]:
        measure, episodes = measure_of(key), method["accuracy"]["count"]
        text = claims.written(method.get(key), measure, episodes, unit, symbol=measure.unit)
        zero_shot = claims.written(method.get(ZERO_SHOT + key), measure, episodes, unit)
        parts += [f"{measure.title} {text}{f' (zero-shot {zero_shot})' if zero_shot else ''}"] if text else []
    return parts


def _measures_table(summary: Mapping[str, Any]) -> Table:
    """Return what accuracy hides: the shown measures, with their paired differences."""
    methods = summary["methods"]
    caption = Text(f"  difference: {next(iter(methods))} minus this, paired")
    table = Table(box=box.SIMPLE, caption=caption, caption_justify="left")
    table.add_column("method", no_wrap=True)
    names = [name for name in SHOWN if any(method.get(name) for method in methods.values())]
    for name in names:
        measure = measure_of(name)
        title = [*textwrap.wrap(measure.title, TITLE_WIDTH), *([f"({measure.unit})"] if measure.unit else [])]
        table.add_column(Text("\n".join(title)), justify="right", no_wrap=True)
        table.add_column(Text("difference"), justify="right", no_wrap=True)
    # Before the training the monitor measures the features of the zero-shot test.
    before = {name: f"{name}@{START}" if "." in name else ZERO_SHOT + name for name in names}
    zero_shots = [[method.get(name) for name in before.values()] for method in methods.values()]
    if any(zero_shots[0]) and all(found == zero_shots[0] for found in zero_shots):
        table.add_row("zero-shot", *_measure_cells(summary, next(iter(methods)), before, {}))
    for name in methods:
        differences = summary["measure_differences"].get(name, {})
        table.add_row(Text(name), *_measure_cells(summary, name, dict(zip(names, names, strict=True)), differences))
    return table


def _measure_cells(
    summary: Mapping[str, Any], method: str, names: Mapping[str, str], differences: Mapping[str, Any]
) -> list[Text]:
    """Return the mean of each measure, whose name in the summary `names` gives, and its paired difference."""
    found, cells = summary["methods"][method], []
    episodes = (found["accuracy"] or {"count": 0})["count"]
    pairs = (differences.get("accuracy") or {"count": 0})["count"]
    for key, name in names.items():
        measure = measure_of(key)
        cells.append(Text(claims.written(found.get(name), measure, episodes, summary["unit"])))
        cells.append(Text(claims.change(differences.get(key), measure, pairs)))
    return cells


def _table(summary: Mapping[str, Any]) -> Table:
    methods, unit = summary["methods"], summary["unit"]
    corrected = any((method["accuracy"] or {}).get("kind") == CORRECTED for method in methods.values())
    caption = Text(f"  ±: 95 %, {CORRECTED}") if corrected else None
    table = Table(box=box.SIMPLE, caption=caption, caption_justify="left")
    table.add_column("method", no_wrap=True)
    beside = [key for key in claims.MEASURES if any(method.get(key) for method in methods.values())]
    first = next(iter(methods))
    weight = "test images" if unit == claims.TASK else f"{unit}s × images"
    titles = ["accuracy", *(claims.MEASURES[key] for key in beside), "zero-shot", weight]
    for title in [*titles, f"{first} minus this, paired"]:
        table.add_column(Text(title), justify="right", no_wrap=True)
    for name, method in methods.items():
        values = [percent(method.get(key), unit) for key in (*beside, "zero_shot_accuracy")]
        difference = points(summary["differences"].get(name))
        cells = [name, _accuracy_cell(method, unit), *values, _weight(method, unit), difference]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _accuracy_cell(method: Mapping[str, Any], unit: str) -> str:
    untested, faults = method.get("untested_classes") or [], method.get("diverged") or []
    notes = [f"{method['classes'] - len(untested)} of {method['classes']} classes"] if untested else []
    notes += [f"{len(faults)} diverged"] if faults else []
    value = percent(method["accuracy"], unit) or ("no accuracy" if method["episodes"] else "no result yet")
    return f"{value} ({', '.join(notes)})" if notes else value


def _weight(method: Mapping[str, Any], unit: str) -> str:
    """Episodes and test images of each, such as "15 × 75"; of the only task the test images."""
    if method["accuracy"] is None:
        return ""
    episodes, each = str(method["accuracy"]["count"]), method.get("test_images_each")
    if unit == claims.TASK:
        return "" if each is None else f"{sum(each) // 2:,}"
    if each is None:
        return episodes
    return f"{episodes} × {each[0]:,}" if each[0] == each[1] else f"{episodes} × {each[0]:,} to {each[1]:,}"


def _method_summary(rows: Sequence[Row], unit: str) -> dict[str, Any]:
    sound = [row for row in rows if not row.get("diverged")]
    images = [tested_images(row) for row in sound if row.get("accuracy") is not None]
    known = [number for number in images if number is not None]
    each = [min(known), max(known)] if known and len(known) == len(images) else None
    supports = {row.get("support_images") for row in sound}
    return {
        "episodes": len(rows),
        "diverged": [
            {"episode": row["episode"], unit: row.get(unit, row["episode"]), "reason": row["diverged"]}
            for row in rows
            if row.get("diverged")
        ],
        "support_images": supports.pop() if len(supports) == 1 else None,
        "test_images": sum(known) if each else None,
        "test_images_each": each,
        **_untested(sound),
        "accuracy": _interval(sound),
        "zero_shot_accuracy": _interval(sound, "zero_shot_accuracy"),
        **{key: _interval(sound, key) for key in claims.MEASURES if _have(sound, key)},
        "copied_test_images": sum(row.get("copied_test_images") or 0 for row in sound),
        **_skipped(sound),
        **_measures(sound),
        "per_class": _per_class(sound),
        **_resampled(sound),
        "seconds": sum(row.get("seconds") or 0.0 for row in rows if "same_as" not in row),
    }


def _resampled(rows: Sequence[Row]) -> dict[str, float]:
    """Test images per training image of repeats, by which the intervals are corrected; empty for episodes."""
    ratio = resampling_ratio(rows)
    return {} if ratio is None else {"resampled": ratio}


def _skipped(rows: Sequence[Row]) -> dict[str, int]:
    """Number of updates that the loss scale of 16-mixed has left out, where there are any."""
    skipped = sum(row.get("skipped_updates") or 0 for row in rows)
    return {"skipped_updates": skipped} if skipped else {}


def tested_images(row: Row) -> int | None:
    """Return the number of test images behind a row's accuracy; None if an old row does not say it."""
    if row.get("test_images") is not None:
        return int(row["test_images"])
    confusion = row.get("confusion")
    return None if confusion is None else sum(map(sum, confusion))


def mean_of(rows: Sequence[Row], key: str = "accuracy") -> Interval | None:
    """Return the mean of an accuracy over rows, with the interval over episodes, or over the images of a single one.

    That of repeats is the corrected resampled one.
    """
    values = [(row[key], tested_images(row)) for row in rows if row.get(key) is not None]
    if not values:
        return None
    images = [number for _, number in values if number]
    (value, number), *others = values
    if not others and number and key in ("accuracy", "zero_shot_accuracy"):
        return binomial_interval(round(value / 100 * number), number)
    total = sum(images) if len(images) == len(values) else None
    return replace(mean_interval((value for value, _ in values), resampling_ratio(rows)), images=total)


def _interval(rows: Sequence[Row], key: str = "accuracy") -> dict[str, Any] | None:
    found = mean_of(rows, key)
    return None if found is None else asdict(found)


def _have(rows: Sequence[Row], key: str) -> bool:
    """Whether all rows with an accuracy have this number, too: old ones have fewer."""
    tested = [row for row in rows if row.get("accuracy") is not None]
    return bool(tested) and all(row.get(key) is not None for row in tested)


def _untested(rows: Sequence[Row]) -> dict[str, Any]:
    """Number of classes of an episode, and those that had no test image in an episode of theirs."""
    tested = [row for row in rows if row.get("per_class") and row.get("classes")]
    missing = dict.fromkeys(name for row in tested for name in row["classes"] if row["per_class"].get(name) is None)
    return {"classes": max((len(row["classes"]) for row in tested), default=None), "untested_classes": list(missing)}


def _per_class(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return the mean accuracy of each class over its episodes, and its number of test images where rows say it."""
    accuracies: defaultdict[str, list[float]] = defaultdict(list)
    images: defaultdict[str, list[int]] = defaultdict(list)
    for row in rows:
        tested = [sum(counts) for counts in row.get("confusion") or []]
        known = dict(zip(row.get("classes") or [], tested, strict=False))
        for name, accuracy in (row.get("per_class") or {}).items():
            if accuracy is not None:
                accuracies[name].append(accuracy)
                images[name] += [known[name]] if name in known else []
    found: dict[str, dict[str, Any]] = {}
    for name, values in sorted(accuracies.items()):
        found[name] = {"mean": sum(values) / len(values), "episodes": len(values)}
        if len(images[name]) == len(values):
            found[name]["images"] = sum(images[name])
    return found


def _measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the intervals of all measures but accuracies; rows of an earlier version lack some and do not count."""
    tested = {row["episode"]: tested_images(row) for row in rows}
    found: dict[str, Any] = {}
    ratio = resampling_ratio(rows)
    for name, values in measured_values(rows).items():
        if name not in ("accuracy", "zero_shot_accuracy", *claims.MEASURES):
            images = [number for number in map(tested.get, values) if number]
            whole = len(images) == len(values) and not name.startswith("support.")
            mean = mean_interval(values.values(), ratio)
            found[name] = asdict(replace(mean, images=sum(images) if whole else None))
    return found


def _differences(
    first: Mapping[str, Mapping[int, float]], other: Mapping[str, Mapping[int, float]], ratio: float | None
) -> dict[str, dict[str, Any]]:
    """Return the paired differences of the measures that both methods have in an episode."""
    common = [name for name in first if first[name].keys() & other.get(name, {}).keys()]
    return {name: asdict(paired_difference(first[name], other[name], ratio)) for name in common}
