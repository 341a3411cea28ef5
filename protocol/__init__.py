"""Runs over episodes: `run_protocol` trains and tests methods and returns a `ProtocolResult`.

Importing this package loads neither torch nor lightning; a name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration import MethodConfig, build_data
    from .result import ProtocolResult
    from .runner import run_protocol
    from .settings import ProtocolSettings
    from .statistics import Interval, mean_interval, paired_difference

_MODULES = {
    "MethodConfig": "configuration",
    "build_data": "configuration",
    "ProtocolResult": "result",
    "run_protocol": "runner",
    "ProtocolSettings": "settings",
    "Interval": "statistics",
    "mean_interval": "statistics",
    "paired_difference": "statistics",
}
__all__ = [
    "Interval",
    "MethodConfig",
    "ProtocolResult",
    "ProtocolSettings",
    "build_data",
    "mean_interval",
    "paired_difference",
    "run_protocol",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
