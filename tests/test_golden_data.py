"""The numbers in tests/data are those of the full reference files, where these are installed."""

import json

import pytest
import torch
from reference_files import DATA, FULL, STEP_FILES, Sample, assert_golden, expected_of_step, golden, read_json
from safetensors.torch import load_file

RUNS = sorted(path.name.removesuffix(".safetensors.xz") for path in DATA.glob("*.xz"))
installed = pytest.mark.skipif(not FULL.is_dir(), reason="full reference files not installed")


def is_close(got, expected):
    try:
        assert_golden(got, expected)
    except AssertionError:
        return False
    return True


def test_a_sample_finds_a_wrong_shape_a_wrong_entry_and_a_wrong_norm():
    values = torch.arange(12.0, dtype=torch.float64).view(3, 4)
    at = torch.tensor([1, 7])
    sample = Sample(values.shape, float(values.norm()), at, values.flatten()[at])
    assert is_close(values, sample)
    assert not is_close(values.T, sample)
    assert not is_close(values.flip(1), sample)
    elsewhere = values.clone()
    elsewhere[2, 3] += 1e-6
    assert not is_close(elsewhere, sample)


def test_a_missing_file_is_an_error():
    with pytest.raises(FileNotFoundError):
        golden("no_such_run")


@installed
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_that_of_the_full_files(name):
    (full,) = FULL.glob(f"*/{name}.safetensors")
    settings, arrays = golden(name)
    assert settings == json.loads(full.with_suffix(".json").read_text())
    tensors = load_file(full)
    assert arrays.keys() == {key for key in tensors if name != "fwt_w5s1" or key.startswith("layer.")}
    for key, value in arrays.items():
        if isinstance(value, Sample):
            assert_golden(tensors[key], value, rtol=1e-14, atol=0)
        else:
            assert torch.equal(tensors[key], value)
            assert tensors[key].dtype == value.dtype


@installed
@pytest.mark.parametrize("name", STEP_FILES)
def test_steps_are_those_of_the_full_files(name):
    case, full = read_json(name), json.loads((FULL / f"{name}.json").read_text())
    for step, given in zip(case.pop("steps"), full.pop("steps"), strict=True):
        expected, tensors = step.pop("expected"), given.pop("expected")
        assert step == given
        assert expected.keys() == tensors.keys()
        for key in [key for key, value in tensors.items() if value is not None]:
            value = torch.tensor(tensors[key], dtype=torch.float64)
            assert_golden(value, expected_of_step(expected[key], torch.float64), rtol=1e-14, atol=0)
    assert case == full


@installed
def test_schedules_are_those_of_the_full_files():
    assert read_json("schedules") == json.loads((FULL / "schedules.json").read_text())
