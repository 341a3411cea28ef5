"""`dtrap data fetch NAME ROOT`: downloads a data set and puts it where its data module looks, or says how to get it."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout
from rich.console import Console

from ...console import say
from ...errors import DtrapError, nearest
from . import sources
from .archives import extract, is_empty_folder
from .download import download
from .sources import COOP_PAGE, RemoteFile, Source

DOWNLOADS = "downloads"


def fetch(name: str, root: Path, console: Console) -> int:
    """Download a data set into its folder under a root, or print what has to be done by hand.

    Archives are kept in `<root>/downloads`: what is there already, by whomever it was put there, is verified and used.
    Files of the set that are in place are left alone; an empty folder is not in place.

    Args:
        name: A name of `sources.SOURCES`.
        root: Folder of all data sets; made if absent.
        console: Where source, licence, size, target and progress are shown.

    Returns:
        Exit status: 0 where the images are in place, 1 where nothing was downloaded and they still have to be brought
        by hand, so that a script does not go on without them.

    Raises:
        DtrapError: Unknown name, or a download that cannot be finished.
    """
    source = _find(name)
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
            f"{root / DOWNLOADS} cannot be made ({error.strerror}). Give a folder that can be written to."
        ) from error
    try:
        with FileLock(root / DOWNLOADS / f".{source.folder}.lock", timeout=0):
            for file in source.files:
                _bring(console, file, root)
    except Timeout:
        raise DtrapError(f"Another process is downloading {source.title} to {root}. Wait for it.") from None
    say(console, f"{source.title} is in {root / source.folder}.")
    if any((root / DOWNLOADS / _name(file)).exists() for file in source.files):
        say(console, f"Its archives in {root / DOWNLOADS} are no longer needed.")
    _companions(console, source, root)
    return 0


def _find(name: str) -> Source:
    if name not in sources.SOURCES:
        raise DtrapError(
            f"Unknown data set '{name}'.{nearest(name, sources.SOURCES)} Known: {', '.join(sources.SOURCES)}."
        )
    return sources.SOURCES[name]


def _show(console: Console, source: Source, root: Path) -> None:
    say(console, source.title)
    say(console, f"  source:  {source.page}")
    for file in source.files:
        say(console, f"           {file.url}")
    say(console, f"  licence: {source.licence}")
    unpacked = "; about twice that on disk while the archives are kept" if source.files else ""
    say(console, f"  size:    {source.size}{unpacked}")
    say(console, f"  target:  {root / source.folder}")


def _by_hand(console: Console, source: Source, root: Path) -> int:
    if any(_is_there(root / path) for path in source.present):
        say(console, f"{root / source.folder} is there; nothing was downloaded. `dtrap data check` looks into it.")
        _companions(console, source, root)
        return 0
    say(console, "Nothing was downloaded: this set has to be brought by hand.")
    for line in source.by_hand:
        say(console, line.replace("{root}", shlex.quote(str(root))))
    _companions(console, source, root)
    return 1


def _bring(console: Console, file: RemoteFile, root: Path) -> None:
    place = root / file.makes
    if _is_there(place):
        say(console, f"{place} is there already and is left alone.")
        return
    archive = root / DOWNLOADS / _name(file) if file.archive else place
    if file.checksum is None:
        compared = f"only its size of {file.size} bytes is compared" if file.size else "its contents are not compared"
        say(console, f"{_name(file)}: nobody publishes a checksum; {compared}.")
    download(file.url, archive, console, checksum=file.checksum, size=file.size)
    if file.archive:
        say(console, f"{_name(file)}: unpacking")
        with console.status(f"unpacking {_name(file)}"):
            _unpack(file, archive, place)


def _is_there(path: Path) -> bool:
    """An empty folder is what an interrupted copy or an absent disk leaves, not a data set."""
    return path.exists() and not is_empty_folder(path)


def _unpack(file: RemoteFile, archive: Path, place: Path) -> None:
    _remove_leftovers(archive.parent, place.parent)
    if not file.nested:
        extract(archive, place.parent, inside=file.inside, last=place.name)
        return
    with TemporaryDirectory(prefix=f".{place.parent.name}-unpacking-", dir=archive.parent) as temporary:
        nested = PurePosixPath(file.nested)
        extract(archive, Path(temporary, "outer"), inside=str(nested.parent), last=nested.name)
        extract(Path(temporary, "outer", nested.name), place.parent, inside=file.inside, last=place.name)


def _remove_leftovers(downloads: Path, folder: Path) -> None:
    """Delete what a killed process had unpacked of this set; the lock makes sure that it is nobody's."""
    for place in (downloads, folder, folder.parent):
        for leftover in place.glob(f".{folder.name}-unpacking-*"):
            shutil.rmtree(leftover)


def _companions(console: Console, source: Source, root: Path) -> None:
    """Small files of CoOp's that are still to be put into the folder by hand."""
    missing = [name for name in source.companions if not (root / source.folder / name).exists()]
    if missing:
        say(console, f"Still to do by hand: {' and '.join(missing)} from CoOp's page ({COOP_PAGE}) to")
        for name in missing:
            say(console, f"  {root / source.folder / name}")
        if any(name.startswith("split_zhou") for name in missing):
            say(console, "Numbers compare with CoOp's and CLIP-LoRA's only with their split.")


def _name(file: RemoteFile) -> str:
    return PurePosixPath(file.url).name
