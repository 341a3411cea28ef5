"""The official layouts of the data sets with small generated images."""

from pathlib import Path

import numpy as np
from PIL import Image

ISIC_COLUMNS = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
EUROSAT_FOLDERS = [
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
]
CROP_FOLDERS = [
    "Apple___Apple_scab",
    "Apple___healthy",
    "Cherry_(including_sour)___Powdery_mildew",
    "Corn_(maize)___Common_rust_",
    "Tomato___Late_blight",
    "Tomato___healthy",
]
CHESTX_FINDINGS = [
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumothorax",
]
CHESTX_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


def picture(number: int, size: tuple[int, int] = (24, 18)) -> Image.Image:
    """RGB picture of noise of its own."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def truncate(path: Path) -> None:
    """Cut the second half of a file off."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_isic(root: Path, per_class: int = 4) -> Path:
    """ISIC 2018 task 3; image ISIC_00CCNNN is number N of class C."""
    images = root / "ISIC2018_Task3_Training_Input"
    table = root / "ISIC2018_Task3_Training_GroundTruth" / "ISIC2018_Task3_Training_GroundTruth.csv"
    images.mkdir(parents=True)
    table.parent.mkdir()
    rows = [",".join(["image", *ISIC_COLUMNS])]
    for label in range(len(ISIC_COLUMNS)):
        one_hot = ["1.0" if other == label else "0.0" for other in range(len(ISIC_COLUMNS))]
        for number in range(per_class):
            name = f"ISIC_00{label:02d}{number:03d}"
            picture(1000 * label + number).save(images / f"{name}.jpg")
            rows.append(",".join([name, *one_hot]))
    table.write_text("\n".join(rows) + "\n")
    return root


def make_class_folders(root: Path, folders: list[str], counts: int | list[int], ending: str = ".jpg") -> Path:
    """One folder of images per class."""
    counts = [counts] * len(folders) if isinstance(counts, int) else counts
    for label, (folder, count) in enumerate(zip(folders, counts, strict=True)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            picture(1000 * label + number).save(root / folder / f"{folder}_{number + 1}{ending}")
    return root


def make_eurosat(root: Path, per_class: int = 4, layout: str = "2750") -> Path:
    """EuroSAT (RGB) under `2750/` or another of its folders."""
    make_class_folders(root / layout, EUROSAT_FOLDERS, per_class)
    return root


def make_crop_disease(root: Path, per_class: int = 4, layout: str = "dataset/train") -> Path:
    """Six classes of PlantVillage under `dataset/train/`, with upper-case endings."""
    make_class_folders(root / layout, CROP_FOLDERS, per_class, ending=".JPG")
    return root


def make_chestx(root: Path, per_class: int = 4, numbered_folders: bool = False) -> Path:
    """ChestX-ray14: gray PNG files, two of which have no finding and two have several or another one."""
    findings = [finding for finding in CHESTX_FINDINGS for _ in range(per_class)]
    findings += ["No Finding", "No Finding", "Effusion|Mass", "Hernia"]
    rows = [CHESTX_HEADER]
    for number, finding in enumerate(findings):
        name = f"{number:08d}_000.png"
        folder = f"images_{number % 12 + 1:03d}/images" if numbered_folders else "images"
        (root / folder).mkdir(parents=True, exist_ok=True)
        picture(number).convert("L").save(root / folder / name)
        rows.append(f"{name},{finding},0,{number},60,M,PA,24,18,0.143,0.143,")
    (root / "Data_Entry_2017.csv").write_text("\n".join(rows) + "\n")
    return root


def make_folder(root: Path, counts: tuple[int, ...] = (7, 5, 6, 5)) -> Path:
    """A user's images: folders `cls_00`, `cls_01`, ... of unequal numbers."""
    return make_class_folders(root, [f"cls_{label:02d}" for label in range(len(counts))], list(counts), ".png")
