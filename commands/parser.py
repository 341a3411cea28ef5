"""The parser of the commands: Lightning's CLI with the sections of a run, and the methods of a run."""

from __future__ import annotations

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
from ..lightning_modules import FewShotClassifier, Objective, backbones, tuners
from ..lightning_modules.text_head import read_descriptions
from ..protocol.configuration import MethodConfig, build_part
from ..protocol.method_names import check_distinct, overlay_name
from ..protocol.paths import with_absolute_paths
from ..protocol.precision import settle_precision
from ..protocol.settings import ProtocolSettings
from . import importing
from .given_configs import bound_yaml, find_configs
from .parser_errors import explain
from .plug_ins import load_plug_ins
from .predict_options import add_options
from .shipped_reference import shipped_reference


class DtrapCLI(LightningCLI):
    """Lightning's CLI as the parser of a `dtrap` command; the command instantiates what it needs.

    Args:
        arguments: Command line words after the command's name.
        command: "fit", "test", "predict" or "export"; the last three have further options.
        overlay: A config that is read after the whole command line and replaces its options; None for none.

    Attributes:
        words: The words as the parser gets them, each config by its path.
    """

    def __init__(self, arguments: list[str], command: str, overlay: str | None = None) -> None:
        self.command = command
        bound_yaml()
        with importing():
            for package in (callbacks, datamodules, backbones, tuners):
                for name in package.__all__:
                    getattr(package, name)  # jsonargparse knows only classes that are imported
            if any(word in ("-h", "--help") or word.endswith(".help") for word in arguments):
                load_plug_ins()
        self.words = find_configs(arguments)
        super().__init__(
            FewShotClassifier,
            FewShotDataModule,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=False,
            auto_configure_optimizers=False,
            run=False,
            args=["--config", str(SHIPPED / "defaults.yaml"), *self.words, *_overlay(overlay)],
            parser_kwargs={
                "prog": f"dtrap {command}",
                "description": _DESCRIPTIONS[command],
                "exit_on_error": False,
                "allow_abbrev": False,
            },
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add Lightning's sections. Predictions and exports need no data set; its section is not checked then."""
        if self.command not in ("predict", "export"):
            super().add_core_arguments_to_parser(parser)
            return
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.add_lightning_class_args(FewShotClassifier, "model")
        parser.add_argument("--data", type=dict[str, Any] | None, help="Not used by this command")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the stage, the protocol and the options of the command."""
        parser.add_lightning_class_args(StageSwitch, "stage_switch")
        parser.add_class_arguments(ProtocolSettings, "protocol")
        if self.command == "fit":
            return
        parser.add_argument(
            "--adapter",
            type=str,
            required=True,
            help="Saved adapter (.safetensors), a folder of adapters, or a folder that `dtrap export` wrote",
        )
        if self.command == "export":
            parser.add_argument("--output", type=str, required=True, help="Folder to write; must be empty or new")
            parser.add_argument(
                "--form",
                type=Literal["plain", "peft", "onnx"],
                default="plain",
                help="plain: a checkpoint of the backbone's own library, open_clip or transformers; "
                "peft: an adapter as peft saves it; onnx: one graph from images to class probabilities",
            )
            parser.add_argument(
                "--push",
                type=str | None,
                default=None,
                help="Repository owner/name of the Hugging Face hub to upload to",
            )
            parser.add_argument(
                "--private", type=bool, default=True, help="Whether a repository that --push creates is private"
            )
        if self.command == "predict":
            add_options(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse into `self.config`; raise a DtrapError with a short message for a mistake."""
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, TypeError, ValueError) as error:
            raise DtrapError(explain(error, parser, args)) from error
        seed = self.config.get("seed_everything")
        if seed not in (None, False):
            raise DtrapError(
                f"seed_everything is {seed}, but everything random is drawn from --data.seed. Leave it "
                f"out and give --data.seed {seed}."
            )

    def instantiate_classes(self) -> None:
        """Do nothing: the command instantiates."""


