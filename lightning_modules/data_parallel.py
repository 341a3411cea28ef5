"""A fit in several processes: their shares of a batch, and what a module needs before DDP wraps it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import DtrapError
from .chunking import share_of_images
from .several_processes import SharedRows, row_numbers
from .tuned_model import Rows

if TYPE_CHECKING:
    from .few_shot_classifier import FewShotClassifier


class SharedBatch:
    """A batch of which each process has some rows.

    Args:
        labels: Labels [b] of this process's rows.
        own: The identity of these rows.
        rank: Number of this process.
        processes: Number of processes P.

    Attributes:
        labels: Labels [B] of the undivided batch.
        rows: The identity of its rows.
    """

    def __init__(self, labels: Tensor, own: Rows, rank: int, processes: int) -> None:
        self.own, self.own_labels = own, labels
        self._rank, self._processes = rank, processes
        self._numbers = row_numbers(len(labels), rank, processes, labels.device)
        self._shared = SharedRows(self._numbers)
        self.labels = self._shared.all(labels)
        columns = {"sample_id": own.sample_id, "view": own.view}
        self.rows = Rows.of({name: self._shared.all(value) for name, value in columns.items() if value is not None})

    def encode(self, encode: Callable[[], Tensor]) -> Tensor:
        """Return the features of the undivided batch, of which `encode` returns those of this process's rows."""
        return self._whole(encode, self._shared)

    def _whole(self, encode: Callable[[], Tensor], shared: SharedRows) -> Tensor:
        with share_of_images(self._rank, self._processes, shared.span):
            features = encode()
        return shared.all(features)

    def encode_again(self, chosen: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the features of the plain rows, or of all rows, of the undivided batch from a second forward pass.

        Args:
            chosen: `rows.plain` or `rows.every`.
            encode: Returns the features of some of this process's rows.
        """
        own, shared = self._part_of(chosen)
        return self._whole(lambda: encode(own), shared)

    def _part_of(self, chosen: Tensor) -> tuple[Tensor, SharedRows]:
        """Return which of this process's rows are among the plain rows, or all rows, of the undivided batch.

        Raises:
            DtrapError: A process has none of them, and could not take part in a second forward pass.
        """
        own = self.own.plain if chosen is self.rows.plain else self.own.every
        own = self._numbers.new_empty(0) if own is None else own
        shared = SharedRows(self._numbers[own])
        if min(shared.sizes) == 0:
            raise DtrapError(
                f"the batch has {sum(shared.sizes)} plain rows, which {len(shared.sizes)} devices cannot share for a "
                "second forward pass. Use fewer devices, or --model.plain_views reuse."
            )
        return own, shared


def prepare_processes(module: FewShotClassifier) -> None:
    """Bring a module into the state that DDP is to wrap, at the start of a fit in several processes.

    Raises:
        DtrapError: Its tuner makes steps of its own, which are those of one process.
    """
    tuner, trainer = module.tuner, module.trainer
    if tuner.trains_itself:
        raise DtrapError(
            f"the tuner {tuner.name} makes optimizer steps of its own with all support rows, on one device. Give "
            "--trainer.devices 1, or use another tuner."
        )
    if tuner.needs_task:
        # DDP looks for parameters before optimizers are created, which is when this is done in one process.
        trainer.precision_plugin.convert_module(module)
        module.to(trainer.strategy.root_device)
        module.prepare_task()
    if not tuner.trained_parameters():
        # DDP refuses a module without one; no step is made.
        module.anchor = nn.Parameter(torch.zeros(1))


def warn_batch_norms(module: FewShotClassifier) -> None:
    """Warn of batch norms, whose statistics are those of one process's rows."""
    norms = [part for part in module.tuner.modules() if isinstance(part, _BatchNorm)]
    if norms and not all(isinstance(part, nn.SyncBatchNorm) for part in norms):
        module.objective.warn_once(
            "batch norms",
            f"the batch norms of the tuner {module.tuner.name} see the rows of one device, so its numbers depend on "
            "how many devices there are. On GPUs --trainer.sync_batchnorm true avoids that.",
        )
