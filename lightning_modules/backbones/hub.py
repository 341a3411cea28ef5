"""Files of a model, in a folder or in the Hugging Face hub.

Files of the hub come from the local cache if possible. Without network there is one error within seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import product
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

from ...errors import DtrapError, first_line

# Seconds to wait for the hub's first answer; the error is then raised within 5 s.
ANSWER_SECONDS = 4.0
CONVERSION_BOT = "SFconvertbot"
CONVERSION_TITLE = "Adding `safetensors` variant of this model"
TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARY = ["tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model"]
TOKENIZER_EXTRAS = ["merges.txt", "special_tokens_map.json", "added_tokens.json", "config.json"]


_OFFLINE: ContextVar[str | None] = ContextVar("why downloads are off", default=None)


@contextmanager
def without_downloads(reason: str = "downloads are off") -> Iterator[None]:
    """Take a file that is not cached for one that cannot be downloaded, for a reason that the error gives."""
    token = _OFFLINE.set(reason)
    try:
        yield
    finally:
        _OFFLINE.reset(token)


@dataclass(frozen=True)
class FolderFiles:
    """The files of a model in a folder.

    Attributes:
        label: The folder's name.
        remedy: What to do if a file is missing, for the error.
        folder: The folder.
    """

    label: str
    remedy: str
    folder: Path

    def require(self, filenames: list[str], *, converted: bool = False) -> Path:
        """Return the first of `filenames` that exists.

        Raises:
            DtrapError: None exists; for weights (`converted`) the message says how to convert a pickle.
        """
        found = self.on_disk(filenames)
        if found is None:
            hint = self._pickle_hint() if converted else ""
            raise DtrapError(f"{self.folder}: no {' or '.join(filenames)}. {self.remedy}{hint}")
        return found

    def on_disk(self, filenames: list[str]) -> Path | None:
        """Return the first of `filenames` that exists, or None."""
        return next((self.folder / name for name in filenames if (self.folder / name).is_file()), None)

    optional = on_disk

    def _pickle_hint(self) -> str:
        pickles = sorted(path.name for ending in ("*.bin", "*.pt", "*.pth") for path in self.folder.glob(ending))
        if not pickles:
            return ""
        return (
            f" {pickles[0]} is not read, since a pickle can run code. If you trust it, convert it once: "
            f"python -c \"from transformers import AutoModel as M; M.from_pretrained('{self.folder}')"
            f".save_pretrained('{self.folder}')\""
        )


@dataclass(frozen=True)
class HubFiles:
    """The files of a model in a repository of the hub; a file that is not cached is downloaded.

    Attributes:
        label: The repository (of the hub, or of the mirror in HF_ENDPOINT), such as "timm/PE-Core-B-16".
        remedy: What to do without network, for the error.
        cache_dir: The hub's cache folder; None follows HF_HOME.
        what: The content and its verb, for the error: "Weights 'openai' are"; if empty, the first file's name.
    """

    label: str
    remedy: str
    cache_dir: str | None = None
    what: str = ""

    def require(self, filenames: list[str], *, converted: bool = False) -> Path:
        """Return the local path of the first of `filenames` that the repository has.

        Args:
            filenames: The same content in several formats, the preferred one first.
            converted: Also search the open pull request in which the hub's own bot converted the repository's weights
                to safetensors. Some repositories, such as OpenAI's, have safetensors only there.

        Raises:
            DtrapError: None is cached, and the hub cannot be reached or has none of them.
        """
        pull_requests = self._cached_pull_requests() if converted else []
        found = self.on_disk(filenames, [None, *pull_requests]) or self._download(filenames, converted)
        if found is None:
            raise self._unreachable(filenames, FileNotFoundError(f"it has no {' or '.join(filenames)}"))
        return found

    def optional(self, filenames: list[str]) -> Path | None:
        """Return the same as `require`, or None if the repository has none of `filenames`.

        Raises:
            DtrapError: The cache has no file and no record of its absence, and the hub cannot be reached.
        """
        cached = self.on_disk(filenames)
        known = (try_to_load_from_cache(self.label, name, cache_dir=self.cache_dir) for name in filenames)
        if cached is not None or all(result is _CACHED_NO_EXIST for result in known):
            return cached
        return self._download(filenames, converted=False)

    def on_disk(self, filenames: list[str], revisions: Sequence[str | None] = (None,)) -> Path | None:
        """Return the local path of the first of `filenames` that is cached, or None; never uses the network."""
        # The hub's download functions are not used here: they may ask the network even with `local_files_only`.
        for revision, filename in product(revisions, filenames):
            cached = try_to_load_from_cache(self.label, filename, cache_dir=self.cache_dir, revision=revision)
            if isinstance(cached, str):
                return Path(cached)
        return None

    def _cached_pull_requests(self) -> list[str]:
        folder = Path(self.cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(
            repo_id=self.label, repo_type="model"
        )
        return [f"refs/pr/{path.name}" for path in sorted(folder.glob("refs/refs/pr/*"))]

    def _download(self, filenames: list[str], converted: bool) -> Path | None:
        """Return the first of `filenames` that the repository has, or None; raise an error if it does not answer."""
        try:
            if (reason := _OFFLINE.get()) is not None:
                raise OSError(reason)
            with suppress(EntryNotFoundError):  # this is an answer too
                require_reachable(self.label, filenames[0])
            found = self._first(filenames, None)
            revision = _conversion(self.label) if found is None and converted else None
            return found if revision is None else self._first(filenames, revision)
        except Exception as error:
            raise self._unreachable(filenames, error) from error

    def _first(self, filenames: list[str], revision: str | None) -> Path | None:
        for filename in filenames:
            try:
                return Path(hf_hub_download(self.label, filename, cache_dir=self.cache_dir, revision=revision))
            except LocalEntryNotFoundError:  # a subclass of the next error, but it means that there is no network
                raise
            except EntryNotFoundError:
                continue
        return None

    def _unreachable(self, filenames: list[str], error: Exception) -> DtrapError:
        """Build the error for a file that is neither cached nor available from the hub."""
        what = self.what or f"{filenames[0]} of '{self.label}' is"
        address = hf_hub_url(self.label, "").split("/resolve")[0]
        return DtrapError(
            f"{what} not cached and could not be downloaded from {address} ({first_line(error)}). {self.remedy}"
        )


ModelFiles = FolderFiles | HubFiles


def tokenizer_folder(files: ModelFiles) -> Path:
    """Return the folder with the tokenizer's files, after downloading those that exist."""
    if files.on_disk([TOKENIZER_CONFIG]) is None or files.on_disk(VOCABULARY) is None:
        for filename in (*VOCABULARY, *TOKENIZER_EXTRAS):
            files.optional([filename])
    files.require(VOCABULARY)
    return files.require([TOKENIZER_CONFIG]).parent


def _conversion(repo: str) -> str | None:
    """Return the revision of the open pull request of the hub's conversion bot."""
    for request in get_repo_discussions(repo, author=CONVERSION_BOT, discussion_type="pull_request"):
        if request.author == CONVERSION_BOT and request.title == CONVERSION_TITLE and request.status == "open":
            return f"refs/pr/{request.num}"
    return None


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
