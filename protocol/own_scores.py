"""What a run's own images say of its model: the temperature and the thresholds in an adapter's card."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ..callbacks.feature_collector import FeatureCollector
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.losses import normalize
from .adapters import AdapterCard
from .rejection import describe_thresholds, similarities
from .temperature import fit_temperature


class OwnScores(FeatureCollector):
    """Collects the scores of the support images at the end of a fit where there are no queries.

    Attributes:
        support: Scores [N, W] of the support images by kind, see `protocol.rejection`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.support: dict[str, Tensor] = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the scores of the support, after the tuner has chosen its hyperparameters."""
        module: Any = pl_module
        if getattr(module.data_source, "has_query", False):
            return
        for kind in ("zero_shot", "tuned"):
            batches = module.support_batches()
            if batches is not None:
                self.support[kind] = module.observed_scores(batches, zero_shot=kind == "zero_shot").float().cpu()

    def describe(self, card: AdapterCard, module: FewShotClassifier) -> AdapterCard:
        """Return the card with the temperature and the thresholds, as far as the images allow them.

        Args:
            card: The card.
            module: The module after the test of the episode.
        """
        kept, scale = module.kept_scores, float(module.objective.logit_scale)
        if not kept.scores:
            own = {kind: similarities(scores, scale) for kind, scores in self.support.items()}
            return replace(card, rejection=describe_thresholds(own, "training"))
        scores, labels = torch.cat(kept.scores), torch.cat(kept.labels)
        own = {}
        if self.zero_shot_features is not None:
            images, texts = self.zero_shot_features.images, self.zero_shot_features.texts
            own["zero_shot"] = (normalize(images) @ normalize(texts).T).double().amax(dim=1)
        if module.query_views > 1:  # the scores are of several views together, but predictions are of one
            return replace(card, rejection=describe_thresholds(own, "held-out"))
        own["tuned"] = similarities(scores, scale)
        fitted = fit_temperature(scores, labels)
        card = replace(card, rejection=describe_thresholds(own, "held-out"))
        if fitted is None:
            return card
        measures = fitted._asdict()
        return replace(card, temperature=measures.pop("temperature"), calibration=measures)
