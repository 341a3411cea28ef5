"""Files of the Hugging Face hub: the local cache first; without network one error within seconds."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

from ...errors import DtrapError

try:
    from huggingface_hub.errors import EntryNotFoundError
except ImportError:  # huggingface_hub < 0.26
    from huggingface_hub.utils import EntryNotFoundError

# Seconds that the hub has for its first answer; the whole error has to come within 5 s.
ANSWER_SECONDS = 4.0


def hub_file(repo: str, filenames: list[str], *, what: str, remedy: str, cache_dir: str | None = None) -> Path:
    """Local path of the first of `filenames` that a repository has; downloaded if the cache has none of them.

    Args:
        repo: Repository of the hub (or of the mirror that HF_ENDPOINT names), such as "timm/PE-Core-B-16".
        filenames: The same content in several formats, the preferred one first.
        what: What is being loaded, with its verb, for the error: "Weights 'openai' are".
        remedy: What to do without network, for the error.
        cache_dir: The hub's cache folder; None follows HF_HOME.

    Raises:
        DtrapError: None is cached, and the hub cannot be reached or does not hand any of them out.
    """
    cached = cached_file(repo, filenames, cache_dir)
    if cached is not None:
        return cached
    for filename in filenames:
        try:
            require_reachable(repo, filename)
            return Path(hf_hub_download(repo, filename, cache_dir=cache_dir))
        except EntryNotFoundError:
            continue
        except Exception as error:
            raise unreachable(what, repo, error, remedy) from error
    missing = FileNotFoundError(f"it has no {' or '.join(filenames)}")
    raise unreachable(what, repo, missing, remedy)


def cached_file(repo: str, filenames: list[str], cache_dir: str | None = None) -> Path | None:
    """Local path of the first of `filenames` that is cached, or None.

    Only looks at the disk: the hub's download functions may ask the network even with `local_files_only`.
    """
    for filename in filenames:
        cached = try_to_load_from_cache(repo, filename, cache_dir=cache_dir)
        if isinstance(cached, str):
            return Path(cached)
    return None


def require_reachable(repo: str, filename: str) -> None:
    """Ask the hub once, without retries, for a file's metadata.

    The question runs in a thread of its own because a hanging name server knows no timeout.

    Raises:
        TimeoutError: No answer within `ANSWER_SECONDS`.
        Exception: Whatever the hub's client raises.
    """
    outcome: list[Exception | None] = []

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
    """The error for a file that is neither cached nor to be had from the hub."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    address = hf_hub_url(repo, "").split("/resolve")[0]
    return DtrapError(f"{what} neither in the local cache nor to be had from {address} ({reason}). {remedy}")
