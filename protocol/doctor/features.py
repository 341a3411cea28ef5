"""Features of one image and three texts: compared with published numbers, or with those of another machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity, normalize

from ... import parsing
from ...errors import DtrapError
from ...files import write_atomically
from ...lightning_modules.backbones import Backbone
from ..preprocessing import preprocessing_of

PUBLISHED = Path(__file__).parents[2] / "assets" / "published_logits.json"
TEXTS = ("a photo of a dog.", "a drawing of red and blue stripes.", "a dermatoscopic image of melanoma.")
# Rounding differs between devices and versions: 1 - cosine of features in float32 that are the same.
SAME = 1e-4


@dataclass(frozen=True)
class Published:
    """Logits of an image that somebody published for a model.

    Attributes:
        models: Identifiers of backbones with these weights.
        image: The name and address of the image; "drawn" for the one that `drawn_image` returns.
        texts: Prompts.
        logits: Cosines times the model's own scale, plus its bias.
        tolerance: Largest difference; an image is resized by other code than that of the source.
        source: Where the numbers are from.
    """

    models: Sequence[str]
    image: str
    texts: Sequence[str]
    logits: Sequence[float]
    tolerance: float
    source: str


def published_for(identifier: str) -> Published | None:
    """Return the published logits of a backbone, None if none are known."""
    entries = [Published(**entry) for entry in parsing.read_json(PUBLISHED)]
    return next((entry for entry in entries if identifier in entry.models), None)


def drawn_image() -> Image.Image:
    """Return a picture of 256 x 192 pixels with stripes, slopes and an edge, the same on every machine."""
    rows, columns = np.mgrid[0:192, 0:256]
    red, green = (columns // 16 % 2) * 255, columns
    blue = np.where(rows + columns > 224, 255 - rows, rows)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


@torch.no_grad()
def encode(backbone: Backbone, image: Image.Image, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normalized features [D] of an image, in the model's own transform, and [P, D] of texts; on the CPU."""
    preprocessing = preprocessing_of(backbone).using("backbone")
    device = next(backbone.parameters()).device
    images = preprocessing.to_tensor(image.convert("RGB"))[None].to(device)
    features = normalize(backbone.encode_image(images)[0], dim=-1)
    prompts = normalize(backbone.encode_text(backbone.tokenize(list(texts)).to(device)), dim=-1)
    return features.cpu(), prompts.cpu()


def logits_of(backbone: Backbone, image: Image.Image, texts: Sequence[str]) -> list[float]:
    """Return the model's own logits of an image: cosines times its scale, plus its bias."""
    features, prompts = encode(backbone, image, texts)
    scale = getattr(getattr(backbone, "model", None), "logit_scale", None)
    if scale is None:
        raise DtrapError(
            f"{backbone.identifier} has no logit scale of its own, so no published logits can be compared."
        )
    return (scale.detach().float().exp().cpu() * (prompts @ features) + (backbone.logit_bias or 0.0)).tolist()


def save_features(path: Path, backbone: Backbone) -> None:
    """Write the features of the drawn image and three texts, for `compare_features` on another machine."""
    features, prompts = encode(backbone, drawn_image(), TEXTS)
    content = {
        "backbone": backbone.identifier,
        "texts": list(TEXTS),
        "image": features.tolist(),
        "prompts": prompts.tolist(),
    }
    write_atomically(path, json.dumps(content), "or name another file with --save.")


def compare_features(path: Path, backbone: Backbone) -> float:
    """Return the largest 1 - cosine between features of a file that `save_features` wrote and those of here.

    Raises:
        DtrapError: The file is not one of these, or belongs to another backbone.
    """
    content = _read(path)
    if content["backbone"] != backbone.identifier:
        raise DtrapError(f"{path} has features of {content['backbone']}, but --backbone is {backbone.identifier}.")
    features, prompts = encode(backbone, drawn_image(), content["texts"])
    here = torch.cat([features[None], prompts]).double()
    there = torch.tensor([content["image"], *content["prompts"]], dtype=torch.float64)
    if here.shape != there.shape:
        raise DtrapError(f"{path}: features of {tuple(there.shape)}, here {tuple(here.shape)}. Save the file again.")
    return float((1 - cosine_similarity(here, there)).abs().max())


def _read(path: Path) -> dict[str, Any]:
    try:
        content = parsing.read_json(path)
        if {"backbone", "texts", "image", "prompts"} <= content.keys():
            return content
    except (OSError, ValueError, AttributeError) as error:
        raise DtrapError(f"--compare {path}: cannot be read ({error}). Give a file that --save wrote.") from error
    raise DtrapError(f"--compare {path}: not a file that `dtrap doctor --save` wrote.")
