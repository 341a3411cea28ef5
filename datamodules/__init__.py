"""Data modules: few-shot episodes of image collections, and unlabelled images to predict."""

from .chestx import ChestXDataModule
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
    "ChestXDataModule",
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
