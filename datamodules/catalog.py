"""The published data sets by the names of their configs."""

from __future__ import annotations

from ..errors import DtrapError, expected_one_of
from . import ChestXDataModule, CropDiseaseDataModule, EuroSATDataModule, ISICDataModule, coop
from .published import PublishedDataModule

SETS: dict[str, type[PublishedDataModule]] = {
    "isic": ISICDataModule,
    "eurosat": EuroSATDataModule,
    "crop_disease": CropDiseaseDataModule,
    "chestx": ChestXDataModule,
    "coop/imagenet": coop.ImageNetDataModule,
    "coop/caltech101": coop.Caltech101DataModule,
    "coop/oxford_pets": coop.OxfordPetsDataModule,
    "coop/stanford_cars": coop.StanfordCarsDataModule,
    "coop/flowers102": coop.Flowers102DataModule,
    "coop/food101": coop.Food101DataModule,
    "coop/fgvc_aircraft": coop.FGVCAircraftDataModule,
    "coop/sun397": coop.SUN397DataModule,
    "coop/dtd": coop.DTDDataModule,
    "coop/eurosat": coop.CoOpEuroSATDataModule,
    "coop/ucf101": coop.UCF101DataModule,
}


def find_set(name: str) -> type[PublishedDataModule]:
    """Return the data module of a set.

    Raises:
        DtrapError: The name is unknown.
    """
    if name not in SETS:
        raise DtrapError(f"unknown data set '{name}'; {expected_one_of(name, SETS)}")
    return SETS[name]
