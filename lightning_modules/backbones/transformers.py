"""Backbones from transformers: CLIP and SigLIP (1 and 2), from the hub or a folder written by save_pretrained()."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn
from transformers.utils.constants import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from ...errors import DtrapError
from .base import Backbone, Tower
from .checkpoint import read_weights, sha256
from .hub import cached_file, hub_file, optional_hub_file

WEIGHTS = ["model.safetensors", "model.safetensors.index.json"]
PREPROCESSOR = ["preprocessor_config.json", "processor_config.json"]
VOCABULARY = ["tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model"]
TOKENIZER_EXTRAS = ["merges.txt", "special_tokens_map.json", "added_tokens.json"]
LAYOUT = (
    "Expected config.json, model.safetensors, tokenizer.json and tokenizer_config.json, as save_pretrained() writes."
)

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Family:
    """A model family: its classes in transformers, and the image statistics of its published checkpoints."""

    config: str
    model: str
    image_mean: Sequence[float]
    image_std: Sequence[float]


FAMILIES = {
    "clip": Family("CLIPConfig", "CLIPModel", OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "siglip": Family("SiglipConfig", "SiglipModel", IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
}


class Transformers(Backbone):
    """A frozen CLIP or SigLIP model of transformers in evaluation mode, float32.

    Google's SigLIP2 checkpoints of fixed resolution also have the model type "siglip". Images are resized directly to
    the model's square; mean and std come from its preprocessor_config.json. SigLIP's prompts are converted to lower
    case without punctuation before they are tokenized, as in Google's zero-shot evaluation and open_clip. The tokenizer
    in transformers does so for SigLIP, but not for most SigLIP2 checkpoints.

    Args:
        name: Repository of the hub, or a folder written by save_pretrained().
        random_weights: Draw the weights from torch's global generator; this needs config.json only, and the tokenizer
            for the first prompt.
        cache_dir: Cache folder for downloads; None follows HF_HOME.

    Raises:
        DtrapError: The folder or files are missing, not cached and not downloadable, or not safetensors; the model is
            not supported; the weights do not fit config.json.
    """

    model: Any

    def __init__(
        self,
        name: str = "openai/clip-vit-base-patch16",
        random_weights: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        files = find_files(name, cache_dir)
        content = files.read_json(files.require(["config.json"]))
        family = _family(content, files.label)
        config, self.model = _build(family, content, files.label)
        if random_weights:
            warnings.warn(
                "The backbone has random weights (random_weights: true): expect chance accuracy.", stacklevel=2
            )
            self.identifier = f"{files.label}/random"
        else:
            paths = _load(self.model, files)
            self.identifier = files.label if files.folder is None else f"{files.label}-{_checksum(paths)}"
        self.image_size = _image_size(config, files.label)
        self.image_mean, self.image_std = _image_statistics(family, files, only_local=random_weights)
        self.context_length = config.text_config.max_position_embeddings
        self.feature_dim = _feature_dim(self.model, files.label)
        self.logit_bias = self.model.logit_bias.item() if hasattr(self.model, "logit_bias") else None
        self._canonical = content["model_type"] == "siglip"
        self._files = files
        self._tokenizer: Any = None
        embeddings = self.model.vision_model.embeddings
        if not hasattr(self.model.vision_model, "pre_layrnorm"):
            embeddings.entrance = nn.Identity()
            embeddings.register_forward_hook(_enter)
        self.requires_grad_(False)
        self.eval()

    def encode_image(self, images: Tensor) -> Tensor:
        """See `Backbone.encode_image`."""
        return self.project_image(self.model.vision_model(pixel_values=images).pooler_output)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """See `Backbone.encode_text`.

        Padding is not masked: CLIP's feature is at the end token, which attends to earlier tokens only, and SigLIP was
        trained without a mask.
        """
        pooled = self.model.text_model(input_ids=tokens).pooler_output
        return self.model.text_projection(pooled) if hasattr(self.model, "text_projection") else pooled

    def tokenize(self, prompts: list[str]) -> Tensor:
        """See `Backbone.tokenize`; text is cleaned and padded as in the model's training."""
        if self._tokenizer is None:
            self._tokenizer = _read_tokenizer(self._files)
        texts = _canonical(prompts) if self._canonical else prompts
        for prompt, ids in zip(prompts, self._tokenizer(texts, verbose=False).input_ids, strict=True):
            self._check_length(prompt, len(ids))
        padded = self._tokenizer(texts, padding="max_length", max_length=self.context_length, return_tensors="pt")
        remedy = f"Put this model's own tokenizer files into {self._files.label}."
        self._check_vocabulary(padded.input_ids, "The tokenizer", remedy)
        end = self.model.config.text_config.eos_token_id
        # Older configs say 2; transformers then reads the feature at the highest token, whatever the end token is.
        if not self._canonical and end != 2 and not (padded.input_ids == end).any(dim=1).all():
            raise DtrapError(
                f"The tokenizer of {self.identifier} does not end prompts with token {end}, where the model reads the "
                f"feature. {remedy}"
            )
        return padded.input_ids

    def attention_layers(self, tower: Tower) -> list[str]:
        """See `Backbone.attention_layers`."""
        return [f"model.{tower}_model.encoder.layers.{number}.self_attn" for number in range(len(self.blocks(tower)))]

    def tower_parameters(self, tower: Tower) -> dict[str, nn.Parameter]:
        """See `Backbone.tower_parameters`."""
        projection = {"vision": "model.visual_projection.", "text": "model.text_projection."}[tower]
        prefixes = (f"model.{tower}_model.", projection)
        return {name: value for name, value in self.named_parameters() if name.startswith(prefixes)}

    @property
    def token_embedding(self) -> nn.Embedding:
        """See `Backbone.token_embedding`."""
        return self.model.text_model.embeddings.token_embedding

    def blocks(self, tower: Tower) -> list[nn.Module]:
        """See `Backbone.blocks`."""
        return list(getattr(self.model, f"{tower}_model").encoder.layers)

    @property
    def image_entrance(self) -> nn.Module:
        """See `Backbone.image_entrance`."""
        vision = self.model.vision_model
        return vision.pre_layrnorm if hasattr(vision, "pre_layrnorm") else vision.embeddings.entrance

    @property
    def last_norms(self) -> list[nn.Module]:
        """See `Backbone.last_norms`."""
        return [block.layer_norm2 for block in self.model.vision_model.encoder.layers]

    @property
    def stages(self) -> list[nn.Module]:
        """See `Backbone.stages`; always empty."""
        return []

    def project_image(self, pooled: Tensor) -> Tensor:
        """See `Backbone.project_image`; the identity for SigLIP, which has no projection."""
        return self.model.visual_projection(pooled) if hasattr(self.model, "visual_projection") else pooled


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model, in `folder`, or in the hub's repository `label` if that is None."""

    label: str
    folder: Path | None
    cache_dir: str | None

    def require(self, filenames: list[str], *, converted: bool = False) -> Path:
        """Return the first of `filenames` that exists.

        Raises:
            DtrapError: None exists; if there is only a pickle, the message says how to convert it.
        """
        if self.folder is None:
            return hub_file(
                self.label, filenames, **self._words(filenames), cache_dir=self.cache_dir, converted=converted
            )
        found = self._local(filenames)
        if found is None:
            hint = _pickle_hint(self.folder) if filenames == WEIGHTS else ""
            raise DtrapError(f"{self.folder}: no {' or '.join(filenames)}. {LAYOUT}{hint}")
        return found

    def optional(self, filenames: list[str]) -> Path | None:
        """Return the first of `filenames` that exists, or None."""
        if self.folder is None:
            return optional_hub_file(self.label, filenames, **self._words(filenames), cache_dir=self.cache_dir)
        return self._local(filenames)

    def on_disk(self, filenames: list[str]) -> Path | None:
        """Return the first of `filenames` that is on the disk, or None; never uses the network."""
        return cached_file(self.label, filenames, self.cache_dir) if self.folder is None else self._local(filenames)

    def read_json(self, path: Path) -> dict[str, Any]:
        """Read a JSON file with names and values.

        Raises:
            DtrapError: The file is not valid JSON, or not a mapping.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DtrapError(f"{path}: not a JSON file ({error}). Copy or download it again.") from error
        if not isinstance(content, dict):
            raise DtrapError(f"{path}: contains a {type(content).__name__}; expected names with values.")
        return content

    def _local(self, filenames: list[str]) -> Path | None:
        paths = [] if self.folder is None else [self.folder / name for name in filenames]
        return next((path for path in paths if path.is_file()), None)

    def _words(self, filenames: list[str]) -> dict[str, str]:
        return {
            "what": f"{filenames[0]} of '{self.label}' is",
            "remedy": f"Download https://huggingface.co/{self.label} on a machine with network and set "
            "--model.backbone.name to its folder, or set HF_HOME to a cache that has it.",
        }


def find_files(name: str, cache_dir: str | None) -> ModelFiles:
    """Return the files of a folder or of a repository of the hub.

    Raises:
        DtrapError: `name` is neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return ModelFiles(folder.resolve().name, folder, cache_dir)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        raise DtrapError(
            f"Backbone '{name}' (model.backbone.name) is neither a folder in {Path.cwd()} nor a repository of the hub, "
            "such as 'openai/clip-vit-base-patch16'."
        )
    return ModelFiles(name, None, cache_dir)


