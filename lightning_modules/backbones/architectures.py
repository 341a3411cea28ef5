"""Model configs and weights of open_clip: its own by name and tag, those in a folder, and those in the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

from ...errors import DtrapError
from ...files import sha256
from .checkpoint import read_json
from .checksums import kept_sha256
from .hub import FolderFiles, HubFiles, ModelFiles

HUB, FOLDER = "hf-hub:", "local-dir:"
# What `pretrained` is where the weights are next to the config; the second is its default for all models.
OWN = ("own", "openai")
OWN_WEIGHTS = [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
OPENAI_CACHE = Path("~/.cache/clip")
LAYOUT = f"Expected {HF_CONFIG_NAME} and {HF_SAFE_WEIGHTS_NAME}, as open_clip and `dtrap export` write them."


@dataclass(frozen=True)
class Architecture:
    """A model config of open_clip.

    Attributes:
        name: Its name, for identifiers.
        config: Content of its `model_cfg`.
        preprocess: Content of its `preprocess_cfg`.
        tags: open_clip's entries of published weights by tag.
        files: The folder or repository that the config is from, where its weights are next to it; else None.
    """

    name: str
    config: dict[str, Any]
    preprocess: dict[str, Any]
    tags: dict[str, dict[str, Any]]
    files: ModelFiles | None = None


@dataclass(frozen=True)
class Weights:
    """The source of weights; `published` is open_clip's entry for them, None for your own file."""

    label: str
    path: Path | None
    published: dict[str, Any] | None

    @property
    def verified(self) -> bool:
        """Whether the file has the checksum of a file that OpenAI published."""
        if self.path is None or self.published is None or self.path.suffix != ".pt":
            return False
        return sha256(self.path) in self.published["url"]


def find_files(name: str, cache_dir: str | None) -> ModelFiles | None:
    """Return the folder or repository that a name means, which has an open_clip_config.json; None for other names.

    Raises:
        DtrapError: The folder does not exist, or the name is not that of a repository.
    """
    if name.startswith(HUB):
        return hub_files(name.removeprefix(HUB), "--model.backbone.name local-dir:FOLDER", cache_dir)
    folder = Path(name.removeprefix(FOLDER)).expanduser()
    if name.startswith(FOLDER) and not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise DtrapError(f"--model.backbone.name {name}: {folder} {what}. {LAYOUT}")
    if name.startswith(FOLDER) or (folder / HF_CONFIG_NAME).is_file():
        return FolderFiles(folder.resolve().name, LAYOUT, folder)
    return None


def hub_files(repo: str, elsewhere: str, cache_dir: str | None) -> HubFiles:
    """Return the files of a repository of the hub.

    Args:
        repo: Its name, OWNER/NAME.
        elsewhere: The option that takes files that were downloaded on another machine, for the error.
        cache_dir: The hub's cache folder.

    Raises:
        DtrapError: The name is not that of a repository.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", repo):
        raise DtrapError(f"'{HUB}{repo}' is not a repository of the hub. Expected {HUB}OWNER/NAME.")
    remedy = (
        f"Download https://huggingface.co/{repo} on a machine with network and give {elsewhere}, or set HF_HOME to a "
        "cache that has it."
    )
    return HubFiles(repo, remedy, cache_dir)


def architecture_of(files: ModelFiles) -> Architecture:
    """Return the model config of a folder or repository.

    Raises:
        DtrapError: It has none that can be read.
    """
    found = read_architecture(files.require([HF_CONFIG_NAME]))
    return replace(found, name=files.label, files=files)


def weights_in_hub(pretrained: str, cache_dir: str | None) -> tuple[str, Path]:
    """Return label and local path of a single file in the hub, hf-hub:OWNER/NAME/FILE.

    Raises:
        DtrapError: The text has another form, or the file is not cached and cannot be downloaded.
    """
    owner, _, rest = pretrained.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    if not file or ".." in file.split("/"):
        raise DtrapError(f"--model.backbone.pretrained is '{pretrained}'; expected {HUB}OWNER/NAME/FILE.")
    files = hub_files(f"{owner}/{name}", f"--model.backbone.pretrained {Path(file).name}", cache_dir)
    return f"{owner}/{name}/{Path(file).stem}", files.require([file])


def own_weights(files: ModelFiles) -> Weights:
    """Return the weights next to a config.

    Raises:
        DtrapError: There are none, or they cannot be downloaded.
    """
    path = files.require(OWN_WEIGHTS)
    label = "hf-hub" if isinstance(files, HubFiles) else f"{path.stem}-{kept_sha256(path)[:8]}"
    return Weights(label, path, None)


def read_architecture(path: Path) -> Architecture:
    """Return the model config of a JSON file.

    Raises:
        DtrapError: It is not a model config of open_clip.
    """
    content = read_json(path, "Expected a model config of open_clip.")
    config, preprocess = content.get("model_cfg", content), content.get("preprocess_cfg", {})
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise DtrapError(f"{path}: not a model config of open_clip; {', '.join(missing)} missing.")
    if not all(isinstance(part, dict) for part in (config, config["vision_cfg"], config["text_cfg"], preprocess)):
        raise DtrapError(f"{path}: not a model config of open_clip; its sections are names with values. Correct it.")
    if "bpe_path" in (config["text_cfg"].get("tokenizer_kwargs") or {}):  # it would be opened, whatever it is
        raise DtrapError(f"{path}: bpe_path is not read. Give a tokenizer: --model.backbone.tokenizer FOLDER.")
    return Architecture(path.stem, config, preprocess, {})


def check_activation(architecture: Architecture, published: dict[str, Any], pretrained: str) -> None:
    """Raise a DtrapError if the weights were trained with another activation: features would be silently wrong."""
    trained, built = (bool(config.get("quick_gelu")) for config in (published, architecture.config))
    if trained != built:
        activations = {True: "QuickGELU", False: "GELU"}
        right = architecture.name.removesuffix("-quickgelu") + ("-quickgelu" if trained else "")
        raise DtrapError(
            f"Weights '{pretrained}' were trained with {activations[trained]}, but '{architecture.name}' has "
            f"{activations[built]}. Use --model.backbone.name {right}."
        )


def published_file(architecture: Architecture, tag: str, cache_dir: str | None) -> Path:
    """Return the local file of published weights; download it if it is not cached.

    Raises:
        DtrapError: It is not cached and cannot be downloaded.
    """
    published = architecture.tags[tag]
    repo, _, filename = published["hf_hub"].rpartition("/")
    filenames = [filename] if filename else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    if filename.endswith((".bin", ".pth")):
        filenames.insert(0, f"{filename[:-4]}.safetensors")
    url = published["url"]
    openai = Path(cache_dir or OPENAI_CACHE).expanduser() / url.rpartition("/")[2]
    if "openaipublic" in url and openai.is_file() and sha256(openai) in url:
        return openai
    remedy = (
        f"Download {filenames[0]} from https://huggingface.co/{repo} on a machine with network and set "
        "--model.backbone.pretrained to its path, or set HF_HOME to a cache that has it."
    )
    return HubFiles(repo, remedy, cache_dir, f"Weights '{tag}' of '{architecture.name}' are").require(filenames)
