"""The run folder: one row per finished episode, and the other files of an experiment."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import DtrapError
from ..files import cannot_write, printable, remove_leftovers, to_json_values, write_atomically
from ..parsing import parse_json

Row = dict[str, Any]

RESUMES = (
    "and rerun the same command; it resumes at the first missing episode. Or choose another folder with "
    "--protocol.folder."
)
ELSEWHERE = "Choose another folder with --protocol.folder, or start over with --protocol.overwrite true."


class ResultRows:
    """Rows of finished episodes in a JSON Lines file that survives a kill at any moment.

    A row holds `episode`, `method`, `seed`, `classes`, `support_images`, `zero_shot_accuracy` and `accuracy` (percent,
    None without held-out images), both with `cross_entropy` (nats) and `calibration_error` (percent), `test_images` and
    `binomial_interval` [low, high] that the accuracy rests on, `per_class` {class: percent}, `confusion` (rows true,
    columns predicted), `losses` {"boundary": {...}, "end": {...}}, `terms` {"step": [...], name of a term: [...],
    "stage": [first, last]} and `seconds`. Where classes differ in their numbers of test images, it has
    `balanced_accuracy` and `macro_f1`; for two classes and ChestX `auroc`; all in percent. `diverged` says why an
    episode has no accuracy. `precision` is that of the training, `tf32` is true where float32 products used TF32, and
    `skipped_updates` counts updates that overflows in 16-mixed have cost. `class_weights` and
    `balanced_batches` say how classes were balanced. `resampled` marks a repeat of held-out images: the number of test
    images per training image. `episode` and `method` identify a row; this class needs no other key.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._end: int | None = None  # length of the file after the last row of this process

    def read(self) -> list[Row]:
        """Return the rows in the order of the file, the first of each (method, episode); [] without a file.

        An incomplete last line, as a kill in the middle of a write leaves it, is ignored; the next `append` removes it.

        Raises:
            DtrapError: A line before the last is not a row, or the file cannot be read.
        """
        lines = self._content().rstrip().split(b"\n")
        rows: dict[tuple[str, int], Row] = {}
        for number, line in enumerate(lines, start=1):
            row = _decode(line)
            if row is not None:
                rows.setdefault((row["method"], row["episode"]), row)
            elif line.strip() and number < len(lines):
                raise DtrapError(
                    f"{self.path}, line {number}: not a result row: {line[:60]!r}. Expected a JSON object "
                    "with 'method' and 'episode'. Delete that line to run its episode again, or start over "
                    "with --protocol.overwrite true."
                )
        return list(rows.values())

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row and wait until it is on the disk; numbers that are not finite become null.

        Raises:
            DtrapError: The row cannot be written (full disk, no permission). If possible, the file then ends with the
                last complete row.
        """
        text = json.dumps(to_json_values(row), ensure_ascii=False, allow_nan=False)
        line = printable(text).encode() + b"\n"
        end = self._end
        if end is None or self._size() != end:
            content = self._content()
            if end and not content:
                raise DtrapError(
                    f"{self.path}: rows of this run were deleted while it was running. Rerun the same command; it runs "
                    "the missing episodes."
                )
            end = _sound_length(content)
            if end and content[end - 1 : end] != b"\n":
                line = b"\n" + line
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                _write_from(file.fileno(), end, line)
        except OSError as error:
            raise cannot_write(self.path, error, RESUMES) from error
        self._end = end + len(line)

    def finished(self, method: str) -> set[int]:
        """Return the numbers of the episodes that `method` has finished."""
        return {row["episode"] for row in self.read() if row["method"] == method}

    def missing(self, method: str, episodes: int) -> list[int]:
        """Return the episodes of 0 .. episodes - 1 that `method` has not finished, in ascending order."""
        finished = self.finished(method)
        return [episode for episode in range(episodes) if episode not in finished]

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def _content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise DtrapError(
                f"{self.path}: cannot read ({error.strerror or error}). Fix its permissions, or choose another folder "
                "with --protocol.folder."
            ) from error


class RunFolder:
    """Paths of the files of one experiment.

    Args:
        path: The folder; `lock` creates it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.identity = self.path / "identity.json"
        self.results = self.path / "results.jsonl"
        self.rows = ResultRows(self.results)
        self.summary = self.path / "summary.json"
        self.adapters = self.path / "adapters"
        self.predictions = self.path / "predictions"
        self.pictures = self.path / "pictures"
        self.test = self.path / "test"
        self.logged = self.path / "logged.json"
        self.features = self.path / "features"
        self.subset = self.path / "subset.json"
        self.checkpoints = self.path / "checkpoints"
        self._descriptor: int | None = None  # of the folder while it is locked

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder and lock it against other runs; the lock ends with the process, also after a kill.

        Raises:
            DtrapError: Another run holds the lock, or the folder cannot be written to.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise DtrapError(
                f"another run is writing to {self.path}. Wait until it ends or stop it, or choose another "
                "folder with --protocol.folder."
            ) from error
        except (OSError, NotImplementedError) as error:
            raise cannot_write(self.path, error, RESUMES) from error
        try:
            self._remove_leftovers()
            # Windows opens no folders, and lets none be moved in which a file is open.
            self._descriptor = os.open(self.path, os.O_RDONLY) if os.name == "posix" else None
            yield
        finally:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
            lock.release()

    def check_present(self) -> None:
        """Raise a DtrapError if the folder that `lock` locked was deleted, moved or emptied since."""
        if self._descriptor is None:
            return
        try:  # the open folder keeps its number, which a new folder could get otherwise
            present = os.path.samestat(os.fstat(self._descriptor), self.path.stat()) and self.identity.exists()
        except OSError:
            present = False
        if not present:
            raise DtrapError(
                f"the run folder {self.path} was deleted or moved while the run was writing to it. Move it back and "
                "rerun the same command to resume; without it, the same command starts over."
            )

    def _remove_leftovers(self) -> None:
        """Delete the temporary files of killed runs; the lock says that no other run is writing here."""
        for name in ("config*.yaml", "identity.json", "summary.json", "subset.json", "wandb_id.txt"):
            remove_leftovers(self.path, name)
        for folder in (self.adapters, self.predictions, self.features, self.pictures, self.checkpoints):
            remove_leftovers(folder, "episode_*")
        remove_leftovers(self.test, "*")
        with suppress(OSError):  # it does not exist, or holds a checkpoint
            self.checkpoints.rmdir()

    def write_text(self, path: Path, text: str) -> None:
        """Write a small file atomically; raises a DtrapError on failure."""
        # A byte of a file name that is not UTF-8 becomes an escape, which JSON and YAML read as the same byte.
        write_atomically(path, text, RESUMES)

    def write_json(self, path: Path, value: object) -> None:
        """Write a small JSON file atomically; numbers that are not finite become null."""
        self.write_text(path, json.dumps(to_json_values(value), ensure_ascii=False, allow_nan=False, indent=2) + "\n")

    def clear(self) -> None:
        """Delete the files of a run; files with other names stay.

        Raises:
            DtrapError: A file cannot be deleted.
        """
        results = (self.results, self.summary, self.subset, self.checkpoints, self.path / "metrics.csv")
        # What the loggers have: with it TensorBoard would take new episodes for logged ones.
        logged = (self.logged, self.path / "tensorboard")
        others = (self.adapters, self.predictions, self.features, self.pictures, self.test)
        configs = (self.config, *self.path.glob("config.*.yaml"))
        # The identity last: a kill in between must not leave rows without one.
        for path in (*results, *logged, *others, *configs, self.identity):
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(path, error, RESUMES) from error


def _write_from(descriptor: int, end: int, content: bytes) -> None:
    os.ftruncate(descriptor, end)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
    except BaseException:
        with suppress(OSError):
            os.ftruncate(descriptor, end)
        raise


def _sound_length(content: bytes) -> int:
    """Number of bytes up to the end of the last complete row."""
    written = content.rstrip()
    start = written.rfind(b"\n") + 1
    return start if written and _decode(written[start:]) is None else len(content)


def _decode(line: bytes) -> Row | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    if isinstance(row, dict) and isinstance(row.get("method"), str) and isinstance(row.get("episode"), int):
        return row
    return None
