"""CropDisease (PlantVillage): leaves of healthy and diseased crops."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from .few_shot import FewShotDataModule, ImageIndex
from .index import class_folders, index_class_folders, not_found

_FOLDERS = (
    "dataset/train",
    "train",
    "",
    "CropDisease/dataset/train",
    "CropDiseases/dataset/train",
    "plant-disease/dataset/train",
)

# The whole set; a part of it will do for episodes.
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


class CropDiseaseDataModule(FewShotDataModule):
    """Episodes of PlantVillage: 38 classes `Plant___Disease`, JPEG of 256 x 256 pixels.

    Format: one folder per class in `dataset/train/`, `train/` or the root itself. The folder name is the
        class name
    (in a class prompt `_` becomes a space); the folders that are there are the classes, so a part of the set
    will do.

    Source: https://www.kaggle.com/datasets/saroz014/plant-disease (43,456 training images), after Mohanty et
        al.,
    "Using Deep Learning for Image-Based Plant Disease Detection", 2016. Licence: CC BY-SA 3.0 / CC0 as
    usually given.
    """

    title = "CropDisease"
    published: ClassVar[dict[str, int]] = {"all": 43456}
    class_count: ClassVar[int] = 38

    def scan(self) -> ImageIndex:
        """List the class folders."""
        for folder in (self.root / name for name in _FOLDERS):
            classes = [n for n in class_folders(folder) if "___" in n] if folder.is_dir() else []
            if classes:
                return index_class_folders(folder, classes, classes)
        looked_for = [str(Path(name, "Plant___Disease")) + "/ ..." for name in _FOLDERS]
        raise not_found(self.root, looked_for, self.title, "class folders")
