"""Write the folders of runs as `dtrap fit` leaves them, without training anything."""

import json

from dtrap.protocol.summary import summarize


def write_run(folder, description, accuracies, episodes=2, protocol="5-way 5-shot", more=None, settings=None, **model):
    """Write a run folder and return its path.

    Args:
        folder: The folder.
        description: The task.
        accuracies: By method the accuracies of its episodes.
        episodes: Number of episodes that were asked for.
        protocol: The task without the name of the data.
        more: Further keys of every row, or a function of (method, episode) that returns them.
        settings: By method further settings of identity.json.
        **model: Further keys of each method in the summary; `data`: options of the data module.
    """
    data = {"class_path": "a.DataModule", "init_args": {"way": 5, "shot": 5, "seed": 1, **model.pop("data", {})}}
    rows = [
        {"episode": episode, "method": method, "accuracy": value, "zero_shot_accuracy": 30.0, "seconds": 1.0}
        | (more(method, episode) if callable(more) else more or {})
        for method, values in accuracies.items()
        for episode, value in enumerate(values)
    ]
    folder.mkdir(parents=True)
    summary = summarize(rows, description, list(accuracies), episodes=episodes) | {"protocol": protocol}
    for method in summary["methods"].values():
        method |= model
    methods = {method: {"data": data, **(settings or {}).get(method, {})} for method in accuracies}
    identity = {"main": next(iter(accuracies)), "data_files": description, "methods": methods}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "identity.json").write_text(json.dumps(identity))
    (folder / "results.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def full_row(method, episode, classes=("cat", "dog", "owl")):
    """Further keys of a row with all that charts are made of."""
    value = (hash_of(method) + episode) % 7 / 7
    steps = [0, 5, 10, 15, 20]
    shifts = [-1.0, 0.0, 1.0]
    curve = {"shifts": shifts, "distance": shifts, "loss": [2.0, 1.0 + value, 1.5], "accuracy": [0.5, 0.7, 0.6]}
    return {
        "seed": 1,
        "classes": list(classes),
        "test_images": 30,
        "cross_entropy": 1.0 + value,
        "calibration_error": 10.0 * value,
        "per_class": {name: 50.0 + 10 * n for n, name in enumerate(classes)},
        "confusion": [[7 if row == column else 1 for column in range(len(classes))] for row in range(len(classes))],
        "terms": {
            "step": steps,
            "total": [3.0 + value, 2.0, 1.0, 0.5, 0.2],
            "L_vlm": [2.0, 1.5, 1.0, 0.5, 0.2],
            "L_ad": [1.0, 1.0, 1.0, None, None],
            "L_ra": [None, -0.1, -0.2, None, None],
            "stage": [0, 12],
        },
        "alignment": [{"step": 20, "moment": "end", "query": {"gap_drop": value}, "support": {}, "curve": curve}],
    }


def hash_of(text):
    """A small number that is the same in every process."""
    return sum(map(ord, text))
