"""Runs over episodes: `run_protocol` trains and tests methods and returns a `ProtocolResult`.

Importing this package loads neither torch nor lightning.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .configuration import MethodConfig as MethodConfig
    from .configuration import build_data as build_data
    from .result import ProtocolResult as ProtocolResult
    from .runner import run_protocol as run_protocol
    from .settings import ProtocolSettings as ProtocolSettings
    from .statistics import Interval as Interval
    from .statistics import mean_interval as mean_interval
    from .statistics import paired_difference as paired_difference
else:
    __all__, __getattr__, __dir__ = lazy(
        __name__,
        {
            "configuration": ["MethodConfig", "build_data"],
            "result": ["ProtocolResult"],
            "runner": ["run_protocol"],
            "settings": ["ProtocolSettings"],
            "statistics": ["Interval", "mean_interval", "paired_difference"],
        },
    )
