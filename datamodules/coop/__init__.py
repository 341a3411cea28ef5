"""The eleven few-shot sets of CoOp, with a published split each."""

from typing import TYPE_CHECKING

from ...lazy import lazy

if TYPE_CHECKING:
    from .caltech101 import Caltech101DataModule as Caltech101DataModule
    from .dtd import DTDDataModule as DTDDataModule
    from .eurosat import CoOpEuroSATDataModule as CoOpEuroSATDataModule
    from .eurosat import EuroSATDataModule as EuroSATDataModule
    from .fgvc_aircraft import FGVCAircraftDataModule as FGVCAircraftDataModule
    from .flowers102 import Flowers102DataModule as Flowers102DataModule
    from .food101 import Food101DataModule as Food101DataModule
    from .imagenet import ImageNetDataModule as ImageNetDataModule
    from .oxford_pets import OxfordPetsDataModule as OxfordPetsDataModule
    from .stanford_cars import StanfordCarsDataModule as StanfordCarsDataModule
    from .sun397 import SUN397DataModule as SUN397DataModule
    from .ucf101 import UCF101DataModule as UCF101DataModule
else:
    __all__, __getattr__, __dir__ = lazy(
        __name__,
        {
            "caltech101": ["Caltech101DataModule"],
            "dtd": ["DTDDataModule"],
            "eurosat": ["CoOpEuroSATDataModule", "EuroSATDataModule"],
            "fgvc_aircraft": ["FGVCAircraftDataModule"],
            "flowers102": ["Flowers102DataModule"],
            "food101": ["Food101DataModule"],
            "imagenet": ["ImageNetDataModule"],
            "oxford_pets": ["OxfordPetsDataModule"],
            "stanford_cars": ["StanfordCarsDataModule"],
            "sun397": ["SUN397DataModule"],
            "ucf101": ["UCF101DataModule"],
        },
    )
