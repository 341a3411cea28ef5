"""The reference numbers in tests/data, and the folder of the real samples."""

import json
import lzma
import os
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch

DATA = Path(__file__).parent / "data"
# The only place where the variable is read. A clone needs no such folder: tests of real samples are skipped then.
INSTALLED = Path(os.environ.get("DTRAP_REFERENCE") or Path(__file__).resolve().parents[2] / "shared")
FULL = INSTALLED / "reference"
REAL = INSTALLED / "real"
REAL_IMAGES = REAL / "images"
NO_SAMPLES = "real samples not installed"

STEP_FILES = [
    "w5s1v1d32_f64", "w5s1v5d32_f32", "w5s1v5d32_f64", "w5s1v5d32_textgrad_f64", "w5s3v2d24_f64", "w5s5v5d16_f64",
    "w5s5v5d16_first_f64", "w5s5v5d16_last_f64",
]  # fmt: skip
LORA_RUNS = ["run_vision_w5s1", "run_both_w5s2", "run_text_w5s1"]


class Sample(NamedTuple):
    """A large expected tensor, reduced to its norm and its values at some positions of the flattened tensor."""

    shape: torch.Size
    norm: float
    at: torch.Tensor
    values: torch.Tensor


def read_json(name):
    """The content of tests/data/`name`.json."""
    return json.loads((DATA / f"{name}.json").read_text())


def golden(name):
    """Settings and tensors of a reference run; its large expected tensors are `Sample`s."""
    settings = read_json(name)
    arrays = safetensors.torch.load(lzma.decompress((DATA / f"{name}.safetensors.xz").read_bytes()))
    for key, kept in settings.pop("reduced").items():
        arrays[key] = Sample(torch.Size(kept["shape"]), kept["norm"], arrays.pop(f"{key}@").long(), arrays[key])
    return settings, arrays


def expected_of_step(listed, dtype):
    """An expected value of a step file: a tensor, or a `Sample` where it was reduced."""
    if not isinstance(listed, dict):
        return torch.tensor(listed, dtype=dtype)
    values = torch.tensor(listed["values"], dtype=dtype)
    return Sample(torch.Size(listed["shape"]), listed["norm"], torch.tensor(listed["at"]), values)


def assert_golden(got, expected, *, rtol=0.0, atol=1e-8):
    """Assert that a tensor agrees with an expected one; of a `Sample`, shape, norm and values are compared."""
    if isinstance(expected, Sample):
        assert got.shape == expected.shape
        norm = torch.tensor(expected.norm, dtype=torch.float64)
        torch.testing.assert_close(got.detach().double().norm(), norm, rtol=rtol, atol=atol)
        got, expected = got.flatten()[expected.at], expected.values
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)
