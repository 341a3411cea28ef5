from . import backbones as backbones
from . import losses as losses
from . import tuners as tuners
from .few_shot_classifier import FewShotClassifier as FewShotClassifier
from .objective import Objective as Objective
