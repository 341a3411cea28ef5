"""Runs over episodes: `run_protocol` trains and tests methods and returns a `ProtocolResult`.

Importing this package loads neither torch nor lightning.
"""

import lazy_loader

# The names are listed in __init__.pyi; a name is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
