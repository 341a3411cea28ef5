"""The README.md of an exported folder: a model card with front matter, as the Hugging Face hub expects it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..datamodules.acquisition.sources import SOURCES, Source
from ..datamodules.catalog import SETS
from ..errors import DtrapError
from ..lightning_modules.backbones.open_clip import OpenCLIP
from ..lightning_modules.parts import class_path
from ..protocol.adapters import AdapterCard
from ..protocol.onnx_graph import LARGEST_DIFFERENCE
from ..protocol.run_folder import ResultRows, Row
from .usage_examples import usage_example

MODEL_CARD = "README.md"
NOT_KNOWN = "not known to dtrap"
# Licenses of published weights, by the tag (open_clip) or by the start of the name (transformers).
_OF_TAGS = {
    r"openai|(laion|datacomp|commonpool)[a-z0-9]*_[a-z0-9_.]+": "mit",
    r"webli|meta": "apache-2.0",
}
_OF_NAMES = {"google/siglip": "apache-2.0"}


def save_model_card(folder: Path, form: str, card: AdapterCard, row: Row | None, backbone: Any) -> None:
    """Write README.md: data, classes, method, accuracy, licenses, use and limits.

    Args:
        folder: The exported folder, whose other files are written.
        form: The form of the export.
        card: The adapter's card.
        row: The row of the adapter's episode in its run, which has the interval; None if there is none.
        backbone: The backbone.
    """
    # The front matter is YAML made by the hub's library; the text after it is data, never a template.
    content = f"---\n{_front_matter(form, card, row, backbone)}\n---\n\n{_text(form, card, row, backbone)}"
    (folder / MODEL_CARD).write_text(str(ModelCard(content, ignore_metadata_errors=False)), encoding="utf-8")


def row_of_run(adapter: Path, card: AdapterCard) -> Row | None:
    """Return the result row of an adapter's episode, if its run folder is around it and has the same accuracy."""
    results = adapter.parent.parent / "results.jsonl"
    if adapter.is_dir() or not results.is_file():
        return None
    try:
        rows = ResultRows(results).read()
    except DtrapError:
        return None
    same = (row for row in rows if (row["method"], row["episode"]) == (card.method, card.episode))
    row = next(same, None)
    return row if row is not None and row.get("accuracy") == card.accuracy else None


def weights_license(identifier: str) -> str | None:
    """Return the license of published weights by the backbone's identifier; None if it is not known."""
    name, _, tag = identifier.lower().rpartition("/")
    for pattern, found in _OF_TAGS.items():
        # A name with another slash is of a hub, whose weights anybody can publish.
        if re.fullmatch(pattern, tag) and name and "/" not in name and ":" not in name:
            return found
    return next((found for start, found in _OF_NAMES.items() if identifier.lower().startswith(start)), None)


def _source(card: AdapterCard) -> Source | None:
    path = (card.data or {}).get("class_path")
    return next(
        (SOURCES[name] for name, module in SETS.items() if class_path(module) == path and name in SOURCES), None
    )


def _front_matter(form: str, card: AdapterCard, row: Row | None, backbone: Any) -> str:
    weights, source = weights_license(card.backbone), _source(card)
    # A model is under one license only if nothing it is made of asks for more.
    free = weights is not None and source is not None and source.license.startswith("MIT")
    license_fields = {"license": weights} if free else {"license": "other", "license_name": "not-stated"}
    library = "open_clip" if isinstance(backbone, OpenCLIP) else "transformers"
    base = card.backbone if card.backbone.count("/") == 1 and not isinstance(backbone, OpenCLIP) else None
    results = None
    if card.accuracy is not None:
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=source.folder if source is not None else "own",
                dataset_name=card.dataset or "own images",
                metric_type="accuracy",
                metric_value=round(card.accuracy / 100, 6),
                metric_name=_metric_name(row),
            )
        ]
    data = ModelCardData(
        **license_fields,
        library_name={"plain": library, "peft": "peft", "onnx": "onnx"}[form],
        pipeline_tag="image-classification",
        tags=["dtrap", "few-shot", "clip", card.tuner],
        base_model=base,
        metrics=["accuracy"],
        model_name=f"{card.tuner} on {card.backbone}",
        eval_results=results,
    )
    return str(data.to_yaml())


def _metric_name(row: Row | None) -> str:
    interval = (row or {}).get("binomial_interval")
    if row is None or not interval:
        return "Accuracy"
    return f"Accuracy ({row['test_images']} images, 95% interval {interval[0]:.2f} to {interval[1]:.2f} %)"


