"""Read regular files, write files atomically, and values of JSON."""

from __future__ import annotations

import errno
import glob
import gzip
import hashlib
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from .errors import DtrapError

# Names of the temporary files and folders of `replacing`, with the process that writes them.
TEMPORARY = re.compile(r"\.(.+)\.(\d+)\.tmp", re.DOTALL)
RERUN = "and rerun the same command."


@contextmanager
def replacing(path: Path, remedy: str = RERUN, errors: tuple[type[Exception], ...] = (OSError,)) -> Iterator[Path]:
    """Yield a temporary path for a file or folder that is renamed to `path` at the end, or deleted after an error.

    Args:
        path: The file or folder; missing parents are created. A folder may replace an empty one only.
        remedy: What the user can do if it cannot be written; ends the error message.
        errors: Exceptions that mean that it cannot be written.

    Raises:
        DtrapError: It cannot be written; what was at `path` is unchanged.
    """
    check_replaceable(path, remedy)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, glob.escape(path.name))
        yield temporary
        os.replace(temporary, path)
    except errors as error:
        raise cannot_write(path, error, remedy) from error
    finally:
        _remove(temporary)


def check_replaceable(path: Path, remedy: str = RERUN) -> None:
    """Raise a DtrapError for a device, FIFO or socket, which a file would replace for every other program."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise DtrapError(f"{path}: cannot write (a device, FIFO or socket, not a file). Remove it {remedy}")


def remove_leftovers(folder: Path, name: str) -> None:
    """Delete the temporary files and folders in a folder that killed processes left of `replacing`.

    Args:
        folder: The folder; it need not exist.
        name: Pattern of the names of the files that were to be replaced.
    """
    for path in folder.glob(f".{name}.*.tmp"):
        found = TEMPORARY.fullmatch(path.name)
        if found and fnmatchcase(found[1], name) and not _runs(int(found[2])):
            _remove(path)


def _runs(process: int) -> bool:
    """Whether another process has this number; in a container, a killed one may have had that of this process."""
    if process == os.getpid():
        return False
    if os.name != "posix":  # signal 0 would end the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        return True
    return True


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()


def write_atomically(path: Path, content: bytes | str, remedy: str = RERUN) -> None:
    """Write a file under a temporary name and rename it, so that it is complete or absent, also after a kill.

    Args:
        path: The file; a missing folder is created.
        content: The whole content; a text becomes UTF-8, see `printable`.
        remedy: What the user can do if the file cannot be written; ends the error message.

    Raises:
        DtrapError: The file cannot be written; an existing one is unchanged.
    """
    with replacing(path, remedy) as temporary, temporary.open("wb") as file:
        file.write(printable(content).encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def open_file(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a regular file for reading; never a FIFO, device or socket, which would block or do something.

    Raises:
        OSError: It is not a regular file, or cannot be opened.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise _irregular(path)
    # Without blocking, in case the file is replaced by a FIFO at this moment.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _irregular(path)
    return open(descriptor, "rb")


def read_at_most(path: Path, size: int) -> bytes:
    """Return the first bytes of a regular file, unpacked if its name ends in `.gz`.

    Raises:
        OSError: It is not a regular file, or cannot be read.
        EOFError, zlib.error: It is damaged gzip data.
    """
    with open_file(path) as file:
        return (gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file).read(size)


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a regular file, in hexadecimal."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def user_cache() -> Path:
    """Return the folder for files that can be made again: `dtrap` in $XDG_CACHE_HOME, or else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "dtrap")


def _irregular(path: str | os.PathLike[str]) -> OSError:
    what = "it is a folder" if os.path.isdir(path) else "not a regular file but a FIFO, device or socket"
    return OSError(errno.EINVAL, what, os.fspath(path))


def printable(text: str) -> str:
    r"""Return a text that can be written as UTF-8: bytes of a file name that are not become `\udc..` escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def to_json_values(value: Any) -> Any:
    """Convert a value to types of JSON: arrays become lists, paths text, NaN and infinities None."""
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
    """Return the error for a failed write, with the file, the reason and the remedy."""
    reason = getattr(error, "strerror", None) or str(error)
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    fix = "Free space there" if full else "Fix the permissions"
    return DtrapError(f"{path}: cannot write ({reason}). {fix} {remedy}")


# Where a spreadsheet may begin to compute, blanks and invisible characters skipped: at the start of a cell, and after a
# semicolon or a tab, which separate cells in some languages. Also the full-width forms of = + - @.
_FORMULA = re.compile(r"(^|[;\t\r\n])(?=[\s\u200b-\u200f\u2060\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20])|^(?=[\t\r\n])")


def no_formula(text: str) -> str:
    """Return a text for a CSV file that a spreadsheet shows instead of computing it."""
    return _FORMULA.sub(r"\1'", text)
