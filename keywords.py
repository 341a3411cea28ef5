"""Keyword arguments that a constructor only passes on: typed for mypy, checked with a short message."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .errors import DtrapError, expected_one_of

if TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack
else:

    class Unpack:
        """`typing_extensions.Unpack` for type checkers; `Any` at run time.

        jsonargparse would take names and types from the TypedDict, which has neither defaults nor help. With `Any` it
        follows the keywords to the parent's constructor, which has both.
        """

        def __class_getitem__(cls, options: type) -> Any:
            return Any


def accepted_keywords(component: type) -> list[str]:
    """Return the names of a class's arguments, including those that it passes on to its parents."""
    from jsonargparse import ArgumentParser

    return ArgumentParser(exit_on_error=False).add_class_arguments(component, fail_untyped=False)


def check_keywords(component: object, given: Iterable[str], passed_on: type) -> None:
    """Raise a DtrapError for a keyword that a constructor cannot pass on.

    Args:
        component: The object that is made.
        given: Keywords that the constructor does not have itself.
        passed_on: TypedDict of those that it passes on.
    """
    for name in given:
        if name not in passed_on.__annotations__:
            known = expected_one_of(name, accepted_keywords(type(component)))
            raise DtrapError(f"{type(component).__name__}: unknown argument '{name}'; {known}")
