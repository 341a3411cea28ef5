"""Data modules: few-shot episodes of image collections, and unlabeled images for predictions."""

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .all_way import AllWay as AllWay
    from .chestx import ChestXDataModule as ChestXDataModule
    from .class_folders import ClassFoldersDataModule as ClassFoldersDataModule
    from .crop_disease import CropDiseaseDataModule as CropDiseaseDataModule
    from .eurosat import EuroSATDataModule as EuroSATDataModule
    from .few_shot import FewShotDataModule as FewShotDataModule
    from .folder import FolderDataModule as FolderDataModule
    from .index import ImageIndex as ImageIndex
    from .isic import ISICDataModule as ISICDataModule
    from .shapes import ShapesDataModule as ShapesDataModule
    from .unlabelled import UnlabelledImages as UnlabelledImages
    from .views import Preprocessing as Preprocessing
    from .views import fixed_views as fixed_views
else:
    __all__, __getattr__, __dir__ = lazy(
        __name__,
        {
            "all_way": ["AllWay"],
            "chestx": ["ChestXDataModule"],
            "class_folders": ["ClassFoldersDataModule"],
            "crop_disease": ["CropDiseaseDataModule"],
            "eurosat": ["EuroSATDataModule"],
            "few_shot": ["FewShotDataModule"],
            "folder": ["FolderDataModule"],
            "index": ["ImageIndex"],
            "isic": ["ISICDataModule"],
            "shapes": ["ShapesDataModule"],
            "unlabelled": ["UnlabelledImages"],
            "views": ["Preprocessing", "fixed_views"],
        },
    )
