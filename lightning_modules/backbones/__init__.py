"""Pre-trained vision-language models with separate query, key and value layers."""

from .base import Backbone
from .open_clip import OpenCLIP
from .transformers import Transformers

__all__ = ["Backbone", "OpenCLIP", "Transformers"]
