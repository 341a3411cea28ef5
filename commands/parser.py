"""The parser of the commands: Lightning's CLI with the sections of a protocol run, and the methods of a run."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from .. import callbacks, datamodules
from ..callbacks import StageSwitch
from ..configs import SHIPPED, find_config
from ..datamodules.few_shot import FewShotDataModule
from ..errors import DtrapError
from ..lazy import load_all
from ..lightning_modules import FewShotClassifier, Objective, backbones, tuners
from ..lightning_modules.text_head import read_descriptions
from ..lightning_modules.tuners import Tuner
from ..protocol.configuration import MethodConfig, build_part
from ..protocol.settings import ProtocolSettings
from .parser_errors import explain


class DtrapCLI(LightningCLI):
    """Lightning's CLI as the parser of every `dtrap` command; the commands instantiate what they need themselves.

    Args:
        arguments: Command line words after the command's name.
        command: "fit", "test", "predict" or "export"; all but the first have further options.
    """

    def __init__(self, arguments: list[str], command: str) -> None:
        self.command = command
        load_all(callbacks, datamodules, backbones, tuners)  # jsonargparse knows only classes that are imported
        super().__init__(
            FewShotClassifier,
            FewShotDataModule,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=False,
            auto_configure_optimizers=False,
            run=False,
            args=["--config", str(SHIPPED / "defaults.yaml"), *_find_configs(arguments)],
            parser_kwargs={
                "prog": f"dtrap {command}",
                "description": _DESCRIPTIONS[command],
                "exit_on_error": False,
                "allow_abbrev": False,
            },
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Lightning's sections; predictions and exports need no data set, so that its section is not looked at."""
        if self.command not in ("predict", "export"):
            super().add_core_arguments_to_parser(parser)
            return
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.add_lightning_class_args(FewShotClassifier, "model")
        parser.add_argument("--data", type=dict[str, Any] | None, help="Not needed for this command")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The stage, the protocol and the options of single commands."""
        parser.add_lightning_class_args(StageSwitch, "stage_switch")
        parser.add_class_arguments(ProtocolSettings, "protocol")
        if self.command == "fit":
            return
        parser.add_argument(
            "--adapter",
            type=str,
            required=True,
            help="Saved adapter (.safetensors), a folder of them, or a folder that `dtrap export` wrote",
        )
        if self.command == "export":
            parser.add_argument("--output", type=str, required=True, help="Folder to write; it must be empty or new")
            parser.add_argument(
                "--form",
                type=Literal["plain", "peft"],
                default="plain",
                help="plain: a checkpoint of the backbone's own library, open_clip or transformers; "
                "peft: a LoRA adapter as peft saves it",
            )
        if self.command == "predict":
            parser.add_argument(
                "--images", type=str, required=True, help="Folder of images, searched with its sub-folders"
            )
            parser.add_argument("--output", type=str, default="predictions.csv", help="CSV file to write")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse into `self.config`; a mistake becomes one short message."""
        files = [path for option, path in pairwise(args) if option in ("--config", "-c")]
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, TypeError, ValueError) as error:
            raise DtrapError(explain(error, parser, files)) from error
        seed = self.config.get("seed_everything")
        if seed not in (None, False):
            raise DtrapError(
                f"seed_everything is {seed}; all that is random in an episode is drawn from data.seed. Leave it out "
                f"and give --data.seed {seed}."
            )

    def instantiate_classes(self) -> None:
        """Leave the instantiation to the command."""


_DESCRIPTIONS = {
    "fit": "Train and test on every episode of a few-shot task; write a row each and the mean with its interval.",
    "test": "Test saved adapters again on the queries of their episodes.",
    "predict": "Classify a folder of images with a saved adapter; write a CSV.",
    "export": "Write the tuned model as a folder that open_clip, transformers or peft loads without dtrap.",
}


def _find_configs(arguments: list[str]) -> list[str]:
    """The arguments with every config's name replaced by the path of its file."""
    found, following = [], False
    for word in arguments:
        option, equals, value = word.partition("=")
        if following:
            found.append(_readable(find_config(word)))
        elif equals and option in ("--config", "-c"):
            found += [option, _readable(find_config(value))]
        else:
            found.append(word)
        following = word in ("--config", "-c")
    return found


def _readable(path: str) -> str:
    """The path of a config whose YAML can be read."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        lines = " ".join(str(error).split())
        raise DtrapError(f"{path}: not readable as YAML ({lines[:300]}). Mend the line that it names.") from error
    if content is not None and not isinstance(content, dict):
        raise DtrapError(f"{path}: expected sections such as `data:` and `model:`, found {str(content)[:60]!r}.")
    return path


def parse_methods(arguments: list[str]) -> list[MethodConfig]:
    """The main method of a `fit` command line, then one for each overlay of `protocol.compare`."""
    main = _parse_method(arguments, None)
    methods = [main]
    for overlay in main.settings.overlays:
        methods.append(_parse_method([*arguments, "--config", overlay], Path(overlay).stem, main))
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise DtrapError(
            f"protocol.compare: the methods are named {', '.join(names)}, one twice. Expected overlays that "
            "differ from the main config; set --protocol.method to name the main one."
        )
    return methods


def _parse_method(arguments: list[str], name: str | None, main: MethodConfig | None = None) -> MethodConfig:
    cli = DtrapCLI(arguments, "fit")
    plain = to_plain(cli)
    if isinstance(plain["model"]["descriptions"], str):  # the run keeps what the file says, not where it lies
        plain["model"]["descriptions"] = read_descriptions(plain["model"]["descriptions"])
    losses = build_part(Objective, cli.config.model.objective).method
    if name is None:
        name = cli.config.protocol.method or losses
    elif main is not None and plain["model"]["tuner"] != main.plain["model"]["tuner"]:
        name = f"{name}-{losses}"  # an overlay that brings another tuner: both are what it compares
    if build_part(Tuner, cli.config.model.tuner).transductive and "transductive" not in name:
        name += "-transductive"
    return MethodConfig(name, cli.config, plain)


def to_plain(cli: DtrapCLI) -> dict[str, Any]:
    """The resolved config as it would stand in a YAML file."""
    config = cli.config.clone()
    config.pop("config", None)
    return yaml.safe_load(cli.parser.dump(config, skip_none=False, skip_validation=True, format="yaml"))
