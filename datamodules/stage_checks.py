"""What a Trainer asks of a data module that has no images for it."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING

from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import BatchSizeFinder

from ..errors import DtrapError
from .batches import Batch

if TYPE_CHECKING:
    from .few_shot import FewShotDataModule


def check_stage(data: FewShotDataModule, stage: str | None) -> None:
    """Raise a DtrapError if there are no images for a stage, or no batch size for a tool that looks for one.

    Args:
        data: The data module, with its Trainer.
        stage: "fit", "validate", "test" or "predict".
    """
    if stage == "validate" and not data.validates:
        raise DtrapError(f"{data.title}: no validation is asked for. Give {data.sampler.validation_option}.")
    if stage == "predict" and not data.has_query:
        raise DtrapError(
            f"{data.title}: no query images, so there is nothing to predict. Give --data.query (episodes) or "
            "--data.held_out (one task), or pass loaders: UnlabeledImages(folder, preprocessing).batches()."
        )
    callbacks = getattr(data.trainer, "callbacks", ())
    if stage == "fit" and data.full_batch and any(isinstance(each, BatchSizeFinder) for each in callbacks):
        raise DtrapError(
            f"{data.title}: a step has all support images, so there is no batch size to find. Give --data.batch_size "
            "for mini-batches, or --model.image_chunk N to limit the memory of a step."
        )


@wraps(LightningDataModule.val_dataloader)
def no_validation() -> list[Batch]:
    """Return no batch. Lightning takes it for its own method, which says that a data module does not validate.

    It would start the sanity check and the hooks of a validation for any other method, also for an empty loader.
    """
    return []
