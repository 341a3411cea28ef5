"""A callback that says when a domain looks near, where suppressing visual learning may hurt."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ..errors import DtrapError
from ..metrics import near_domain
from .feature_collector import support_features


class NearDomainWarning(Callback):
    """Warn at the first step if the support images look as if the untuned model knew the domain; nothing is changed.

    It looks at the plain support images, where the data module or a full-batch loader has them. The numbers go into the
    result row as `near_domain`. See `dtrap.metrics.near_domain` for the rule and what it is worth.

    Raises:
        DtrapError: The module is not a FewShotClassifier.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] | None = None
        self.looked = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset at the start of a fit."""
        missing = [name for name in ("observe", "support_batches", "objective") if not hasattr(pl_module, name)]
        if missing:
            raise DtrapError(
                f"NearDomainWarning: {type(pl_module).__name__} has no `{missing[0]}`; expected a FewShotClassifier. "
                "Call dtrap.metrics.near_domain with the features of your own module."
            )
        if stage == "fit":
            self.found, self.looked = None, False

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers, for Lightning's checkpoints."""
        return {"found": self.found, "looked": self.looked}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the numbers from a checkpoint."""
        self.found, self.looked = state_dict["found"], state_dict["looked"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure with the untuned model after the first step: with a frozen tower that step encodes the images."""
        module: Any = pl_module
        batches = None if self.looked else module.support_batches(batch)
        self.looked = True
        if batches is None or len(module.class_prompts.class_names) < 2:
            return
        if trainer.world_size == 1:
            features = module.observe(batches, zero_shot=True)
        else:  # of a loader's batch each process has a part
            features = support_features(module, batch, zero_shot=True)
        result = near_domain(*features[:3], logit_scale=module.objective.logit_scale)
        self.found = {
            "accuracy": 100.0 * result.accuracy,
            "entropy": result.entropy,
            "gap_drop": result.gap_drop,
            "near": result.near,
        }
        if result.near and module.objective.suppresses:
            module.objective.warn_once(  # once for all episodes
                "near domain",
                f"this domain looks near: without tuning, {100 * result.accuracy:.0f} % of the "
                f"{len(features.labels)} support images are right (normalized entropy {result.entropy:.2f}, loss(0) - "
                f"least loss {result.gap_drop:.2f}). SVL and RA may hurt here; compare with plain fine-tuning: "
                "--protocol.compare methods/baseline.yaml",
            )

    def row_values(self) -> dict[str, Any]:
        """Return the numbers for the result row."""
        return {} if self.found is None else {"near_domain": self.found}
