"""Features of images and class texts, as models hand them over to what measures them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Features(NamedTuple):
    """The features of images and of the class texts.

    Attributes:
        images: Features of the images [N, D]. Those of a tuned model are its tuner's `related_features`; without the
            tuner they are those of the backbone.
        texts: Class text features [W, D].
        labels: Classes [N].
        plain: Which rows are plain views [N]; None if all are.
    """

    images: Tensor
    texts: Tensor
    labels: Tensor
    plain: Tensor | None = None
