"""The ONNX form of `dtrap export`: one graph from normalized images to class probabilities, checked when written."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..datamodules.views import Preprocessing
from ..errors import DtrapError, first_line
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.backbones.peft_layers import merge_adapters
from .adapter_file import CARD
from .adapters import AdapterCard, card_content
from .preprocessing import describe_preprocessing

GRAPH = "model.onnx"
INPUT, OUTPUT = "images", "probabilities"
LARGEST_DIFFERENCE = 1e-4
# A protobuf holds 2 GiB; larger weights go to a second file next to the graph.
LARGEST_FILE = 1_800_000_000
CHECKED_BATCHES = (3, 1)
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class ClassifierGraph(nn.Module):
    """Backbone, tuner, class features, logit scale and temperature as one module from images to probabilities.

    The class text features are constants, so nothing of a text tower is in the exported graph.

    Args:
        module: The tuned model with its classes.
        temperature: The fitted temperature that the logits are divided by; None for none.
    """

    class_features: Tensor

    def __init__(self, module: FewShotClassifier, temperature: float | None) -> None:
        super().__init__()
        self.backbone, self.tuner = module.backbone, module.tuner
        self.logit_scale = float(module.objective.logit_scale)
        self.temperature = 1.0 if temperature is None else float(temperature)
        with torch.no_grad():
            self.register_buffer("class_features", module.text_features().detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        """Return the class probabilities [N, W] of normalized images [N, 3, H, W]."""
        features = self.tuner.adapt_image_features(self.tuner.image_features(self.backbone, images))
        logits = self.tuner.logits(features, self.class_features, self.logit_scale)
        return (logits / self.temperature).softmax(dim=-1)


def check_packages() -> None:
    """Raise a DtrapError if a package of the extra `onnx` is missing."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise DtrapError(
            f"--form onnx needs {' and '.join(missing)}, which is not installed. Install it with: pip install "
            "'dtrap[onnx]'"
        )


def save_onnx(module: FewShotClassifier, folder: Path, card: AdapterCard, images: Preprocessing) -> float:
    """Write `model.onnx` and check it with onnxruntime against torch on random images.

    The graph computes in 32 bits on the CPU, whatever the precision of the training was.

    Args:
        module: The tuned model with its classes, on the CPU; peft's adapters in it are merged.
        folder: An existing folder.
        card: The adapter's card, which becomes part of the metadata.
        images: The preprocessing of the training.

    Returns:
        The largest difference of a probability.

    Raises:
        DtrapError: A package is missing, the model cannot be written as a graph, or the probabilities differ.
    """
    check_packages()
    module = module.float().eval()
    graph = ClassifierGraph(module, getattr(card, "temperature", None)).eval()
    examples = _random_images(module.backbone.image_size)
    with torch.no_grad():
        expected = [(module(examples[:count]) / graph.temperature).softmax(dim=-1) for count in CHECKED_BATCHES]
    with suppress(DtrapError):  # of a type that cannot be merged, whose own layers are traced then
        merge_adapters(module.backbone)
    with torch.no_grad(), quiet():
        program = _traced(graph, examples[:2], module)
    properties = metadata(module, card, images)
    program.model.metadata_props.update(properties)
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    path = folder / GRAPH
    with quiet():
        program.save(str(path), external_data=size > LARGEST_FILE)
    return _check(path, module, examples, expected)


def metadata(module: FewShotClassifier, card: AdapterCard, images: Preprocessing) -> dict[str, str]:
    """Return what the graph's metadata says: classes, preprocessing, scale, temperature and the card, as JSON."""
    stored = card.preprocessing or {}
    preprocessing = describe_preprocessing(images) | {
        "value_range": stored.get("value_range"),
        "layout": "NCHW",
        "channels": "RGB",
        "scale": "values in [0, 1] minus mean, divided by std",
    }
    content = {
        "class_names": list(module.class_prompts.class_names),
        "preprocessing": preprocessing,
        "logit_scale": float(module.objective.logit_scale),
        "temperature": getattr(card, "temperature", None),
        "backbone": card.backbone,
        "tuner": card.tuner,
        "dtrap": __version__,
    }
    return {name: json.dumps(value) for name, value in content.items()} | {CARD: card_content(card)}


def _random_images(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(max(CHECKED_BATCHES), 3, size, size, generator=generator)


def _traced(graph: ClassifierGraph, example: Tensor, module: FewShotClassifier) -> Any:
    try:
        return torch.onnx.export(
            graph,
            (example,),
            None,
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("N", min=1)}},
            verbose=False,
        )
    except Exception as error:  # of torch, onnxscript or a stranger's module; the reason is the last cause
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise DtrapError(
            f"the tuner {module.tuner.name} on {module.backbone.identifier} cannot be written as an ONNX graph "
            f"({type(cause).__name__}: {first_line(cause)[:200]}). Keep the adapter file and use `dtrap predict`."
        ) from error


def _check(path: Path, module: FewShotClassifier, examples: Tensor, expected: Sequence[Tensor]) -> float:
    """Return the largest difference between onnxruntime and torch, for several sizes of a batch."""
    import onnxruntime

    who = f"the ONNX graph of {module.tuner.name} on {module.backbone.identifier}"
    remedy = "Nothing was written. Keep the adapter file and use `dtrap predict`."
    largest = 0.0
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for probabilities in expected:
            (found,) = session.run([OUTPUT], {INPUT: examples[: len(probabilities)].numpy()})
            largest = max(largest, float((torch.from_numpy(found) - probabilities).abs().max()))
    except Exception as error:  # onnxruntime has an exception for each status, without a common base
        raise DtrapError(f"{who} does not run in onnxruntime ({first_line(error)[:200]}). {remedy}") from error
    if not largest <= LARGEST_DIFFERENCE or math.isnan(largest):
        raise DtrapError(
            f"{who} gives other probabilities than torch: {largest:.1g} apart, expected at most "
            f"{LARGEST_DIFFERENCE:g}. {remedy}"
        )
    return largest


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, the exporter's and optimizer's own warnings are not shown: they are about its internals."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
