"""A workspace of W&B: the page of a project with panels for what a run logs there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..errors import DtrapError

RESULTS = ("accuracy_mean", "zero_shot_accuracy_mean", "cross_entropy_mean", "calibration_error_mean")
SETTINGS = (
    "dataset",
    "shot",
    "backbone",
    "tuner",
    "method",
    "seed",
    "lambda",
    "beta",
    "rank",
    "learning_rate",
    "steps",
)
COORDINATES = ("lambda", "beta", "rank", "learning_rate", "steps")
GAPS = ("query.gap_drop", "query.modality_gap", "query.centroid_gap", "query.distribution_gap")
LOSSES = ("L_vlm_boundary", "L_ad_boundary", "L_ra_boundary", "L_vlm_end")
FIGURES = ("accuracy", "differences", "measures", "gap-shift", "losses", "classes_1", "classes_2")


def build_workspace(entity: str, project: str, name: str, methods: Sequence[str] = ()) -> Any:
    """Return a workspace; nothing is sent.

    Args:
        entity: User or team.
        project: Project of the runs.
        name: Name of the workspace.
        methods: Names of compared methods, whose paired differences get panels.

    Raises:
        DtrapError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise DtrapError("dtrap dashboard needs wandb-workspaces: pip install 'dtrap[dashboard]'") from error

    def lines(names: Sequence[str]) -> list[Any]:
        return [panels.LinePlot(title=name.replace("_", " "), x="episode", y=[name]) for name in names]

    def section(title: str, found: Sequence[Any], *, is_open: bool = False) -> Any:
        return workspaces.Section(name=title, panels=list(found), is_open=is_open)

    axes = [panels.ParallelCoordinatesPlotColumn(metric=panels.Config(name)) for name in COORDINATES]
    axes.append(panels.ParallelCoordinatesPlotColumn(metric=panels.SummaryMetric("accuracy_mean")))
    differences = [f"difference_mean/{method}" for method in methods]
    sections = [
        section(
            "Results",
            [panels.BarPlot(title="accuracy, percent", metrics=["accuracy_mean"]), *lines((*RESULTS, *differences))],
            is_open=True,
        ),
        section(
            "Settings",
            [
                panels.ParallelCoordinatesPlot(title="settings and accuracy", columns=axes),
                *(
                    panels.ScatterPlot(
                        title=f"accuracy over {name.replace('_', ' ')}",
                        x=panels.Config(name),
                        y=panels.SummaryMetric("accuracy_mean"),
                    )
                    for name in ("lambda", "beta", "learning_rate")
                ),
            ],
            is_open=True,
        ),
        section("Gap measures", lines((*GAPS, *(f"{name}_mean" for name in GAPS)))),
        section("Losses", lines(LOSSES)),
        section("Classes", [panels.WeavePanelSummaryTable(table_name=name) for name in ("per_class", "confusion")]),
        section("Figures", [panels.MediaBrowser(title=name, media_keys=[f"figures/{name}"]) for name in FIGURES]),
    ]
    runs = workspaces.RunsetSettings(
        order=[workspaces.Ordering(workspaces.Summary("accuracy_mean"), ascending=False)],
        pinned_columns=[f"summary:{RESULTS[0]}", *(f"config:{name}" for name in SETTINGS)],
    )
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis="episode"),
        runset_settings=runs,
    )


def workspace_json(workspace: Any) -> str:
    """Return a workspace as the JSON that W&B stores, with entity, project and name around it."""
    # Private: the library shows a workspace as JSON only to the server.
    view = workspace._to_model()
    content = {
        "entity": view.entity,
        "project": view.project,
        "name": view.display_name,
        "spec": json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True)),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _has_key() -> bool:
    """Whether W&B knows an API key; nothing is asked."""
    import wandb

    try:
        return bool(wandb.login(prompt=False))
    except TypeError:  # before the argument existed
        return bool(wandb.api.api_key)
    except wandb.Error:
        return False


def save_workspace(workspace: Any) -> str:
    """Create the workspace at W&B and return its address.

    Raises:
        DtrapError: There is no API key, or W&B refuses it.
    """
    if not _has_key():
        raise DtrapError(
            "no W&B API key: run `wandb login`, or set WANDB_API_KEY. Without one, --json FILE writes the workspace."
        )
    try:
        return str(workspace.save().url)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DtrapError(
            f"W&B did not take the workspace ({reason}). Check --entity and --project; the project must exist."
        ) from error
