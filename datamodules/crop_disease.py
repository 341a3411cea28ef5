"""CropDisease (PlantVillage): leaves of healthy and diseased crops."""

from __future__ import annotations

import re
from pathlib import Path

from .findings import Finding, Findings, check_class_folders, missing_folders, note_place, unknown_folders
from .index import ImageIndex, index_class_folders
from .places import Place, beside, best_place, list_place
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
_OTHER_PARTS = re.compile(r"^gr[ae]y(scale)?$|^segmented$|^(val|valid|validation|test)$|with_?augmentation$")
_AUGMENTED = re.compile(r"(?<!without)[ _(-]augment", re.IGNORECASE)


def _key(name: str) -> str:
    """Return the letters and digits of a name: releases write `Tomato_Early_blight` and `Pepper__bell___healthy`."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def classes_in(place: Place) -> dict[str, str]:
    """Return the class name of each class folder: the official one where the letters are the same."""
    official = {_key(name): name for name in CLASS_FOLDERS if name not in place.folders}
    found: dict[str, str] = {}
    for name in place.folders:
        title = official.pop(_key(name), None)  # each once
        if title or "___" in name:
            found[name] = title or name
    return found


def _holds_classes(place: Place) -> bool:
    return len(classes_in(place)) > 1


class CropDiseaseDataModule(PublishedDataModule):
    """Episodes of PlantVillage: 43,456 images in 38 classes `Plant___Disease`, JPEG of 256 x 256 pixels.

    Format: one folder per class in `dataset/train/`, `train/` or the root itself, or in one place up to five folders
    lower, of several the one called train or color. The folder's name is the class name (in a class prompt `_` becomes
    a space); a name with the letters of an official one, such as `Tomato_Early_blight`, stands for that one. The
    classes are the folders that are there: a part of the set is enough.

    Source: https://www.kaggle.com/datasets/saroz014/plant-disease (43,456 training images), after Mohanty et al.,
    "Using Deep Learning for Image-Based Plant Disease Detection", 2016. License: CC BY-SA 3.0 / CC0 as usually given.
    """

    title = "CropDisease"
    references = ("mohanty2016plant", "guo2020broader")
    published = Published(38, all=43_456)

    def read(self, findings: Findings) -> ImageIndex:
        """List the class folders."""
        places = [self.root / name for name in _FOLDERS]
        folder = next((place for place in places if _holds_classes(list_place(place))), None)
        folder = folder or best_place(self.tree, _holds_classes, self.title, _OTHER_PARTS)
        folder = folder or next((place for place in places if classes_in(list_place(place))), None)
        if folder is None:
            raise self.nothing([str(Path(name, "Plant___Disease")) for name in _FOLDERS], "class folders")
        note_place(findings, folder, places, beside(folder, self.root, _holds_classes))
        if _AUGMENTED.search(str(folder.resolve())):
            text = "an augmented release has several versions of a leaf; support and query images may show the same one"
            findings.note(Finding(text))
        classes = classes_in(list_place(folder))
        index = index_class_folders(folder, list(classes), list(classes.values()))
        official = [name for name, title in classes.items() if title in CLASS_FOLDERS]
        expected = [*official, *(name for name in CLASS_FOLDERS if name not in classes.values())]
        check_class_folders(findings, folder, index, classes, self.root)
        findings.difference(missing_folders(folder, expected, self.root))
        findings.difference(unknown_folders(folder, classes, expected, self.root))
        return index
