"""The lines of Python in a model card that classify one image with an exported folder."""

from __future__ import annotations

from typing import Any

from ..lightning_modules.backbones.open_clip import OpenCLIP
from ..protocol.adapters import AdapterCard

_ONNX = """import json

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx")
about = session.get_modelmeta().custom_metadata_map
names, images = json.loads(about["class_names"]), json.loads(about["preprocessing"])
side = images["image_size"]
image = Image.open("photo.jpg").convert("RGB")
{resize}
values = (np.asarray(image, dtype=np.float32) / 255 - images["mean"]) / images["std"]
batch = values.transpose(2, 0, 1)[None].astype(np.float32)
(probabilities,) = session.run(["probabilities"], {{"images": batch}})
print(dict(zip(names, probabilities[0].tolist())))
"""
_SQUASH = 'image = image.resize((side, side), Image.Resampling["{interpolation}"])'
_SHORTEST = """shortest = min(image.size)
image = image.resize([side * length // shortest for length in image.size], Image.Resampling["{interpolation}"])
left, top = (round((length - side) / 2) for length in image.size)
image = image.crop((left, top, left + side, top + side))"""
_LONGEST = """scale = side / max(image.size)
image = image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling["{interpolation}"])
padded = Image.new("RGB", (side, side))
padded.paste(image, ((side - image.size[0]) // 2, (side - image.size[1]) // 2))
image = padded"""
_CLASSES = """with safe_open("class_features.safetensors", "pt") as file:
    classes, about = file.get_tensor("class_features"), file.metadata()
names, scale = json.loads(about["class_names"]), float(about["logit_scale"])
"""
_OPEN_CLIP = f"""import json

import open_clip
import torch
from PIL import Image
from safetensors import safe_open

model, _, transform = open_clip.create_model_and_transforms("local-dir:.")
{_CLASSES}with torch.no_grad():
    image = model.eval().encode_image(transform(Image.open("photo.jpg")).unsqueeze(0), normalize=True)
probabilities = (scale * image @ classes.T / {{temperature}}).softmax(dim=-1)[0]
print(dict(zip(names, probabilities.tolist())))
"""
_TRANSFORMERS = f"""import json

import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModel

model, processor = AutoModel.from_pretrained("."), AutoImageProcessor.from_pretrained(".")
{_CLASSES}with torch.no_grad():
    image = model.get_image_features(**processor(Image.open("photo.jpg").convert("RGB"), return_tensors="pt"))
image = torch.nn.functional.normalize(getattr(image, "pooler_output", image), dim=-1)
probabilities = (scale * image @ classes.T / {{temperature}}).softmax(dim=-1)[0]
print(dict(zip(names, probabilities.tolist())))
"""
_PEFT_TRANSFORMERS = """from peft import PeftModel
from transformers import AutoModel

model = PeftModel.from_pretrained(AutoModel.from_pretrained("{name}"), ".")
"""
_PEFT_OPEN_CLIP = """from dtrap.lightning_modules.backbones import OpenCLIP
from peft import PeftModel

# With separate query, key and value layers, which the adapter is for.
model = PeftModel.from_pretrained(OpenCLIP("{name}", "{tag}").model, ".")
"""


def usage_example(form: str, card: AdapterCard, backbone: Any) -> str:
    """Return lines that run in the exported folder, with an image `photo.jpg`."""
    images = card.preprocessing or {}
    if form == "onnx":
        resize = {"shortest": _SHORTEST, "longest": _LONGEST}.get(str(images.get("resize_mode")), _SQUASH)
        return _ONNX.format(resize=resize.format(interpolation=str(images.get("interpolation", "bilinear")).upper()))
    own, temperature = isinstance(backbone, OpenCLIP), card.temperature or 1.0
    if form == "peft":
        arguments = (card.model.get("backbone") or {}).get("init_args") or {}
        name, tag = arguments.get("name", card.backbone.rpartition("/")[0]), arguments.get("pretrained", "")
        return (_PEFT_OPEN_CLIP if own else _PEFT_TRANSFORMERS).format(name=name, tag=tag)
    return (_OPEN_CLIP if own else _TRANSFORMERS).format(temperature=f"{temperature:.6g}")
