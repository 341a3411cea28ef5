"""Start on an index of ImageNet's size: 1,000 class folders, 1.28 million empty files.

Figure: CPU seconds from the end of the imports until index, positions of every class and fingerprint are known, in a
new process. The file system's cache is warm, since the files have just been written.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from dtrap.datamodules import FolderDataModule
from measuring import in_new_process, verdict

SECONDS = 5.0


def make_tree(root: Path, classes: int, images: int) -> None:
    """Make class folders of empty files."""
    for label in range(classes):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(images):
            (folder / f"n{label:08d}_{number}.JPEG").touch()


def start(root: Path) -> dict[str, float]:
    """Return the seconds of one start and the number of images."""
    started = time.perf_counter()
    module = FolderDataModule(root)
    images = sum(map(len, module.positions))
    module.index.fingerprint()
    return {"seconds": time.perf_counter() - started, "images": images}


def main() -> int:
    """Measure one start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1280, help="images of each class")
    parser.add_argument("--only", type=Path, help="one start in this process, as JSON: root")
    arguments = parser.parse_args()
    if arguments.only is not None:
        print(json.dumps(start(arguments.only)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        make_tree(root, arguments.classes, arguments.images)
        found = in_new_process(__file__, "--only", root)
    fast = found["seconds"] < SECONDS
    print(f"{found['images']:,.0f} images: {found['seconds']:.1f} s (bar {SECONDS:g} s): {verdict(fast)}")
    return 0 if fast else 1


if __name__ == "__main__":
    sys.exit(main())
