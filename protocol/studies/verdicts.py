"""The verdict of a study on an open question, by a rule that was fixed before its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..claims import counted
from ..measured import measure_of, measured_values
from ..statistics import Interval, binomial_interval, mean_interval, paired_difference, resampling_ratio
from .recorded import StudyCell, StudyPart

NEAR_DOMAIN = "near_domain"
RULE = "better or worse where the 95 % interval of the paired difference excludes 0, undecided elsewhere"
NEAR_RULE = (
    "the warning is right where it warns and the arm is worse in that episode, or is silent and the arm is not worse"
)


def verdict_lines(part: StudyPart) -> list[str]:
    """Return the rule and a line for each arm, or [] for a study that decides nothing.

    Args:
        part: A part whose `verdict` is a flat name of a measure, or "near_domain".
    """
    if not part.verdict or part.compare is None:
        return []
    others = [arm for arm in part.arms if arm != part.compare]
    if part.verdict == NEAR_DOMAIN:
        return [f"Rule: {NEAR_RULE}.", *(line for arm in others for line in _near_lines(part, arm))]
    return [f"Rule: {RULE}.", *(_line(part, arm, part.verdict) for arm in others)]


def _line(part: StudyPart, arm: str, name: str) -> str:
    measure, sign = measure_of(name), -1 if measure_of(name).better == "lower" else 1
    found: dict[str, list[str]] = {"better": [], "worse": [], "undecided": [], "not run": []}
    for cell in part.cells:
        difference = _difference(cell, arm, str(part.compare), name)
        if difference is None:
            found["not run"].append(cell.name)
            continue
        text = f"{cell.name} {difference.mean:+.{measure.digits + 1}f}"
        text += f" ± {difference.half_width:.{measure.digits + 1}f}" if difference.half_width else ""
        found[_side(difference, sign)].append(f"{text}, {counted(difference.count, 'pair')}")
    parts = [f"{word} in {len(cells)} ({'; '.join(cells)})" for word, cells in found.items() if cells]
    return f"{arm} minus {part.compare}, {measure.title}: {', '.join(parts)}"


def _side(difference: Interval, sign: int) -> str:
    """Return the verdict of one cell; two or three pairs, and equal differences, decide nothing."""
    if (
        difference.low is None
        or difference.high is None
        or difference.too_few
        or difference.low <= 0 <= difference.high
    ):
        return "undecided"
    return "better" if sign * difference.mean > 0 else "worse"


def _difference(cell: StudyCell, arm: str, compare: str, name: str) -> Interval | None:
    own, base = (measured_values(cell.rows[each]).get(name, {}) for each in (arm, compare))
    ratio = resampling_ratio(row for each in (arm, compare) for row in cell.rows[each])
    return paired_difference(own, base, ratio) if own.keys() & base.keys() else None


def _near_lines(part: StudyPart, arm: str) -> list[str]:
    warned: list[float] = []
    silent: list[float] = []
    for cell in part.cells:
        own, base = (measured_values(cell.rows[each]).get("accuracy", {}) for each in (arm, str(part.compare)))
        near = _near_episodes(cell.rows[arm])
        for episode in sorted(own.keys() & base.keys() & near.keys()):
            (warned if near[episode] else silent).append(own[episode] - base[episode])
    total = len(warned) + len(silent)
    if not total:
        return [f"{arm} minus {part.compare}: no episode has both arms and the callback NearDomainWarning"]
    wrong = sum(value >= 0 for value in warned) + sum(value < 0 for value in silent)
    rate = binomial_interval(wrong, total)
    lines = [
        f"The warning was wrong in {wrong} of {counted(total, 'episode')}: {rate.mean:.1f} % "
        f"(95 % {rate.low:.1f} to {rate.high:.1f}, {rate.kind})."
    ]
    for name, values in (("where it warned", warned), ("where it was silent", silent)):
        mean = f"{mean_interval(values)}, worse in {sum(value < 0 for value in values)}" if values else "no episode"
        lines.append(f"{arm} minus {part.compare}, accuracy, {name}: {mean}")
    return lines


def _near_episodes(rows: Sequence[Mapping[str, Any]]) -> dict[int, bool]:
    found = {row["episode"]: row.get("near_domain") for row in rows}
    return {episode: bool(value["near"]) for episode, value in found.items() if isinstance(value, Mapping)}
