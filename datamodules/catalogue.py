"""The data sets by the names of their configs."""

from __future__ import annotations

from ..errors import DtrapError, nearest
from . import ChestXDataModule, CropDiseaseDataModule, EuroSATDataModule, FewShotDataModule, ISICDataModule, coop

SETS: dict[str, type[FewShotDataModule]] = {
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
    "coop/eurosat": coop.EuroSATDataModule,
    "coop/ucf101": coop.UCF101DataModule,
}


def find_set(name: str) -> type[FewShotDataModule]:
    """Data module of a set.

    Raises:
        DtrapError: There is no set of that name.
    """
    if name not in SETS:
        raise DtrapError(f"there is no data set '{name}'.{nearest(name, SETS)} Known: {', '.join(SETS)}.")
    return SETS[name]
