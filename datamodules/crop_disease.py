"""CropDisease (PlantVillage): leaves of healthy and diseased crops."""

from __future__ import annotations

from pathlib import Path

from .findings import Findings, check_class_folders, missing_folders, unknown_folders
from .index import ImageIndex, class_folders, index_class_folders, not_found
from .published import Published, PublishedDataModule

_FOLDERS = (
    "dataset/train",
    "train",
    "",
    "CropDisease/dataset/train",
    "CropDiseases/dataset/train",
    "plant-disease/dataset/train",
)

# All classes of the published set.
CLASS_FOLDERS = [
    f"{crop}___{state}"
    for crop, states in {
        "Apple": ["Apple_scab", "Black_rot", "Cedar_apple_rust", "healthy"],
        "Blueberry": ["healthy"],
        "Cherry_(including_sour)": ["Powdery_mildew", "healthy"],
        "Corn_(maize)": [
            "Cercospora_leaf_spot Gray_leaf_spot",
            "Common_rust_",
            "Northern_Leaf_Blight",
            "healthy",
        ],
        "Grape": ["Black_rot", "Esca_(Black_Measles)", "Leaf_blight_(Isariopsis_Leaf_Spot)", "healthy"],
        "Orange": ["Haunglongbing_(Citrus_greening)"],
        "Peach": ["Bacterial_spot", "healthy"],
        "Pepper,_bell": ["Bacterial_spot", "healthy"],
        "Potato": ["Early_blight", "Late_blight", "healthy"],
        "Raspberry": ["healthy"],
        "Soybean": ["healthy"],
        "Squash": ["Powdery_mildew"],
        "Strawberry": ["Leaf_scorch", "healthy"],
        "Tomato": [
            "Bacterial_spot",
            "Early_blight",
            "Late_blight",
            "Leaf_Mold",
            "Septoria_leaf_spot",
            "Spider_mites Two-spotted_spider_mite",
            "Target_Spot",
            "Tomato_Yellow_Leaf_Curl_Virus",
            "Tomato_mosaic_virus",
            "healthy",
        ],
    }.items()
    for state in states
]


class CropDiseaseDataModule(PublishedDataModule):
    """Episodes of PlantVillage: 43,456 images in 38 classes `Plant___Disease`, JPEG of 256 x 256 pixels.

    Format: one folder per class in `dataset/train/`, `train/` or the root itself. The folder's name is the class name
    (in a class prompt `_` becomes a space). The classes are the folders that are there: a part of the set is enough.

    Source: https://www.kaggle.com/datasets/saroz014/plant-disease (43,456 training images), after Mohanty et al.,
    "Using Deep Learning for Image-Based Plant Disease Detection", 2016. License: CC BY-SA 3.0 / CC0 as usually given.
    """

    title = "CropDisease"
    published = Published(38, all=43_456)

    def read(self, findings: Findings) -> ImageIndex:
        """List the class folders."""
        for folder in (self.root / name for name in _FOLDERS):
            classes = [name for name in class_folders(folder) if "___" in name] if folder.is_dir() else []
            if classes:
                break
        else:
            looked_for = [str(Path(name, "Plant___Disease")) + "/ ..." for name in _FOLDERS]
            raise not_found(self.root, looked_for, self.title, "class folders")
        index = index_class_folders(folder, classes, classes)
        check_class_folders(findings, folder, index, classes, self.root)
        findings.difference(missing_folders(folder, CLASS_FOLDERS, self.root))
        findings.difference(unknown_folders(folder, classes, CLASS_FOLDERS, self.root))
        return index
