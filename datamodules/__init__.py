"""Data modules: few-shot episodes of image collections, and unlabelled images to predict."""

from .all_way import AllWay
from .chestx import ChestXDataModule
from .class_folders import ClassFoldersDataModule
from .crop_disease import CropDiseaseDataModule
from .eurosat import EuroSATDataModule
from .few_shot import FewShotDataModule
from .folder import FolderDataModule
from .index import ImageIndex
from .isic import ISICDataModule
from .shapes import ShapesDataModule
from .unlabelled import UnlabelledImages
from .views import Preprocessing, fixed_views

__all__ = [
    "AllWay",
    "ChestXDataModule",
    "ClassFoldersDataModule",
    "CropDiseaseDataModule",
    "EuroSATDataModule",
    "FewShotDataModule",
    "FolderDataModule",
    "ISICDataModule",
    "ImageIndex",
    "Preprocessing",
    "ShapesDataModule",
    "UnlabelledImages",
    "fixed_views",
]
