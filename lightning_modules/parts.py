"""Describe backbone, tuner and other parts by plain values, and make them again without importing what a file names.

A description is `{"class_path": ..., "init_args": {...}}`, as in a config. It may come from a stranger: its classes are
looked up in dtrap's own packages, never imported, and its arguments are numbers and texts, or lists and mappings of
them.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..errors import DtrapError, first_line
from ..keywords import KeepsArguments

PACKAGES = ("dtrap.lightning_modules.tuners", "dtrap.lightning_modules.backbones", "dtrap.lightning_modules")
Part = TypeVar("Part")
Description = dict[str, Any]


def describe(part: KeepsArguments, arguments: Mapping[str, Any] | None = None) -> Description:
    """Return class and arguments of a part as values of JSON.

    A value that JSON does not have is described by its type; `rebuild` refuses it.

    Args:
        part: The part.
        arguments: Its arguments; None for `part.arguments`.
    """
    values = part.arguments if arguments is None else arguments
    return {"class_path": class_path(type(part)), "init_args": {name: _plain(value) for name, value in values.items()}}


def rebuild(described: Any, base: type[Part], option: str, *, given: Sequence[type] = ()) -> Part:
    """Make a part of its description.

    Args:
        described: What `describe` returned.
        base: Class that the part must be of, such as `Tuner`.
        option: What the part is called in messages, such as "model.tuner".
        given: Classes besides dtrap's own that the caller allows.

    Raises:
        DtrapError: The class is none of dtrap's and not given, or an argument is not as expected.
    """
    part = own_part(described, base, option, given=given)
    return _make(part, option, {class_path(each): each for each in given})


def own_part(
    described: Any, base: type, option: str, *, given: Sequence[type] = (), packages: Sequence[str] = PACKAGES
) -> Description:
    """Return a description that names nothing but dtrap's own classes and plain values; nothing is imported.

    Args:
        described: `{"class_path": ..., "init_args": {...}}` or a class path alone.
        base: Class that the part must be of.
        option: What the part is called in messages, such as "model.tuner".
        given: Further classes that are allowed.
        packages: The packages of dtrap whose public classes are allowed.

    Raises:
        DtrapError: Anything else is in it.
    """
    content = {"class_path": described} if isinstance(described, str) else described
    if not isinstance(content, Mapping) or not {"class_path"} <= content.keys() <= {"class_path", "init_args"}:
        raise DtrapError(f"{option} is {_short(described)}; expected class_path and init_args, and nothing else.")
    arguments = content.get("init_args") or {}
    if not isinstance(arguments, Mapping):
        raise DtrapError(f"{option}.init_args is {_short(arguments)}; expected names with values.")
    found = next((each for each in given if class_path(each) == content["class_path"]), None)
    found = found or own_class(content["class_path"], base, packages)
    if found is None:
        raise ForeignClass(content["class_path"], option)
    checked = {
        str(name): _checked(value, argument_type(found, str(name)), f"{option}.{name}", (given, packages))
        for name, value in arguments.items()
    }
    return {"class_path": class_path(found), "init_args": checked}


class ForeignClass(DtrapError):
    """A description names a class that is not dtrap's.

    Args:
        path: The class path.
        option: The option that would allow it.
    """

    def __init__(self, path: object, option: str) -> None:
        super().__init__(
            f"{option} is {_short(path)}, which is not one of dtrap's classes, and a saved file may not import code. "
            f"If you trust that class, give it: --{option} CLASS_PATH."
        )
        self.path, self.option, self.shown = path, option, _short(path)


def own_class(path: object, base: type, packages: Sequence[str] = PACKAGES) -> type | None:
    """Return the public class of dtrap that a class path or a class's bare name stands for; None if there is none."""
    if not isinstance(path, str):
        return None
    module, _, name = path.rpartition(".")
    for package in map(import_module, packages):
        if name not in package.__all__ or not (module == "" or f"{module}.".startswith(f"{package.__name__}.")):
            continue
        found = getattr(package, name)
        concrete = inspect.isclass(found) and issubclass(found, base) and not inspect.isabstract(found)
        if concrete and module in ("", package.__name__, found.__module__):
            return found
    return None


