"""How an accuracy is written: its value, its interval, and what it rests on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from . import measured
from .measured import Measure
from .statistics import BINOMIAL, CORRECTED, CORRECTED_SHORT, STUDENT, Interval

# What stands beside accuracy where it is measured.
MEASURES = {key: measured.MEASURES[key].title for key in ("balanced_accuracy", "macro_f1", "auroc")}
NAMED = 3
TASK, REPEAT = "task", "repeat"  # units of a run over a user's own folder or table: the only one, one of several


def counted(number: int, noun: str) -> str:
    """Return such as "1 episode" or "1,125 test images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def number_of(unit: str, number: int) -> str:
    """Return the number of a task as it is shown: episodes are counted from 0 as their files, repeats from 1."""
    return str(number + 1 if unit == REPEAT else number)


def of_method(unit: str, row: Mapping[str, Any]) -> str:
    """Return which task of which method a row is of, such as "episode 3 of 'svl-ra'"."""
    if unit == TASK:
        return f"the training of '{row['method']}'"
    return f"{unit} {number_of(unit, row.get(unit, row['episode']))} of '{row['method']}'"


def in_words_of(unit: str, message: str) -> str:
    """Return a message for a run of this unit: a user's own folder has no episodes, but the parts of a run say so.

    Names of options stay, such as `--protocol.episodes`.
    """
    if unit not in (TASK, REPEAT):
        return message
    noun = "training" if unit == TASK else unit
    changed = re.sub(r"(?<![\w./_-])(an) episode(?![\w_])", f"a {noun}", message)
    return re.sub(r"(?<![\w./_-])episode(s?)(?![\w_])", rf"{noun}\1", changed)


def told_diverged(unit: str, row: Mapping[str, Any]) -> str:
    """Return the warning about the first row of a method that diverged."""
    told = f"{of_method(unit, row)} diverged: {row['diverged']}."
    if unit == TASK:
        return told
    return f"{told} Its row is marked and does not count in the mean; others like it are counted at the end."


def _all(number: int, noun: str) -> str:
    return f"both {noun}s" if number == 2 else f"all {counted(number, noun)}"


def percent(interval: Mapping[str, Any] | None, unit: str = "episode", *, said: bool = False) -> str:
    """Return an accuracy with its interval, "" for None: `51.2 ± 0.6 %` or `70.0 %, 34.8 to 93.3`.

    Args:
        interval: An `Interval` as a dictionary.
        unit: What an episode is called.
        said: Whether to say what the interval is: `70.0 % (95 % 34.8 to 93.3, exact binomial)`.
    """
    if interval is None:
        return ""
    found = Interval(**interval)
    if not said:
        ends = [_ends(found)] if found.kind == BINOMIAL else []
        return ", ".join([_value(found, unit), *ends, *(["too few"] if found.too_few else [])])
    notes = [f"95 %, {found.kind}"] if found.kind in (STUDENT, CORRECTED) else []
    notes += [f"95 % {_ends(found)}, {BINOMIAL}"] if found.kind == BINOMIAL else []
    notes += [f"{counted(found.count, unit)} are too few"] if found.too_few else []
    return _with_notes(_value(found, unit), notes)


def so_far(found: Interval, unit: str) -> str:
    """Return a running mean with what it rests on: `51.2 ± 1.9 % (36 episodes, 2,700 test images)`."""
    notes = [f"95 % {_ends(found)}"] if found.kind == BINOMIAL else []
    notes += [counted(found.count, unit)] if found.kind in (STUDENT, CORRECTED) else []
    notes += _corrected(found)
    notes += ["too few"] if found.too_few else []
    notes += [] if found.images is None else [counted(found.images, "test image")]
    return _with_notes(_value(found, unit), notes)


def _value(found: Interval, unit: str) -> str:
    if found.identical:
        return f"{found.mean:.1f} % in {_all(found.count, unit)}"
    half_width = "" if found.half_width is None else f" ± {found.half_width:.1f}"
    return f"{found.mean:.1f}{half_width} %"


def _ends(found: Interval) -> str:
    return f"{found.low:.1f} to {found.high:.1f}"


def _corrected(found: Interval) -> list[str]:
    return [CORRECTED_SHORT] if found.kind == CORRECTED else []


def _with_notes(value: str, notes: Sequence[str]) -> str:
    return f"{value} ({', '.join(notes)})" if notes else value


