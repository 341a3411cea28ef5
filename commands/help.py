"""Help of the commands with many options: one page of those that people use, the others by topic."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

import yaml

from ..configs import config_text, shipped_configs
from ..errors import DtrapError, nearest
from .plug_ins import GROUPS, plug_in_lines, plug_ins

FIT = """usage: dtrap fit --config NAME [--config NAME ...] [--OPTION VALUE ...]

Train and test on every episode of a few-shot task; write a row for each, and the mean with its interval. The same
command again resumes. Options are read from left to right: a config comes before the options that change it.

  --config NAME              a YAML file or a shipped config (`dtrap configs` lists them); several are merged
  --data.root FOLDER         where the images are
  --data.shot K              training images per class
  --data.seed N              seed of all episodes (default: 1)
  --data.query_root FOLDER   images of your own to test on (with folder.yaml)
  --data.bad_images skip     leave out unreadable images instead of stopping
  --model.tuner NAME         what is trained (default: LoRA); --config tuners/NAME.yaml has the fitting settings
  --model.learning_rate X    default: the tuner's own
  --trainer.max_epochs N     length of each training (default: 250)
  --trainer.precision P      default: bf16-mixed or 16-mixed on a GPU, 32-true elsewhere
  --protocol.episodes N      number of episodes (default: 400)
  --protocol.folder FOLDER   where the results go (default: runs/NAME, named after data and method)
  --protocol.compare CONFIG  a second method on the same episodes, such as methods/baseline.yaml
  --protocol.save_adapters true   keep the trained weights for test, predict and export
  --protocol.overwrite true  delete the results in the folder and start over
"""

TEST = """usage: dtrap test --adapter PATH [--config NAME] [--OPTION VALUE ...]

Test saved adapters again on the queries of their episodes.

  --adapter PATH             an adapter (.safetensors), or a folder of adapters
  --config NAME              the run's config, if it is not found next to the adapter
  --data.root FOLDER         where the images are, if they have moved
  --data.query_root FOLDER   other images of the same classes to test on (own folders)
  --trainer.accelerator A    cpu or gpu (default: auto)
"""

PREDICT = """usage: dtrap predict --adapter PATH --images PATH [PATH ...] [--output FILE] [--OPTION VALUE ...]

Classify images with a saved adapter; write a CSV with path, label, confidence, runner-up and one probability per class.

  --adapter PATH             an adapter (.safetensors), or a folder that `dtrap export` wrote
  --images PATH [PATH ...]   images, folders with their subfolders, patterns ('photos/*.jpg'), tables with a column path
  --output FILE              the CSV file (default: predictions.csv)
  --overwrite                replace that file if it exists
  --unsure X                 label images with a lower confidence than X, such as 0.6, as unsure
  --reject RATE              label images that are like none of the classes as rejected, such as 0.05
  --sort-into FOLDER         copy the images into a folder of each label

  --config NAME              the run's config, if it is not found next to the adapter
  --trainer.accelerator A    cpu or gpu (default: auto)
"""

EXPORT = """usage: dtrap export --adapter PATH --output FOLDER [--form plain|peft|onnx] [--OPTION VALUE ...]

Write the tuned model as a folder that open_clip, transformers, peft or onnxruntime can load without dtrap.

  --adapter PATH             an adapter (.safetensors)
  --output FOLDER            the folder to write; must be empty or new
  --form plain|peft|onnx     plain: a checkpoint of the backbone's own library (default); peft: an adapter as peft
                             saves it; onnx: one graph from images to class probabilities, for every tuner
  --push OWNER/NAME          upload the folder to this repository on the Hugging Face hub
  --private true|false       whether a repository that --push creates is private (default: true)
  --config NAME              the run's config, if it is not found next to the adapter
"""

_SECTIONS = ("data", "model", "trainer", "stage_switch", "protocol")
PAGES = {"fit": FIT, "test": TEST, "predict": PREDICT, "export": EXPORT}

_TOPICS = """
More options:
  dtrap fit --help isic      of a data set: isic, eurosat, crop_disease, chestx, folder, coop/dtd, ...
  dtrap fit --help lora      of a tuner: {tuners}
  dtrap fit --help model     of a section: data, model, trainer, stage_switch, protocol
  dtrap fit --help all       everything
