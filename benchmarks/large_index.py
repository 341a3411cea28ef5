"""First and second start on an index of ImageNet's size: 1,000 class folders, 1.28 million empty files.

Figures: seconds from the end of the imports until index, positions of every class and fingerprint are there, each in a
process of its own; the second start reads the index that the first one left beside the run. The file system's cache is
warm: the files have just been made.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from dtrap.datamodules import ClassFoldersDataModule
from measuring import in_new_process, verdict

SECONDS = 5.0


def make_tree(root: Path, classes: int, images: int) -> None:
    """Class folders of empty files."""
    for label in range(classes):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(images):
            (folder / f"n{label:08d}_{number}.JPEG").touch()


def start(root: Path, index_file: Path) -> dict[str, float]:
    """Seconds of one start, and the number of images."""
    started = time.perf_counter()
    module = ClassFoldersDataModule(root)
    module.index_file = index_file
    images = sum(map(len, module.positions))
    module.index.fingerprint()
    return {"seconds": time.perf_counter() - started, "images": images}


def main() -> int:
    """Measure both starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1280, help="images of each class")
    parser.add_argument("--only", nargs=2, type=Path, help="one start in this process, as JSON: root and index file")
    arguments = parser.parse_args()
    if arguments.only is not None:
        print(json.dumps(start(*arguments.only)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        root, index_file = Path(folder) / "images", Path(folder) / "run" / "index.json"
        make_tree(root, arguments.classes, arguments.images)
        first, second = (in_new_process(__file__, "--only", root, index_file) for _ in range(2))
        size = index_file.stat().st_size / 1e6
    fast = second["seconds"] < SECONDS
    print(f"{first['images']:,.0f} images: first start {first['seconds']:.1f} s, index of {size:.0f} MB left")
    print(f"second start {second['seconds']:.1f} s (bar {SECONDS:g} s): {verdict(fast)}")
    return 0 if fast and first["images"] == second["images"] else 1


if __name__ == "__main__":
    sys.exit(main())
