"""The LightningModule and its parts: losses, objective, backbones and tuners."""

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from . import backbones as backbones
    from . import losses as losses
    from . import tuners as tuners
    from .few_shot_classifier import FewShotClassifier as FewShotClassifier
    from .objective import Objective as Objective
else:
    __all__, __getattr__, __dir__ = lazy(
        __name__,
        {
            "few_shot_classifier": ["FewShotClassifier"],
            "objective": ["Objective"],
            "backbones": [],
            "losses": [],
            "tuners": [],
        },
    )
