"""StepSPT: a style prompt before the frozen image tower and a linear head, trained in turn; uses the queries."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import SGD, Optimizer

from ...errors import DtrapError
from ..backbones.base import Backbone, Tower
from ..chunking import encode_in_chunks
from .base import Batch, SteppedModule, TaskData, Tuner, check_width, draw
from .distribution_alignment import confident_rows, diversity_loss, find_partners, information_loss

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer

_INTERNAL_BATCH = 5


class StepSPT(Tuner):
    """Step-wise style prompt tuning (Xu et al.), as in the authors' code, with a CLIP instead of their ConvNeXt.

    The style prompt is a batch norm on the 3 channels of the normalized image. A linear head [W, D] on the image
    tower's raw features computes the logits, without the texts. One step is one epoch of the authors' code:

    1. Bank: features and confidence of the episode's rows, which are the last view of support and queries.
    2. Internal: cross-entropy of all support rows in batches of 5; these steps train the head only.
    3. External: predictions of the episode's rows are aligned with confident neighbors and spread over the classes
       (`distribution_alignment`); this step trains the style prompt only.

    The variant "SPT+LP+DA" of the paper, label propagation over all queries, is the function
    `distribution_alignment.label_propagation` on the logits of each view.

    The batch norm uses the statistics of each batch in all three parts, and its running statistics in a test, where the
    probabilities of a query's views are added up. The method is transductive: parts 1 and 3 use the queries without
    labels. A step needs the full support batch.

    The combination with SVL + RA is ours: L_ad and L_ra are added to the external loss, on the features of the
    episode's support rows. These rows are also the plain ones, since each image has only one view there.

    Attributes:
        batch_norm: The style prompt; its running statistics are saved with its weight and bias, all [3].
        head: Weight [W, D] and bias [W]; None before the number of classes is known.
        next_permutation: The order [N] of the support rows that the next internal step uses instead of a drawn one;
            reset by that step.
    """

    name = "stepspt"
    references = ("xu2024stepspt",)
    weighs_classes = True
    transductive = True
    needs_task = True
    trains_itself = True
    query_views = 5
    learning_rate = 0.01
    trains: frozenset[Tower] = frozenset({"vision"})  # its weights are frozen, but its features change with its input

    def __init__(self) -> None:
        super().__init__()
        self.batch_norm = nn.BatchNorm2d(3)
        self.head: nn.Linear | None = None
        self.next_permutation: Tensor | None = None
        self._width = 0
        self._queries: Tensor | None = None
        self._seed = 0

    def attach(self, backbone: Backbone) -> None:
        """Read the feature width of the backbone.

        Raises:
            DtrapError: The tuner is attached to a backbone with another width.
        """
        if self._width:
            check_width(self, self._width, backbone)
        self._width = backbone.feature_dim

    def _make_head(self, num_classes: int) -> nn.Linear:
        """Return the head; create it if it has another number of classes."""
        if self.head is None or self.head.out_features != num_classes:
            self.head = nn.utils.skip_init(nn.Linear, self._width, num_classes).to(self.batch_norm.weight)
        return self.head

    def reset(self, seed: int, num_classes: int) -> None:
        """Reset the batch norm and start the head as torch does; the seed also determines the permutations."""
        self._seed = seed
        generator = Generator().manual_seed(seed)
        self.next_permutation = self._queries = None
        self.batch_norm.reset_parameters()
        head = self._make_head(num_classes)
        bound = 1 / sqrt(self._width)
        draw(head.weight, nn.init.kaiming_uniform_, sqrt(5), generator=generator)
        draw(head.bias, nn.init.uniform_, -bound, bound, generator=generator)

    def make_room(self, state: dict[str, Tensor]) -> None:
        """Allocate the head for the saved number of classes."""
        if "head.bias" in state:
            self._make_head(len(state["head.bias"]))

    def resume_state(self) -> dict[str, Any]:
        """Return the seed of the permutations, and one that was set by hand."""
        return {"seed": self._seed, "next_permutation": self.next_permutation}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Restore the permutations of a run."""
        self._seed, self.next_permutation = int(state["seed"]), state["next_permutation"]

    def prepare_task(self, task: TaskData) -> None:
        """Copy the last view of the queries.

        Raises:
            DtrapError: There are no query images, or they have another number of views than the support images (at
                most 5).
        """
        if task.query_images is None:
            raise DtrapError(
                "StepSPT: the task has no query images; the tuner is transductive and needs the unlabeled queries. Use "
                "a data module with queries, or another tuner."
            )
        support_views = 1 if task.view is None else int(task.view.max()) + 1
        views, rows = min(self.query_views, support_views), len(task.query_images)
        if rows == 0 or rows % views != 0:
            raise DtrapError(
                f"StepSPT: the task has {rows} query images; expected {views} views of each query, as of the support "
                "images, view slowest. Pass every query in all views."
            )
        self._queries = task.query_images[-(rows // views) :].clone()

    def image_features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Return features [B, D] of images [B, 3, H, W] after the style prompt, which is skipped while disabled."""
        return backbone.encode_image(images if self._is_disabled else self.batch_norm(images))

    def logits(self, image_features: Tensor, text_features: Tensor, logit_scale: float) -> Tensor:
        """Return the head's logits [B, W] of raw features [B, D], in at least float32; the texts are not used."""
        if self.head is None:
            raise DtrapError("StepSPT has no head; call reset(seed, num_classes) or load_adapter_state first.")
        dtype = torch.promote_types(image_features.dtype, torch.float32)
        with torch.autocast(image_features.device.type, enabled=False):
            return F.linear(image_features.to(dtype), self.head.weight.to(dtype), self.head.bias.to(dtype))

    def optimizer(self, parameters: list[nn.Parameter], learning_rate: float) -> list[Optimizer]:
        """Return SGD for the head (momentum, dampening 0.9, weight decay 0.001) and plain SGD for the style prompt."""
        style = {id(parameter) for parameter in self.batch_norm.parameters()}
        head = [parameter for parameter in parameters if id(parameter) not in style]
        return [
            SGD(head, lr=learning_rate, momentum=0.9, dampening=0.9, weight_decay=1e-3),
            SGD(self.batch_norm.parameters(), lr=learning_rate),
        ]

    def scheduler(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> None:
        """Return None: the rates are constant."""

    def own_step(self, module: SteppedModule, batch: Batch) -> dict[str, Tensor]:
        """Run one epoch of the authors' code on the full support batch.

        Returns:
            The objective's terms, where `L_vlm` is the external loss; `L_iid`, the external loss without the diversity
            term; `L_internal`, the mean cross-entropy of the internal steps.
        """
        head_optimizer, style_optimizer = cast("list[LightningOptimizer]", module.optimizers())
        images, labels = batch["images"], batch["labels"]
        support = _last_view(batch)
        if self._queries is None:
            raise DtrapError("StepSPT: own_step was called before prepare_task, which sets the queries.")
        episode = torch.cat([images[support], self._queries])
        with torch.no_grad():
            bank = self._encode(module, [episode])
            confident = confident_rows(self._probabilities(bank))
        internal = self._internal_steps(module, head_optimizer, images, labels)
        features = self._encode(module, [episode])
        probabilities = self._probabilities(features)
        with torch.no_grad():
            partners = find_partners(features, bank, confident)
            partner_probabilities = self._probabilities(F.normalize(bank[partners].to(probabilities.dtype), dim=1))
        information = information_loss(probabilities, partner_probabilities)
        terms = module.objective(
            self.related_features(features[: len(support)]),
            module.text_features(),
            labels[support],
            classification_loss=information + diversity_loss(probabilities),
        )
        style_optimizer.zero_grad()
        module.manual_backward(terms["total"])
        style_optimizer.step()
        return {**terms, "L_iid": information, "L_internal": internal}

    def _internal_steps(
        self, module: SteppedModule, optimizer: LightningOptimizer, images: Tensor, labels: Tensor
    ) -> Tensor:
        """Train the head on all support rows in batches; return the mean loss."""
        permutation, self.next_permutation = self.next_permutation, None
        if permutation is None:
            step = module.trainer.fit_loop.epoch_loop.total_batch_idx
            seed = (self._seed + 104729 * (step + 1)) % 2**63
            permutation = torch.randperm(len(labels), generator=Generator().manual_seed(seed))
        batches = permutation.to(labels.device).split(_INTERNAL_BATCH)
        with torch.no_grad():  # the steps change the head only, so all batches can be encoded before the first one
            features = self._encode(module, [images[rows] for rows in batches])
        found = []
        for rows, part in zip(batches, features.split(_INTERNAL_BATCH), strict=True):
            loss = self.cross_entropy(self.logits(part, part, 1.0), labels[rows])
            optimizer.zero_grad()
            module.manual_backward(loss)
            optimizer.step()
            found.append(loss.detach())
        return torch.stack(found).mean()

    def _encode(self, module: SteppedModule, batches: Sequence[Tensor]) -> Tensor:
        """Encode all batches, each with its own statistics in the batch norm; only the tower works in chunks."""
        images = torch.cat([self.batch_norm(batch) for batch in batches])
        return encode_in_chunks(module.backbone.encode_image, images, module.image_chunk)

    def _probabilities(self, features: Tensor) -> Tensor:
        return self.logits(features, features, 1.0).softmax(dim=1)


def _last_view(batch: Batch) -> Tensor:
    """Return the indices of the rows of the last view; all rows if the batch has no views."""
    view = batch.get("view")
    if view is None:
        return torch.arange(len(batch["labels"]), device=batch["labels"].device)
    return (view == view.max()).nonzero().flatten()
