"""Backbones from open_clip: CLIP, SigLIP2, PE-Core and all its other models, or your own JSON config."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.modified_resnet import ModifiedResNet
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transformer import QuickGELU as OpenClipQuickGELU
from torch import Tensor, nn

from ...errors import DtrapError, nearest
from .activations import replace_quick_gelu
from .architectures import (
    HUB,
    OWN,
    Architecture,
    Weights,
    architecture_of,
    check_activation,
    find_files,
    own_weights,
    published_file,
    read_architecture,
    weights_in_hub,
)
from .attention import separate_attention
from .base import Backbone, Tower, square_side
from .bert_tower import (
    config_folder,
    is_bert,
    last_positions,
    separate_bert_attention,
    text_blocks,
    word_embedding,
)
from .checkpoint import load_weights, read_weights, without_weights
from .checksums import kept_sha256
from .evaluation_transform import evaluation_transform
from .hub import TOKENIZER_CONFIG, FolderFiles, HubFiles, tokenizer_folder
from .last_block import reading
from .pooling import (
    behind_blocks,
    encode_cut_text,
    end_positions,
    prepare_last_block,
    reads_class_token,
    reads_end_token,
)
from .published import weights_cited
from .tokenizers import read_tokenizer, token_count

ASSETS = Path(__file__).parents[2] / "assets"
TEXT_PARTS = ("text", "transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection")
WEIGHT_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


class OpenCLIP(Backbone):
    """A frozen open_clip model in evaluation mode, float32, with a `SeparateAttention` in every block.

    Args:
        name: Name of an open_clip model, path of a JSON model config in open_clip's format (`model_cfg` and
            `preprocess_cfg`, or the content of `model_cfg`), or name of a config in the package's assets, such as
            "tiny_clip.json". "hf-hub:OWNER/NAME" is a repository of the hub in open_clip's layout, "local-dir:FOLDER"
            such a folder; their weights are next to their config.
        pretrained: Tag of published weights, which are downloaded; path of a safetensors or torch file; name of a file
            in the package's assets; a file in the hub, "hf-hub:OWNER/NAME/FILE"; or None for random weights from
            torch's global generator. "own", or the default, means the weights next to the config.
        tokenizer: Folder of a tokenizer in transformers' format (tokenizer.json, tokenizer_config.json). None uses the
            model's own: CLIP's is part of open_clip, others are downloaded for the first prompt.
        cache_dir: Cache folder for downloads; None follows HF_HOME.

    Raises:
        DtrapError: Unknown name, tag or file; weights that do not fit the model or were trained with another
            activation; weights that are not cached and cannot be downloaded; attention that cannot be separated.
    """

    model: Any

    libraries = ("open_clip_torch",)

    @classmethod
    def cited(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the keys of the references of the model and its weights."""
        return weights_cited(arguments)

    def __init__(
        self,
        name: str = "ViT-B-16-quickgelu",
        pretrained: str | None = "openai",
        *,
        tokenizer: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        architecture = find_architecture(name, cache_dir)
        if tokenizer is not None and not Path(tokenizer).expanduser().is_dir():
            raise DtrapError(
                f"Tokenizer '{tokenizer}' is not a folder. Set --model.backbone.tokenizer to a folder with "
                "tokenizer.json and tokenizer_config.json, or to null for the model's own."
            )
        weights = find_weights(architecture, pretrained, cache_dir)
        if weights.path is None:
            self.model = _build(architecture, cache_dir)
            warnings.warn("The backbone has random weights (pretrained: null): expect chance accuracy.", stacklevel=2)
        else:
            self.model = without_weights(partial(_build, architecture, cache_dir))
            _load(self.model, weights.path, weights.verified, architecture.name)
        self.identifier = f"{architecture.name}/{weights.label}"
        self.image_size = square_side(self.model.visual.image_size, architecture.name)
        transform = _evaluation_transform(architecture, weights)
        self.image_mean, self.image_std = transform["mean"], transform["std"]
        self.image_resize, self.image_interpolation = transform["resize_mode"], transform["interpolation"]
        text_config, bert = architecture.config["text_cfg"], is_bert(self._text_tower)
        # A BERT tower itself says how many positions it has; the model was trained with fewer.
        self.context_length = text_config.get("context_length", 77) if bert else self._text_tower.context_length
        self.feature_dim = architecture.config["embed_dim"]
        self.logit_bias = self.model.logit_bias.item() if getattr(self.model, "logit_bias", None) is not None else None
        parts: dict[Tower, str] = {"vision": "visual", "text": "text" if hasattr(self.model, "text") else "transformer"}
        self._attention_layers = {
            tower: [f"model.{part}.{name}" for name in _separate(self.model.get_submodule(part))]
            for tower, part in parts.items()
        }
        replace_quick_gelu(self.model, OpenClipQuickGELU)
        self._last_blocks = {"vision": prepare_last_block(self.blocks("vision"))}
        self._last_blocks["text"] = prepare_last_block(self.blocks("text"))
        self._text_config, self._files = text_config, architecture.files
        self._tokenizer_folder, self._cache_dir = tokenizer, cache_dir
        self.requires_grad_(False)
        self.eval()

    def encode_image(self, images: Tensor) -> Tensor:
        """See `Backbone.encode_image`."""
        block = self._last_blocks["vision"] if reads_class_token(self.model.visual) else None
        with reading(block, behind_blocks(self.model.visual)):
            return self.model.encode_image(images, normalize=False)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """See `Backbone.encode_text`."""
        if not self.cuts_text or tokens.shape[1] == self.context_length or is_bert(self._text_tower):
            return self.model.encode_text(tokens, normalize=False)
        tower, ends = self._text_tower, self.text_ends(tokens)
        with reading(self._last_blocks["text"], (tower.transformer, tower.ln_final), ends):
            return encode_cut_text(tower, tokens, ends)

    @property
    def cuts_text(self) -> bool:
        """See `Backbone.cuts_text`."""
        return is_bert(self._text_tower) or reads_end_token(self._text_tower)

    def text_ends(self, tokens: Tensor) -> Tensor:
        """See `Backbone.text_ends`."""
        tower = self._text_tower
        return last_positions(tower, tokens) if is_bert(tower) else end_positions(tower, tokens)

    def tokenize(self, prompts: list[str]) -> Tensor:
        """See `Backbone.tokenize`; text is cleaned and padded as in the model's training."""
        for prompt in prompts:
            self._check_length(prompt, token_count(self._tokenizer, prompt))
        tokens = self._tokenizer(prompts, context_length=self.context_length)
        tokenizer = f"The tokenizer {self._tokenizer_folder or 'of CLIP'}"
        remedy = "Set --model.backbone.tokenizer to the folder of this model's own tokenizer."
        self._check_vocabulary(tokens, tokenizer, remedy)
        return tokens

    def attention_layers(self, tower: Tower) -> list[str]:
        """See `Backbone.attention_layers`."""
        return list(self._attention_layers[tower])

    def tower_parameters(self, tower: Tower) -> dict[str, nn.Parameter]:
        """See `Backbone.tower_parameters`."""
        parts = ("visual",) if tower == "vision" else TEXT_PARTS
        return {name: value for name, value in self.named_parameters() if name.split(".")[1] in parts}

    @property
    def token_embedding(self) -> nn.Module:
        """See `Backbone.token_embedding`."""
        tower = self._text_tower
        return word_embedding(tower) if is_bert(tower) else tower.token_embedding

    def blocks(self, tower: Tower) -> list[nn.Module]:
        """See `Backbone.blocks`."""
        text = self._text_tower
        if tower == "text":
            return text_blocks(text) if is_bert(text) else list(text.transformer.resblocks)
        visual = self.model.visual
        if hasattr(visual, "transformer"):
            return list(visual.transformer.resblocks)
        return list(getattr(getattr(visual, "trunk", None), "blocks", []))

    @property
    def image_entrance(self) -> nn.Module:
        """See `Backbone.image_entrance`."""
        visual = self.model.visual
        return visual.ln_pre if hasattr(visual, "ln_pre") else visual.trunk.norm_pre

    @property
    def last_norms(self) -> list[nn.Module]:
        """See `Backbone.last_norms`."""
        blocks: list[Any] = self.blocks("vision")
        norms = [block.ln_2 if hasattr(block, "ln_2") else block.norm2 for block in blocks]
        bottleneck: Any
        for bottleneck in (block for stage in self.stages for block in stage.children()):
            shortcut = [bottleneck.downsample[-1]] if bottleneck.downsample is not None else []
            norms += [bottleneck.bn3, *shortcut]
        return norms

    @property
    def stages(self) -> list[nn.Module]:
        """See `Backbone.stages`."""
        visual = self.model.visual
        return [getattr(visual, f"layer{n}") for n in range(1, 5)] if isinstance(visual, ModifiedResNet) else []

    def project_image(self, pooled: Tensor) -> Tensor:
        """See `Backbone.project_image`."""
        visual = self.model.visual
        if isinstance(visual, ModifiedResNet):
            return visual.attnpool(pooled)
        if hasattr(visual, "trunk"):
            return visual.head(visual.trunk.head(pooled))
        return pooled if visual.proj is None else pooled @ visual.proj

    @property
    def _text_tower(self) -> Any:
        return getattr(self.model, "text", self.model)

    @cached_property
    def _tokenizer(self) -> SimpleTokenizer | HFTokenizer:
        options = dict(self._text_config.get("tokenizer_kwargs") or {})
        repo = self._text_config.get("hf_tokenizer_name")
        if self._tokenizer_folder is None and not repo:
            return SimpleTokenizer(context_length=self.context_length, **options)
        options |= {
            "context_length": self.context_length,
            "tokenizer_mode": self._text_config.get("tokenizer_mode"),
            "trust_remote_code": False,
        }
        if self._tokenizer_folder is not None:
            options = {"clean": "whitespace" if repo else "lower"} | options
            return read_tokenizer(Path(self._tokenizer_folder).expanduser(), options)
        if isinstance(self._files, FolderFiles) and self._files.on_disk([TOKENIZER_CONFIG]) is not None:
            return read_tokenizer(self._files.folder, options)
        remedy = (
            f"Download https://huggingface.co/{repo} on a machine with network (tokenizer.json, tokenizer_config.json) "
            "and set --model.backbone.tokenizer to its folder, or set HF_HOME to a cache that has it."
        )
        files = HubFiles(repo, remedy, self._cache_dir, what=f"The tokenizer of {self.identifier} is")
        return read_tokenizer(tokenizer_folder(files), options)


def find_architecture(name: str, cache_dir: str | None = None) -> Architecture:
    """Return the model config of an open_clip name, a JSON file, or a JSON file in the package's assets.

    "hf-hub:OWNER/NAME" is a repository of the hub in open_clip's layout; "local-dir:FOLDER", or the path of such a
    folder, is the same on this machine.

    Raises:
        DtrapError: The name or file does not exist, or the file is not a model config.
    """
    for path in (Path(name).expanduser(), ASSETS / name):
        if path.suffix == ".json" and path.is_file():
            return read_architecture(path)
    files = find_files(name, cache_dir)
    if files is not None:
        return architecture_of(files)
    builtin = name.replace("/", "-")
    config = None if ":" in name else open_clip.get_model_config(builtin)
    if config is None:
        shipped = sorted(path.name for path in ASSETS.glob("*.json"))
        raise DtrapError(
            f"unknown backbone '{name}'; expected a model of open_clip {open_clip.__version__} or a JSON model config."
            f"{nearest(name, [*open_clip.list_models(), *shipped])} "
            "`python -c 'import open_clip; print(open_clip.list_models())'` lists the models."
        )
    tags = {tag: open_clip.get_pretrained_cfg(builtin, tag) for tag in open_clip.list_pretrained_tags_by_model(builtin)}
    return Architecture(builtin, config, {}, tags)


def find_weights(architecture: Architecture, pretrained: str | None, cache_dir: str | None) -> Weights:
    """Return the local file of the weights `pretrained`; download it if it is a tag that is not cached.

    A file whose checksum open_clip knows counts as published.

    Raises:
        DtrapError: Unknown tag or file, another activation than the model's, or weights that are not cached and cannot
            be downloaded.
    """
    if pretrained is None:
        return Weights("random", None, None)
    if architecture.files is not None and pretrained in OWN:
        return own_weights(architecture.files)
    if pretrained.startswith(HUB):
        return Weights(*weights_in_hub(pretrained, cache_dir), None)
    tag = pretrained.lower().replace("-", "_")
    if tag in architecture.tags:
        check_activation(architecture, architecture.tags[tag], pretrained)
        return Weights(tag, published_file(architecture, tag, cache_dir), architecture.tags[tag])
    for path in (Path(pretrained).expanduser(), ASSETS / pretrained):
        if path.is_file():
            checksum = kept_sha256(path)
            published = next((entry for entry in architecture.tags.values() if checksum in entry["url"]), None)
            if published is not None:
                check_activation(architecture, published, pretrained)
            return Weights(f"{path.stem}-{checksum[:8]}", path, published)
    raise _unknown_weights(architecture, pretrained)


def _unknown_weights(architecture: Architecture, pretrained: str) -> DtrapError:
    if pretrained.endswith(WEIGHT_ENDINGS) or "/" in pretrained:
        shipped = sorted(path.name for path in ASSETS.glob("*.safetensors"))
        return DtrapError(
            f"Weights file '{pretrained}' (--model.backbone.pretrained) not found in {Path.cwd()} or among the shipped "
            f"files ({', '.join(shipped) or 'none'})."
        )
    known = "no published weights. Use a file, or null for random weights."
    if architecture.tags:
        known = f"{', '.join(architecture.tags)}.{nearest(pretrained, architecture.tags)}"
    others = open_clip.list_pretrained_models_by_tag(pretrained)
    hint = f" The tag belongs to {', '.join(others[:4])}." if others else ""
    return DtrapError(
        f"Unknown weights '{pretrained}' (--model.backbone.pretrained): '{architecture.name}' has {known}{hint}"
    )


def _build(architecture: Architecture, cache_dir: str | None = None) -> nn.Module:
    """Build the model with random weights, without downloading a tower's own pre-trained weights."""
    config = copy.deepcopy(architecture.config)
    text = config["text_cfg"]
    if text.get("hf_model_name"):
        folder = config_folder(text, architecture.files, cache_dir, architecture.name)
        text |= {"hf_model_name": folder, "hf_model_pretrained": False}
        config["custom_text"] = True  # open_clip's configs of such models do not say so
    config["vision_cfg"]["timm_model_pretrained"] = False
    model_class = open_clip.CLIP
    if config.pop("custom_text", False):
        model_class = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    try:
        return model_class(**config)
    except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise DtrapError(
            f"open_clip {open_clip.__version__} cannot build the model '{architecture.name}': {error}. "
            "Correct the JSON config, or upgrade open_clip_torch and timm."
        ) from error


def _separate(tower: nn.Module) -> list[str]:
    return separate_bert_attention(tower) if is_bert(tower) else separate_attention(tower)


def _load(model: nn.Module, path: Path, verified: bool, name: str) -> None:
    """Load weights, also in older layouts."""
    weights = convert_state_dict(model, read_weights(path, trust_torchscript=verified))
    # Files of older versions of transformers have this buffer, which is no weight.
    weights = {name: value for name, value in weights.items() if not name.endswith("embeddings.position_ids")}
    if "positional_embedding" in weights and not hasattr(model, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    expected = model.state_dict()
    # Some published weights lack the bias, which has no effect in a softmax, or have scalars of shape [1].
    if "logit_bias" in expected:
        weights = {"logit_bias": torch.zeros(expected["logit_bias"].shape), **weights}
    for scalar in ("logit_scale", "logit_bias"):
        if scalar in weights and scalar in expected:
            weights[scalar] = weights[scalar].reshape(expected[scalar].shape)
    remedy = "Use the open_clip name or JSON config that they were trained with."
    load_weights(model, weights, path=path, target=f"the model '{name}'", remedy=remedy)


def _evaluation_transform(architecture: Architecture, weights: Weights) -> dict[str, Any]:
    """See `evaluation_transform`."""
    tags = list(architecture.tags.values())
    return evaluation_transform(architecture.name, weights.published, tags, architecture.preprocess)
