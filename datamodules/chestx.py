"""ChestX (NIH ChestX-ray14): frontal chest X-rays."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from PIL import Image

from ..errors import DtrapError, nearest
from .few_shot import FewShotDataModule, ImageIndex
from .images import list_images
from .index import locate, not_found
from .tables import check_columns, check_unique, read_table

CLASS_NAMES = ["Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumothorax"]
OTHER_FINDINGS = [
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Pleural_Thickening",
    "Pneumonia",
    "No Finding",
]

TABLE = "Data_Entry_2017.csv"
TABLES = tuple(
    str(Path(folder, name))
    for folder in ("", "ChestX", "chestX", "CXR8")
    for name in (TABLE, "Data_Entry_2017_v2020.csv")
)
IMAGE_FOLDERS = ("images", *(f"images_{number:03d}/images" for number in range(1, 13)))


class ChestXDataModule(FewShotDataModule):
    """Episodes of ChestX-ray14: the X-rays with exactly one finding that is one of seven.

    Format: `Data_Entry_2017.csv` (columns "Image Index" and "Finding Labels", findings separated by `|`)
        beside the
    PNG files in `images/` or in `images_001/images/` .. `images_012/images/`, under the root or its
    sub-folder ChestX. Images are opened as RGB at 256 x 256 pixels (bicubic), as in the benchmark of Guo et
    al., "A Broader Study of Cross-Domain Few-Shot Learning", ECCV 2020.

    Source: https://nihcc.app.box.com/v/ChestXray-NIHCC, 112,120 images. Wang et al., "ChestX-ray8", CVPR
        2017.
    Licence: free use with attribution to the NIH Clinical Center.
    """

    title = "ChestX"
    published: ClassVar[dict[str, int]] = {}  # nobody has published how many have one finding
    class_count: ClassVar[int] = 7

    def scan(self) -> ImageIndex:
        """Read the table and the names of the image files."""
        table = locate(self.root, TABLES, self.title, "table")
        folders = [table.parent / name for name in IMAGE_FOLDERS if (table.parent / name).is_dir()]
        if not folders:
            raise not_found(table.parent, IMAGE_FOLDERS, self.title, "image folder")
        files = {Path(path).name: path for folder in folders for path in list_images(folder)}
        labels, left_out = _read_findings(table)
        kept = [name for name in labels if name in files]
        note = f"{left_out} rows of {table.name} left out: not exactly one finding out of the {len(CLASS_NAMES)}"
        return ImageIndex(
            paths=[files[name] for name in kept],
            labels=[labels[name] for name in kept],
            class_names=list(CLASS_NAMES),
            roots=tuple(str(folder) for folder in folders),
            missing=tuple(str(folders[0] / name) for name in labels if name not in files),
            notes=(note,) if left_out else (),
        )

    def load_image(self, position: int) -> Image.Image:
        """RGB picture of 256 x 256 pixels."""
        return super().load_image(position).resize((256, 256), Image.Resampling.BICUBIC)


def _read_findings(path: Path) -> tuple[dict[str, int], int]:
    """Label of each image with one finding out of the seven, sorted by name, and the number of other rows."""
    frame = read_table(path, usecols=[0, 1], dtype=str)
    check_columns(path, list(frame.columns), ["Image Index", "Finding Labels"])
    check_unique(path, frame["Image Index"])
    known = [*CLASS_NAMES, *OTHER_FINDINGS]
    labels: dict[str, int] = {}
    for line, (name, findings) in enumerate(zip(frame["Image Index"], frame["Finding Labels"], strict=True), 2):
        for finding in str(findings).split("|"):
            if finding not in known:
                raise DtrapError(
                    f"{path}, line {line} ({name}): unknown finding '{finding}'.{nearest(finding, known)} "
                    f"Known: {', '.join(known)}. Correct the row or download the table again."
                )
        if findings in CLASS_NAMES:
            labels[name] = CLASS_NAMES.index(findings)
    return dict(sorted(labels.items())), len(frame) - len(labels)
