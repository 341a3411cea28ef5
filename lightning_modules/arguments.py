"""Objects that keep the arguments they were created with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self


class KeepsArguments:
    """Keeps the constructor's arguments, so that a checkpoint can say how to create the object again."""

    _given: Mapping[str, Any] | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Create the object and keep the arguments, before `__init__` changes them."""
        created = super().__new__(cls)
        with suppress(TypeError):  # wrong arguments, about which `__init__` complains; a copy is made without any
            bound = inspect.signature(cls.__init__).bind(created, *args, **kwargs)
            bound.apply_defaults()
            # Directly, since a torch module takes no attributes before its `__init__`.
            created.__dict__["_given"] = dict(list(bound.arguments.items())[1:])
        return created

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments; a plain attribute of the same name, which may have been changed, goes first."""
        given = dict(self._given or {})
        for name in given:
            with suppress(AttributeError, TypeError):
                given[name] = plain(getattr(self, name))
        return given


def plain(value: Any) -> Any:
    """Return a value as None, numbers, texts, lists and dictionaries; a path becomes text.

    Raises:
        TypeError: The value contains anything else.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} is not a plain value")
