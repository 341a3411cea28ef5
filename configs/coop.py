"""The configs `coop/<set>_<shot>shot.yaml` of the eleven sets of CoOp."""

from __future__ import annotations

# Name of the config: (class in dtrap.datamodules.coop, title, kind of images, number of classes).
_SETS = {
    "caltech101": ("Caltech101DataModule", "Caltech101", "objects", 100),
    "dtd": ("DTDDataModule", "DTD", "textures", 47),
    "eurosat": ("CoOpEuroSATDataModule", "EuroSAT with CoOp's split and template", "satellite images", 10),
    "fgvc_aircraft": ("FGVCAircraftDataModule", "FGVCAircraft", "variants of airplanes", 100),
    "flowers102": ("Flowers102DataModule", "Flowers102", "flowers", 102),
    "food101": ("Food101DataModule", "Food101", "dishes", 101),
    "imagenet": ("ImageNetDataModule", "ImageNet", "objects and animals", 1000),
    "oxford_pets": ("OxfordPetsDataModule", "OxfordPets", "cats and dogs", 37),
    "stanford_cars": ("StanfordCarsDataModule", "StanfordCars", "makes, models and years", 196),
    "sun397": ("SUN397DataModule", "SUN397", "scenes", 397),
    "ucf101": ("UCF101DataModule", "UCF101", "actions", 101),
}

_EPISODES = {1: 800, 5: 400}  # by shot, as in the paper

_CONFIG = """\
# {title}: {images}, {classes:,} classes; 5-way {shot}-shot, {episodes} episodes
protocol:
  episodes: {episodes}
trainer:
  max_epochs: 250
data:
  class_path: dtrap.datamodules.coop.{name}
  init_args:
    way: 5
    shot: {shot}
    query: 15
"""

COOP_CONFIGS = {
    f"coop/{config}_{shot}shot.yaml": _CONFIG.format(
        title=title, images=images, classes=classes, shot=shot, episodes=episodes, name=name
    )
    for config, (name, title, images, classes) in _SETS.items()
    for shot, episodes in _EPISODES.items()
}
