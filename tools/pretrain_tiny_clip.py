"""Pre-trains the tiny CLIP of the demo on the "source" domain of the shapes, and writes assets/tiny_clip.*.

    python tools/pretrain_tiny_clip.py --out assets

The same seed, number of threads and version of torch give the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from dtrap.datamodules.shape_images import COLORS, DOMAINS, IMAGE_SIZE, SHAPES, render
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

NAME = "tiny_clip"
MODEL = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": IMAGE_SIZE, "patch_size": 12, "width": 96, "layers": 4, "head_width": 24},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 2},
}
CLASS_PROMPT = "a photo of a {shape}."
CAPTIONS = (
    CLASS_PROMPT,
    "a photo of a {color} {shape}.",
    "a picture of a {color} {shape}.",
    "a drawing of a {shape} in {color}.",
    "a {color} {shape}",
    "{color} {shape}",
)
BATCH, LEARNING_RATE, WARM_UP, WEIGHT_DECAY = 128, 2e-3, 100, 0.05
FIRST_SCALE, LAST_SCALE = 14.0, 100.0
EVALUATION_SEED = 1_000_003


def normalize(images: Tensor) -> Tensor:
    """Images [B, 3, 48, 48] of render(), normalized with CLIP's own mean and standard deviation."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return (images.float() / 255 - mean) / std


@dataclass(frozen=True)
class Captions:
    """All captions of the source domain, tokenized once: [template, color, shape, token]."""

    tokens: Tensor

    @classmethod
    def of(cls, tokenizer: open_clip.SimpleTokenizer) -> Captions:
        """The six templates filled with twelve colors and thirty shapes."""
        texts = [
            template.format(color=color, shape=shape) for template in CAPTIONS for color in COLORS for shape in SHAPES
        ]
        tokens = tokenizer(texts, context_length=MODEL["text_cfg"]["context_length"])
        return cls(tokens.view(len(CAPTIONS), len(COLORS), len(SHAPES), -1))


def contrastive_loss(image_features: Tensor, text_features: Tensor, caption: Tensor, scale: float) -> Tensor:
    """CLIP's loss over the U different captions of a batch: identical captions are positives, not negatives.

    Args:
        image_features: [B, D], normalized.
        text_features: [U, D], normalized.
        caption: Which of the U captions each image has, [B].
        scale: Logit scale.
    """
    logits = scale * image_features @ text_features.T
    positives = F.one_hot(caption, len(text_features)).float().T
    targets = positives / positives.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, caption) + F.cross_entropy(logits.T, targets))


def training_loss(model: nn.Module, captions: Captions, scale: float, generator: torch.Generator) -> Tensor:
    """Loss of one freshly drawn batch: contrastive, plus cross-entropy over the class prompts."""
    labels = torch.randint(len(SHAPES), (BATCH,), generator=generator)
    colors = torch.randint(len(COLORS), (BATCH,), generator=generator)
    templates = torch.randint(len(CAPTIONS), (BATCH,), generator=generator)
    tokens, caption = captions.tokens[templates, colors, labels].unique(dim=0, return_inverse=True)

    images = normalize(render(labels, "source", generator, colors))
    image_features = model.encode_image(images, normalize=True)
    class_prompts = captions.tokens[0, 0]
    text_features = model.encode_text(torch.cat([tokens, class_prompts]), normalize=True)
    caption_features, class_features = text_features.split([len(tokens), len(class_prompts)])
    return contrastive_loss(image_features, caption_features, caption, scale) + F.cross_entropy(
        scale * image_features @ class_features.T, labels
    )


def optimizer_of(model: nn.Module, steps: int) -> tuple[AdamW, LambdaLR]:
    """AdamW, warm-up and cosine; the token table does not decay, so that unseen words keep their rows."""
    decayed = [p for name, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or "embedding" in name]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))

    return optimizer, LambdaLR(optimizer, factor)


def pretrain(model: nn.Module, captions: Captions, steps: int, seed: int) -> None:
    """Trains the model in place, with progress on the terminal."""
    generator = torch.Generator().manual_seed(seed)
    optimizer, schedule = optimizer_of(model, steps)
    model.logit_scale.requires_grad_(False)
    start, mean_loss = time.time(), 0.0
    for step in range(1, steps + 1):
        scale = FIRST_SCALE * (LAST_SCALE / FIRST_SCALE) ** (step / steps)
        loss = training_loss(model, captions, scale, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean_loss += loss.item()
        if step % 100 == 0:
            print(f"step {step}/{steps}  loss {mean_loss / 100:.3f}  {time.time() - start:.0f} s", flush=True)
            mean_loss = 0.0
    model.logit_scale.data.fill_(math.log(LAST_SCALE))


def zero_shot(model: nn.Module, captions: Captions, domain: str, per_class: int = 50) -> tuple[float, float]:
    """Zero-shot accuracy in percent, over all 30 classes and 5-way.

    An image with k wrong classes above the true one is right in C(29 - k, 4) of the C(29, 4) tasks of five
    classes that have its own: the 5-way accuracy is the exact mean over all tasks.
    """
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    labels = torch.arange(len(SHAPES)).repeat(per_class)
    with torch.no_grad():
        class_features = model.encode_text(captions.tokens[0, 0], normalize=True)
        batches = [normalize(render(part, domain, generator)) for part in labels.split(BATCH)]
        image_features = torch.cat([model.encode_image(images, normalize=True) for images in batches])
    similarities = image_features @ class_features.T
    above = (similarities > similarities.gather(1, labels[:, None])).sum(1).tolist()
    others = len(SHAPES) - 1
    five_way = sum(math.comb(others - k, 4) / math.comb(others, 4) for k in above) / len(above)
    return 100 * above.count(0) / len(above), 100 * five_way


def main() -> None:
    """Trains, saves in float16, loads what was saved through open_clip and evaluates that."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("assets"), help="folder of the two files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    arguments.out.mkdir(parents=True, exist_ok=True)
    config, weights = (arguments.out / f"{NAME}.{suffix}" for suffix in ("json", "safetensors"))
    config.write_text(json.dumps(MODEL, indent=2) + "\n")
    open_clip.add_model_config(config)
    model = open_clip.create_model(NAME)
    captions = Captions.of(open_clip.SimpleTokenizer())
    pretrain(model, captions, arguments.steps, arguments.seed)
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, weights)
    print(f"{weights}: {weights.stat().st_size / 1e6:.2f} MB")

    model, _, _ = open_clip.create_model_and_transforms(NAME, pretrained=str(weights))
    model.eval()
    for domain in DOMAINS:
        all_way, five_way = zero_shot(model, captions, domain)
        print(f"{domain:>10}: zero-shot 5-way {five_way:.1f} %, 30-way {all_way:.1f} %", flush=True)


if __name__ == "__main__":
    main()
