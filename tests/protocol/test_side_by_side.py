"""Several episodes as one batch: the rows are those of one at a time."""

import math

import pytest
from run_folders import numbers

CHOSEN = {
    "lora vision, dropout, SVL + RA": [],
    "lora text": ["--config", "tuners/lora_text.yaml"],
    "lora both, in chunks": ["--config", "tuners/lora_both.yaml", "--model.image_chunk", 7, "--model.text_chunk", 2],
    "authors' code": ["--config", "methods/authors_code.yaml", "--trainer.precision", "64-true"],
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


@pytest.mark.parametrize("options", CHOSEN.values(), ids=CHOSEN)
def test_rows_of_a_batch_are_those_of_one_episode_at_a_time(dtrap, words, tmp_path, options):
    words = [*words, *options, "--trainer.precision", "64-true"]
    for folder, size in (("one", 1), ("three", 3)):
        status, out, err = dtrap(*words, "--protocol.folder", folder, "--protocol.side_by_side", size)
        assert status == 0, err
    assert "3 episodes side by side" in out
    one, three = numbers(tmp_path / "one"), numbers(tmp_path / "three")
    assert one.keys() == three.keys()
    for key, row in one.items():
        same(row, three[key])
