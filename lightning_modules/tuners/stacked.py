"""Parameters of several episodes that are trained side by side, stacked along a first dimension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..chunking import rows_of_members


def stacked_parameter(values: Sequence[Tensor], like: Tensor) -> nn.Parameter:
    """Return the values of all episodes as one parameter [E, ...] with the type and device of another one."""
    return nn.Parameter(torch.stack([value.detach() for value in values]).to(like))


class StackedLinear(nn.Module):
    """A linear layer without bias that has weights of its own for the rows of each episode.

    Used within `encode_in_chunks`, which knows the rows of each episode.

    Args:
        weight: [E, out, in].
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Map [rows, ..., in] to [rows, ..., out].

        Raises:
            ValueError: Nobody says to which episode the rows belong.
        """
        shares = rows_of_members(len(x))
        if not shares:
            raise ValueError("rows of no known episode: use chunking.side_by_side")
        members, counts = zip(*shares, strict=True)
        if len(members) == 1:
            return functional.linear(x, self.weight[members[0]])
        if len(set(counts)) == 1:
            whole = members == tuple(range(len(self.weight)))
            weight = self.weight if whole else self.weight[list(members)]
            # torch.bmm of all rows of each episode; no loop over the episodes.
            return (x.reshape(len(members), -1, x.shape[-1]) @ weight.mT).view(*x.shape[:-1], -1)
        parts = zip(x.split(counts), members, strict=True)
        return torch.cat([functional.linear(part, self.weight[member]) for part, member in parts])
