"""QuickGELU with less memory and time than the models' own."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), as silu(1.702 x) / 1.702: one tensor is kept for the backward pass instead of two."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element."""
        return functional.silu(1.702 * x).mul_(1 / 1.702)


def replace_quick_gelu(model: nn.Module, kind: type[nn.Module]) -> None:
    """Replace a library's QuickGELU layers in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is kind:
                setattr(module, name, QuickGELU().train(child.training))
