"""The published architectures at full size with random weights: shapes, pooling, token limit, parameters.

CLIP ViT-B/16, SigLIP2 ViT-B/16 and PE-Core ViT-B/16 through open_clip, the first two through transformers as well, from
the values of their published config.json. Nothing is downloaded. Each model is built, frozen, and given two images and
two texts of random tokens; how images and texts are pooled is found out by changing tokens.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from dtrap.lightning_modules.backbones import Backbone, OpenCLIP, Transformers
from torch import Tensor

CLIP = {
    "model_type": "clip",
    "projection_dim": 512,
    "text_config": {"model_type": "clip_text_model", "eos_token_id": 2, "bos_token_id": 0},
    "vision_config": {"model_type": "clip_vision_model", "patch_size": 16},
}
SIGLIP2 = {
    "model_type": "siglip",
    "text_config": {"model_type": "siglip_text_model", "vocab_size": 256000},
    "vision_config": {"model_type": "siglip_vision_model"},
}


@dataclass(frozen=True)
class Expected:
    """What the published model has; the parameters in millions, rounded."""

    width: int
    tokens: int
    parameters: int
    image_pooling: str
    text_pooling: str
    layers: tuple[int, int]
    mean: float
    has_bias: bool


EXPECTED = {
    "CLIP": Expected(512, 77, 150, "first token", "end token, causal", (12, 12), 0.4815, False),
    "SigLIP2": Expected(768, 64, 375, "all tokens", "last token, not causal", (12, 12), 0.5, True),
    "PE-Core": Expected(1024, 32, 448, "all tokens", "end token, causal", (12, 24), 0.5, False),
}


def through_transformers(content: dict) -> Transformers:
    """A model of a config.json's content."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(content))
        return Transformers(folder, random_weights=True)


MODELS: list[tuple[str, str, Callable[[], Backbone]]] = [
    ("CLIP", "open_clip ViT-B-16-quickgelu", lambda: OpenCLIP("ViT-B-16-quickgelu", None)),
    ("SigLIP2", "open_clip ViT-B-16-SigLIP2", lambda: OpenCLIP("ViT-B-16-SigLIP2", None)),
    ("PE-Core", "open_clip PE-Core-B-16", lambda: OpenCLIP("PE-Core-B-16", None)),
    ("CLIP", "transformers CLIP ViT-B/16", lambda: through_transformers(CLIP)),
    ("SigLIP2", "transformers SigLIP2 ViT-B/16", lambda: through_transformers(SIGLIP2)),
]


def image_pooling(backbone: Backbone, images: Tensor) -> str:
    """Whether only the first token behind the last block matters, or all of them do: found out by disturbing them."""
    plain = backbone.encode_image(images)

    def disturb(module: torch.nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        tokens = (output if isinstance(output, Tensor) else output[0]).clone()
        tokens[:, 1:] += torch.randn_like(tokens[:, 1:])
        return tokens if isinstance(output, Tensor) else (tokens, *output[1:])

    handle = backbone.blocks("vision")[-1].register_forward_hook(disturb)
    disturbed = backbone.encode_image(images)
    handle.remove()
    return "first token" if torch.equal(plain, disturbed) else "all tokens"


def text_pooling(backbone: Backbone, end: int) -> str:
    """Where the text feature is read, and whether tokens see later ones: found out by changing single tokens."""
    length = backbone.context_length
    tokens = torch.randint(10, 1000, (1, length), generator=torch.Generator().manual_seed(0))
    middle = length // 2
    tokens[0, middle], tokens[0, middle + 1 :] = end, 0
    plain = backbone.encode_text(tokens)

    def matters(position: int) -> bool:
        changed = tokens.clone()
        changed[0, position] += 1
        return not torch.allclose(plain, backbone.encode_text(changed), rtol=1e-5, atol=1e-6)

    if not matters(1):
        return "not of the text"
    return "last token, not causal" if matters(length - 1) else "end token, causal"


def figures(backbone: Backbone) -> tuple[Expected, tuple[int, ...], tuple[int, ...]]:
    """What a model has, and the shapes of its image and text features."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, backbone.image_size, backbone.image_size)
    vocabulary = backbone.token_embedding.num_embeddings
    tokens = torch.full((2, backbone.context_length), vocabulary - 1)
    found = Expected(
        width=backbone.feature_dim,
        tokens=backbone.context_length,
        parameters=round(sum(p.numel() for p in backbone.parameters()) / 1e6),
        image_pooling=image_pooling(backbone, images),
        text_pooling=text_pooling(backbone, vocabulary - 1),
        layers=(len(backbone.attention_layers("vision")), len(backbone.attention_layers("text"))),
        mean=round(backbone.image_mean[0], 4),
        has_bias=backbone.logit_bias is not None,
    )
    return found, tuple(backbone.encode_image(images).shape), tuple(backbone.encode_text(tokens).shape)


@torch.no_grad()
def check(kind: str, name: str, build: Callable[[], Backbone]) -> bool:
    """Build one model, print what it has, and say whether that is what the published one has."""
    start = time.perf_counter()
    backbone = build()
    seconds = time.perf_counter() - start
    expected = EXPECTED[kind]
    found, image, text = figures(backbone)
    passed = found == expected and image == text == (2, expected.width) and backbone.image_size == 224
    print(
        f"{name}: images {list(image)} by {found.image_pooling}, texts {list(text)} by {found.text_pooling}, "
        f"{found.tokens} tokens, {found.parameters} M parameters, {found.layers[0]} + {found.layers[1]} blocks, "
        f"built in {seconds:.1f} s: {'PASS' if passed else f'FAIL, expected {expected}'}",
        flush=True,
    )
    return passed


def main() -> int:
    """Check every model; 1 where one is not what it should be."""
    warnings.filterwarnings("ignore", message="The backbone has random weights")
    outcomes = [check(*model) for model in MODELS]
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
