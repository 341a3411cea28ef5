"""Backbones from transformers: CLIP and SigLIP (1 and 2), from the hub or a folder written by save_pretrained()."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation
from transformers.utils.constants import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from ...errors import DtrapError, first_line
from .activations import replace_quick_gelu
from .base import Backbone, Tower, checked_statistics, square_side
from .checkpoint import load_weights, read_json, read_weights, without_weights
from .checksums import kept_sha256
from .hub import TOKENIZER_CONFIG, VOCABULARY, FolderFiles, HubFiles, ModelFiles, tokenizer_folder
from .last_block import reading
from .published import weights_cited

WEIGHTS = ["model.safetensors", "model.safetensors.index.json"]
PREPROCESSOR = ["preprocessor_config.json", "processor_config.json"]
LAYOUT = (
    "Expected config.json, model.safetensors, tokenizer.json and tokenizer_config.json, as save_pretrained() writes."
)
BILINEAR = 2  # Pillow's number of it, which transformers writes


@dataclass(frozen=True)
class Family:
    """A model family: its class in transformers, and mean, std and center crop of its published checkpoints."""

    model: str
    image_mean: Sequence[float]
    image_std: Sequence[float]
    crops: bool


FAMILIES = {
    "clip": Family("CLIPModel", OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, crops=True),
    "siglip": Family("SiglipModel", IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, crops=False),
}


class Transformers(Backbone):
    """A frozen CLIP or SigLIP model of transformers in evaluation mode, float32.

    Google's SigLIP2 checkpoints of fixed resolution also have the model type "siglip". Mean, std and the evaluation
    transform of images come from its preprocessor_config.json. SigLIP's prompts are converted to lower
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

    libraries = ("transformers",)

    @classmethod
    def cited(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the keys of the references of the model and its weights."""
        return weights_cited(arguments)

    def __init__(
        self,
        name: str = "openai/clip-vit-base-patch16",
        random_weights: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        files = find_files(name, cache_dir)
        content = read_json(files.require(["config.json"]))
        family = _family(content, files.label)
        build = partial(_build, family, content, files.label)
        self.model = build() if random_weights else without_weights(build)
        if random_weights:
            warnings.warn(
                "The backbone has random weights (random_weights: true): expect chance accuracy.", stacklevel=2
            )
            self.identifier = f"{files.label}/random"
        else:
            paths = _load(self.model, files)
            self.identifier = files.label if isinstance(files, HubFiles) else f"{files.label}-{_checksum(paths)}"
        self.image_size = square_side(self.model.config.vision_config.image_size, files.label)
        self._set_image_input(family, files, only_local=random_weights)
        self.context_length = self.model.config.text_config.max_position_embeddings
        self.feature_dim = _feature_dim(self.model, files.label)
        self.logit_bias = self.model.logit_bias.item() if hasattr(self.model, "logit_bias") else None
        self._canonical = content["model_type"] == "siglip"
        self._files = files
        embeddings = self.model.vision_model.embeddings
        if not hasattr(self.model.vision_model, "pre_layrnorm"):
            embeddings.entrance = nn.Identity()
            embeddings.register_forward_hook(_enter)
        from .clip_layer import prepare_clip_layer  # here, since it loads the model's code, and torchvision with it

        towers: tuple[Tower, ...] = ("vision", "text")
        replace_quick_gelu(self.model, QuickGELUActivation)
        self._last_blocks = {tower: prepare_clip_layer(self.blocks(tower)) for tower in towers}
        self.requires_grad_(False)
        self.eval()

    def _set_image_input(self, family: Family, files: ModelFiles, *, only_local: bool) -> None:
        """Read mean, std and the evaluation transform of the folder's image processor; the family's if it has none."""
        path = files.on_disk(PREPROCESSOR) if only_local else files.optional(PREPROCESSOR)
        content = {} if path is None else read_json(path)
        content = content.get("image_processor", content)
        mean, std = (content.get(key) for key in ("image_mean", "image_std"))
        statistics = checked_statistics(mean or family.image_mean, std or family.image_std, path or files.label)
        self.image_mean, self.image_std = statistics
        crops = content.get("do_center_crop", family.crops)
        self.image_resize = "shortest" if crops else "squash"
        self.image_interpolation = "bilinear" if content.get("resample") == BILINEAR else "bicubic"

    def encode_image(self, images: Tensor) -> Tensor:
        """See `Backbone.encode_image`."""
        vision = self.model.vision_model
        # A CLIP tower applies the last norm to the class token alone.
        with reading(self._last_block("vision"), (vision.encoder,)):
            pooled = vision(pixel_values=images).pooler_output
        return self.project_image(pooled)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """See `Backbone.encode_text`.

        Padding is not masked: CLIP's feature is at the end token, which attends to earlier tokens only, and SigLIP was
        trained without a mask.
        """
        text = self.model.text_model
        cut = self.cuts_text and tokens.shape[1] < self.context_length
        block, ends = (self._last_block("text"), self.text_ends(tokens)) if cut else (None, None)
        with reading(block, (text.encoder, text.final_layer_norm), ends):
            pooled = text(input_ids=tokens).pooler_output
        return self.model.text_projection(pooled) if hasattr(self.model, "text_projection") else pooled

    def _last_block(self, tower: Tower) -> nn.Module | None:
        """Return the last block if it can compute single tokens as the model is set now."""
        model = getattr(self.model, f"{tower}_model")
        # Private in transformers: another implementation of the attention would compute the layer in its own way.
        plain = model.config._attn_implementation == "sdpa" and not model.encoder.gradient_checkpointing
        return self._last_blocks[tower] if plain else None

    @property
    def cuts_text(self) -> bool:
        """See `Backbone.cuts_text`; of these models CLIP."""
        return not self._canonical

    def text_ends(self, tokens: Tensor) -> Tensor:
        """See `Backbone.text_ends`."""
        end = self.model.config.text_config.eos_token_id
        # Older configs contain 2; transformers then reads the feature at the highest token instead of the end token.
        return tokens.argmax(dim=-1) if end == 2 else (tokens == end).int().argmax(dim=-1)

    def tokenize(self, prompts: list[str]) -> Tensor:
        """See `Backbone.tokenize`; text is cleaned and padded as in the model's training."""
        from open_clip.tokenizer import canonicalize_text  # here, since CLIP does not need it

        texts = [canonicalize_text(prompt) for prompt in prompts] if self._canonical else prompts
        for prompt, ids in zip(prompts, self._tokenizer(texts, verbose=False).input_ids, strict=True):
            self._check_length(prompt, len(ids))
        padded = self._tokenizer(texts, padding="max_length", max_length=self.context_length, return_tensors="pt")
        remedy = f"Put this model's own tokenizer files into {self._files.label}."
        self._check_vocabulary(padded.input_ids, "The tokenizer", remedy)
        end = self.model.config.text_config.eos_token_id
        if not self._canonical and end != 2 and not (padded.input_ids == end).any(dim=1).all():
            raise DtrapError(
                f"The tokenizer of {self.identifier} does not end prompts with token {end}, where the model reads the "
                f"feature. {remedy}"
            )
        return padded.input_ids

    @cached_property
    def _tokenizer(self) -> Any:
        return _read_tokenizer(tokenizer_folder(self._files))

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

    def project_image(self, pooled: Tensor) -> Tensor:
        """See `Backbone.project_image`; the identity for SigLIP, which has no projection."""
        return self.model.visual_projection(pooled) if hasattr(self.model, "visual_projection") else pooled


def find_files(name: str, cache_dir: str | None) -> ModelFiles:
    """Return the files of a folder or of a repository of the hub.

    Raises:
        DtrapError: `name` is neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return FolderFiles(folder.resolve().name, LAYOUT, folder)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        raise DtrapError(
            f"Backbone '{name}' (--model.backbone.name) is neither a folder in {Path.cwd()} nor a repository of the "
            "hub, such as 'openai/clip-vit-base-patch16'."
        )
    remedy = (
        f"Download https://huggingface.co/{name} on a machine with network and set --model.backbone.name to its "
        "folder, or set HF_HOME to a cache that has it."
    )
    return HubFiles(name, remedy, cache_dir)


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


def _build(family: Family, content: dict[str, Any], label: str) -> Any:
    """Build the model with random weights."""
    model_class = getattr(transformers, family.model)
    try:
        return model_class(model_class.config_class.from_dict(content))
    except Exception as error:
        raise DtrapError(
            f"transformers {transformers.__version__} cannot build '{label}' from its config.json "
            f"({first_line(error)}). Correct it, or upgrade transformers."
        ) from error


def _checksum(paths: list[Path]) -> str:
    """Return eight digits that identify the weights of a folder."""
    return hashlib.sha256("".join(kept_sha256(path) for path in paths).encode()).hexdigest()[:8]


def weight_files(files: ModelFiles) -> list[Path]:
    """Return the safetensors file of the weights, or those that an index names.

    Raises:
        DtrapError: A file is missing, or not cached and not downloadable.
    """
    path = files.require(WEIGHTS, converted=True)
    if path.suffix != ".json":
        return [path]
    shards = set(read_json(path).get("weight_map", {}).values())
    return [files.require([shard], converted=True) for shard in sorted(shards)]


def _load(model: nn.Module, files: ModelFiles) -> list[Path]:
    """Load weights; return their files."""
    paths = weight_files(files)
    tensors = {name: value for part in paths for name, value in read_weights(part).items()}
    # Older files contain these buffers, which the models no longer have.
    tensors = {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
    load_weights(model, tensors, path=paths[0], target="config.json", remedy="Use both files of the same model.")
    return paths


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


def _read_tokenizer(folder: Path) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        tokens = tokenizer("a", padding="max_length", max_length=8).input_ids
    except Exception as error:
        raise DtrapError(
            f"The tokenizer in {folder} is not usable ({first_line(error)}). Expected {VOCABULARY[0]} and "
            f"{TOKENIZER_CONFIG} with a padding token, as save_pretrained() writes them."
        ) from error
    settings = read_json(folder / TOKENIZER_CONFIG)
    if settings.get("add_eos_token") and tokenizer.eos_token_id not in tokens:
        # transformers 5 reads the end token from tokenizer.json only, transformers 4 from these settings.
        tokenizer.add_bos_token = bool(settings.get("add_bos_token"))
        tokenizer.add_eos_token = True
    return tokenizer
