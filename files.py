"""Write files as a whole or not at all, and turn values into what JSON holds."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import DtrapError

RERUN = "and rerun the same command."


def write_atomically(path: Path, content: bytes, remedy: str = RERUN) -> None:
    """Put `content` in place of the file in one move, so that no reader and no kill sees a part of it.

    Args:
        path: The file; its folder is made where it does not exist.
        content: All that it shall hold.
        remedy: What a user can do besides making place, for the error.

    Raises:
        DtrapError: the file cannot be written; an earlier one stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error, remedy) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def to_json_values(value: Any) -> Any:
    """Value made of what JSON has: arrays become lists, paths text, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(key): to_json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_values(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return to_json_values(value.tolist()) if hasattr(value, "tolist") else value


def cannot_write(path: Path, error: Exception, remedy: str = RERUN) -> DtrapError:
    """Error that names the file, the reason and the remedy of a failed write."""
    reason = getattr(error, "strerror", None) or str(error)
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    fix = "Free space there" if full else "Fix the permissions"
    return DtrapError(f"{path}: cannot write ({reason}). {fix} {remedy}")
