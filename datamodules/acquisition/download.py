"""Downloads that go on where they were cut off and whose checksum is verified before the file gets its name."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ...console import say
from ...errors import DtrapError

BLOCK = 1 << 20
SECONDS_BETWEEN_LINES = 30.0
_PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)


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
    """Bring a file here; a target that is there already is verified and kept.

    The bytes go to `<target>.part`. A try that is cut off is resumed (HTTP Range with If-Range, so that the parts of
    two versions are never put together), in the next try or in the next call; a server that cannot resume starts anew.

    Args:
        url: Address; http and https only, also after redirects, and never from https to http.
        target: File to write; its folder is made.
        console: Where the progress is shown.
        checksum: `md5:...` or `sha256:...`; without one only the size is compared.
        size: Number of bytes that the file must have.
        tries: Failed tries in a row before giving up; one that brought something new counts as the first.
        timeout: Seconds that the server may stay silent.
        wait: Called with the seconds between two tries (1, 2, 4, ...).

    Raises:
        DtrapError: No such file, no connection, no room, or other contents than expected.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise DtrapError(f"{url}: only http and https addresses are downloaded.")
    if target.is_dir():
        raise DtrapError(f"{target} is a folder, expected a file. Move it away and run the command again.")
    if target.exists():
        fault = difference(target, checksum, size)
        if fault:
            raise DtrapError(f"{target} {fault}. Move it away and run the command again to download it.")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(target, url)
    try:
        _download_part(url, part, console, size, tries, timeout, wait)
    except KeyboardInterrupt:
        say(console, f"Stopped. {part.path} holds {decimal(part.length())}; the same command goes on from there.")
        raise
    fault = difference(part.path, checksum, size)
    if fault:
        part.discard()
        raise DtrapError(
            f"{url}: what was downloaded {fault}. It was deleted; run the command again, and if that ends the same "
            "way, look at the data set's page for what has changed."
        )
    part.path.replace(target)
    part.discard()


