"""Makes the plan of a study: resolves its cells, and measures what an episode takes where no row says it."""

from __future__ import annotations

from collections.abc import Sequence

from .folder import StudyFolder
from .measure import measure
from .plan import Plan, PlannedCell, unknown_costs
from .resolve import ResolvedCell, Sources
from .run import changed


def make_plan(made_of: str, cells: Sequence[ResolvedCell], folder: StudyFolder) -> Plan:
    """Return the plan of resolved cells, with the rows counted and the times measured that no row says.

    Args:
        made_of: Digest of what the plan depends on.
        cells: All cells of the study.
        folder: The study's folder.
    """
    sources = Sources(cells)
    order = {found: number for number, found in enumerate(dict.fromkeys(sources.folders.values()))}
    planned = []
    for found in cells:
        here = sources.folders[found.cell.title]
        planned.append(
            PlannedCell(
                found.cell.title,
                here,
                found.episodes,
                found.unit,
                [arm.name for arm in found.arms],
                [
                    _is_earlier(found, number)
                    or any(order[source] < order[here] for source, _ in sources.of(found, number))
                    for number in range(len(found.arms))
                ],
                list(found.costs),
            )
        )
    plan = Plan(made_of, planned)
    plan.count(folder)
    for found in cells:
        name = sources.folders[found.cell.title]
        difference = changed(folder.run_folder(name), found) if plan.counts[name].size else ""
        if difference:
            plan.changed[found.cell.title] = difference
    by_title = {found.cell.title: found for found in cells}
    plan.measured, plan.reasons = measure({cost: by_title[title] for cost, title in unknown_costs(plan).items()})
    return plan


def _is_earlier(found: ResolvedCell, number: int) -> bool:
    """Whether an arm trains the same as an earlier one of its cell, whose rows it gets."""
    return found.arm_keys[number] in found.arm_keys[:number]
