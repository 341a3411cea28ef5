"""The embedded data set: shapes and textures drawn on the fly, for a demo that needs no files."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from ..errors import check_at_least, check_one_of
from ..keywords import Unpack, check_keywords
from .few_shot import EpisodeOptions, FewShotDataModule
from .index import ImageIndex
from .shape_images import DOMAINS, IMAGE_SIZE, SHAPES, render
from .views import Preprocessing

Domain = Literal["source", "xray", "satellite", "stain"]


class ShapesDataModule(FewShotDataModule):
    """Episodes of 30 classes of shapes and textures at 48 pixels, in one of four domains.

    There are no files: image i of a class is drawn with a generator seeded by (domain, class, i), so that it is the
    same in every run. The tiny CLIP of the demo (`assets/tiny_clip.*`) is pre-trained on the domain "source"; "xray",
    "satellite" and "stain" are far from it.

    Args:
        domain: How the classes are drawn.
        images_per_class: Number of different images of each class, at least shot + query.
        template: Class prompt with `{}` for the name of the shape; None for "a photo of a {}.".
        preprocessing: Input size and normalization where the backbone does not state its own; None for 48 pixels and
            CLIP's mean and standard deviation.
        num_workers: Threads that draw images; the result does not depend on it.
        **options: Arguments of `FewShotDataModule` that describe an episode.

    Raises:
        DtrapError: An argument is out of range, or the domain is unknown.
    """

    def __init__(
        self,
        domain: Domain = "xray",
        *,
        images_per_class: int = 100,
        template: str | None = None,
        preprocessing: Preprocessing | None = None,
        num_workers: int = 0,
        **options: Unpack[EpisodeOptions],
    ) -> None:
        check_one_of("domain", domain, DOMAINS)
        check_keywords(self, options, EpisodeOptions)
        super().__init__(
            f"shapes:{domain}",
            template=template,
            preprocessing=preprocessing or Preprocessing(image_size=IMAGE_SIZE),
            num_workers=num_workers,
            # Given here so that they are not options of drawn images, which have no files.
            test_preprocessing=None,
            value_range=None,
            bad_images="error",
            small_classes="error",
            all_way=None,
            subset=None,
            **options,
        )
        needed = self.shot + self.query_shot
        check_at_least("images_per_class", images_per_class, needed, f"(shot {self.shot} + query {self.query_shot})")
        self.domain = domain
        self.images_per_class = images_per_class
        self.title = f"Shapes ({domain.replace('xray', 'x-ray')})"

    def scan(self) -> ImageIndex:
        """Return the names of the images that can be drawn, such as "xray/heart/17"; nothing is drawn."""
        numbers = range(self.images_per_class)
        return ImageIndex(
            paths=[f"{self.domain}/{shape}/{number}" for shape in SHAPES for number in numbers],
            labels=[label for label in range(len(SHAPES)) for _ in numbers],
            class_names=list(SHAPES),
        )

    def load_image(self, position: int) -> Image.Image:
        """Draw the picture (48 x 48) at a position of the index, with a generator seeded by its name."""
        digest = hashlib.sha256(self.index.paths[position].encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        label = torch.tensor([self.index.labels[position]])
        return to_pil_image(render(label, self.domain, generator)[0])
