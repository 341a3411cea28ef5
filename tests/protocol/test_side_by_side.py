"""Several episodes as one batch: the rows are those of one at a time."""

import math

import pytest
import torch
from dtrap.lightning_modules import Objective
from dtrap.protocol.run_folder import RunFolder
from dtrap.protocol.side_by_side.size import KnownSizes, best_size
from run_folders import numbers, rows_of
from safetensors.torch import load_file

EXACT = ["--trainer.precision", "64-true"]
CHOSEN = {
    "lora vision, dropout, SVL + RA": [],
    "lora text": ["--config", "tuners/lora_text.yaml"],
    "lora both, in chunks": ["--config", "tuners/lora_both.yaml", "--model.image_chunk", 7, "--model.text_chunk", 2],
    "authors' code": ["--config", "methods/authors_code.yaml"],
    "coop": ["--config", "tuners/coop.yaml", "--model.tuner.context_tokens", 4],
    "coop of each class": ["--config", "tuners/coop.yaml", "--model.tuner.context_tokens", 4,
                           "--model.tuner.class_specific", "true"],
    "clip-adapter": ["--config", "tuners/clip_adapter.yaml"],
    "tip-adapter-f": ["--config", "tuners/tip_adapter_f.yaml"],
    "lp++": ["--config", "tuners/lpp.yaml"],
    "linear head": ["--config", "tuners/linear_head.yaml"],
}  # fmt: skip


def same(first, second, path=""):
    """Compare rows: numbers to 1e-9, everything else exactly."""
    if isinstance(first, dict):
        assert list(first) == list(second), path
        for key in first:
            same(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), path
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            same(one, other, f"{path}[{number}]")
    elif isinstance(first, float):
        # Terms are rounded to 6 digits in a row, and a rounding may go the other way.
        near = 2e-5 if path.startswith(".terms") else 1e-9
        assert math.isclose(first, second, rel_tol=near, abs_tol=1e-9), (path, first, second)
    else:
        assert first == second, path


@pytest.fixture
def short(words):
    """Two episodes of one method, in float64."""
    words = words[: words.index("--protocol.episodes")]
    return [*words, "--trainer.max_epochs", 4, "--protocol.episodes", 2, *EXACT]


def compare(folder):
    one, two = numbers(folder / "one"), numbers(folder / "two")
    assert one.keys() == two.keys()
    for key, row in one.items():
        same(row, two[key])


@pytest.mark.parametrize("options", CHOSEN.values(), ids=CHOSEN)
def test_rows_of_a_batch_are_those_of_one_episode_at_a_time(dtrap, short, tmp_path, options):
    for folder, size in (("one", 1), ("two", 2)):
        status, out, err = dtrap(*short, *options, *EXACT, "--protocol.folder", folder, "--protocol.side_by_side", size)
        assert status == 0, err
    assert "2 episodes side by side" in out
    compare(tmp_path)


def test_files_and_a_monitor_see_each_episode_as_if_it_were_alone(dtrap, short, tmp_path):
    more = ["--config", "monitors/alignment.yaml", "--protocol.compare", "methods/baseline.yaml"]
    more += ["--protocol.save_adapters", "true", "--protocol.save_features", 1, "--protocol.save_predictions", "true"]
    for folder, size in (("one", 1), ("two", 2)):
        status, out, err = dtrap(*short, *more, "--protocol.folder", folder, "--protocol.side_by_side", size)
        assert status == 0, err
    assert out.count("2 episodes side by side") == 2
    compare(tmp_path)
    for kind, files in (("adapters", 4), ("predictions", 4), ("features", 2)):
        found = sorted(path.name for path in (tmp_path / "one" / kind).glob("*.safetensors"))
        assert len(found) == files
        for name in found:
            first, second = (load_file(tmp_path / folder / kind / name) for folder in ("one", "two"))
            assert first.keys() == second.keys()
            for key in first:
                torch.testing.assert_close(first[key], second[key], rtol=1e-6, atol=1e-9)


def test_an_episode_that_diverges_leaves_the_others_as_they_are(dtrap, short, tmp_path, monkeypatch):
    forward = Objective.forward

    def broken(objective, *arguments, **options):
        terms = forward(objective, *arguments, **options)
        seed = objective.generator.initial_seed()
        seen.append(seed)
        if seed == seen[0] and objective.progress:  # the first episode, in its second step
            terms["total"] = terms["total"] * float("nan")
        return terms

    monkeypatch.setattr(Objective, "forward", broken)
    for folder, size in (("one", 1), ("two", 2)):
        seen = []
        status, _, err = dtrap(*short, "--protocol.folder", folder, "--protocol.side_by_side", size)
        assert status == 0, err
    compare(tmp_path)
    first, second = rows_of(tmp_path / "two")
    assert "diverged" not in first
    assert first["episode"] == 1
    assert second["diverged"].startswith("the loss is not finite from step 2")


def test_a_run_resumes_in_other_groups(dtrap, short, tmp_path):
    dtrap(*short, "--protocol.folder", "one", "--protocol.episodes", 4)
    dtrap(*short, "--protocol.folder", "two", "--protocol.episodes", 1)
    status, _, err = dtrap(*short, "--protocol.folder", "two", "--protocol.episodes", 4, "--protocol.side_by_side", 2)
    assert status == 0, err
    compare(tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--trainer.gradient_clip_val", 1.0], "gradients are clipped by the norm of one episode"),
        (["--stage_switch.rule", "gap"], "--stage_switch.rule gap ends the stage"),
        (["--data.batch_size", 5, "--config", "methods/baseline.yaml"], "it trains in mini-batches"),
        (["--config", "tuners/maple.yaml", "--model.tuner.depth", 1], "the tuner maple cannot train several episodes"),
        (["--config", "tuners/tip_adapter.yaml"], "the tuner tip-adapter"),
    ],
)
def test_what_runs_one_at_a_time_says_why(dtrap, short, options, reason):
    status, out, err = dtrap(*short, *options, "--trainer.max_epochs", 2, "--protocol.side_by_side", 2)
    assert status == 0, err
    assert f"one episode at a time: {reason}" in out


def test_a_number_below_1_is_refused(dtrap, short):
    status, _, err = dtrap(*short, "--protocol.side_by_side", 0)
    assert status != 0
    assert "--protocol.side_by_side is 0; expected at least 1" in err


def test_the_number_is_measured_until_it_does_not_pay(tmp_path):
    tried = []

    def seconds(size):
        tried.append(size)
        if size == 16:
            raise torch.OutOfMemoryError("no room")
        return {1: 1.0, 2: 1.2, 4: 1.6, 8: 2.4}[size]

    assert best_size(seconds) == 8
    assert tried == [1, 2, 4, 8, 16]
    assert best_size({1: 1.0, 2: 1.95}.__getitem__) == 1
    known = KnownSizes(RunFolder(tmp_path))
    assert known.get("GPU", "svl") is None
    known.keep("GPU", "svl", 8)
    assert KnownSizes(RunFolder(tmp_path)).get("GPU", "svl") == 8
    (tmp_path / "side_by_side.json").write_text("damaged")
    assert KnownSizes(RunFolder(tmp_path)).get("GPU", "svl") is None
