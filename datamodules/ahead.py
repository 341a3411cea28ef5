"""Images that are decoded in the background before they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

from .batches import Views
from .images import ImageError

# A sentence and the file that shows it, as `ImageCollection.warn_once` takes them.
Warnings = list[tuple[str, str]]
_held_back: ContextVar[Warnings | None] = ContextVar("warnings that are held back", default=None)


def held_back(text: str, such_as: str) -> bool:
    """Hold a warning back if this thread decodes ahead: it is given when the image is used. Return whether it is."""
    warnings = _held_back.get()
    if warnings is None:
        return False
    warnings.append((text, such_as))
    return True


class DecodedAhead:
    """Views of images, decoded in threads from now on; a copy in another process has none.

    Pillow decodes without Python's lock, so that a training goes on. Errors and warnings come out when a result is
    taken, as if the image were decoded then.

    Args:
        jobs: By key, what returns the views of an image.
        num_workers: Number of threads; one for 0.
    """

    def __init__(self, jobs: Iterable[tuple[Any, Callable[[], Views]]] = (), num_workers: int = 0) -> None:
        self._results: dict[Any, Future[tuple[Views | ImageError, Warnings]]] = {}
        self._pool = ThreadPoolExecutor(max(num_workers, 1), thread_name_prefix="dtrap-decodes-ahead")
        for key, job in jobs:
            self._results[key] = self._pool.submit(_decode, job)
        self._pool.shutdown(wait=False)  # the threads end with the last image

    def take(self, key: Any, warn: Callable[[str, str], None]) -> Views | ImageError | None:
        """Return and forget a result; wait if it is being decoded; None if it was not asked for.

        Args:
            key: The key of the job.
            warn: Gives a warning that was held back.

        Raises:
            Exception: What the job raised, except for an ImageError, which is returned.
        """
        future = self._results.pop(key, None)
        if future is None or future.cancel():  # one that has not begun is decoded by the caller, perhaps in threads
            return None
        result, warnings = future.result()
        for text, such_as in warnings:
            warn(text, such_as)
        return result

    def cancel(self) -> None:
        """Forget all results, and decode no further image."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._results.clear()

    def __reduce__(self) -> tuple[type[DecodedAhead], tuple[()]]:
        return DecodedAhead, ()


def _decode(job: Callable[[], Views]) -> tuple[Views | ImageError, Warnings]:
    warnings: Warnings = []
    token = _held_back.set(warnings)
    try:
        return job(), warnings
    except ImageError as error:
        return error, warnings
    finally:
        _held_back.reset(token)
