"""Download files: resume after a cut, and verify the checksum before the file gets its name.

The downloaders of torchvision, torch.hub and urllib neither resume nor stop waiting for a silent server; the one of
huggingface_hub reaches its own hub only. So `urllib` sends the requests, and this module adds the resuming.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ...console import say
from ...errors import DtrapError
from ...files import RERUN, cannot_write, write_atomically
from .archives import check_free_space

BLOCK = 1 << 20
SECONDS_BETWEEN_LINES = 30.0
_TEMPORARY_STATUS = (408, 425, 429, 500, 502, 503, 504)


def download(
    url: str,
    target: Path,
    console: Console,
    *,
    checksum: str | None = None,
    size: int | None = None,
    tries: int = 5,
    timeout: float = 30.0,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Download a file, or verify the target if it exists.

    The bytes go to `<target>.part`. The next try or the next call resumes a try that was cut off. HTTP Range is sent
    with If-Range, so that parts of two versions are never combined. If the server cannot resume, the download starts
    from the beginning.

    Args:
        url: Address; http or https, also after redirects, which never lead from https to http.
        target: File to write; its folder is created.
        console: Where to show the progress.
        checksum: `md5:...` or `sha256:...`; without one only the size is compared.
        size: Number of bytes that the file must have; None if it is not known.
        tries: Number of failed tries in a row before giving up; a try that received new bytes starts the count again.
        timeout: Seconds to wait for a silent server.
        wait: Function to call with the seconds between two tries (1, 2, 4, ...).

    Raises:
        DtrapError: The file does not exist, has other contents than expected or cannot be written, there is no
            connection, or the disk is full.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise DtrapError(f"{url}: unsupported address; expected http or https.")
    if target.is_dir():
        raise DtrapError(f"{target} is a folder, expected a file. Move it away {RERUN}")
    if target.exists():
        if fault := find_difference(target, checksum, size):
            raise DtrapError(f"{target} {fault}. Move it away {RERUN}")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(target, url)
    try:
        _download_part(part, console, size, tries, timeout, wait)
    except KeyboardInterrupt:
        say(console, f"Stopped. {part.path} holds {decimal(part.length())}; rerun the same command to resume.")
        raise
    if fault := find_difference(part.path, checksum, size):
        part.discard()
        raise DtrapError(
            f"{url}: the downloaded file {fault}. It was deleted. Rerun the same command; if that fails in the same "
            "way, see the data set's page for what has changed."
        )
    part.path.replace(target)
    part.discard()


def find_difference(path: Path, checksum: str | None, size: int | None) -> str:
    """Return how a file differs from what is expected, or an empty string; None is not compared.

    Args:
        path: The file.
        checksum: `md5:...` or `sha256:...`.
        size: Number of bytes.
    """
    found = path.stat().st_size
    if size is not None and found != size:
        return f"has {found} bytes, expected {size}"
    if checksum is None:
        return ""
    kind, _, expected = checksum.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() == expected:
        return ""
    return f"has the {kind} checksum {digest.hexdigest()}, expected {expected}"


class _Part:
    """The bytes downloaded so far, and the version (ETag or date) of the file that they belong to."""

    def __init__(self, target: Path, url: str) -> None:
        self.url = url
        self.path = target.with_name(f"{target.name}.part")
        self.notes = target.with_name(f"{target.name}.part.json")

    def length(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self) -> str | None:
        """Return the version, or None if the bytes cannot be resumed."""
        try:
            notes = json.loads(self.notes.read_text())
            return notes["mark"] if notes["url"] == self.url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def start(self, version: str | None) -> None:
        """Discard the bytes and start with a version."""
        # Emptied before the version is written: a kill in between must not pair old bytes with the new version.
        self.discard()
        write_atomically(self.path, b"")
        if version is not None:
            write_atomically(self.notes, json.dumps({"url": self.url, "mark": version}))

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


class _Cut(Exception):
    """A try that ended early; another try may succeed."""


def _cut(error: Exception) -> _Cut:
    if isinstance(error, urllib.error.URLError):
        return _Cut(f"no connection ({error.reason})")
    return _Cut(f"the connection was cut ({error or type(error).__name__})")


def _download_part(
    part: _Part, console: Console, size: int | None, tries: int, timeout: float, wait: Callable[[float], None]
) -> None:
    most, failures = part.length(), 0
    transfer = _Transfer(part.path.stem, console)
    with transfer.bar:
        while True:
            try:
                _attempt(part, transfer, size, timeout)
                return
            except _Cut as error:
                length = part.length()
                most, failures = max(most, length), failures + 1 if length <= most else 1
                if failures >= tries:
                    kept = f" {part.path} is kept ({decimal(length)})." if length else ""
                    raise DtrapError(
                        f"{part.url}: {error}, {tries} times in a row.{kept} Rerun the same command to resume."
                    ) from None
                transfer.say(f"{error}; trying again")
                wait(2.0 ** (failures - 1))


def _attempt(part: _Part, transfer: _Transfer, size: int | None, timeout: float) -> None:
    """Send one request and append its answer to the part; raise _Cut where another request may help."""
    version, offset = part.version(), part.length()
    # Compressed on the way, the bytes would have other offsets than those of the file.
    headers = {"User-Agent": "dtrap", "Accept-Encoding": "identity"}
    if version is not None and offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": version}
    else:
        offset = 0
    opener = urllib.request.build_opener(_Redirects)
    try:
        response = opener.open(urllib.request.Request(part.url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range", "") == f"bytes */{part.length()}":
            return  # the part is the whole file
        raise _refusal(part, error) from None
    except (http.client.HTTPException, OSError) as error:
        raise _cut(error) from None
    with response:
        offset, total = _begin(response, part, offset, size, transfer)
        check_free_space(part.path.parent, (total or size or 0) - offset, f"the rest of {part.path.stem}")
        transfer.begin(offset, total or size)
        _copy(response, part, size or total, transfer)
    if total is not None and part.length() != total:
        raise _Cut(f"the connection was cut after {part.length()} of {total} bytes")


def _refusal(part: _Part, error: urllib.error.HTTPError) -> _Cut | DtrapError:
    if error.code == 416:
        part.discard()
        return _Cut("the part file is longer than the file on the server")
    if error.code in _TEMPORARY_STATUS:
        return _Cut(f"the server answered {error.code} {error.reason}")
    return DtrapError(
        f"{part.url}: the server answered {error.code} {error.reason}. See the data set's page for the new address."
    )


def _begin(response: Any, part: _Part, offset: int, size: int | None, transfer: _Transfer) -> tuple[int, int | None]:
    """Return the offset of an answer's first byte, and the size of the whole file if the server sends it."""
    version = _version(response.headers)
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not offset or found is None or int(found[1]) != offset or version not in (None, part.version()):
            part.discard()
            raise _Cut("the server sent another part than requested")
        total = None if found[2] == "*" else int(found[2])
        _check_size(part, total, size)
        return offset, total
    if response.status != 200:
        raise DtrapError(f"{response.url}: the server answered {response.status}, expected 200.")
    length = response.headers.get("Content-Length")
    total = int(length) if length is not None and length.isdigit() else None
    # Before the part is emptied: a network's login page must not cost the bytes downloaded so far.
    _check_size(part, total, size)
    if offset:
        transfer.say("the file has changed or the server cannot resume; starting from the beginning")
    part.start(version)
    return 0, total


