"""Backbones of transformers: CLIP and SigLIP (1 and 2), from the hub or from a folder that save_pretrained() wrote."""

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
    """A kind of model: its classes in transformers, and the image statistics of its published checkpoints."""

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

    Google's SigLIP2 checkpoints of fixed resolution are of the model type "siglip" too. Images are resized straight to
    the square that the model takes, mean and std come from its preprocessor_config.json. SigLIP's prompts are put into
    lower case without punctuation before they are tokenized, as Google's zero-shot evaluation and open_clip do: its
    tokenizer in transformers does so for SigLIP, but leaves them as they are for most SigLIP2 checkpoints.

    Args:
        name: Repository of the hub, or a folder as save_pretrained() writes it.
        random_weights: Draw the weights from torch's global generator; only config.json is needed then, and the
            tokenizer for the first prompt.
        cache_dir: Cache folder for downloads; None follows HF_HOME.

    Raises:
        DtrapError: No such folder, files are missing, neither cached nor reachable, or not safetensors; a model that is
            not offered; weights that do not fit config.json.
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

        No padding is masked: CLIP's feature stands at the end token, which sees only what is before it, and SigLIP was
        trained with its padding in sight.
        """
        pooled = self.model.text_model(input_ids=tokens).pooler_output
        return self.model.text_projection(pooled) if hasattr(self.model, "text_projection") else pooled

    def tokenize(self, prompts: list[str]) -> Tensor:
        """See `Backbone.tokenize`; text is cleaned and padded as the model was trained."""
        if self._tokenizer is None:
            self._tokenizer = _read_tokenizer(self._files)
        texts = _canonical(prompts) if self._canonical else prompts
        for prompt, ids in zip(prompts, self._tokenizer(texts, verbose=False).input_ids, strict=True):
            if len(ids) > self.context_length:
                raise DtrapError(
                    f"Prompt '{prompt}' has {len(ids)} tokens, but {self.identifier} has room for "
                    f"{self.context_length}. Shorten the class name, the template or the description."
                )
        padded = self._tokenizer(texts, padding="max_length", max_length=self.context_length, return_tensors="pt")
        self._check_vocabulary(padded.input_ids)
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
        """See `Backbone.stages`; there are none."""
        return []

    def project_image(self, pooled: Tensor) -> Tensor:
        """See `Backbone.project_image`; the identity for SigLIP, which has no projection."""
        return self.model.visual_projection(pooled) if hasattr(self.model, "visual_projection") else pooled

    def _check_vocabulary(self, tokens: Tensor) -> None:
        remedy = f"Put this model's own tokenizer files into {self._files.label}."
        vocabulary = self.token_embedding.num_embeddings
        if tokens.numel() and int(tokens.max()) >= vocabulary:
            raise DtrapError(
                f"The tokenizer of {self.identifier} gives token {int(tokens.max())}, but the model knows {vocabulary} "
                f"tokens. {remedy}"
            )
        end = self.model.config.text_config.eos_token_id
        # 2: older configs; transformers then looks for the highest token, whatever the end token is
        if not self._canonical and end != 2 and not (tokens == end).any(dim=1).all():
            raise DtrapError(
                f"The tokenizer of {self.identifier} does not end prompts with token {end}, where the model reads the "
                f"feature. {remedy}"
            )


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model: in `folder`, or where that is None in the hub's repository `label`."""

    label: str
    folder: Path | None
    cache_dir: str | None

    def require(self, filenames: list[str], *, converted: bool = False) -> Path:
        """The first of `filenames` that there is.

        Raises:
            DtrapError: There is none; where there is only a pickle, the message says what to do.
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
        """The first of `filenames` that there is, or None."""
        if self.folder is None:
            return optional_hub_file(self.label, filenames, **self._words(filenames), cache_dir=self.cache_dir)
        return self._local(filenames)

    def on_disk(self, filenames: list[str]) -> Path | None:
        """The same without asking the network."""
        return cached_file(self.label, filenames, self.cache_dir) if self.folder is None else self._local(filenames)

    def read_json(self, path: Path) -> dict[str, Any]:
        """Content of a JSON file.

        Raises:
            DtrapError: It is none.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DtrapError(f"{path}: not a JSON file ({error}). Copy or download it again.") from error
        if not isinstance(content, dict):
            raise DtrapError(f"{path}: holds a {type(content).__name__}; expected names with values.")
        return content

    def _local(self, filenames: list[str]) -> Path | None:
        paths = [] if self.folder is None else [self.folder / name for name in filenames]
        return next((path for path in paths if path.is_file()), None)

    def _words(self, filenames: list[str]) -> dict[str, str]:
        return {
            "what": f"{filenames[0]} of '{self.label}' is",
            "remedy": f"Download https://huggingface.co/{self.label} on a machine with network and give its folder in "
            "model.backbone.name, or set HF_HOME to a cache that has it.",
        }


