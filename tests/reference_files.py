"""Where the reference numbers are: the whole shared folder beside the checkout, or the small copy in the tests."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

COPY = Path(__file__).parent / "data"
SHARED = Path(__file__).resolve().parents[2] / "shared"
REFERENCE = SHARED / "reference"
PLACES = (REFERENCE, REFERENCE / "runs", REFERENCE / "tuners", REFERENCE / "source_free", COPY)

STEP_FILES = [
    "w5s1v1d32_f64", "w5s1v5d32_f32", "w5s1v5d32_f64", "w5s1v5d32_textgrad_f64", "w5s3v2d24_f64", "w5s5v5d16_f64",
    "w5s5v5d16_first_f64", "w5s5v5d16_last_f64",
]  # fmt: skip
RUNS = ["run_vision_w5s1", "run_both_w5s2", "run_text_w5s1"]


def find(name: str) -> Path | None:
    """A reference file, from the shared folder or from the copy."""
    return next((place / name for place in PLACES if (place / name).is_file()), None)


def golden(name):
    """Settings and tensors of a reference run; skips the test where it is not here."""
    settings, arrays = find(f"{name}.json"), find(f"{name}.safetensors")
    if settings is None or arrays is None:
        pytest.skip(f"{name} is not in ../shared/reference, and only small runs are in tests/data")
    return json.loads(settings.read_text()), load_file(arrays)
