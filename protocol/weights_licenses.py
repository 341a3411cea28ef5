"""Licenses of published weights and data sets, as their authors state them; anything else is not known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class License(NamedTuple):
    """A license as a model card names it.

    Attributes:
        identifier: The hub's identifier; "other" for terms that have none.
        text: The license in words, with where it is stated.
        limits: Whether it limits what a tuned model may be used for, such as non-commercial use only.
    """

    identifier: str
    text: str
    limits: bool = False


# By the start of the weights' tag or name, in lower case. Tags of open_clip, then names of transformers.
_WEIGHTS: Sequence[tuple[tuple[str, ...], License]] = (
    (("openai", "laion", "datacomp", "commonpool"), License("mit", "MIT, as its authors published them")),
    (("webli", "google/siglip"), License("apache-2.0", "Apache-2.0, as Google published them")),
    (("meta", "facebook/pe-core"), License("apache-2.0", "Apache-2.0, as Meta published them")),
)
# By the name of the data module's class.
_DATA = {
    "EuroSATDataModule": License("mit", "EuroSAT: MIT; Copernicus terms"),
    "ISICDataModule": License("cc-by-nc-4.0", "HAM10000 (ISIC 2018): CC BY-NC 4.0, non-commercial use only", True),
    "CropDiseaseDataModule": License("cc-by-sa-3.0", "PlantVillage: CC BY-SA 3.0 / CC0 as usually given"),
    "ChestXDataModule": License("other", "ChestX-ray14: free use with attribution to the NIH Clinical Center"),
}


def weights_license(identifier: str) -> License | None:
    """Return the license of a backbone's weights by its identifier, such as "ViT-B-16/openai"; None if not known."""
    name, _, tag = identifier.lower().rpartition("/")
    for starts, found in _WEIGHTS:
        if any(tag.startswith(start) and "." not in name for start in starts if "/" not in start):
            return found
        if any(identifier.lower().startswith(start) for start in starts if "/" in start):
            return found
    return None


def data_license(class_path: str | None) -> License | None:
    """Return the license of a data set by the class path of its data module; None if it is not known."""
    return _DATA.get((class_path or "").rpartition(".")[2])
