"""Measures of alignment between images and texts, and of visual learning: functions and torchmetrics classes."""

import lazy_loader

# The names are listed in __init__.pyi; a name is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
