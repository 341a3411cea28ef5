"""A callback that says when a domain looks near, where suppressing visual learning may hurt."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ..errors import DtrapError
from ..metrics import near_domain


class NearDomainWarning(Callback):
    """Warn before the first step if the support images look as if the model knew the domain; nothing is changed.

    In a full-batch run it looks at all support images, with mini-batches at those of the first one. The numbers go into
    the result row as `near_domain`. See `dtrap.metrics.near_domain` for the rule and what it is worth.

    Raises:
        DtrapError: The module is not a FewShotClassifier.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset at the start of a fit."""
        missing = [name for name in ("zero_shot", "incoming", "rows_of", "objective") if not hasattr(pl_module, name)]
        if missing:
            raise DtrapError(
                f"NearDomainWarning: {type(pl_module).__name__} has no `{missing[0]}`; expected a FewShotClassifier. "
                "Call dtrap.metrics.near_domain with the features of your own module."
            )
        if stage == "fit":
            self.found = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure with the untuned model before the first step."""
        module: Any = pl_module
        if self.found is not None or trainer.global_step > 0 or len(module.class_prompts.class_names) < 2:
            return
        converted = module.incoming(batch, "train")
        rows = module.rows_of(converted)
        plain = slice(None) if rows.plain is None else rows.plain
        was_training = module.training
        module.train(False)
        try:
            with torch.no_grad(), module.zero_shot():
                features = module.image_features(converted["images"][plain])
                result = near_domain(
                    features,
                    module.text_features(),
                    converted["labels"][plain],
                    logit_scale=module.objective.logit_scale,
                )
        finally:
            module.train(was_training)
        self.found = {
            "accuracy": 100.0 * result.accuracy,
            "entropy": result.entropy,
            "gap_drop": result.gap_drop,
            "near": result.near,
        }
        if result.near and module.objective.suppresses:
            module.objective.warn_once(  # once for all episodes
                "near domain",
                f"this domain looks near: without tuning, {100 * result.accuracy:.0f} % of the {len(features)} support "
                f"images are right (normalized entropy {result.entropy:.2f}, loss(0) - least loss "
                f"{result.gap_drop:.2f}). SVL and RA may hurt here; compare with plain fine-tuning: "
                "--protocol.compare methods/baseline.yaml",
            )

    def row_values(self) -> dict[str, Any]:
        """Return the numbers for the result row."""
        return {} if self.found is None else {"near_domain": self.found}
