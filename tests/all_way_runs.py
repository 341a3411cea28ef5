"""Runs of the all-way protocol on a small EuroSAT, and what they leave."""

import json
from pathlib import Path

import torch
from dtrap.datamodules import EuroSATDataModule
from dtrap.datamodules.all_way import AllWay
from safetensors.torch import load_file


def words(root, folder, *more):
    return [
        "fit", "--config", "eurosat_1shot.yaml", "--config", "backbones/tiny.yaml",
        "--config", "all_way/clip_lora.yaml", "--data.root", root, "--data.shot", 4,
        "--data.all_way.batch_size", 6, "--trainer.max_epochs", 3, "--data.all_way.seeds", "[1, 2]",
        "--protocol.folder", folder, "--protocol.save_adapters", "true", *more,
    ]  # fmt: skip


def results(folder):
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def adapters(folder):
    return [load_file(path) for path in sorted((folder / "adapters").glob("*.safetensors"))]


def assert_equal_runs(one, other):
    """Same rows, and same adapters bit by bit."""
    assert results(one) == results(other)
    for a, b in zip(adapters(one), adapters(other), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def data(root, **settings):
    given = {name: settings.pop(name) for name in ("subset", "bad_images", "small_classes") if name in settings}
    shot = settings.pop("shot", 2)
    return EuroSATDataModule(root, shot=shot, all_way=AllWay(**settings), **given)


def break_image(module, position):
    Path(module.index.paths[position]).write_bytes(b"no image")
