"""Rows that several processes of one fit, test or validation share, put together in their undivided order.

Row i of process r is row i * P + r of all rows, of P processes. dtrap's loaders and torch's DistributedSampler divide
rows in this way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import Function
from torch.utils.data import DistributedSampler
from torchmetrics.utilities.distributed import gather_all_tensors

from ..errors import DtrapError
from .finite import DivergedError


def processes(trainer: Any) -> int:
    """Return how many processes a Trainer has; 1 without a Trainer."""
    return int(getattr(trainer, "world_size", 1))


def row_numbers(rows: int, rank: int, count: int, device: torch.device | None = None) -> Tensor:
    """Return the numbers [rows] of a process's rows among those of all `count` processes."""
    return torch.arange(rank, rank + rows * count, count, device=device)


class SharedRows:
    """The rows of a batch that all processes share.

    Args:
        numbers: Numbers [b] of this process's rows in the undivided batch. Processes may have different b, but each
            has to call this at the same time, since they exchange their numbers.

    Attributes:
        sizes: Number of rows of each process.
        span: Number of rows of the undivided batch; where rows are missing, a few more.
    """

    def __init__(self, numbers: Tensor) -> None:
        found = gather_all_tensors(numbers)
        self.sizes = [len(each) for each in found]
        self.span = max((size - 1) * len(self.sizes) + rank + 1 for rank, size in enumerate(self.sizes))
        self._order = torch.cat(found).argsort()

    def all(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes [B, ...] of this one's [b, ...], in the order of the undivided batch.

        The gradient is that of DDP's mean over the processes: a loss of all rows, computed in every process, gives the
        parameters the gradient that it has in one process.
        """
        return _AllRows.apply(rows, self.sizes)[self._order]


class _AllRows(Function):
    """The rows of all processes, one process after the other."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        rank = distributed.get_rank()
        ctx.own, ctx.processes = slice(sum(sizes[:rank]), sum(sizes[: rank + 1])), len(sizes)
        # Collectives need equal shapes.
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        # Only this process has a gradient for its own rows, and DDP divides it by the number of processes. Parameters
        # after the gathering, such as those of class texts, have the whole gradient in each of them.
        return gradients[0][ctx.own] * ctx.processes, None


def gathered(column: Tensor, trainer: Any, device: torch.device) -> Tensor:
    """Return a column [B, ...] of all processes from this one's [b, ...], without gradient.

    Args:
        column: Rows of this process, on any device.
        trainer: The Trainer of the processes.
        device: Where the processes exchange tensors.
    """
    if processes(trainer) == 1:
        return column
    numbers = row_numbers(len(column), trainer.global_rank, trainer.world_size, device)
    with torch.no_grad():
        return SharedRows(numbers).all(column.detach().to(device)).to(column.device)


def joined(parts: Sequence[Tensor], trainer: Any) -> list[Tensor]:
    """Return the rows of all processes, from batches of this one's on the CPU, as a list of one tensor.

    A process without a batch takes part; without a batch in any process the result is [].
    """
    if processes(trainer) == 1:
        return list(parts)
    found: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(found, torch.cat(list(parts)) if parts else None)
    kept = [(rank, column) for rank, column in enumerate(found) if column is not None]
    if not kept:
        return []
    numbers = torch.cat([row_numbers(len(column), rank, trainer.world_size) for rank, column in kept])
    return [torch.cat([column for _, column in kept])[numbers.argsort()]]


def total(value: float, trainer: Any) -> float:
    """Return the sum of a number over all processes."""
    if processes(trainer) == 1:
        return value
    found: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(found, value)
    return float(sum(found))


def first_failure(failure: DtrapError | None, trainer: Any) -> DtrapError | None:
    """Return the error of the first process that has one, in all processes."""
    told = (failure.reason, failure.remedy) if isinstance(failure, DivergedError) else failure and (str(failure),)
    found: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(found, told)
    first = next((each for each in found if each is not None), None)
    return None if first is None else DtrapError(*first) if len(first) == 1 else DivergedError(*first)


class Repeats:
    """Leaves out the rows that torch's DistributedSampler repeats to give each process the same number of them.

    Args:
        loader: The loader of a validation or test.
        trainer: Its Trainer.
    """

    def __init__(self, loader: Any, trainer: Any) -> None:
        self.units = divided_units(loader)
        self.whole_batches = getattr(loader, "batch_sampler", None) is None  # an item of the data set is a batch
        self.rank, self.processes = getattr(trainer, "global_rank", 0), processes(trainer)
        self._seen = 0

    def without(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch without such rows; its columns may be empty then."""
        if self.units is None or self.processes == 1:
            return batch
        rows = len(batch["labels"])
        units = 1 if self.whole_batches else rows
        numbers = row_numbers(units, self.rank + self._seen * self.processes, self.processes)
        self._seen += units
        new = int((numbers < self.units).sum()) * rows // max(units, 1)  # repeats are at the end
        return {
            name: column[:new] if isinstance(column, Tensor) and len(column) == rows else column
            for name, column in batch.items()
        }


def divided_units(loader: Any) -> int | None:
    """Return how many items a DistributedSampler divides, and repeats where the division has a rest; None without."""
    for owner in (loader, getattr(loader, "batch_sampler", None)):
        sampler = getattr(owner, "sampler", None)
        if isinstance(sampler, DistributedSampler) and not sampler.drop_last:
            return len(sampler.dataset)  # type: ignore[arg-type]
    return None