def points(interval: Mapping[str, Any] | None) -> str:
    """Return a paired difference in percentage points, such as `+0.09 ± 1.23 (15 pairs)`; "" for None."""
    if interval is None:
        return ""
    found = Interval(**interval)
    pairs = counted(found.count, "pair")
    if found.identical:
        return f"identical ({pairs})" if found.mean == 0 else f"{found.mean:+.2f} in {_all(found.count, 'pair')}"
    half_width = "" if found.half_width is None else f" ± {found.half_width:.2f}"
    rests_on = ", ".join([pairs, *_corrected(found)])
    return f"{found.mean:+.2f}{half_width} ({rests_on}){', too few' if found.too_few else ''}"


def written(
    interval: Mapping[str, Any] | None, measure: Measure, episodes: int, unit: str = "episode", *, symbol: str = ""
) -> str:
    """Return the mean of a measure, such as `2.062 ± 0.120`; "" for None.

    Where it is not measured in every episode it says so: `2.062 ± 0.120 (in 12 of 15 episodes)`.

    Args:
        interval: An `Interval` as a dictionary.
        measure: How it is written.
        episodes: Number of the episodes whose accuracy stands beside it, with what that says of their number.
        unit: What an episode is called.
        symbol: Unit that follows the numbers.
    """
    if interval is None:
        return ""
    found = Interval(**interval)
    mean, notes = f"{found.mean:.{measure.digits}f}", []
    if found.half_width:
        mean += f" ± {found.half_width:.{measure.digits}f}"
    mean += f" {symbol}" if symbol else ""
    if found.identical:
        mean += f" in {_all(found.count, unit)}"
    if found.count != episodes:
        notes = [f"in {found.count} of {counted(episodes, unit)}", *(["too few"] if found.too_few else [])]
    return _with_notes(mean, notes)


def change(interval: Mapping[str, Any] | None, measure: Measure, pairs: int, *, symbol: str = "") -> str:
    """Return the paired difference of a measure, such as `-0.742 ± 0.170`; "" for None.

    Args:
        interval: An `Interval` as a dictionary.
        measure: How it is written.
        pairs: Number of pairs of the accuracies beside it; another number is said.
        symbol: Unit that follows the numbers.
    """
    if interval is None:
        return ""
    found = Interval(**interval)
    digits, notes = measure.difference_digits, []
    mean = f"{found.mean:+.{digits}f}"
    if found.half_width:
        mean += f" ± {found.half_width:.{digits}f}"
    mean += f" {symbol}" if symbol else ""
    if found.identical:
        mean = f"{mean} in {_all(found.count, 'pair')}" if found.mean else "identical"
    if found.count != pairs:
        notes = [counted(found.count, "pair"), *(["too few"] if found.too_few else [])]
    return _with_notes(mean, notes)


def tested(each: Sequence[int] | None, episodes: int) -> str:
    """Return such as "75 test images each" for the smallest and largest number of an episode; "" if unknown."""
    if each is None:
        return ""
    least, most = each
    number = counted(most, "test image") if least == most else f"{least:,} to {most:,} test images"
    return number if episodes == 1 else f"{number} each"


def untested(method: Mapping[str, Any]) -> str:
    """Return a note on the classes without test images, such as "2 of 10 classes have no test image: 'a', 'b'"."""
    names = method.get("untested_classes") or []
    if not names:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    verb = "has" if len(names) == 1 else "have"
    shown = ", ".join(map(repr, names[:NAMED]))
    return f"{len(names)} of {method['classes']:,} classes {verb} no test image: {shown}{more}"


def copied(method: Mapping[str, Any]) -> str:
    """Return a note on test images that were trained on, such as "3 of 10 test images are training images"."""
    count, images = method.get("copied_test_images"), method.get("test_images")
    return f"{count:,} of {counted(images, 'test image')} are training images" if count and images else ""


def skipped(method: Mapping[str, Any]) -> str:
    """Return a note on lost updates, such as "3 updates lost to overflows in 16-mixed"; "" for none."""
    count = method.get("skipped_updates")
    return f"{counted(count, 'update')} lost to overflows in 16-mixed" if count else ""


def diverged(method: Mapping[str, Any], unit: str = "episode") -> str:
    """Return a note on the episodes that diverged, with the reason of the first; "" for none."""
    faults = method.get("diverged") or []
    if not faults:
        return ""
    if unit == TASK:
        return f"the training diverged ({faults[0]['reason']})"
    numbers = ", ".join(number_of(unit, fault[unit]) for fault in faults[:NAMED])
    more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    which = f"{unit}{'' if len(faults) == 1 else 's'} {numbers}{more}"
    return f"{len(faults)} diverged and left out ({which}: {faults[0]['reason']})"
