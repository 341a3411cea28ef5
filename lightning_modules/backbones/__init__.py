"""Pre-trained vision-language models with separate query, key and value layers."""

from .base import Backbone
from .open_clip import OpenCLIP

__all__ = ["Backbone", "OpenCLIP"]
