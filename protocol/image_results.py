"""What a method says of each test image, read from the predictions that a run has saved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pandas import DataFrame

Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Guesses:
    """The two most probable classes of each image, and their probabilities.

    Attributes:
        first: The predicted class [Q].
        probability: Its probability [Q].
        second: The next class [Q]; the same one where there is one class only.
        second_probability: Its probability [Q].
    """

    first: Numbers
    probability: Numbers
    second: Numbers
    second_probability: Numbers

    @classmethod
    def of(cls, scores: Numbers) -> Guesses:
        """Return the guesses of scores [Q, W], whose softmax are the probabilities."""
        shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
        chances = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
        # The first of equal ones, as `argmax` of the test takes.
        order = np.argsort(-scores, axis=1, kind="stable")[:, :2]
        found = np.take_along_axis(chances, order, axis=1)
        return cls(order[:, 0], found[:, 0], order[:, -1], found[:, -1])

    def labeled(self, names: Sequence[str]) -> list[str]:
        """Return the predicted class of each image with its probability, such as "River 94 %"."""
        said = zip(self.first.tolist(), self.probability, strict=True)
        return [f"{names[place]} {percent(chance)}" for place, chance in said]


def percent(probability: float) -> str:
    """Return a probability in whole percent; 100 % and 0 % only where it is."""
    rounded = f"{100 * probability:.0f} %"
    if rounded == "100 %" and probability < 1:
        return ">99 %"
    return "<1 %" if rounded == "0 %" and probability > 0 else rounded


@dataclass(frozen=True)
class ImageResults:
    """The test images of a method with what it says of them.

    Attributes:
        class_names: Names of the W classes.
        images: Path of each image within the data [Q]. An image that several tasks test is there several times.
        tasks: Number of the task that tests it [Q].
        labels: Its class [Q].
        tuned: What the method says.
        zero_shot: What the backbone says without the tuner; None if that was not kept.
    """

    class_names: list[str]
    images: list[str]
    tasks: Numbers
    labels: Numbers
    tuned: Guesses
    zero_shot: Guesses | None

    @property
    def right(self) -> Numbers:
        """Whether the predicted class is that of the image [Q]."""
        return self.tuned.first == self.labels

    @property
    def wrong(self) -> list[int]:
        """Places of the images with a wrong class, the most certain first."""
        return [place for place in np.argsort(-self.tuned.probability, kind="stable") if not self.right[place]]

    @property
    def unsure(self) -> list[int]:
        """Places of the images with the right class, the least certain first."""
        return [place for place in np.argsort(self.tuned.probability, kind="stable") if self.right[place]]

    def frame(self) -> DataFrame:
        """Return one line for each image: its class, the predicted class, probabilities, and zero-shot."""
        import pandas

        names = np.array(self.class_names, dtype=object)
        several = {"repeat": self.tasks + 1} if len({*self.tasks.tolist()}) > 1 else {}
        columns: dict[str, Any] = {
            **several,
            "image": self.images,
            "class": names[self.labels],
            "predicted": names[self.tuned.first],
            "probability": self.tuned.probability,
            "runner_up": names[self.tuned.second],
            "runner_up_probability": self.tuned.second_probability,
            "right": self.right.astype(int),
        }
        if self.zero_shot is not None:
            columns["zero_shot"] = names[self.zero_shot.first]
            columns["zero_shot_probability"] = self.zero_shot.probability
        return pandas.DataFrame(columns)


def read_results(files: Sequence[tuple[int, Path]]) -> ImageResults | None:
    """Read the files of predictions of a method's tasks; None if there is none, or tasks differ in their classes.

    Args:
        files: The number and the file of each task.
    """
    from safetensors import safe_open

    found: list[tuple[int, dict[str, Numbers], list[str], list[str]]] = []
    for task, path in files:
        if path.is_file():
            with safe_open(path, "np") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata()
            found.append((task, tensors, json.loads(metadata["class_names"]), json.loads(metadata["images"])))
    if not found or any(names != found[0][2] for _, _, names, _ in found):
        return None
    kept = all("zero_shot_scores" in tensors for _, tensors, _, _ in found)
    scores, labels = (np.concatenate([tensors[key] for _, tensors, _, _ in found]) for key in ("scores", "labels"))
    zero_shot = np.concatenate([tensors["zero_shot_scores"] for _, tensors, _, _ in found]) if kept else None
    return ImageResults(
        class_names=found[0][2],
        images=[image for _, _, _, images in found for image in images],
        tasks=np.concatenate([np.full(len(images), task) for task, _, _, images in found]),
        labels=labels.astype(int),
        tuned=Guesses.of(scores),
        zero_shot=None if zero_shot is None else Guesses.of(zero_shot),
    )