_DESCRIPTIONS = {
    "fit": "Train and test on every episode of a few-shot task; write a row for each, and the mean with its interval.",
    "test": "Test saved adapters again on the queries of their episodes.",
    "predict": "Classify images with a saved adapter; write a CSV.",
    "export": "Write the tuned model as a folder that open_clip, transformers, peft or onnxruntime can load without "
    "dtrap.",
}


def parse_methods(arguments: list[str]) -> list[MethodConfig]:
    """Parse the command line of `dtrap fit`.

    Returns:
        The main method, then one for each overlay of `protocol.compare`. A method that is given no name in
        `protocol.method`, on the command line or in its overlay, is named after what it trains.

    Raises:
        DtrapError: A mistake in a config or the command line, or methods that cannot be compared or told apart.
    """
    main, losses = _parse_method(arguments)
    main.name = _marked(main.values["protocol"]["method"] or _controlled(losses, main), main)
    main.explicit = main.values["protocol"]["method"] is not None
    named, overlays = [(main, losses)], main.settings.overlays
    for overlay in overlays:
        method, losses = _parse_method(arguments, overlay)
        if method.values["data"] != main.values["data"]:
            raise DtrapError(
                f"protocol.compare: the overlay {overlay} changes the data, but methods are compared on the same "
                "episodes. Leave `data` out of the overlay."
            )
        given = method.settings.method if _gives_name(overlay) else None
        method.explicit, method.values["protocol"]["method"] = given is not None, given
        method.name = _marked(given or _controlled(overlay_name(method, losses, named), method), method)
        other_tuner = method.values["model"]["tuner"] != main.values["model"]["tuner"]
        method.old_name = _marked(f"{Path(overlay).stem}-{losses}" if other_tuner else Path(overlay).stem, method)
        named.append((method, losses))
    methods = [method for method, _ in named]
    check_distinct(methods, ["the main method", *map(str, overlays)])
    return methods


def _overlay(name: str | None) -> list[str]:
    """Return the words that lay a config over a whole command line, whose options it replaces."""
    return [] if name is None else find_configs(["--config", name])


def _parse_method(arguments: list[str], overlay: str | None = None) -> tuple[MethodConfig, str]:
    """Return a method that has no name yet, and the short name of its losses."""
    cli = DtrapCLI(arguments, "fit", overlay)
    method = method_of(cli)
    method.reference = shipped_reference(cli.words)
    if method.values["trainer"].get("precision") is None:  # methods are named after what differs on this device
        settle_precision([method])
    return method, build_part(Objective, method.parsed.model.objective).method


def method_of(cli: DtrapCLI) -> MethodConfig:
    """Return the method that a command line was parsed to; it has no name yet."""
    values = to_values(cli)
    if isinstance(values["model"]["descriptions"], str):  # the identity holds the file's content, not its path
        values["model"]["descriptions"] = read_descriptions(values["model"]["descriptions"])
    return MethodConfig("", cli.config, values)


def _marked(name: str, method: MethodConfig) -> str:
    """Mark the name of a transductive method, whose results are not comparable with others."""
    return f"{name}-transductive" if method.own_tuner.transductive and "transductive" not in name else name


def _controlled(name: str, method: MethodConfig) -> str:
    """Let the name of a control with random words say so, also where all compared methods are such controls."""
    draw = method.values["model"]["random_words"]
    return name if draw is None or "random_words" in name else f"{name}-random_words_{draw}"


def _gives_name(overlay: str) -> bool:
    """Whether an overlay itself names its method; a name from the command line is the main method's."""
    content = yaml.safe_load(Path(find_config(overlay)).read_text(encoding="utf-8")) or {}
    return (content.get("protocol") or {}).get("method") is not None


def to_values(cli: DtrapCLI) -> dict[str, Any]:
    """Return the resolved config as the values of its YAML file."""
    config = cli.config.clone()
    config.pop("config", None)
    values = yaml.safe_load(cli.parser.dump(config, skip_none=False, skip_validation=True, format="yaml"))
    return with_absolute_paths(values)
