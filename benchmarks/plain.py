"""The plain formulation that the steps are compared with, written out in torch on open_clip's own model.

It does what the methods' authors do: every image is encoded in every step, the plain views a second time; texts at the
model's full context length; LoRA's product B A is formed and applied as a matrix of full size. LoRA freezes the
projections that it adapts and nothing else, so that gradients of all other weights are computed, and training text
adapters goes back through the image tower. CoOp and MaPLe freeze the towers; CoOp encodes the images without gradient.
Texts that are not trained are encoded once.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

LAMBDA, BETA, SCALE = 0.1, 3.0, 100.0
TEMPLATE = "a photo of a {}."


class MergedLoRA(nn.Module):
    """A projection and its adapter; with dropout the product of B and A is a matrix of full size."""

    def __init__(self, weight: Tensor, bias: Tensor, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone(), False), nn.Parameter(bias.clone(), False)
        self.lora_A = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.lora_B = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.lora_A, sqrt(5))
        self.scale, self.dropout = alpha / sqrt(rank), dropout

    def forward(self, x: Tensor) -> Tensor:
        """Project [B, L, C]."""
        own = F.linear(x, self.weight, self.bias)
        dropped = F.dropout(x, self.dropout, self.training)
        return own + F.linear(dropped, self.lora_B @ self.lora_A) * self.scale


class PlainAttention(nn.Module):
    """Multi-head attention with an adapter on q, k and v."""

    def __init__(self, layer: nn.MultiheadAttention, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        parts = zip(layer.in_proj_weight.detach().chunk(3), layer.in_proj_bias.detach().chunk(3), strict=True)
        self.q_proj, self.k_proj, self.v_proj = (MergedLoRA(*part, rank, alpha, dropout) for part in parts)
        self.out_proj, self.heads = layer.out_proj, layer.num_heads

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Attend within [B, L, C]."""
        projected = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        heads = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in projected)
        attended = F.scaled_dot_product_attention(*heads, attn_mask=attn_mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


class PlainModel(nn.Module):
    """CLIP with LoRA, CoOp or MaPLe, as the authors compute it.

    Args:
        config: Content of an open_clip model config.
        method: "vision", "text" or "both" for LoRA on these towers, "coop" or "maple".
        class_names: The classes.
        context: Number of context tokens of CoOp.
        dropout: Of LoRA.
    """

    def __init__(
        self, config: dict[str, Any], method: str, class_names: list[str], context: int = 16, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.model, self.method = CLIP(**config), method
        self.count = context if method == "coop" else 2
        words = " ".join(["X"] * context) + " {}." if method == "coop" else TEMPLATE
        tokenizer = SimpleTokenizer(context_length=self.model.context_length)
        tokens = tokenizer([words.format(name.replace("_", " ")) for name in class_names])
        self.register_buffer("tokens", tokens, persistent=False)
        self.fixed: Tensor | None = None
        self.rate = 2e-4
        towers = {"vision": ("visual",), "text": ("",), "both": ("visual", "")}.get(method, ())
        for name in towers:
            for block in (self.model.visual if name else self.model).transformer.resblocks:
                block.attn = PlainAttention(block.attn, rank=16, alpha=8.0, dropout=dropout)
        if not towers:
            self.model.requires_grad_(False)
            self._add_prompts()

    def _add_prompts(self) -> None:
        width, depth = self.model.token_embedding.weight.shape[1], 9 if self.method == "maple" else 1
        image_width = self.model.visual.class_embedding.shape[0]
        self.rate = 2e-3 if self.method == "coop" else 3.5e-3
        self.context = nn.Parameter(0.02 * torch.randn(self.count, width))
        if self.method == "maple":
            self.projection = nn.Linear(width, image_width)
            self.deep_context = nn.ParameterList(0.02 * torch.randn(self.count, width) for _ in range(depth - 1))
            self.deep_projections = nn.ModuleList(nn.Linear(width, image_width) for _ in range(depth - 1))

    def trained(self) -> dict[str, nn.Parameter]:
        """Return what the optimizer changes; gradients are computed for more."""
        return {
            name: value
            for name, value in self.named_parameters()
            if ".lora_" in name or name.startswith(("context", "projection", "deep_"))
        }

    def texts(self) -> Tensor:
        """Return the text features [W, D]."""
        model = self.model
        if self.method in ("text", "both"):
            return model.encode_text(self.tokens)
        if self.method == "vision":
            if self.fixed is None:
                with torch.no_grad():
                    self.fixed = model.encode_text(self.tokens)
            return self.fixed
        x = _placed(model.token_embedding(self.tokens), self.context, 1) + model.positional_embedding
        deep = list(self.deep_context) if self.method == "maple" else []
        for number, block in enumerate(model.transformer.resblocks):
            if 1 <= number <= len(deep):
                x = _placed(x, deep[number - 1], 1)
            x = block(x, attn_mask=model.attn_mask)
        ends = model.ln_final(x)[torch.arange(len(x)), self.tokens.argmax(dim=1)]
        return ends @ model.text_projection

    def images(self, pixels: Tensor) -> Tensor:
        """Return the image features [B, D]."""
        if self.method == "coop":
            with torch.no_grad():
                return self.model.encode_image(pixels)
        if self.method != "maple":
            return self.model.encode_image(pixels)
        visual = self.model.visual
        x = visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
        prompts = self.projection(self.context).expand(len(x), -1, -1)
        x = visual.ln_pre(torch.cat([x, prompts], dim=1))
        for number, block in enumerate(visual.transformer.resblocks):
            if 1 <= number <= len(self.deep_context):
                x = _placed(
                    x, self.deep_projections[number - 1](self.deep_context[number - 1]), x.shape[1] - self.count
                )
            x = block(x)
        return visual.ln_post(x[:, 0]) @ visual.proj


def _placed(x: Tensor, rows: Tensor, first: int) -> Tensor:
    """Replace the tokens of [B, L, C] from position `first` by rows [n, C]."""
    rows = rows.to(x.dtype).expand(len(x), -1, -1)
    return torch.cat([x[:, :first], rows, x[:, first + rows.shape[1] :]], dim=1)


class PlainTraining:
    """The authors' loop on one full batch in the suppressed stage: all three losses.

    Args:
        model: The model.
        batch: `images`, `labels` and `view`.
        precision: Of Lightning's Trainer: "32-true", "16-mixed" or "bf16-mixed".
        steps: T, the length of the stage.
    """

    def __init__(
        self, model: PlainModel, batch: dict[str, Tensor], precision: str = "32-true", steps: int = 1000
    ) -> None:
        self.model, self.batch, self.steps, self.done = model, batch, steps, 0
        self.plain = (batch["view"] == 0).nonzero().flatten()
        self.weight = 0.001 if model.method in ("text", "coop") else LAMBDA
        parameters = list(model.trained().values())
        kind = torch.optim.SGD if model.method in ("coop", "maple") else torch.optim.AdamW
        self.optimizer = kind(parameters, lr=model.rate)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=8 * steps, eta_min=1e-6)
        self.half = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(precision)
        self.scaler = torch.amp.GradScaler(batch["images"].device.type, enabled=precision == "16-mixed")
        self.previous: Tensor | None = None
        self.prototypes: Tensor | None = None

    def loss(self) -> Tensor:
        """Return L_vlm + beta L_ra + lambda L_ad of this step."""
        images, labels = self.batch["images"], self.batch["labels"]
        with torch.autocast(images.device.type, self.half or torch.bfloat16, enabled=self.half is not None):
            f, t = self.model.images(images), self.model.texts()
            s = self.model.images(images[self.plain])
        f, s, t = (F.normalize(each.float(), dim=-1) for each in (f, s, t))
        drawn = self.prototypes
        if drawn is None:
            drawn = torch.randint(len(f), (len(t),), device=f.device)
        total = F.cross_entropy(SCALE * f @ t.T, labels) + self.weight * F.cross_entropy(SCALE * f @ f[drawn].T, labels)
        relations = f @ s.T
        if self.previous is not None:
            p = self.done / self.steps
            fused = (1 - p) * self.previous + p * (t @ t.T)[labels][:, labels[self.plain]]
            total = total + BETA * (fused.exp() * (fused - relations)).mean()
        self.previous = relations.detach()
        return total

    def step(self) -> None:
        """Make one optimizer step."""
        self.model.train()
        self.optimizer.zero_grad()  # of the adapters: other gradients add up, as the authors' do
        self.scaler.scale(self.loss()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.done += 1
