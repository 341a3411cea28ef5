"""Pre-trained vision-language models with separate query, key and value layers."""

from typing import TYPE_CHECKING

from ...lazy import lazy

if TYPE_CHECKING:
    from .base import Backbone as Backbone
    from .open_clip import OpenCLIP as OpenCLIP
    from .transformers import Transformers as Transformers
else:
    __all__, __getattr__, __dir__ = lazy(
        __name__,
        {
            "base": ["Backbone"],
            "open_clip": ["OpenCLIP"],
            "transformers": ["Transformers"],
        },
    )
