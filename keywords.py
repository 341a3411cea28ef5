"""Arguments of constructors: those that are only passed on, and those that an object was made with."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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


class KeepsArguments:
    """Base of classes whose objects are saved by class and arguments, to be made again later.

    Attributes:
        given_arguments: What the constructor was called with, by name, with the defaults of its own signature.
        references: Keys of the class's references in assets/references.bib.
        libraries: Packages of other projects that it stands on and that are to be cited.
    """

    given_arguments: dict[str, Any]
    references: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def cited(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the keys of the references of an object with these arguments, for `dtrap cite`."""
        return cls.references

    # Not in `__init__`: a subclass from another project need not pass on what it was called with.
    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        """Create the object and keep the arguments."""
        made = super().__new__(cls)
        # Directly, since a torch module takes no attributes before its `__init__`.
        made.__dict__["given_arguments"] = _named(cls, arguments, keywords)
        return made

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments; a plain attribute of the same name, which may have been changed, goes first."""
        given = dict(self.given_arguments)
        for name in given:
            with suppress(AttributeError, TypeError):
                given[name] = plain(getattr(self, name))
        return given


def _named(cls: type, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of a class by name; {} for a wrong call, which the constructor refuses."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    try:
        bound = signature.bind_partial(None, *arguments, **keywords)
    except TypeError:
        return {}
    bound.apply_defaults()
    found: dict[str, Any] = {}
    for parameter in list(signature.parameters.values())[1:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= bound.arguments[parameter.name]
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            found[parameter.name] = bound.arguments.get(parameter.name)
    return found


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
