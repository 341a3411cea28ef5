"""`dtrap doctor`: look at the installation, the device, the weights on this machine, and a backbone's features."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..configs import find_config, shipped_configs
from ..console import CommandParser, print_table, say, say_on_terminal
from ..errors import DtrapError
from ..lightning_modules.backbones import Backbone
from ..parsing import read_yaml
from ..protocol.configuration import build_part
from ..protocol.doctor.device import describe, try_precisions
from ..protocol.doctor.features import SAME, Published, compare_features, drawn_image, logits_of, published_for
from ..protocol.doctor.features import save_features as write_features
from ..protocol.doctor.installation import extras, versions
from ..protocol.doctor.weights import find_weight_files
from ..protocol.precision import device_of

OPEN_CLIP = "dtrap.lightning_modules.backbones.OpenCLIP"


def doctor(arguments: list[str], console: Console) -> int:
    """Run `dtrap doctor`; see `dtrap doctor --help`.

    Returns:
        0, or 1 if something of what was asked for does not work.

    Raises:
        DtrapError: An option, a config or a file is not as expected.
    """
    options = doctor_parser().parse_args(arguments)
    given = [] if options.backbone is None else [options.backbone]
    backbones = {name: _section(name) for name in given or _shipped()}
    _print(console, {**versions(), **extras()})
    device = device_of({"accelerator": options.accelerator})
    if device is None:
        raise DtrapError(f"--accelerator {options.accelerator} is not available here. Expected auto, cpu, gpu or mps.")
    computes = _device(device, console)
    found = _weights(backbones, bool(given), console)
    agrees = not (found and given) or _features(backbones[options.backbone], options, device, console)
    return 0 if computes and found and agrees else 1


def doctor_parser() -> argparse.ArgumentParser:
    """Return the parser of `dtrap doctor`."""
    parser = CommandParser(
        prog="dtrap doctor",
        description="Show versions and extras, try the precisions of the device, and list the weights that are on this "
        "machine and whether they are the published files. Nothing is downloaded. With --backbone, also load it and "
        "compare its features. The exit status is 1 if something asked for does not work.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--backbone",
        metavar="NAME",
        help="a config such as clip or my_model.yaml, or hf-hub:OWNER/NAME, local-dir:FOLDER",
    )
    parser.add_argument("--accelerator", default="auto", metavar="NAME", help="auto (default), cpu, gpu or mps")
    parser.add_argument(
        "--image", metavar="FILE", help="the image that published numbers belong to; the output names it"
    )
    parser.add_argument("--save", metavar="FILE", help="write the features of a drawn image and three texts as JSON")
    parser.add_argument(
        "--compare", metavar="FILE", help="compare the features with a file that --save wrote elsewhere"
    )
    return parser


def _shipped() -> list[str]:
    return [name for name in shipped_configs() if name.startswith("backbones/")]


def _section(name: str) -> dict[str, Any]:
    """Return class path and arguments of a backbone by its config, or by a name with open_clip's prefix.

    Raises:
        DtrapError: There is no such config, or it has no backbone.
    """
    if name.startswith(("hf-hub:", "local-dir:")):
        return {"class_path": OPEN_CLIP, "init_args": {"name": name, "pretrained": "own"}}
    known = f"backbones/{name.removesuffix('.yaml')}.yaml"
    path = find_config(known if known in _shipped() and not Path(name).is_file() else name)
    try:
        content = read_yaml(Path(path))
    except (OSError, ValueError) as error:
        raise DtrapError(f"--backbone {name}: {path} cannot be read as YAML ({error}).") from error
    found = content.get("model") if isinstance(content, dict) else None
    found = found.get("backbone") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("class_path"), str):
        raise DtrapError(
            f"--backbone {name}: {path} has no model.backbone with a class_path. Expected one of "
            f"{', '.join(each.removeprefix('backbones/').removesuffix('.yaml') for each in _shipped())}."
        )
    return found


def _print(console: Console, rows: dict[str, str]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in rows.items():
        table.add_row(*map(Text, row))
    print_table(table, console)


def _device(device: torch.device, console: Console) -> bool:
    """Show a device and what it computes; return whether the precision that runs take by default works."""
    say(console, "")
    say(console, f"Device: {describe(device)}")
    rows, sound = {}, True
    for trial in try_precisions(device):
        if trial.error is None:
            state = f"refused: {trial.refusal}"
        else:
            state = f"{'works' if trial.works else 'WRONG NUMBERS'} (largest relative error {trial.error:.1e})"
        rows[trial.precision] = state + (", the default of a run" if trial.default else "")
        sound &= trial.works or not trial.default
    _print(console, rows)
    return sound


def _weights(backbones: dict[str, dict[str, Any]], asked: bool, console: Console) -> bool:
    """List weight files; return whether those that were asked for are there and not damaged."""
    say(console, "")
    say(console, "Weights on this machine:")
    rows, sound = {}, True
    for name, section in backbones.items():
        say_on_terminal(console, f"Reading the files of {name} …")
        files = find_weight_files(section["class_path"], section.get("init_args") or {})
        if not files.paths:
            state = files.remark if asked else "not cached"
            sound &= not asked or "random weights" in state
        else:
            words = {True: "published file", False: "NOT THE PUBLISHED FILE", None: "found"}[files.published]
            state = f"{words} ({files.remark}), {files.size / 2**20:,.0f} MiB: {files.paths[0]}"
            sound &= files.published is not False
        rows[name.removeprefix("backbones/").removesuffix(".yaml")] = state
    _print(console, rows)
    return sound


def _features(section: dict[str, Any], options: Any, device: torch.device, console: Console) -> bool:
    """Load a backbone, and compare its features with whatever there is; return whether they agree."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The backbone has random weights")
        backbone: Backbone = build_part(Backbone, section).to(device)
    say(console, "")
    say(console, f"{backbone.identifier}: {backbone.image_size} px, {backbone.feature_dim} numbers in a feature")
    sound = True
    published = published_for(backbone.identifier)
    if published is None:
        say(console, "Published numbers: none are known for these weights.")
    else:
        sound &= _agrees(backbone, published, options.image, console)
    if options.save is not None:
        path = Path(options.save).expanduser()
        write_features(path, backbone)
        say(
            console, f"Features written: {path}. On another machine: dtrap doctor --backbone NAME --compare {path.name}"
        )
    if options.compare is not None:
        distance = compare_features(Path(options.compare).expanduser(), backbone)
        sound &= distance <= SAME
        verdict = "the same" if distance <= SAME else "DIFFERENT"
        say(
            console, f"Compared with {options.compare}: {verdict} (largest 1 - cosine {distance:.1e}, allowed {SAME:g})"
        )
    return sound


def _agrees(backbone: Backbone, published: Published, image: str | None, console: Console) -> bool:
    if published.image != "drawn" and image is None:
        say(console, f"Published numbers: get {published.image} and give it with --image to compare.")
        return True
    if published.image == "drawn":
        picture = drawn_image()
    else:
        try:
            picture = Image.open(Path(str(image)).expanduser()).convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise DtrapError(f"--image {image} cannot be read ({error}). Give {published.image}.") from error
    found = logits_of(backbone, picture, published.texts)
    worst = max(abs(here - there) for here, there in zip(found, published.logits, strict=True))
    agrees = worst <= published.tolerance
    say(
        console,
        f"Published logits of {published.source}: {'agree' if agrees else 'DIFFER'} (largest difference {worst:.4f}, "
        f"allowed {published.tolerance:g})",
    )
    return agrees
