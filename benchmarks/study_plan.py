"""Time of `dtrap study --plan` for many cells of few configs: from scratch, and when nothing has changed.

    python benchmarks/study_plan.py [--cells 10000] [--configs 100]

Each of the configs is a set of its own with two arms; the cells differ in their seeds. Both times are those of a whole
process, by the clock and by the processor, which is what counts on a shared machine. Prints whether the second process
has imported torch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

SET = """model: {{learning_rate: {rate}}}
data:
  class_path: dtrap.datamodules.ShapesDataModule
  init_args: {{way: 5, shot: 1, query: 2}}
"""
CODE = "import sys; from dtrap.cli import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--configs", type=int, default=100)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        names = [f"set_{number:03d}.yaml" for number in range(options.configs)]
        for number, name in enumerate(names):
            Path(folder, name).write_text(SET.format(rate=1e-4 * (number + 1)))
        seeds = list(range(options.cells // options.configs))
        Path(folder, "many.yaml").write_text(
            f"sets: {names}\nbackbones: [backbones/tiny.yaml]\nseeds: {seeds}\n"
            "arms: {plain: methods/baseline.yaml, both: []}\nepisodes: 3\noptions: [--trainer.max_epochs, 2]\n"
        )
        for what in ("from scratch", "unchanged"):
            before, used = time.perf_counter(), os.times()
            done = subprocess.run(
                [sys.executable, "-c", CODE, "study", "many.yaml", "--plan"],
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
            )
            seconds, now = time.perf_counter() - before, os.times()
            processor = now.children_user + now.children_system - used.children_user - used.children_system
            lines = done.stdout.splitlines()
            print(f"{what}: {seconds:.1f} s, {processor:.1f} s of processor, torch imported: {lines[-1]}")
        print("\n".join(line for line in lines if "cells" in line or "Expected" in line))


if __name__ == "__main__":
    main()
