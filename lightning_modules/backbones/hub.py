"""Files of the Hugging Face hub, from the local cache first; without network one error within seconds."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from threading import Thread

# `_CACHED_NO_EXIST` is private by its name only: the hub documents it as a result of `try_to_load_from_cache`.
from huggingface_hub import (
    _CACHED_NO_EXIST,
    constants,
    get_hf_file_metadata,
    get_repo_discussions,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name

from ...errors import DtrapError

# Seconds to wait for the hub's first answer, so that the whole error comes within 5 s.
ANSWER_SECONDS = 4.0
CONVERSION_BOT = "SFconvertbot"
CONVERSION_TITLE = "Adding `safetensors` variant of this model"


def hub_file(
    repo: str, filenames: list[str], *, what: str, remedy: str, cache_dir: str | None = None, converted: bool = False
) -> Path:
    """Return the local path of the first of `filenames` that a repository has; download it if none is cached.

    Args:
        repo: Repository of the hub (or of the mirror in HF_ENDPOINT), such as "timm/PE-Core-B-16".
        filenames: The same content in several formats, the preferred one first.
        what: The content and its verb, for the error: "Weights 'openai' are".
        remedy: What to do without network, for the error.
        cache_dir: The hub's cache folder; None follows HF_HOME.
        converted: Also search the open pull request in which the hub's own bot converted the repository's weights to
            safetensors. Some repositories, such as OpenAI's, have safetensors only there.

    Raises:
        DtrapError: None is cached, and the hub cannot be reached or has none of them.
    """
    revisions = [None, *(_cached_pull_requests(repo, cache_dir) if converted else [])]
    for revision in revisions:
        cached = cached_file(repo, filenames, cache_dir, revision)
        if cached is not None:
            return cached
    found = _download(repo, filenames, what, remedy, cache_dir, converted)
    if found is None:
        raise unreachable(what, repo, FileNotFoundError(f"it has no {' or '.join(filenames)}"), remedy)
    return found


def optional_hub_file(
    repo: str, filenames: list[str], *, what: str, remedy: str, cache_dir: str | None = None
) -> Path | None:
    """Return the same as `hub_file`, or None if the repository has none of `filenames`.

    Raises:
        DtrapError: The cache has no file and no record of its absence, and the hub cannot be reached.
    """
    cached = cached_file(repo, filenames, cache_dir)
    known = [try_to_load_from_cache(repo, name, cache_dir=cache_dir) is _CACHED_NO_EXIST for name in filenames]
    return cached if cached is not None or all(known) else _download(repo, filenames, what, remedy, cache_dir, False)


def cached_file(
    repo: str, filenames: list[str], cache_dir: str | None = None, revision: str | None = None
) -> Path | None:
    """Return the local path of the first of `filenames` that is cached, or None; reads the disk only."""
    # The hub's download functions are not used here: they may ask the network even with `local_files_only`.
    for filename in filenames:
        cached = try_to_load_from_cache(repo, filename, cache_dir=cache_dir, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    return None


def _download(
    repo: str, filenames: list[str], what: str, remedy: str, cache_dir: str | None, converted: bool
) -> Path | None:
    """Return the first of `filenames` that the repository has, or None; raise an error if the hub does not answer."""
    try:
        with suppress(EntryNotFoundError):  # this is an answer too
            require_reachable(repo, filenames[0])
        found = _first(repo, filenames, cache_dir, None)
        revision = _conversion(repo) if found is None and converted else None
        return found if revision is None else _first(repo, filenames, cache_dir, revision)
    except Exception as error:
        raise unreachable(what, repo, error, remedy) from error


def _first(repo: str, filenames: list[str], cache_dir: str | None, revision: str | None) -> Path | None:
    for filename in filenames:
        try:
            return Path(hf_hub_download(repo, filename, cache_dir=cache_dir, revision=revision))
        except LocalEntryNotFoundError:  # a subclass of the next error, but it means that there is no network
            raise
        except EntryNotFoundError:
            continue
    return None


def _conversion(repo: str) -> str | None:
    """Return the revision of the open pull request of the hub's conversion bot."""
    for request in get_repo_discussions(repo, author=CONVERSION_BOT, discussion_type="pull_request"):
        if request.author == CONVERSION_BOT and request.title == CONVERSION_TITLE and request.status == "open":
            return f"refs/pr/{request.num}"
    return None


def _cached_pull_requests(repo: str, cache_dir: str | None) -> list[str]:
    folder = Path(cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    return [f"refs/pr/{path.name}" for path in sorted(folder.glob("refs/refs/pr/*"))]


def require_reachable(repo: str, filename: str) -> None:
    """Ask the hub for a file's metadata once, without retries.

    Raises:
        TimeoutError: No answer within `ANSWER_SECONDS`.
        Exception: Whatever the hub's client raises.
    """
    outcome: list[Exception | None] = []  # filled in a thread, since the hub's timeout does not cover the name server

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(repo, filename), timeout=ANSWER_SECONDS)
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    failure = outcome[0] if outcome else TimeoutError(f"no answer within {ANSWER_SECONDS:g} s")
    if failure is not None:
        raise failure


def unreachable(what: str, repo: str, error: Exception, remedy: str) -> DtrapError:
    """Build the error for a file that is neither cached nor available from the hub."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    address = hf_hub_url(repo, "").split("/resolve")[0]
    return DtrapError(f"{what} not cached and could not be downloaded from {address} ({reason}). {remedy}")
