"""dtrap: tuning vision-language models on a few images of a distant domain.

Method: "Mind the Discriminability Trap in Source-Free Cross-domain Few-shot Learning", CVPR 2026, arXiv 2603.13341.
Importing this package alone loads neither torch nor lightning; the parts are in `dtrap.lightning_modules`,
`dtrap.datamodules` and `dtrap.callbacks`, and `dtrap.Classifier` labels images with a saved adapter.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for typing's own, whose import takes longer than that of this package
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `Classifier` when it is first used."""
    if name != "Classifier":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return import_module(".protocol.classifier", __name__).Classifier


def __dir__() -> list[str]:
    return [*globals(), "Classifier"]
