"""The eleven few-shot sets of CoOp, with a published split each."""

from .caltech101 import Caltech101DataModule
from .dtd import DTDDataModule
from .eurosat import CoOpEuroSATDataModule, EuroSATDataModule
from .fgvc_aircraft import FGVCAircraftDataModule
from .flowers102 import Flowers102DataModule
from .food101 import Food101DataModule
from .imagenet import ImageNetDataModule
from .oxford_pets import OxfordPetsDataModule
from .stanford_cars import StanfordCarsDataModule
from .sun397 import SUN397DataModule
from .ucf101 import UCF101DataModule

__all__ = [
    "Caltech101DataModule",
    "CoOpEuroSATDataModule",
    "DTDDataModule",
    "EuroSATDataModule",
    "FGVCAircraftDataModule",
    "Flowers102DataModule",
    "Food101DataModule",
    "ImageNetDataModule",
    "OxfordPetsDataModule",
    "SUN397DataModule",
    "StanfordCarsDataModule",
    "UCF101DataModule",
]
