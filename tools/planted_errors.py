"""Check that the tests find errors: plant each one in a copy of the package and run the test that must fail.

python tools/planted_errors.py            # every error, one by one (about 6 minutes)
python tools/planted_errors.py CoOp LDC   # those whose name contains one of the words

The tests run as in a plain clone, without real samples and full references. The exit status is 1 if an error survives.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Planted(NamedTuple):
    """Replace the text `old`, which occurs once in lightning_modules/<file>.py, by `new`; test_<test>.py must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


def tuner(name: str, file: str, old: str, new: str, test: str | None = None) -> Planted:
    """An error in the module of a tuner, whose test has the same name as a rule."""
    return Planted(name, f"tuners/{file}", old, new, test or file)


ALIGNMENT = "distribution_alignment"
TEXTS = "cosines(text_features, text_features)"
ERRORS = [
    tuner("LDC: level weights reversed", "ldc", "(0.1, 0.2, 0.3, 0.4)", "(0.4, 0.3, 0.2, 0.1)", "ldc_reference"),
    tuner("LDC: weight decay", "ldc", "weight_decay=1e-4", "weight_decay=1e-2", "ldc_reference"),
    tuner("CoOp: momentum", "base", "momentum=0.9", "momentum=0.8", "coop"),
    tuner("CoOp: weight decay", "base", "weight_decay=5e-4", "weight_decay=1e-4", "coop"),
    tuner("MaPLe: momentum", "base", "momentum=0.9", "momentum=0.8", "maple"),
    tuner("MaPLe: weight decay", "base", "weight_decay=5e-4", "weight_decay=1e-4", "maple"),
    tuner("StepSPT: dampening", "stepspt", "dampening=0.9", "dampening=0.0"),
    tuner("StepSPT: diversity weight", "stepspt", "+ diversity_loss(", "+ 0.5 * diversity_loss("),
    tuner("StepSPT: kernel of label propagation", ALIGNMENT, "/ (2 * variance)", "/ variance"),
    tuner("LoRA: scale", "lora", "lora_alpha=self.alpha", "lora_alpha=1.1 * self.alpha", "reference_runs"),
    tuner("LoRA: weight decay", "base", "weight_decay=1e-2", "weight_decay=1e-3", "reference_runs"),
    Planted("LoRA on the text tower: constant relations", "losses", TEXTS, f"{TEXTS}.detach()", "reference_runs"),
    tuner("Tip-Adapter: sharpness", "tip_adapter", "-beta * (1 - affinity)", "-2 * beta * (1 - affinity)"),
    tuner("Tip-Adapter-F: weight decay", "tip_adapter", "weight_decay=1e-2", "weight_decay=0.0"),
    tuner("CLIP-Adapter: momentum", "base", "momentum=0.9", "momentum=0.8", "clip_adapter"),
    tuner("LP++: momentum", "lpp", "_MOMENTUM = 0.9", "_MOMENTUM = 0.8"),
    tuner("FWT: softplus", "fwt", "self.beta, beta=100", "self.beta, beta=1"),
]


def copy_with(error: Planted | None, folder: Path) -> Path:
    """Copy the checkout into the folder, as the package dtrap, and plant the error in the copy."""
    package = folder / "dtrap"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "runs", "wandb", "build", "dist")
    shutil.copytree(ROOT, package, ignore=ignored)
    if error is None:
        return package
    file = package / "lightning_modules" / f"{error.file}.py"
    text = file.read_text()
    if text.count(error.old) != 1:
        raise SystemExit(f"{error.name}: {error.old!r} occurs {text.count(error.old)} times in {file.name}, expected 1")
    file.write_text(text.replace(error.old, error.new))
    return package


def first_failure(error: Planted | None, test: str, folder: Path) -> str | None:
    """Run test_<test>.py on a copy with the error (without one where None); returns the first test that fails."""
    package, empty = copy_with(error, folder), folder / "no_references"
    empty.mkdir()
    variables = {"PYTHONPATH": str(folder), "DTRAP_REFERENCE": str(empty), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-m", "pytest", f"tests/lightning_modules/test_{test}.py", "-q", "-x", "-rf", "--tb=no"]
    run = subprocess.run(words, cwd=package, env=os.environ | variables, capture_output=True, text=True, check=False)
    if run.returncode not in (0, 1):
        raise SystemExit(f"test_{test}.py could not run:\n{run.stdout}{run.stderr}")
    failed = re.search(r"^FAILED \S+?::(\S+)", run.stdout, re.MULTILINE)
    return failed[1] if failed else None


def main() -> int:
    """Plant the errors one by one; 1 if one of them survives, or if a test fails without any."""
    chosen = [error for error in ERRORS if not sys.argv[1:] or any(word in error.name for word in sys.argv[1:])]
    wrong = 0
    for error, test in [(None, test) for test in dict.fromkeys(e.test for e in chosen)] + [(e, e.test) for e in chosen]:
        with tempfile.TemporaryDirectory() as folder:
            failed = first_failure(error, test, Path(folder))
        wrong += (failed is None) == (error is not None)
        print(f"{error.name if error else f'no error, test_{test}.py'}: {failed or 'nothing fails'}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
