"""Charts of a report: functions from plain numbers to drawings as SVG text with alternative texts.

They know neither run folders nor pages. Importing this package loads matplotlib, but not torch.
"""

from .accuracy import accuracy_per_episode
from .chart import CHART_RULES, Chart, Table
from .classes import per_class_accuracy
from .confusion import confusion_matrix
from .coop import coop_panels
from .differences import difference_distribution
from .features import feature_map
from .gap_shift import gap_shift_curves
from .heat_map import heat_map
from .losses import loss_curves
from .measures import measure_panels

__all__ = [
    "CHART_RULES",
    "Chart",
    "Table",
    "accuracy_per_episode",
    "confusion_matrix",
    "coop_panels",
    "difference_distribution",
    "feature_map",
    "gap_shift_curves",
    "heat_map",
    "loss_curves",
    "measure_panels",
    "per_class_accuracy",
]