def _check_size(part: _Part, total: int | None, size: int | None) -> None:
    if size is None or total in (None, size):
        return
    kept = f" {part.path} is kept ({decimal(part.length())})." if part.length() else ""
    raise DtrapError(
        f"{part.url} has {total} bytes, expected {size}. The file has changed, or the network answers with its login "
        f"page.{kept} Open the address in a browser."
    )


def _version(headers: Any) -> str | None:
    """Return what If-Range accepts: a strong ETag, else the date of the last change."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _copy(response: IO[bytes], part: _Part, most: int | None, transfer: _Transfer) -> None:
    """Append an answer to the part, up to a length of `most` bytes."""
    length = part.length()
    try:
        with open(part.path, "ab") as file:
            while block := _read(response):
                length += len(block)
                if most is not None and length > most:
                    break
                file.write(block)
                transfer.advance(len(block))
            else:
                return
    except OSError as error:
        raise cannot_write(part.path, error, "and rerun the same command to resume.") from None
    part.discard()
    raise DtrapError(
        f"{part.url}: the server sends more than the {most} bytes expected. The downloaded part was deleted; see the "
        "data set's page for what has changed."
    )


def _read(response: IO[bytes]) -> bytes:
    try:
        return response.read(BLOCK)
    except (http.client.HTTPException, OSError) as error:
        raise _cut(error) from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, but not from https to http.

    urllib would also follow them to ftp.
    """

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in ("http", "https") or (before == "https" and after == "http"):
            raise urllib.error.HTTPError(req.full_url, code, f"redirect to {newurl} refused", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Transfer:
    """A progress bar with size, rate and remaining time; without a terminal, a line every 30 seconds."""

    def __init__(self, name: str, console: Console) -> None:
        self.name, self.console, self.last_line = name, console, time.monotonic()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
        self.bar = Progress(
            *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self.task = self.bar.add_task(name, total=None)

    def begin(self, done: int, total: int | None) -> None:
        self.bar.reset(self.task, completed=done, total=total)

    def advance(self, count: int) -> None:
        self.bar.advance(self.task, count)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line, task = now, self.bar.tasks[0]
            self.say(decimal(int(task.completed)) + (f" of {decimal(int(task.total))}" if task.total else ""))

    def say(self, text: str) -> None:
        say(self.console, f"{self.name}: {text}")
