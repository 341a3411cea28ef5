"""The staged sum of the losses: L_vlm + beta * L_ra + lambda * L_ad in the suppressed stage, L_vlm afterwards."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor, nn

from ..errors import DtrapError, check_number, check_one_of, first_line
from ..keywords import KeepsArguments
from . import losses

VisualTerm = Literal["anti_visual", "visual", "negated_visual", "noise"]
RelationSource = Literal["previous", "current"]
Watched = Literal["features", "gradients"]


class PlainRows(NamedTuple):
    """The rows that relations are computed against.

    Attributes:
        features: s [M, D], image features of the plain views.
        labels: z [M], their classes.
    """

    features: Tensor
    labels: Tensor


class ObjectiveStep(NamedTuple):
    """What a rule for the end of the stage reads of one step; nothing of it has a gradient.

    Attributes:
        image_features: Features of the plain rows [M, D].
        text_features: t [W, D].
        labels: z [M].
        agreement: Cosine of the gradients of the classification loss and of the whole loss with respect to the
            features; None unless it is watched.
    """

    image_features: Tensor
    text_features: Tensor
    labels: Tensor
    agreement: Tensor | None


class Objective(KeepsArguments, nn.Module):
    """L = L_classification + beta * L_ra + lambda * L_ad in the suppressed stage, L_classification outside of it.

    `StageSwitch` controls the stage through `set_stage`. The objective depends on features only, so any LightningModule
    can use it as its attribute `objective`.

    Args:
        anti_visual_weight: lambda. None means 0.1, or 0.001 if only the text branch is trained.
        relation_weight: beta.
        relation_form: "cosine" (authors' code) or "softmax" (paper), see `losses.relation_alignment_loss`.
        relation_source: The A^v of A^fuse: that of the "previous" step, as in the authors' code (the first step of the
            stage has no L_ra, and the batch must have the same rows in every step), or of the "current" one.
        relation_temperature: Temperature of the softmax form.
        visual_term: The term that lambda weights: "anti_visual" (SVL), or for the paper's study "visual" (L_v),
            "negated_visual" (-L_v) or "noise" (Gaussian prototypes).
        logit_scale: tau.
        gradient_ratio: rho. If given, lambda and beta are set in every step so that the gradients of their terms with
            respect to the features are rho times as long as that of the classification loss; terms with a weight of 0
            stay off. Off (None) in the paper.

    Raises:
        DtrapError: `relation_form`, `relation_source` or `visual_term` is unknown, or a number is not finite or out of
            its range.

    Attributes:
        watched: What is kept of every step for a rule of `StageSwitch`: "features", "gradients" or None.
        seen: What was kept of the last step, an `ObjectiveStep`.
        text_only: Whether only the text branch is trained, which decides the default of lambda.
        progress: p in [0, 1] in the suppressed stage, None outside of it.
        generator: Random generator of the prototypes; if None, the next draw seeds one by torch's global generator.
        next_prototypes: Indices [W] that the next call of L_ad uses instead of drawn ones; reset by that call.
    """

    def __init__(
        self,
        anti_visual_weight: float | None = None,
        relation_weight: float = 3.0,
        relation_form: losses.RelationForm = "cosine",
        relation_source: RelationSource = "previous",
        relation_temperature: float = 1.0,
        visual_term: VisualTerm = "anti_visual",
        logit_scale: float = 100.0,
        gradient_ratio: float | None = None,
    ) -> None:
        super().__init__()
        check_one_of("Objective: relation_form", relation_form, get_args(losses.RelationForm))
        check_one_of("Objective: relation_source", relation_source, get_args(RelationSource))
        check_one_of("Objective: visual_term", visual_term, get_args(VisualTerm))
        if anti_visual_weight is not None:
            check_number("Objective: anti_visual_weight", anti_visual_weight)
        check_number("Objective: relation_weight", relation_weight)
        check_number("Objective: relation_temperature", relation_temperature, above=0)
        check_number("Objective: logit_scale", logit_scale, above=0)
        if gradient_ratio is not None:
            check_number("Objective: gradient_ratio", gradient_ratio, above=0)
        if relation_form == "cosine" and relation_temperature != 1:
            warnings.warn(
                f"Objective: relation_temperature is {relation_temperature}, which has no effect in the cosine form.",
                stacklevel=2,
            )
        self.anti_visual_weight = anti_visual_weight
        self.relation_weight = relation_weight
        self.relation_form = relation_form
        self.relation_source = relation_source
        self.relation_temperature = relation_temperature
        self.visual_term = visual_term
        self.logit_scale = logit_scale
        self.gradient_ratio = gradient_ratio
        self.watched: Watched | None = None
        self.seen: ObjectiveStep | None = None
        self.text_only = False
        self.progress: float | None = None
        self.generator: Generator | None = None
        self.next_prototypes: Tensor | None = None
        self._staged = False
        self._warned: set[str] = set()
        self._previous: tuple[Tensor, Tensor] | None = None

    @property
    def effective_anti_visual_weight(self) -> float:
        """Lambda; if none was given, the default for the branch that is trained."""
        if self.anti_visual_weight is not None:
            return self.anti_visual_weight
        return 0.001 if self.text_only else 0.1

    @property
    def uses_previous(self) -> bool:
        """Whether L_ra uses the relations of the previous step, which have to belong to the same rows."""
        return self.relation_weight != 0 and self.relation_source == "previous"

    @property
    def staged(self) -> bool:
        """Whether a `StageSwitch` controls this objective."""
        return self._staged

    @property
    def suppresses(self) -> bool:
        """Whether L_ad or L_ra has a weight other than 0."""
        return self.effective_anti_visual_weight != 0 or self.relation_weight != 0

    @property
    def method(self) -> str:
        """Short name of the weighted terms: "svl-ra", "svl", "ra" or "baseline"."""
        visual = "svl" if self.visual_term == "anti_visual" else self.visual_term.replace("_", "-")
        parts = [visual] if self.effective_anti_visual_weight != 0 else []
        parts += ["ra"] if self.relation_weight != 0 else []
        if parts and self.gradient_ratio is not None:
            parts.append(f"rho_{self.gradient_ratio:g}")
        return "-".join(parts) or "baseline"

    def start(self, seed: int) -> None:
        """Reset for a new run and reseed the prototypes; warnings that were given are not repeated."""
        self.generator = Generator().manual_seed(seed)
        self.progress, self._previous, self._staged, self.watched, self.seen = None, None, False, None, None

    def get_extra_state(self) -> dict[str, Any]:
        """Return what the next step depends on, as tensors and plain values; a part of every `state_dict`."""
        return {
            "progress": self.progress,
            "staged": self._staged,
            "generator": None if self.generator is None else self.generator.get_state(),
            "next_prototypes": self.next_prototypes,
            "previous": None if self._previous is None else list(self._previous),
        }

    def set_extra_state(self, state: Any) -> None:
        """Restore what `get_extra_state` returned.

        Raises:
            DtrapError: The state is not from there.
        """
        try:
            generator = None if state["generator"] is None else Generator()
            if generator is not None:
                generator.set_state(state["generator"].cpu())
            previous = None if state["previous"] is None else tuple(tensor.detach() for tensor in state["previous"])
            if previous is not None and len(previous) != 2:
                raise ValueError("previous has another length")
            progress = None if state["progress"] is None else float(state["progress"])
            prototypes, staged = state["next_prototypes"], bool(state["staged"])
            if not isinstance(prototypes, Tensor | None):
                raise TypeError("next_prototypes is not a tensor")
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise DtrapError(
                f"the checkpoint's state of the Objective is not readable ({type(error).__name__}: "
                f"{first_line(error)}). Use a checkpoint that is not damaged, saved by this version of dtrap."
            ) from error
        self.progress, self.generator, self._previous = progress, generator, previous
        self.next_prototypes, self._staged = prototypes, staged

    def _load_from_state_dict(self, state_dict: Any, prefix: str, metadata: Any, strict: bool, *rest: Any) -> None:
        # torch's own way to accept state dicts of earlier versions, which have no state of this module.
        strict = strict and f"{prefix}_extra_state" in state_dict
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *rest)

    def set_stage(self, progress: float | None) -> None:
        """Set the position of the next step in the suppressed stage; called before every step.

        Args:
            progress: p of the next step, or None outside of the stage, where L is the classification loss alone. The
                relations of an earlier stage are dropped when a stage begins.
        """
        if progress is None or self.progress is None:
            self._previous = None
        self.progress = progress
        self._staged = True

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        labels: Tensor,
        *,
        plain: PlainRows | None = None,
        row_ids: Tensor | None = None,
        classification_loss: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the terms of this step and their sum.

        Args:
            image_features: f [N, D].
            text_features: t [W, D].
            labels: y [N].
            plain: The plain support rows; all rows of the batch if None (mini-batches).
            row_ids: [N] or [N, k], the image and view of each row. With "previous" relations they detect a batch with
                other rows; without them only other labels are detected.
            classification_loss: A tuner's own loss that replaces L_vlm.

        Returns:
            `total`, `L_vlm` (the classification loss), and in the stage `L_ad` and `L_ra` if they are active; with a
            `gradient_ratio` also `lambda` and `beta` of this step.

        Raises:
            DtrapError: "previous" relations with a batch whose rows changed, or no active term has a gradient.
        """
        if classification_loss is None:
            classification_loss = losses.cross_modal_loss(
                image_features, text_features, labels, logit_scale=self.logit_scale
            )
        terms = {"L_vlm": classification_loss}
        plain = plain if plain is not None else PlainRows(image_features, labels)
        weights: dict[str, Tensor] = {}
        total = classification_loss
        if self.progress is not None:
            gradients = self._gradient_lengths(image_features, text_features, classification_loss)
            if self.effective_anti_visual_weight != 0:
                terms["L_ad"] = self._visual_term(image_features, labels, len(text_features), plain)
                weight: Any = self.effective_anti_visual_weight
                if gradients is not None:
                    weight = weights["lambda"] = math.copysign(1, weight) * gradients(terms["L_ad"])
                total = total + weight * terms["L_ad"]
            ids = row_ids if row_ids is not None else labels
            relation = self._relation_term(image_features, text_features, labels, plain, ids)
            if relation is not None:
                terms["L_ra"] = relation
                weight = self.relation_weight
                if gradients is not None:
                    weight = weights["beta"] = math.copysign(1, weight) * gradients(relation)
                total = total + weight * relation
        elif not self._staged and self.suppresses:
            self.warn_once(
                "stage",
                "L_ad and L_ra are off because no StageSwitch controls this objective. Add the callback "
                "dtrap.callbacks.StageSwitch() to the Trainer.",
            )
        if torch.is_grad_enabled():
            self._check_gradients(terms)
        if self.watched is not None:
            self.seen = self._seen(image_features, text_features, plain, classification_loss, total)
        return {"total": total, **terms, **weights}

    def _gradient_lengths(
        self, image_features: Tensor, text_features: Tensor, classification_loss: Tensor
    ) -> Callable[[Tensor], Tensor] | None:
        """Return the weight of a term by the lengths of gradients; None if the weights are given."""
        if self.gradient_ratio is None or not torch.is_grad_enabled():
            return None
        ratio, own = self.gradient_ratio, feature_gradient(classification_loss, image_features, text_features).norm()

        def weight(term: Tensor) -> Tensor:
            length = feature_gradient(term, image_features, text_features).norm()
            return torch.where(length > 0, ratio * own / length.clamp_min(torch.finfo(length.dtype).tiny), 0.0)

        return weight

    def _seen(
        self, image_features: Tensor, text_features: Tensor, plain: PlainRows, loss: Tensor, total: Tensor
    ) -> ObjectiveStep:
        agreement = None
        if self.watched == "gradients" and torch.is_grad_enabled():
            first = feature_gradient(loss, image_features, text_features)
            whole = feature_gradient(total, image_features, text_features)
            agreement = nn.functional.cosine_similarity(first, whole, dim=0)
        return ObjectiveStep(plain.features.detach(), text_features.detach(), plain.labels, agreement)

    def _visual_term(self, features: Tensor, labels: Tensor, num_classes: int, plain: PlainRows) -> Tensor:
        if self.generator is None:  # not torch's global one: a checkpoint has the state of this one only
            self.generator = Generator().manual_seed(int(torch.randint(2**31, ())))
        shared: dict[str, Any] = {"num_classes": num_classes, "logit_scale": self.logit_scale}
        if self.visual_term == "anti_visual":
            drawn, self.next_prototypes = self.next_prototypes, None
            return losses.anti_visual_loss(
                features, labels, prototype_indices=drawn, generator=self.generator, **shared
            )
        if self.visual_term == "noise":
            return losses.noise_prototype_loss(features, labels, generator=self.generator, **shared)
        own = losses.visual_loss(features, labels, plain_features=plain.features, plain_labels=plain.labels, **shared)
        return -own if self.visual_term == "negated_visual" else own

    def _relation_term(
        self, features: Tensor, texts: Tensor, labels: Tensor, plain: PlainRows, row_ids: Tensor
    ) -> Tensor | None:
        if self.relation_weight == 0:
            return None
        relations = losses.visual_relations(features, plain.features)
        source = relations
        if self.relation_source == "previous":
            previous, self._previous = self._previous, (relations.detach(), row_ids)
            if previous is None:
                return None
            source = self._same_rows(previous, relations, row_ids)
        fused = losses.fuse_relations(source, losses.text_relations(texts, labels, plain.labels), self.progress or 0.0)
        return losses.relation_alignment_loss(
            relations, fused, form=self.relation_form, temperature=self.relation_temperature
        )

    @staticmethod
    def _same_rows(previous: tuple[Tensor, Tensor], relations: Tensor, row_ids: Tensor) -> Tensor:
        kept, kept_ids = (tensor.to(relations.device) for tensor in previous)  # from a checkpoint, on the CPU
        # The full batch has the same tensor of ids in every step; comparing values would wait for the device.
        if kept.shape != relations.shape or not (kept_ids is row_ids or torch.equal(kept_ids, row_ids)):
            raise DtrapError(
                "relation_source is 'previous', but this batch has other rows than the previous one; expected the same "
                "full batch in every step. Set relation_source to 'current' for mini-batches: "
                "--model.objective.relation_source current."
            )
        return kept

    def _check_gradients(self, terms: dict[str, Tensor]) -> None:
        constant = [name for name, term in terms.items() if not term.requires_grad]
        if len(constant) == len(terms):
            raise DtrapError(
                f"nothing to train: no active term ({', '.join(terms)}) has a gradient. "
                "Expected a tuner with trainable parameters that change the features or the logits."
            )
        for name in constant:
            self.warn_once(
                name,
                f"{name} is constant here: the trained parameters do not change it. It is logged, but has no effect.",
            )

    def warn_once(self, key: str, message: str) -> None:
        """Warn, unless a warning with the same key was given before."""
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, stacklevel=3)


def feature_gradient(loss: Tensor, *features: Tensor) -> Tensor:
    """Return the gradient of a loss with respect to the features that have one, as one vector in float32.

    The graph is kept for the training step's own backward pass. A loss that does not depend on any of them has the
    gradient 0.
    """
    inputs = [each for each in features if each.requires_grad]
    if not inputs or not loss.requires_grad:
        return torch.zeros(1, device=loss.device)
    found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(each) if part is None else part for each, part in zip(inputs, found, strict=True)]
    return torch.cat([part.flatten().float() for part in parts])
