"""Study folders written by hand: `study.json` and the rows of its cells, without a training."""

import json

import numpy as np

SETS = {
    "isic_1shot.yaml": "ISIC 5-way 1-shot",
    "eurosat_1shot.yaml": "EuroSAT 5-way 1-shot",
    "crop_disease_1shot.yaml": "CropDisease 5-way 1-shot",
    "chestx_1shot.yaml": "ChestX 5-way 1-shot",
}


def rows_of(method, accuracies, **more):
    """Result rows of a method, an episode for each accuracy."""
    return [
        {"episode": episode, "method": method, "seed": 1, "accuracy": accuracy, "test_images": 75}
        | {key: values[episode] for key, values in more.items()}
        for episode, accuracy in enumerate(accuracies)
    ]


def write_rows(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_study(folder, parts, name="mine"):
    """Write `study.json`; a part is a dictionary that needs `axes`, `arms` and `cells` alone."""
    defaults = {"compare": None, "measures": ["accuracy"], "figure": None, "published": None}
    named = [defaults | {"name": name, "title": "A study by hand"} | part for part in parts]
    folder.mkdir(parents=True, exist_ok=True)
    study = {"format": "dtrap-study/1", "name": name, "title": "A study by hand", "file": f"{name}.yaml"}
    (folder / "study.json").write_text(json.dumps(study | {"parts": named}))
    return folder


def cell_of(axes, arms, episodes=None, folder=None, title=None):
    """A cell whose name and folder follow from its axes."""
    name = "-".join(str(value).removesuffix(".yaml").replace("/", "_") for value in axes.values())
    more = {} if episodes is None else {"episodes": episodes}
    title = title or SETS.get(axes.get("sets"), "Shapes (x-ray) 5-way 1-shot")
    return {
        "name": name,
        "folder": folder or name,
        "axes": axes,
        "set_title": title,
        "arms": list(arms),
        "as_published": list(arms),
        **more,
    }


def ablation(folder, episodes=40, sets=SETS, published="ablation"):
    """A study of four arms on sets, with drawn accuracies; what was drawn: {(set, arm): values}."""
    generator = np.random.default_rng(7)
    arms = ["plain", "svl", "ra", "both"]
    drawn, cells = {}, []
    for place, name in enumerate(sets):
        cell = cell_of({"sets": name}, arms, episodes)
        hard = generator.normal(0, 6, episodes)
        rows = []
        for gain, arm in enumerate(arms):
            right = np.clip(np.round(30 + 5 * place + gain + hard + generator.normal(0, 2, episodes)), 0, 75)
            drawn[name, arm] = 100 * right / 75
            loss = 2 - 0.1 * gain + generator.normal(0, 0.1, episodes)
            rows += rows_of(arm, drawn[name, arm].tolist(), cross_entropy=loss.tolist())
        write_rows(folder / cell["folder"], rows)
        cells.append(cell)
    part = {"axes": {"sets": list(sets)}, "arms": arms, "compare": "plain", "published": published, "cells": cells}
    write_study(folder, [part | {"name": "ablation", "measures": ["accuracy", "cross_entropy"]}])
    return drawn
