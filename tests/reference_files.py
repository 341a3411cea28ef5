"""Where the reference numbers are: the whole shared folder beside the checkout, or the small copy in the tests."""

from pathlib import Path

COPY = Path(__file__).parent / "data"
SHARED = Path(__file__).resolve().parents[2] / "shared"
REFERENCE = SHARED / "reference"

STEP_FILES = [
    "w5s1v1d32_f64", "w5s1v5d32_f32", "w5s1v5d32_f64", "w5s1v5d32_textgrad_f64", "w5s3v2d24_f64", "w5s5v5d16_f64",
    "w5s5v5d16_first_f64", "w5s5v5d16_last_f64",
]  # fmt: skip
RUNS = ["run_vision_w5s1", "run_both_w5s2", "run_text_w5s1"]


def find(name: str) -> Path | None:
    """A reference file, from the shared folder or from the copy."""
    folder = REFERENCE / "runs" if name.startswith("run_") else REFERENCE
    return next((path for path in (folder / name, COPY / name) if path.is_file()), None)
