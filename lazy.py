"""Package names that are imported when they are first used (PEP 562), so that a small import stays small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any


def lazy(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__all__`, `__getattr__` and `__dir__` of a package whose names are imported on first use.

    The package imports the same names under `if TYPE_CHECKING:` for type checkers and editors, and calls this function
    in the `else` branch: a `__getattr__` that a type checker sees would make it accept every misspelled name.

    Args:
        package: The package's `__name__`.
        names: The public names of each submodule. The submodules are attributes of the package too.
    """
    places = {name: module for module, public in names.items() for name in public}

    def find(name: str) -> Any:
        if name in names:
            return import_module(f"{package}.{name}")
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{places[name]}"), name)
        vars(import_module(package))[name] = value  # the next access does not come here
        return value

    return list(places), find, lambda: sorted({*vars(import_module(package)), *places})


def load_all(*packages: ModuleType) -> None:
    """Import all public names of lazy packages: jsonargparse knows only the subclasses that are imported."""
    for package in packages:
        for name in package.__all__:
            getattr(package, name)