"""


def help_page(command: str) -> str:
    """Return the page of a command's common options."""
    if command != "fit":
        return f"{PAGES[command]}\n`dtrap {command} --help all` lists all options.\n"
    tuners = [name[7:-5] for name in shipped_configs() if name.startswith("tuners/")]
    page = FIT + _TOPICS.format(tuners=textwrap.fill(", ".join(tuners), 120 - 41).replace("\n", "\n" + " " * 41))
    lines = plug_in_lines()
    return page + "".join(["\nInstalled plug-ins:\n" if lines else "", *(f"  {line}\n" for line in lines)])


def help_topic(command: str, topic: str) -> str:
    """Return the options of a section, or those of a data set, tuner or backbone by the name of its config or class.

    Raises:
        DtrapError: The topic is unknown.
    """
    from jsonargparse import ArgumentParser

    component, section = _component(command, topic)
    parser = ArgumentParser(prog=f"dtrap {command}", usage="", add_help=False)
    parser.add_class_arguments(component, section, fail_untyped=False)
    text = parser.format_help().partition("\n\n")[2]  # without the usage, which only lists the names
    # jsonargparse offers a config of its own for each group.
    text = re.sub(rf"  --{re.escape(section)} CONFIG\s+Path to a configuration file.\n", "", text)
    chosen = "" if topic in _SECTIONS else f"--{section} {component.__name__}\n"
    return f"{chosen}{text.strip()}\n"


def _component(command: str, topic: str) -> tuple[type, str]:
    """Return the class of a topic and the option that its arguments begin with."""
    from lightning.pytorch import Trainer

    from .. import datamodules
    from ..callbacks import StageSwitch
    from ..datamodules import coop
    from ..lightning_modules import FewShotClassifier, backbones, tuners
    from ..protocol.settings import ProtocolSettings

    topics: dict[str, tuple[type, str]] = {
        "data": (datamodules.FewShotDataModule, "data"),
        "model": (FewShotClassifier, "model"),
        "trainer": (Trainer, "trainer"),
        "stage_switch": (StageSwitch, "stage_switch"),
        "protocol": (ProtocolSettings, "protocol"),
    }
    for package, section in (
        (backbones, "model.backbone"),
        (datamodules, "data"),
        (coop, "data"),
        (tuners, "model.tuner"),
    ):
        bases = {"Backbone", "Tuner", "DasslTraining", "FewShotDataModule"}
        for name in set(package.__all__) - bases:
            if inspect.isclass(getattr(package, name)):
                topics[name.lower()] = (getattr(package, name), section)
    for alias, class_name in _configured().items():
        if class_name.lower() in topics:
            topics.setdefault(alias, topics[class_name.lower()])
    name = topic.lower().removesuffix(".yaml")
    found = [each for each in plug_ins() if name in map(str.lower, each.names) and name not in topics]
    for each in found:
        loaded = each.load()
        if inspect.isclass(loaded):
            return loaded, GROUPS[each.group][0]
    if name not in topics:
        raise DtrapError(
            f"no help for '{topic}'.{nearest(name, topics)} Expected all, a section such as model, a data set such as "
            f"isic, or a tuner such as lora: dtrap {command} --help lora"
        )
    return topics[name]


def _configured() -> dict[str, str]:
    """Return the class that each shipped config chooses, by the config's name, in full and in short."""
    chosen: dict[str, str] = {}
    for name in shipped_configs():
        content: dict[str, Any] = yaml.safe_load(config_text(name)) or {}
        model = content.get("model") or {}
        part = content.get("data") or model.get("tuner") or model.get("backbone") or {}
        if "class_path" in part:
            full = name.removesuffix(".yaml")
            short = re.sub(r"_\d+shot$", "", full)
            for alias in (full, short, short.rpartition("/")[2]):
                chosen.setdefault(alias, part["class_path"].rpartition(".")[2])
    return chosen
