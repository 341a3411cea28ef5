"""`dtrap fit`: every method on every episode that has no result yet."""

from __future__ import annotations

import glob
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import Tensor

from ..callbacks import StageSwitch
from ..commands.parser import parse_methods
from ..errors import DtrapError
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.tuners import Tuner
from .adapters import AdapterCard, save_adapter
from .checkpoint import StepCheckpoint, record_subsets
from .configuration import MethodConfig, build_data, build_module, build_part, build_trainer_arguments
from .episode import ZeroShots, episode_trainer, run_episode
from .identity import default_folder_name, difference, identity
from .loggers import ProtocolLogger, prepare_logger
from .picture import episode_picture
from .progress import EpisodeProgress
from .run_folder import ELSEWHERE, Row, RunFolder
from .summary import render, summarise


class ProtocolRun:
    """One protocol run: its methods, its data and its folder.

    Args:
        arguments: The words after `dtrap fit`.
        console: Where results are shown.

    Raises:
        DtrapError: A config, value or file is not as expected.
    """

    def __init__(self, arguments: list[str], console: Console) -> None:
        self.arguments, self.console = arguments, console
        self.methods = parse_methods(arguments)
        self.main = self.methods[0]
        self.settings = self.main.settings
        self.data = build_data(self.main.parsed)
        for method in self.methods[1:]:
            if method.plain["data"] != self.main.plain["data"]:
                raise DtrapError(
                    f"protocol.compare: the overlay of '{method.name}' changes the data; methods are compared on the "
                    "very same episodes. Leave `data` out of the overlay."
                )
        self.tuner: Tuner = build_part(Tuner, self.main.parsed.model.tuner)
        self.episodes = min(self.settings.episodes, self.data.tasks or self.settings.episodes)
        self.folder = RunFolder(self.settings.folder or Path("runs") / self._default_name())
        self._zero_shots: dict[str, ZeroShots] = {}
        if self.data.own_images and self.folder.path.resolve().is_relative_to(self.data.root.resolve()):
            raise DtrapError(
                f"the results would go to {self.folder.path}, inside the images' folder {self.data.root}, and be "
                "taken for a class. Give --protocol.folder FOLDER elsewhere, or start from another folder."
            )

    def _default_name(self) -> str:
        data = self.data
        all_way = " all-way" if data.streams else ""
        return default_folder_name(
            dataset=f"{data.root.resolve().name if data.own_images else data.title}{all_way}",
            way=None if data.tasks is not None else data.way,
            shot=data.shot if data.fixed_numbers else None,
            backbone=self.main.backbone,
            tuner=self.tuner.name,
            method=self.main.name,
            seed=self.data.seed,
        )

    def run(self) -> int:
        """Run what is missing and show the result; the exit status of the command."""
        with self.folder.lock():
            anew = self.settings.overwrite and self.folder.identity.exists()
            if not anew:
                self._check_identity()
            rows = self.folder.rows
            missing = {
                m.name: list(range(self.episodes)) if anew else rows.missing(m.name, self.episodes)
                for m in self.methods
            }
            if any(missing.values()):
                self._check_settings()
                if anew:
                    self.folder.clear()
                self._record_identity()
                try:
                    self._run_missing(missing)
                except KeyboardInterrupt:
                    self._finish(complete=False)
                    self.console.print(f"Interrupted. Go on with: {self._command()}", soft_wrap=True, markup=False)
                    return 130
            else:
                if self.data.root.exists():  # the result is told without the data too, but not beside other data
                    self._check_data_files(self._stored())
                self.console.print(
                    f"Already finished: {self.folder.path} (--protocol.overwrite true starts anew)",
                    soft_wrap=True,
                    markup=False,
                )
            self._finish(complete=True)
        return 0

    def _check_settings(self) -> None:
        """Tell what is wrong with data, trainer or stage before anything is deleted, written or loaded."""
        self.data.task  # noqa: B018
        self.data.subsets  # noqa: B018 - read now: the file may be one that an overwriting run deletes
        if self.data.streams and self.settings.pictures:
            raise DtrapError(
                f"protocol.pictures is {self.settings.pictures}, but a picture shows all images of an episode, and the "
                "all-way protocol streams its images. Leave it out; `dtrap data show` draws a contact sheet."
            )
        for method in self.methods:
            StageSwitch(**method.parsed.stage_switch)
            without_logger = method.parsed.clone()
            without_logger.trainer.logger = False
            trainer = episode_trainer(build_trainer_arguments(without_logger), [])
            if self.data.streams and trainer.max_steps != -1:
                raise DtrapError(
                    f"trainer.max_steps is {trainer.max_steps}, but the all-way protocol counts epochs of "
                    f"{self.data.steps_per_epoch} step(s), which can be resumed. Set trainer.max_epochs in its place."
                )

    # Identity

    def _stored(self) -> dict[str, Any]:
        try:
            stored = json.loads(self.folder.identity.read_text(encoding="utf-8"))
            if stored["main"] not in stored["methods"]:
                raise ValueError(f"'{stored['main']}' is not among its methods")
            return stored
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise DtrapError(f"{self.folder.identity}: not as `dtrap fit` wrote it ({error}). {ELSEWHERE}") from error

    def _check_identity(self) -> None:
        stored = self._stored()
        foreign = [path.name for path in (self.folder.config, self.folder.results) if path.exists()]
        if not stored and foreign:
            raise DtrapError(
                f"{self.folder.path} has a {foreign[0]}, but no {self.folder.identity.name}: it is no run folder, or "
                "that file was lost. Choose another folder with --protocol.folder, or move the file away."
            )
        with_rows = {row["method"] for row in self.folder.rows.read()}
        for position, method in enumerate(self.methods):
            name = stored["main"] if position == 0 and stored else method.name
            known = stored.get("methods", {}).get(name) if name in with_rows else None
            lines = difference(identity(known), identity(method.plain)) if known is not None else []
            if lines:
                more = [f"  and {len(lines) - 4} more"] if len(lines) > 4 else []
                raise DtrapError(
                    "\n".join(
                        [
                            f"{self.folder.path} holds the results of another config of '{method.name}':",
                            *(f"  {line}" for line in lines[:4]),
                            *more,
                            ELSEWHERE,
                        ]
                    )
                )

    def _record_identity(self) -> None:
        """Note what the rows of this folder belong to; of a run that left none nothing is kept."""
        stored = self._stored()
        self._discard_checkpoints(stored)
        stored = stored if self.folder.rows.read() else {}
        fingerprint = self._check_data_files(stored)
        methods = stored.get("methods", {}) | {m.name: identity(m.plain) for m in self.methods}
        main = stored.get("main", self.main.name)
        self.folder.write_json(self.folder.identity, {"main": main, "data_files": fingerprint, "methods": methods})
        for method in self.methods:
            path = self.folder.config if method is self.main else self.folder.path / f"config.{method.name}.yaml"
            # Whoever starts from this config again wants to go on, not to delete the results.
            plain = {**method.plain, "protocol": {**method.plain["protocol"], "overwrite": False}}
            self.folder.write_text(path, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))

    def _discard_checkpoints(self, stored: dict[str, Any]) -> None:
        """Delete those of tasks that another config, or other data, has begun."""
        other_data = stored.get("data_files") != self.data.fingerprint
        for method in self.methods:
            known = stored.get("methods", {}).get(method.name)
            if known is None or other_data or difference(identity(known), identity(method.plain)):
                for path in self.folder.checkpoints.glob(f"episode_????_{glob.escape(method.name)}.ckpt"):
                    path.unlink(missing_ok=True)

    def _check_data_files(self, stored: dict[str, Any]) -> str:
        """The fingerprint of the data files, which must be that of the rows."""
        fingerprint = self.data.fingerprint
        if stored.get("data_files", fingerprint) != fingerprint:
            raise DtrapError(
                f"{self.folder.path}: the data files under {self.data.root} are not those that its rows come from "
                f"(other names, labels, numbers or queries). Restore them. {ELSEWHERE}"
            )
        return fingerprint

    # The loop

    def _run_missing(self, missing: dict[str, list[int]]) -> None:
        self.data.setup()
        modules = self._build_modules()
        for module in dict.fromkeys(modules.values()):
            self._rehearse(module)
        self._show_start(modules)
        record_subsets(self.folder, self.data, set().union(*missing.values()))
        configs = {method.name: method.plain for method in self.methods}
        prepare_logger(self.main.parsed.trainer, self.folder, self.data.description, self._tags(), configs)
        arguments = {m.name: build_trainer_arguments(m.parsed) for m in self.methods}
        names = [method.name for method in self.methods]
        rows = [row for row in self.folder.rows.read() if row["episode"] < self.episodes]
        logger = ProtocolLogger(arguments[self.main.name].get("logger"), self.folder, configs, self._warn)
        logger.log_earlier(rows)
        status = "failed"
        try:
            with EpisodeProgress(
                self.episodes, names, rows=rows, unit=self.data.unit, console=self.console
            ) as progress:
                for episode in sorted(set().union(*missing.values())):
                    self.data.set_episode(episode)
                    for method in self.methods:
                        if episode not in missing[method.name]:
                            continue
                        progress.begin(episode)
                        row = self._run_method(method, modules[method.name], arguments[method.name], progress)
                        rows.append(row)
                        progress.finish(row)
                    logger.log_episode(rows, episode)
            status = "success"
        finally:
            logger.finish(status)

    def _run_method(
        self,
        method: MethodConfig,
        module: FewShotClassifier,
        arguments: dict[str, Any],
        progress: EpisodeProgress,
    ) -> Row:
        stage_switch = StageSwitch(**method.parsed.stage_switch)
        stem = f"episode_{self.data.episode:04d}_{method.name}"
        checkpoint = zero_shots = None
        if self.data.streams:
            zero_shots = self._zero_shots.setdefault(method.name, {})
            checkpoint = StepCheckpoint(self.folder.checkpoints / f"{stem}.ckpt", self.settings.checkpoint_every)
        row = run_episode(module, self.data, arguments, stage_switch, progress, checkpoint, zero_shots)
        row = {"episode": row.pop("episode"), "method": method.name, **row}
        if self.settings.save_adapters:
            save_adapter(self.folder.adapters / f"{stem}.safetensors", module, self._card(module, row))
        if self.data.episode < self.settings.pictures:
            self._draw(self.folder.pictures / f"{stem}.png", module, row)
        self.folder.rows.append(row)
        if checkpoint is not None:
            checkpoint.remove()
        return row

    def _build_modules(self) -> dict[str, FewShotClassifier]:
        """A module for each method; methods of the same backbone and tuner settings share both."""
        modules: dict[str, FewShotClassifier] = {}
        built: list[tuple[Any, FewShotClassifier]] = []
        for method in self.methods:
            settings = method.plain["model"]["backbone"], method.plain["model"]["tuner"]
            shared = next((module for known, module in built if known == settings), None)
            modules[method.name] = build_module(method.parsed, shared)
            built.append((settings, modules[method.name]))
        return modules

    def _rehearse(self, module: FewShotClassifier) -> None:
        """Find mistakes in the prompts of all classes before the first episode, and what the tuner trains."""
        module.set_classes(self.data.index.class_names, self.data.template)
        module.set_classes(self.data.class_names, self.data.template)
        module.start_task(0)
        if module.tuner.own_prompts:
            with torch.no_grad():
                module.text_features()

    # What is shown and left

    def _show_start(self, modules: dict[str, FewShotClassifier]) -> None:
        lines = {name: module.describe_training() for name, module in modules.items()}
        for line in dict.fromkeys(lines.values()):
            self.console.print(line, soft_wrap=True, markup=False, highlight=False)
        self.console.print(f"Results: {self.folder.path}", soft_wrap=True, markup=False, highlight=False)

    def _tags(self) -> list[str]:
        shot = [] if not self.data.fixed_numbers else [f"{self.data.shot}-shot"]
        methods = [method.name for method in self.methods]
        return [self.data.title, *shot, self.main.backbone, self.tuner.name, *methods]

    def _card(self, module: FewShotClassifier, row: Row) -> AdapterCard:
        template = module.template or self.data.template
        return AdapterCard(
            backbone=module.backbone.identifier,
            tuner=module.tuner.name,
            class_names=row["classes"],
            template=template if isinstance(template, str) else list(template),
            dataset=self.data.description,
            seed=row["seed"],
            episode=row["episode"],
            method=row["method"],
            accuracy=row["accuracy"],
        )

    def _draw(self, path: Path, module: FewShotClassifier, row: Row) -> None:
        support = self.data.support()
        views = self.data.views
        images = self._visible(support["images"]).unflatten(0, (views, -1))
        query: dict[str, Tensor] = self.data.query() if self.data.has_query else {}
        queries = self._visible(query["images"]) if query else torch.empty(0, *images.shape[2:])
        predictions = torch.cat(module.test_predictions) if query else torch.empty(0, dtype=torch.long)
        accuracy = "" if row["accuracy"] is None else f", {row['accuracy']:.1f} %"
        episode_picture(
            path,
            support_images=images.numpy(),
            support_labels=support["labels"][: images.shape[1]].numpy(),
            query_images=queries.numpy(),
            query_labels=query["labels"].numpy() if query else predictions.numpy(),
            query_predictions=predictions.numpy(),
            class_names=self.data.class_names,
            title=f"{self.data.description}, episode {row['episode']}, {row['method']}{accuracy}",
        )

    def _visible(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.data.preprocessing.mean, self.data.preprocessing.std))
        return (images * std + mean).clamp(0, 1)

    def _finish(self, *, complete: bool) -> None:
        rows = self.folder.rows.read()
        names: Sequence[str] = [method.name for method in self.methods]
        support = len(self.data.support_ids) if complete and not self.data.has_query else None
        summary = summarise(
            rows,
            self.data.description,
            names,
            episodes=self.episodes,
            support_images=support,
            unit=self.data.unit,
        )
        summary["protocol"] = self.data.protocol
        for method in self.methods:
            summary["methods"][method.name] |= {"backbone": method.backbone, "tuner": method.tuner}
        self.folder.write_json(self.folder.summary, summary)
        render(summary, self.console)
        if self.data.skipped_images:
            self.console.print(f"{len(self.data.skipped_images)} missing or unreadable images left out; listed above.")
        if self.settings.save_adapters and self.folder.adapters.exists():
            self.console.print(f"Adapters: {self.folder.adapters}", soft_wrap=True, markup=False, highlight=False)
        elif self.settings.save_adapters:
            self._warn("this run saved no adapters; --protocol.overwrite true runs it again and saves them.")

    def _command(self) -> str:
        words: list[str] = []
        skip = False
        for word in self.arguments:
            if skip and not word.startswith("-"):
                skip = False
                continue
            skip = word == "--protocol.overwrite"
            if not word.startswith("--protocol.overwrite"):
                words.append(word)
        return shlex.join(["dtrap", "fit", *words])

    def _warn(self, message: str) -> None:
        self.console.print(f"Warning: {message}", soft_wrap=True, markup=False)