def _pickle_hint(folder: Path) -> str:
    pickles = sorted(path.name for ending in ("*.bin", "*.pt", "*.pth") for path in folder.glob(ending))
    if not pickles:
        return ""
    return (
        f" {pickles[0]} is not read, since a pickle can run code. If you trust it, convert it once: "
        f"python -c \"from transformers import AutoModel as M; M.from_pretrained('{folder}')"
        f".save_pretrained('{folder}')\""
    )


def _enter(module: nn.Module, inputs: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
    """Pass SigLIP's image tokens, which have no norm before the blocks, through a module that tuners can hook."""
    return module.entrance(tokens)  # type: ignore[operator]


def _family(content: dict[str, Any], label: str) -> Family:
    model_type = content.get("model_type")
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if model_type == "siglip2":
        raise DtrapError(
            f"'{label}' is a NaFlex SigLIP2 (model_type siglip2), which takes masked patches of images of any shape "
            "instead of square images. Use a checkpoint of fixed resolution, such as google/siglip2-base-patch16-224."
        )
    raise DtrapError(
        f"'{label}' has the model_type {model_type!r} in config.json; expected {' or '.join(FAMILIES)} (which includes "
        "SigLIP2 of fixed resolution). For other models use dtrap.lightning_modules.backbones.OpenCLIP."
    )


def _build(family: Family, content: dict[str, Any], label: str) -> tuple[Any, Any]:
    """Build config and model with random weights."""
    try:
        config = getattr(transformers, family.config).from_dict(content)
        model = getattr(transformers, family.model)(config)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DtrapError(
            f"transformers {transformers.__version__} cannot build '{label}' from its config.json ({reason}). Correct "
            "it, or upgrade transformers."
        ) from error
    return config, model


def _checksum(paths: list[Path]) -> str:
    """Return eight digits that identify the weights of a folder."""
    return hashlib.sha256("".join(sha256(path) for path in paths).encode()).hexdigest()[:8]


def _load(model: nn.Module, files: ModelFiles) -> list[Path]:
    """Load weights from one safetensors file, or from those that an index names; return these files."""
    path = files.require(WEIGHTS, converted=True)
    paths = [path]
    if path.suffix == ".json":
        shards = set(files.read_json(path).get("weight_map", {}).values())
        paths = [files.require([shard], converted=True) for shard in sorted(shards)]
    tensors = {name: value for part in paths for name, value in read_weights(part).items()}
    # Older files contain these buffers, which the models no longer have.
    tensors = {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DtrapError(
            f"{path}: these weights do not fit config.json: {reason} … Use both files of the same model."
        ) from error
    return paths


def _image_size(config: Any, label: str) -> int:
    size = config.vision_config.image_size
    if not isinstance(size, int):
        raise DtrapError(f"'{label}' has image_size {size}; expected one number, for square images.")
    return size


def _image_statistics(family: Family, files: ModelFiles, *, only_local: bool) -> tuple[Triple, Triple]:
    """Return mean and std of the folder, or those of the family if it has none."""
    path = files.on_disk(PREPROCESSOR) if only_local else files.optional(PREPROCESSOR)
    content = {} if path is None else files.read_json(path)
    content = content.get("image_processor", content)
    mean, std = (content.get(key) for key in ("image_mean", "image_std"))
    return tuple(mean or family.image_mean), tuple(std or family.image_std)


def _feature_dim(model: Any, label: str) -> int:
    if hasattr(model, "visual_projection"):
        return model.visual_projection.out_features
    width = model.config.vision_config.hidden_size
    if not model.vision_model.use_head or model.text_model.head.out_features != width:
        raise DtrapError(
            f"'{label}' has no attention pool over the image tokens, or texts of another width than images, so images "
            "and texts cannot be compared. Use a checkpoint with vision_use_head and one width for both towers."
        )
    return width


def _read_tokenizer(files: ModelFiles) -> Any:
    folder = _tokenizer_folder(files)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        tokens = tokenizer("a", padding="max_length", max_length=8).input_ids
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DtrapError(
            f"The tokenizer in {folder} is not usable ({reason}). Expected {VOCABULARY[0]} and tokenizer_config.json "
            "with a padding token, as save_pretrained() writes them."
        ) from error
    settings = files.read_json(folder / "tokenizer_config.json")
    if settings.get("add_eos_token") and tokenizer.eos_token_id not in tokens:
        # transformers 5 reads the end token from tokenizer.json only, transformers 4 from these settings.
        tokenizer.add_bos_token = bool(settings.get("add_bos_token"))
        tokenizer.add_eos_token = True
    return tokenizer


def _canonical(prompts: list[str]) -> list[str]:
    """Prompts in lower case without punctuation, as SigLIP was trained with."""
    from open_clip.tokenizer import canonicalize_text

    return [canonicalize_text(prompt) for prompt in prompts]


def _tokenizer_folder(files: ModelFiles) -> Path:
    """Return the folder with the tokenizer's files, after downloading those that exist."""
    config = ["tokenizer_config.json"]
    if files.folder is None and not (files.on_disk(config) and files.on_disk(VOCABULARY)):
        for filename in (*VOCABULARY, *TOKENIZER_EXTRAS):
            files.optional([filename])
    files.require(VOCABULARY)
    return files.require(config).parent