def find_files(name: str, cache_dir: str | None) -> ModelFiles:
    """The folder or the repository of the hub that `name` tells.

    Raises:
        DtrapError: It can be neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return ModelFiles(folder.resolve().name, folder, cache_dir)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        raise DtrapError(
            f"Backbone '{name}' (model.backbone.name) is neither a folder, looked for from {Path.cwd()}, nor a "
            "repository of the hub such as 'openai/clip-vit-base-patch16'."
        )
    return ModelFiles(name, None, cache_dir)


def _pickle_hint(folder: Path) -> str:
    pickles = sorted(path.name for ending in ("*.bin", "*.pt", "*.pth") for path in folder.glob(ending))
    if not pickles:
        return ""
    return (
        f" {pickles[0]} is not read, since a pickle can run code. Where you trust it, convert it once: "
        f"python -c \"from transformers import AutoModel as M; M.from_pretrained('{folder}')"
        f".save_pretrained('{folder}')\""
    )


def _enter(module: nn.Module, inputs: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
    """Leads SigLIP's image tokens, which have no norm before the blocks, through a module of their own."""
    return module.entrance(tokens)  # type: ignore[operator]


def _family(content: dict[str, Any], label: str) -> Family:
    model_type = content.get("model_type")
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if model_type == "siglip2":
        raise DtrapError(
            f"'{label}' is a NaFlex SigLIP2 (model_type siglip2): it takes patches of images of any shape with a mask, "
            "not square images. Choose a checkpoint of fixed resolution, such as google/siglip2-base-patch16-224."
        )
    raise DtrapError(
        f"'{label}' has the model_type {model_type!r} in config.json; offered are {' and '.join(FAMILIES)} (SigLIP2 of "
        "fixed resolution among them). Others may be had through open_clip: dtrap.lightning_modules.backbones.OpenCLIP."
    )


def _build(family: Family, content: dict[str, Any], label: str) -> tuple[Any, Any]:
    """Config and model with random weights."""
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
    """Eight digits that tell the weights of a folder from those of another."""
    return hashlib.sha256("".join(sha256(path) for path in paths).encode()).hexdigest()[:8]


def _load(model: nn.Module, files: ModelFiles) -> list[Path]:
    """Weights from one safetensors file, or from the several that an index names; gives these files."""
    path = files.require(WEIGHTS, converted=True)
    paths = [path]
    if path.suffix == ".json":
        shards = set(files.read_json(path).get("weight_map", {}).values())
        paths = [files.require([shard], converted=True) for shard in sorted(shards)]
    tensors = {name: value for part in paths for name, value in read_weights(part).items()}
    # older files hold these, which are no parameters
    tensors = {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DtrapError(
            f"{path}: these weights do not fit config.json: {reason} … Give the two that belong together."
        ) from error
    return paths


def _image_size(config: Any, label: str) -> int:
    size = config.vision_config.image_size
    if not isinstance(size, int):
        raise DtrapError(f"'{label}' takes images of {size}; only square ones, given by one number, are offered.")
    return size


def _image_statistics(family: Family, files: ModelFiles, *, only_local: bool) -> tuple[Triple, Triple]:
    """Mean and std of the folder, or else of the family."""
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
            f"'{label}' has no attention pool over the image tokens, or texts of another width than images: its images "
            "and texts cannot be compared. Choose a checkpoint with vision_use_head, whose towers end in one width."
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
        # transformers 5 takes the end token from tokenizer.json alone, transformers 4 from these settings
        tokenizer.add_bos_token = bool(settings.get("add_bos_token"))
        tokenizer.add_eos_token = True
    return tokenizer


def _canonical(prompts: list[str]) -> list[str]:
    """Prompts in lower case without punctuation, as SigLIP was trained with."""
    from open_clip.tokenizer import canonicalize_text

    return [canonicalize_text(prompt) for prompt in prompts]


def _tokenizer_folder(files: ModelFiles) -> Path:
    """Folder with all the tokenizer's files that there are."""
    config = ["tokenizer_config.json"]
    if files.folder is None and not (files.on_disk(config) and files.on_disk(VOCABULARY)):
        for filename in (*VOCABULARY, *TOKENIZER_EXTRAS):
            files.optional([filename])
    files.require(VOCABULARY)
    return files.require(config).parent
