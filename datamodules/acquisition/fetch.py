"""`dtrap data fetch NAME ROOT`: download a data set to where its data module looks, or say how to get it."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout
from rich.console import Console

from ...console import say
from ...errors import DtrapError, expected_one_of
from ...files import RERUN
from . import sources
from .archives import extract, is_empty_folder
from .download import download
from .sources import COOP_PAGE, RemoteFile, Source

DOWNLOADS = "downloads"


def fetch(name: str, root: Path, console: Console) -> int:
    """Download a data set into its folder under a root, or print how to get it by hand.

    Archives are kept in `<root>/downloads`; an archive that is already there is verified and used. Files of the set
    that exist are kept; an empty folder counts as absent.

    Args:
        name: A name of `sources.SOURCES`.
        root: Folder of all data sets; it is created if it does not exist.
        console: Where to show source, license, size, target and progress.

    Returns:
        Exit status: 0 if the images exist now, 1 if they have to be downloaded by hand (a script stops there).

    Raises:
        DtrapError: The name is unknown, the root is not a folder, or a download or an archive fails.
    """
    if name not in sources.SOURCES:
        raise DtrapError(f"unknown data set '{name}'; {expected_one_of(name, sources.SOURCES)}")
    source = sources.SOURCES[name]
    root = root.expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise DtrapError(f"{root} is not a folder. Give the folder that holds the data sets.")
    _show(console, source, root)
    if not source.files:
        return _by_hand(console, source, root)
    try:
        (root / DOWNLOADS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DtrapError(
            f"{root / DOWNLOADS} cannot be created ({error.strerror}). Give a folder that can be written to."
        ) from error
    try:
        with FileLock(root / DOWNLOADS / f".{source.folder}.lock", timeout=0):
            for file in source.files:
                _get(console, file, root)
    except Timeout:
        raise DtrapError(
            f"Another process is downloading {source.title} to {root}. Wait until it ends {RERUN}"
        ) from None
    say(console, f"{source.title} is in {root / source.folder}.")
    if any((root / DOWNLOADS / file.name).exists() for file in source.files):
        say(console, f"Its archives in {root / DOWNLOADS} are no longer needed.")
    _companions(console, source, root)
    return 0


def _show(console: Console, source: Source, root: Path) -> None:
    say(console, source.title)
    say(console, f"  source:  {source.page}")
    for file in source.files:
        say(console, f"           {file.url}")
    say(console, f"  license: {source.license}")
    unpacked = "; about twice that on disk while the archives are kept" if source.files else ""
    say(console, f"  size:    {source.size}{unpacked}")
    say(console, f"  target:  {root / source.folder}")


def _by_hand(console: Console, source: Source, root: Path) -> int:
    if any(_exists(root / path) for path in source.present):
        say(console, f"{root / source.folder} exists; nothing was downloaded. Check it with:")
        say(console, f"  dtrap data check {shlex.quote(str(root))}")
        _companions(console, source, root)
        return 0
    say(console, "Nothing was downloaded: this set has to be downloaded by hand.")
    for line in source.by_hand.splitlines():
        say(console, line.replace("{root}", shlex.quote(str(root))))
    _companions(console, source, root)
    return 1


def _get(console: Console, file: RemoteFile, root: Path) -> None:
    place = root / file.makes
    if _exists(place):
        say(console, f"{place} exists and is kept.")
        return
    archive = root / DOWNLOADS / file.name if file.archive else place
    if file.checksum is None:
        compared = f"only its size of {file.size} bytes is verified" if file.size else "its contents are not verified"
        say(console, f"{file.name}: no checksum is published; {compared}.")
    download(file.url, archive, console, checksum=file.checksum, size=file.size)
    if file.archive:
        say(console, f"{file.name}: unpacking")
        with console.status(f"unpacking {file.name}"):
            _unpack(file, archive, place)


def _exists(path: Path) -> bool:
    """Return whether a path exists; an empty folder (an interrupted copy, an unmounted disk) does not count."""
    return path.exists() and not is_empty_folder(path)


def _unpack(file: RemoteFile, archive: Path, place: Path) -> None:
    _remove_leftovers(archive.parent, place.parent)
    # `place` is moved in last: where it exists, the set is complete, also after a kill.
    if not file.nested:
        extract(archive, place.parent, inside=file.inside, last=place.name)
        return
    with TemporaryDirectory(prefix=f".{place.parent.name}-unpacking-", dir=archive.parent) as temporary:
        nested = PurePosixPath(file.nested)
        extract(archive, Path(temporary, "outer"), inside=str(nested.parent), last=nested.name)
        extract(Path(temporary, "outer", nested.name), place.parent, inside=file.inside, last=place.name)


def _remove_leftovers(downloads: Path, folder: Path) -> None:
    """Delete what killed processes unpacked of this set; the caller's lock excludes a running one."""
    for place in (downloads, folder, folder.parent):
        for leftover in place.glob(f".{folder.name}-unpacking-*"):
            shutil.rmtree(leftover)


def _companions(console: Console, source: Source, root: Path) -> None:
    """Print which small files of CoOp are still to be downloaded by hand."""
    missing = [name for name in source.companions if not (root / source.folder / name).exists()]
    if missing:
        say(console, f"Download by hand: {' and '.join(missing)} from CoOp's page ({COOP_PAGE}) to")
        for name in missing:
            say(console, f"  {root / source.folder / name}")
        if any(name.startswith("split_zhou") for name in missing):
            say(console, "Only with this split are results comparable with those of CoOp and CLIP-LoRA.")