def class_path(cls: type) -> str:
    """Return the path by which a class is imported: its package where that exports it, else its module."""
    package, name = cls.__module__.rpartition(".")[0], cls.__name__
    public = package.startswith("dtrap.") and name in getattr(import_module(package), "__all__", ())
    return f"{package if public else cls.__module__}.{cls.__qualname__}"


def argument_type(owner: type, name: str) -> Any:
    """Return the annotation of a constructor's argument, also of one that is passed on to a base class, else None."""
    for base in owner.__mro__:
        try:
            parameter = inspect.signature(base.__init__, eval_str=True).parameters.get(name)  # type: ignore[misc]
        except (TypeError, ValueError, NameError):  # no signature, or names that only type checkers import
            continue
        if parameter is not None:
            return parameter.annotation
    return None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, KeepsArguments):
        return describe(value)
    return {"not_saved": f"{type(value).__module__}.{type(value).__qualname__}"}


def _checked(value: Any, annotation: Any, option: str, allowed: tuple[Sequence[type], Sequence[str]]) -> Any:
    """Return a plain copy of an argument's value; a text only where the argument is a text, since a parser imports.

    Raises:
        DtrapError: The value is not plain, or a text stands for an object.
    """
    kinds = _kinds(annotation)
    if isinstance(value, bool | int | float) or (value is None and (annotation is None or type(None) in kinds)):
        return value
    if isinstance(value, str):
        if any(kind in (str, Path) for kind in kinds) or value in _literals(kinds):
            return value
    elif isinstance(value, list):
        items = [kind for kind in kinds if _is(kind, Sequence) and kind is not str]
        if items:
            inner = [item for kind in items for item in typing.get_args(kind)]
            return [_checked(item, _union(inner), option, allowed) for item in value]
    elif isinstance(value, Mapping):
        record = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if record is not None and isinstance(record, type):
            hints = typing.get_type_hints(record)
            return {str(key): _checked(item, hints.get(key), f"{option}.{key}", allowed) for key, item in value.items()}
        inner = [typing.get_args(kind)[1] for kind in kinds if _is(kind, Mapping) and len(typing.get_args(kind)) == 2]
        if inner:
            return {str(key): _checked(item, _union(inner), f"{option}.{key}", allowed) for key, item in value.items()}
    part = next((kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, KeepsArguments)), None)
    if part is not None:
        return own_part(value, part, option, given=allowed[0], packages=allowed[1])
    raise DtrapError(f"{option} is {_short(value)}, which is not a plain value that this option takes.")


def _kinds(annotation: Any) -> list[Any]:
    """Return the members of a union; the annotation itself if it is none."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [kind for member in typing.get_args(annotation) for kind in _kinds(member)]
    return [annotation]


def _union(members: Sequence[Any]) -> Any:
    members = [member for member in members if member is not Ellipsis]
    return typing.Union[tuple(members)] if members else None  # noqa: UP007 - made from a list


def _literals(kinds: Sequence[Any]) -> list[Any]:
    return [value for kind in kinds if typing.get_origin(kind) is Literal for value in typing.get_args(kind)]


def _is(kind: Any, base: type) -> bool:
    origin = typing.get_origin(kind) or kind
    return inspect.isclass(origin) and issubclass(origin, base)


def _make(described: Description, option: str, given: Mapping[str, type]) -> Any:
    path, arguments = described["class_path"], described["init_args"]
    # Everything in `described` has passed `own_part`, so a mapping with the class path of a part is one. Another class
    # path is a plain value, such as that of a config of peft.
    for name, value in arguments.items():
        nested = value.get("class_path") if isinstance(value, Mapping) else None
        if nested is not None and (nested in given or own_class(nested, object) is not None):
            arguments[name] = _make(dict(value), f"{option}.{name}", given)
    cls: Any = given.get(path) or own_class(path, object)
    try:
        return cls(**arguments)
    except DtrapError as error:
        raise DtrapError(f"{option}: {error}") from error
    except (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise DtrapError(f"{option}: cannot make {path} of its saved arguments ({first_line(error)}).") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
