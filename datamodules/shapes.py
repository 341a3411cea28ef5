"""The embedded domain: shapes and textures drawn on the fly, for a demo that needs no files."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from ..errors import DtrapError, nearest
from .few_shot import FewShotDataModule
from .index import ImageIndex
from .shape_images import DOMAINS, IMAGE_SIZE, SHAPES, render
from .views import Preprocessing

Domain = Literal["source", "xray", "satellite", "stain"]

_TITLES = {"xray": "x-ray"}


class ShapesDataModule(FewShotDataModule):
    """Episodes of 30 classes of shapes and textures at 48 pixels, in one of four domains.

    There are no files: image i of a class is drawn from a generator seeded by (domain, class, i), so that it
    is the same in every run. "source" is the domain that the tiny CLIP of the demo (`assets/tiny_clip.*`) is
    pre-trained on; "xray", "satellite" and "stain" are far from it.

    Args:
        domain: How the classes are drawn.
        images_per_class: Number of different images of each class, at least shot + query.
        way: Classes per episode W.
        shot: Support images per class K.
        query: Query images per class; 0 for none.
        views: Fixed views V of each support image, 1 (plain) to 5.
        seed: Seed of all episodes.
        episode: Number of the current episode.
        template: Class prompt with `{}` for the name of the shape; None for "a photo of a {}.".
        preprocessing: Input size and normalisation where no backbone states its own; None for 48 pixels and
            CLIP's mean and standard deviation.
        num_workers: Threads that draw images; the result does not depend on it.
        batch_size: Support rows of a training step, drawn anew in every epoch; None for all of them.

    Raises:
        DtrapError: An argument is out of range, or there is no such domain.
    """

    def __init__(
        self,
        domain: Domain = "xray",
        *,
        images_per_class: int = 100,
        way: int = 5,
        shot: int = 5,
        query: int = 15,
        views: int = 5,
        seed: int = 1,
        episode: int = 0,
        template: str | None = None,
        preprocessing: Preprocessing | None = None,
        num_workers: int = 0,
        batch_size: int | None = None,
    ) -> None:
        if domain not in DOMAINS:
            raise DtrapError(f"domain is '{domain}'; expected one of {', '.join(DOMAINS)}.{nearest(domain, DOMAINS)}")
        if images_per_class < shot + query:
            raise DtrapError(
                f"images_per_class is {images_per_class}; expected at least {shot + query} "
                f"(shot {shot} + query {query})."
            )
        super().__init__(
            f"shapes:{domain}",
            way=way,
            shot=shot,
            query=query,
            views=views,
            seed=seed,
            episode=episode,
            template=template,
            preprocessing=preprocessing or Preprocessing(image_size=IMAGE_SIZE),
            num_workers=num_workers,
            batch_size=batch_size,
        )
        self.domain = domain
        self.images_per_class = images_per_class
        self.title = f"Shapes ({_TITLES.get(domain, domain)})"

    def scan(self) -> ImageIndex:
        """Names of the images that can be drawn, such as "xray/heart/17"; nothing is drawn."""
        numbers = range(self.images_per_class)
        return ImageIndex(
            paths=[f"{self.domain}/{shape}/{number}" for shape in SHAPES for number in numbers],
            labels=[label for label in range(len(SHAPES)) for _ in numbers],
            class_names=list(SHAPES),
        )

    def load_image(self, position: int) -> Image.Image:
        """The picture (48 x 48) at a position of the index, drawn from a generator seeded by its name."""
        digest = hashlib.sha256(self.index.paths[position].encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        label = torch.tensor([self.index.labels[position]])
        return to_pil_image(render(label, self.domain, generator)[0])