def _text(form: str, card: AdapterCard, row: Row | None, backbone: Any) -> str:
    sections = {
        "": f"`{_line(card.backbone)}` tuned with {_line(card.tuner)} to {len(card.class_names)} classes by "
        f"[dtrap](https://github.com/dtrap/dtrap), method `{_line(card.method)}`.",
        "Classes": "\n".join(f"{number}. {_line(name)}" for number, name in enumerate(card.class_names)),
        "Data": _data(card),
        "Accuracy": _accuracy(card, row),
        "Images": _images(card),
        "Use": f"```python\n{usage_example(form, card, backbone)}```",
        "Limits": _limits(form, card),
        "License": _licenses(card),
        "Versions": ", ".join(f"{name} {_line(version)}" for name, version in card.versions.items()) + ".",
    }
    title = f"# {_line(card.tuner)} on {_line(card.backbone)}\n\n"
    return title + "\n\n".join(f"## {name}\n\n{text}" if name else text for name, text in sections.items()) + "\n"


def _line(text: str) -> str:
    """Return a text as one line of Markdown that is shown as it is."""
    line = " ".join(str(text).split())
    return "".join(f"\\{character}" if character in "\\`*_[]<>#|!" else character for character in line)


def _data(card: AdapterCard) -> str:
    source = _source(card)
    page = "" if source is None else f" {source.title}: {source.page}"
    prompts = "own sentences for each class" if card.prompts is not None else f"`{card.template}`"
    return f"{_line(card.dataset)}, seed {card.seed}, episode {card.episode}.{page} Class prompts: {prompts}."


def _accuracy(card: AdapterCard, row: Row | None) -> str:
    if card.accuracy is None:
        return "Not measured: there were no held-out images."
    text = f"{card.accuracy:.2f} % of the held-out images of this one task"
    interval = (row or {}).get("binomial_interval")
    if row is not None and interval:
        low, high = interval
        text += f" ({row['test_images']} images; 95% interval {low:.2f} to {high:.2f} %, Clopper and Pearson)"
    else:
        text += "; the number of images and the interval are in its run's results.jsonl, which was not there"
    zero_shot = (row or {}).get("zero_shot_accuracy")
    return text + (f". Without tuning (zero-shot): {zero_shot:.2f} %." if zero_shot is not None else ".")


def _images(card: AdapterCard) -> str:
    stored = card.preprocessing or {}
    size = stored.get("image_size")
    ways = {
        "squash": f"resized to {size} x {size} pixels without keeping the aspect ratio",
        "shortest": f"resized so that the shorter side has {size} pixels, then cropped to the center",
        "longest": f"resized so that the longer side has {size} pixels, then padded",
    }
    value_range = stored.get("value_range")
    depth = "divided by 255" if value_range is None else f"scaled from the range {json.dumps(value_range)} to 0..1"
    return (
        f"RGB, {ways.get(str(stored.get('resize_mode')), 'resized')} ({stored.get('interpolation')}), values {depth}, "
        f"minus the mean {json.dumps(stored.get('mean'))}, divided by {json.dumps(stored.get('std'))}."
    )


def _limits(form: str, card: AdapterCard) -> str:
    lines = [
        "- It knows these classes only and gives one of them for any image, also for an image of none of them.",
        "- It was tuned on few images of one source. Measure it on images of your own before you rely on it.",
        "- The data and the weights may have biases that this card does not know of.",
    ]
    temperature = card.temperature
    if temperature is None:
        lines.append("- The probabilities are not calibrated; they are often too certain.")
    elif form == "onnx":
        lines.append(f"- The temperature {temperature:.4g}, fitted on held-out images, is inside the graph.")
    else:
        lines.append(f"- Divide the logits by the temperature {temperature:.4g}, which was fitted on held-out images.")
    if form == "onnx":
        lines.append(f"- Its probabilities were within {LARGEST_DIFFERENCE:g} of torch's when it was written.")
    return "\n".join(lines)


def _licenses(card: AdapterCard) -> str:
    weights, source = weights_license(card.backbone), _source(card)
    of_weights = NOT_KNOWN if weights is None else f"{weights}, as their authors published them"
    of_data = NOT_KNOWN if source is None else source.license
    return (
        f"- Weights of {_line(card.backbone)}: {of_weights}.\n- Data: {of_data}.\n"
        "- This tuned model: not stated. Choose a license that both allow, and set `license` in the lines at the top."
    )
