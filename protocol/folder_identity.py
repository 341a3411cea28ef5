"""Which experiment a run folder belongs to: its methods, its data files and the images of each seed."""

from __future__ import annotations

import glob
from collections.abc import Container, Sequence
from typing import Any

import yaml

from ..datamodules.few_shot import FewShotDataModule
from ..datamodules.subset import subset_content
from ..errors import DtrapError
from ..parsing import read_json
from .configuration import MethodConfig
from .identity import difference, identity
from .module_method import ModuleMethod
from .precision import canonical, defaults_of, refusal
from .run_folder import ELSEWHERE, RunFolder

Method = MethodConfig | ModuleMethod
MOST_LINES = 4


class FolderIdentity:
    """Checks that a run belongs into a folder, and records what the rows of the folder come from.

    Args:
        folder: The run folder.
        methods: The methods of the run, the main one first.
        data: The data module.
    """

    def __init__(self, folder: RunFolder, methods: Sequence[Method], data: FewShotDataModule) -> None:
        self.folder, self.methods, self.data = folder, methods, data

    def stored(self) -> dict[str, Any]:
        """Return the content of identity.json, or {} if there is none.

        Raises:
            DtrapError: The file is damaged.
        """
        try:
            stored = read_json(self.folder.identity)
            if stored["main"] not in stored["methods"]:
                raise ValueError(f"'{stored['main']}' is not among its methods")
            return stored
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise DtrapError(f"{self.folder.identity}: not written by dtrap ({error}). {ELSEWHERE}") from error

    def check_methods(self) -> None:
        """Raise a DtrapError if a method has rows of another config, or the folder is not a run folder."""
        stored = self.stored()
        foreign = [path.name for path in (self.folder.config, self.folder.results) if path.exists()]
        if not stored and foreign:
            raise DtrapError(
                f"{self.folder.path} has a {foreign[0]} but no {self.folder.identity.name}: it is not a run folder, or "
                "that file was lost. Choose another folder with --protocol.folder, or move the file away."
            )
        with_rows = {row["method"] for row in self.folder.rows.read()}
        for position, method in enumerate(self.methods):
            # The main method is compared with the main one of the folder, whose name may be another.
            name = stored["main"] if position == 0 and stored else method.name
            known = stored.get("methods", {}).get(name) if name in with_rows else None
            lines = _lines(known, method, main=position == 0) if known is not None else []
            if known is not None and len(lines) == 1 and lines[0].startswith("trainer.precision:"):
                reason = refusal(self.folder.path, method, stored, known)
                if reason is not None:
                    raise DtrapError(reason)
            if lines:
                more = [f"  and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
                title = f"{self.folder.path} holds the results of another config of '{method.name}':"
                raise DtrapError("\n".join([title, *(f"  {line}" for line in lines[:MOST_LINES]), *more, ELSEWHERE]))

    def keep_old_names(self) -> None:
        """Give methods the names that an earlier version stored them under, so that their rows are found."""
        stored = self.stored().get("methods", {})
        taken = {method.name for method in self.methods}
        for method in self.methods[1:]:
            old = method.old_name
            renamed = old is not None and method.name not in stored and old in stored.keys() - taken
            if renamed and not _lines(stored[old], method, main=False):
                method.name = str(old)

    def check_data_files(self) -> None:
        """Raise a DtrapError if the rows come from other data files."""
        if self.stored().get("data_files", self.data.fingerprint) != self.data.fingerprint:
            raise DtrapError(
                f"{self.folder.path}: its rows come from other data files than those under {self.data.root} (other "
                f"names, labels, numbers or queries). Restore the files. {ELSEWHERE}"
            )

    def record(self) -> None:
        """Write identity.json and the configs; a folder without rows keeps nothing of an earlier run."""
        self._discard_checkpoints()
        stored: dict[str, Any] = {}
        if self.folder.rows.read():
            self.check_data_files()
            stored = self.stored()
        methods = stored.get("methods", {}) | {m.name: identity(m.values) for m in self.methods}
        main = stored.get("main", self.methods[0].name)
        content = {"main": main, "data_files": self.data.fingerprint, "methods": methods}
        content |= defaults_of(self.methods, self.stored())
        self.folder.write_json(self.folder.identity, content)
        for position, method in enumerate(self.methods):
            if isinstance(method, MethodConfig):
                path = self.folder.path / f"config.{method.name}.yaml" if position else self.folder.config
                # A user who starts from this config wants to resume, not to delete the results.
                values = {**method.values, "protocol": {**method.values["protocol"], "overwrite": False}}
                self.folder.write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def _discard_checkpoints(self) -> None:
        """Delete the checkpoints of tasks that were started with another config or other data."""
        stored = self.stored()
        other_data = stored.get("data_files") != self.data.fingerprint
        for position, method in enumerate(self.methods):
            known = stored.get("methods", {}).get(method.name)
            if known is None or other_data or _lines(known, method, main=position == 0):
                for path in self.folder.checkpoints.glob(f"episode_????_{glob.escape(method.name)}.ckpt"):
                    path.unlink(missing_ok=True)

    def record_subsets(self, missing: Container[int]) -> None:
        """Write the images of each seed into the run's subset file; episodes have none.

        The images of a seed change when a file is damaged or repaired between two starts. A seed with rows keeps the
        images of its rows; a task that was started with other images restarts.

        Args:
            missing: Episodes that some method has yet to run.

        Raises:
            DtrapError: A seed would be compared on other images than those of its rows.
        """
        if not self.data.subsets:
            return
        content = subset_content(self.data, self.data.shot, self.data.subsets)
        try:
            recorded = read_json(self.folder.subset)["seeds"]
        except (OSError, ValueError, KeyError, TypeError):
            recorded = {}
        with_rows = {row["episode"] for row in self.folder.rows.read()}
        for episode, seed in enumerate(map(str, self.data.subsets)):
            if recorded.get(seed, content["seeds"][seed]) == content["seeds"][seed]:
                continue
            if episode in with_rows and episode in missing:
                raise DtrapError(
                    f"{self.folder.subset}: the results of seed {seed} come from other images than can be read now: "
                    f"some were damaged or repaired since. Restore them. {ELSEWHERE}"
                )
            if episode in with_rows:
                content["seeds"][seed] = recorded[seed]
            for checkpoint in self.folder.checkpoints.glob(f"episode_{episode:04d}_*.ckpt"):
                checkpoint.unlink(missing_ok=True)
        self.folder.write_json(self.folder.subset, content)


def differs(known: dict[str, Any], values: dict[str, Any]) -> bool:
    """Return whether the settings of a main method are not those of a stored identity."""
    return bool(_differences(known, values, main=True))


def _lines(known: dict[str, Any], method: Method, *, main: bool) -> list[str]:
    """Differences of a stored config from a method's.

    The name in the config of a compared method does not count: until methods were named after their settings, it was
    that of the main method.
    """
    return _differences(known, method.values, main=main)


def _differences(known: dict[str, Any], values: dict[str, Any], *, main: bool) -> list[str]:
    old, new = identity(known), identity(values)
    for side in (old, new):  # Lightning has several names for one
        side.setdefault("trainer", {})["precision"] = canonical(side["trainer"].get("precision"))
    if not main:
        old.pop("protocol", None)
        new.pop("protocol", None)
    return difference(old, new)