def difference(path: Path, checksum: str | None, size: int | None) -> str:
    """What a file has other than expected, empty where nothing; None is not compared.

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
    """The bytes that are there, and the mark (ETag or date) of the version that they come from."""

    def __init__(self, target: Path, url: str) -> None:
        self.url = url
        self.path = target.with_name(f"{target.name}.part")
        self.notes = target.with_name(f"{target.name}.part.json")

    def length(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def mark(self) -> str | None:
        """ETag or date of the version; None where there is none to go on from."""
        try:
            notes = json.loads(self.notes.read_text())
            return notes["mark"] if notes["url"] == self.url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def start(self, mark: str | None) -> None:
        """Empty the part for a version."""
        self.discard()
        with _writing(self.path):
            self.path.touch()
            if mark is not None:
                self.notes.write_text(json.dumps({"url": self.url, "mark": mark}))

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DtrapError(
            f"{path} cannot be written: {error.strerror}. Make room and run the same command again to go on."
        ) from None


class _Cut(Exception):
    """A try that ended early; the next one may go on."""


def _download_part(
    url: str,
    part: _Part,
    console: Console,
    size: int | None,
    tries: int,
    timeout: float,
    wait: Callable[[float], None],
) -> None:
    most, failures = part.length(), 0
    with _Transfer(part.path.stem, console) as transfer:
        while True:
            try:
                _attempt(url, part, transfer, size, timeout)
                return
            except _Cut as error:
                most, failures = max(most, part.length()), failures + 1 if part.length() <= most else 1
                if failures >= tries:
                    length = part.length()
                    run = f"{part.path} is kept ({decimal(length)}); run" if length else "Run"
                    raise DtrapError(
                        f"{url}: {error}, {tries} times in a row. {run} the same command again to go on."
                    ) from None
                transfer.say(f"{error}; trying again")
                wait(2.0 ** (failures - 1))


def _attempt(url: str, part: _Part, transfer: _Transfer, size: int | None, timeout: float) -> None:
    """One request; raises _Cut where another one may help."""
    mark, offset = part.mark(), part.length()
    headers = {"User-Agent": "dtrap", "Accept-Encoding": "identity"}
    if mark is not None and offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": mark}
    else:
        offset = 0
    try:
        response = _opener().open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range", "") == f"bytes */{part.length()}":
            return
        raise _refusal(url, part, error) from None
    except urllib.error.URLError as error:
        raise _Cut(f"no connection ({error.reason})") from None
    except (http.client.HTTPException, OSError) as error:
        raise _Cut(f"the connection was cut ({error or type(error).__name__})") from None
    with response:
        offset, total = _begin(response, part, offset, size, transfer)
        _check_room(part.path.parent, (total or size or 0) - offset)
        transfer.begin(offset, total or size)
        _copy(response, part, size or total, transfer)
    if total is not None and part.length() != total:
        raise _Cut(f"the connection was cut after {part.length()} of {total} bytes")


def _refusal(url: str, part: _Part, error: urllib.error.HTTPError) -> _Cut | DtrapError:
    if error.code == 416:
        part.discard()
        return _Cut("the server has no more bytes than the part file")
    if error.code in _PASSING_STATUS:
        return _Cut(f"the server answered {error.code} {error.reason}")
    return DtrapError(
        f"{url}: the server answered {error.code} {error.reason}. The file may have moved: look at the data set's page."
    )


def _begin(response: Any, part: _Part, offset: int, size: int | None, transfer: _Transfer) -> tuple[int, int | None]:
    """Where the bytes of an answer belong, and the size of the whole file where it is told.

    An answer of another size than expected leaves the part as it is: it may be a network's login page.
    """
    mark = _mark(response.headers)
    if response.status == 206:
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not offset or told is None or int(told[1]) != offset or mark not in (None, part.mark()):
            part.discard()
            raise _Cut("the server sent another part than asked for")
        total = None if told[2] == "*" else int(told[2])
        _check_size(part, total, size)
        return offset, total
    if response.status != 200:
        raise DtrapError(f"{response.url}: the server answered {response.status}, expected 200.")
    length = response.headers.get("Content-Length")
    total = int(length) if length is not None and length.isdigit() else None
    _check_size(part, total, size)
    if offset:
        transfer.say("the file has changed or the server cannot resume: from the beginning")
    part.start(mark)
    return 0, total


def _check_size(part: _Part, total: int | None, size: int | None) -> None:
    if size is None or total in (None, size):
        return
    kept = f" {part.path} is kept ({decimal(part.length())})." if part.length() else ""
    raise DtrapError(
        f"{part.url} has {total} bytes now, expected {size}: no longer the file that was published, or another page "
        f"in its place (does the network ask for a login?).{kept} Open the address in a browser."
    )


def _mark(headers: Any) -> str | None:
    """What If-Range can name: a strong ETag, else the date of the last change."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _copy(response: IO[bytes], part: _Part, most: int | None, transfer: _Transfer) -> None:
    """Append an answer to the part, which becomes `most` bytes long at most."""
    length = part.length()
    with _writing(part.path), open(part.path, "ab") as file:
        while block := _read(response):
            length += len(block)
            if most is not None and length > most:
                break
            file.write(block)
            file.flush()
            transfer.advance(len(block))
        else:
            return
    part.discard()
    raise DtrapError(
        f"{part.url}: the server sends more than the {most} bytes expected: not the file that was published. What had "
        "come was deleted; look at the data set's page for what has changed."
    )


def _read(response: IO[bytes]) -> bytes:
    try:
        return response.read(BLOCK)
    except (http.client.HTTPException, OSError) as error:
        raise _Cut(f"the connection was cut ({error or type(error).__name__})") from None


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DtrapError(f"{folder} has {decimal(free)} free; {decimal(needed)} are still to come. Make room.")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, not from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in ("http", "https") or (before == "https" and after == "http"):
            raise urllib.error.HTTPError(req.full_url, code, f"redirect to {newurl} refused", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https only: no files, no ftp."""
    opener = urllib.request.OpenerDirector()
    handlers: Iterable[Callable[[], urllib.request.BaseHandler]] = (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    )
    for handler in handlers:
        opener.add_handler(handler())
    return opener


class _Transfer:
    """A bar with size, rate and time left; a line now and then where there is no terminal."""

    def __init__(self, name: str, console: Console) -> None:
        self.name, self.console = name, console
        self.done, self.total, self.last_line = 0, 0, time.monotonic()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
        self.bar = Progress(
            *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )

    def __enter__(self) -> _Transfer:
        self.task = self.bar.add_task(self.name, total=None)
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def begin(self, done: int, total: int | None) -> None:
        self.done, self.total = done, total or 0
        self.bar.reset(self.task, completed=done, total=total)

    def advance(self, count: int) -> None:
        self.done += count
        self.bar.update(self.task, completed=self.done)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            self.say(decimal(self.done) + (f" of {decimal(self.total)}" if self.total else ""))

    def say(self, text: str) -> None:
        say(self.console, f"{self.name}: {text}")
