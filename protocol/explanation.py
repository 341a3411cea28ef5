"""Short messages for errors in what a user has configured: callbacks, loggers, optimizers, tuners of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pkgutil import resolve_name
from types import CodeType
from typing import Any

from jsonargparse import Namespace

from ..errors import DtrapError, first_line

OWN_PACKAGE = __name__.partition(".")[0]
LONGEST_REASON = 400


@contextmanager
def explained_creation(option: str, config: Any) -> Iterator[None]:
    """Turn an error while objects are created from a config into a DtrapError.

    Args:
        option: The option that holds the config, such as "trainer"; the message names the part of it that failed.
        config: The parsed value.

    Raises:
        DtrapError: Class path, the first line of the error, and the option to change. The message of a DtrapError is
            kept, but names the argument as it is typed: "LoRA: rank is 0" becomes "--model.tuner.rank is 0".
    """
    try:
        yield
    except DtrapError as error:
        message = str(error)
        typed = _with_option(message, dict(_options(option, config)))
        if typed == message:
            raise
        raise DtrapError(typed) from error
    except Exception as error:
        source, name, path = _configured(error, dict(_class_paths(option, config))) or (error, option, "")
        what = f"{name}: {path} cannot be created" if path else f"{name}: cannot be created"
        missing = "install what it needs, " if isinstance(source, ImportError) else ""
        raise DtrapError(
            f"{what} ({_reason(source)}). Change --{name} or its arguments, {missing}or leave it out; --debug shows "
            "the traceback."
        ) from error


@contextmanager
def explained_use(parts: Iterable[object]) -> Iterator[None]:
    """Turn an error in a method of one of the parts that is not of this package into a DtrapError.

    Args:
        parts: Callbacks, and the tuner and the other parts of a module.

    Raises:
        DtrapError: Class, method and the first line of the error.
    """
    try:
        yield
    except DtrapError:
        raise
    except Exception as error:
        foreign = {id(part) for part in parts if type(part).__module__.partition(".")[0] != OWN_PACKAGE}
        frames = [(code.co_name, owner) for code, owner in _frames(error) if id(owner) in foreign]
        if not frames:
            raise
        part = frames[-1][1]
        methods = [name for name, owner in frames if owner is part]
        method = next((name for name in methods if not name.startswith("_")), methods[0])
        raise DtrapError(
            f"{_class_path(type(part))} failed in {method} ({_reason(error)}). Change its arguments, leave it out, or "
            "choose another class in the config; --debug shows the traceback."
        ) from error


def _with_option(message: str, options: dict[str, list[str]]) -> str:
    """Replace the name of an argument at the start of a message by its option, if only one has that name."""
    found = re.match(r"(?:\w+: )?(\w+)(?= is )", message)
    known = options.get(found.group(1), []) if found else []
    return f"--{known[0]}{message[found.end() :]}" if found and len(known) == 1 else message


def _options(option: str, config: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield each name of an argument in a config with the options that have this name."""
    found: dict[str, list[str]] = {}
    waiting: list[tuple[str, Any]] = [(option, config)]
    while waiting:
        prefix, part = waiting.pop()
        part = vars(part) if isinstance(part, Namespace) else part
        for key, value in part.items() if isinstance(part, dict) else ():
            if key in ("init_args", "class_path"):
                waiting.append((prefix, value))
            else:
                found.setdefault(key, []).append(f"{prefix}.{key}")
                waiting.append((f"{prefix}.{key}", value))
    yield from found.items()


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)[:LONGEST_REASON]}".rstrip(".")


def _class_path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _class_paths(option: str, config: Any) -> Iterator[tuple[str, str]]:
    """Yield option and class path of every part of a config, the outer ones first."""
    if isinstance(config, list | tuple):
        for item in config:
            yield from _class_paths(option, item)
    if isinstance(config, Namespace):
        config = vars(config)
    if isinstance(config, dict):
        if isinstance(config.get("class_path"), str):
            yield config["class_path"], option
        for key, value in config.items():
            yield from _class_paths(option if key == "init_args" else f"{option}.{key}", value)


def _configured(error: BaseException, options: dict[str, str]) -> tuple[BaseException, str, str] | None:
    """Return the error in the constructor of a configured class, and the option and class path of that class."""
    classes: dict[str, Any] = {}
    for path in options:
        with suppress(ImportError, AttributeError, ValueError):
            classes[path] = resolve_name(path)
    for source in _sources(error):
        for code, owner in reversed(list(_frames(source))):
            for path, kind in classes.items():
                is_class = isinstance(kind, type) and isinstance(owner, kind)
                if is_class or getattr(kind, "__code__", None) is code:
                    return source, options[path], path
    if len(options) == 1:
        ((path, option),) = options.items()
        return error, option, path
    return None


def _sources(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from.

    Where an option's type allows several classes, jsonargparse raises one error from a list with one for each.
    """
    yield error
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    # Private: the list is a local variable of jsonargparse's function.
    listed = traceback.tb_frame.f_locals.get("exceptions", []) if traceback is not None else []
    for source in [error.__cause__, *(listed if isinstance(listed, list) else [])]:
        if isinstance(source, BaseException):
            yield from _sources(source)


def _frames(error: BaseException) -> Iterator[tuple[CodeType, object]]:
    """Yield the code of each frame of a traceback and its first argument, the outermost frame first."""
    traceback = error.__traceback__
    while traceback is not None:
        code, values = traceback.tb_frame.f_code, traceback.tb_frame.f_locals
        yield code, values.get(code.co_varnames[0]) if code.co_argcount else None
        traceback = traceback.tb_next
