"""The LightningModule and what it is made of: losses, objective, backbones, tuners."""

from .few_shot_classifier import FewShotClassifier
from .objective import Objective

__all__ = ["FewShotClassifier", "Objective"]
