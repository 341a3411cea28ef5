"""Write tests/data, the copy of the reference numbers that the tests use, from the reference files.

python tools/golden_data.py ../shared/reference

tests/data/README.md says what is copied and what is reduced.
"""

from __future__ import annotations

import argparse
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save

DATA = Path(__file__).parents[1] / "tests" / "data"
# Expected tensors with more entries are reduced to a sample of this size and their norm.
SAMPLE = 100
# Expected values that a test also uses as an input.
WHOLE = {"end.query_logits", "end.scores"}
# dtrap has FWT's layer, not the training on source domains of which the rest of this file is a record.
ONLY = {"fwt_w5s1": "layer."}
# The weights are float16 with random mantissas: modeling even and odd bytes separately is what makes xz shrink them.
XZ = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 3, "lp": 1, "pb": 1}]

Array = npt.NDArray[Any]


def sample(values: Array, seed: int = 0) -> tuple[Array, dict[str, Any]]:
    """Draw the positions to keep of an array; returns them, sorted, with the array's shape and norm."""
    at = np.sort(np.random.default_rng(seed).choice(values.size, SAMPLE, replace=False)).astype(np.int32)
    return at, {"shape": list(values.shape), "norm": float(np.linalg.norm(values.astype(np.float64)))}


def write_run(settings_file: Path, out: Path) -> None:
    """Copy one run, with its large expected tensors reduced."""
    name, settings = settings_file.stem, json.loads(settings_file.read_text())
    tensors, reduced = {}, {}
    for key, values in sorted(load_file(settings_file.with_suffix(".safetensors")).items()):
        if not key.startswith(ONLY.get(name, "")):
            continue
        tensors[key] = values
        # In every file the inputs are float16 or integers, and what is expected is float64.
        if values.dtype == np.float64 and values.size > SAMPLE and key not in WHOLE:
            at, reduced[key] = sample(values)
            tensors |= {key: values.flatten()[at], f"{key}@": at}
    write_json(out / f"{name}.json", settings | {"reduced": reduced})
    (out / f"{name}.safetensors.xz").write_bytes(lzma.compress(save(tensors), filters=XZ))


def write_steps(file: Path, out: Path) -> None:
    """Copy the losses and gradients of single steps, with large expected matrices reduced."""
    case = json.loads(file.read_text())
    for step in case["steps"]:
        for key, listed in step["expected"].items():
            values = np.array(listed, dtype=np.float64)
            if listed is not None and values.size > SAMPLE:
                at, reduced = sample(values)
                step["expected"][key] = reduced | {"at": at.tolist(), "values": values.flatten()[at].tolist()}
    write_json(out / file.name, case)


def write_json(path: Path, content: object) -> None:
    """Write JSON without blanks: the numbers are copied to the last digit, and nobody reads them."""
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def main() -> None:
    """Write every file of tests/data that comes from the references."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path, help="folder with runs/, tuners/, source_free/ and the step files")
    parser.add_argument("--out", type=Path, default=DATA)
    arguments = parser.parse_args()
    for folder in ("runs", "tuners", "source_free"):
        for file in sorted((arguments.reference / folder).glob("*.json")):
            write_run(file, arguments.out)
    for file in sorted(arguments.reference.glob("w*.json")):
        write_steps(file, arguments.out)
    write_json(arguments.out / "schedules.json", json.loads((arguments.reference / "schedules.json").read_text()))


if __name__ == "__main__":
    main()
