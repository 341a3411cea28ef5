"""Small backbones, and run folders with one adapter of random values, for tests of what is exported."""

import numpy as np
import pandas as pd
import torch
import yaml
from dtrap.datamodules.views import Preprocessing
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP, Transformers
from dtrap.lightning_modules.tuners import LoRA
from dtrap.protocol.adapters import AdapterCard, save_adapter
from PIL import Image

CLASSES = ["dog", "cat", "photo"]
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = ["<pad>", "<eos>", "<unk>", "a", "photo", "of", "dog", "cat", "."]


def save_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def save_transformers(folder, family):
    """A random CLIP or SigLIP as transformers itself saves it."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    config_class, model_class = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}[family]
    text = {**TOWER, "vocab_size": 16, "max_position_embeddings": 12, "eos_token_id": 1, "pad_token_id": 0}
    vision = {**TOWER, "image_size": 32, "patch_size": 16}
    own = {"projection_dim": 8} if family == "clip" else {}
    text |= {"projection_size": 16} if family == "siglip" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config_class(text_config=text, vision_config=vision, **own))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder)


def small_backbones(tiny_clip_files, new_folder):
    """Class and init args of a small backbone of each kind."""
    config, checkpoint = tiny_clip_files
    folders = {family: new_folder(family) for family in ("clip", "siglip")}
    for family, folder in folders.items():
        save_transformers(folder, family)
    return {
        "open_clip": (OpenCLIP, {"name": str(config), "pretrained": str(checkpoint)}),
        **{family: (Transformers, {"name": str(folder)}) for family, folder in folders.items()},
    }


def save_run(folder, backbone, tuner_arguments, tuner_class=LoRA, descriptions=None, temperature=None):
    """A run folder with a config and one adapter of random values: the tuned module and the adapter's path."""
    backbone_class, arguments = backbone
    tuner = tuner_class(**tuner_arguments)
    module = FewShotClassifier(
        backbone_class(**arguments), tuner, Objective(logit_scale=50.0), descriptions=descriptions
    )
    module.set_classes(CLASSES)
    module.start_task(1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in module.tuner.adapter_state().values():
            value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    model = {
        "backbone": {"class_path": f"dtrap.lightning_modules.backbones.{backbone_class.__name__}"},
        "tuner": {"class_path": f"dtrap.lightning_modules.tuners.{tuner_class.__name__}", "init_args": tuner_arguments},
        "objective": {"class_path": "dtrap.lightning_modules.Objective", "init_args": {"logit_scale": 50.0}},
    }
    model["backbone"]["init_args"] = arguments
    model |= {"descriptions": "nowhere.yaml"} if descriptions is not None else {}
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    adapter = folder / "adapters" / "tuned.safetensors"
    card = AdapterCard(module.backbone.identifier, tuner.name, CLASSES, "a photo of a {}.", "test", 1, 0, "svl-ra")
    card.temperature = temperature
    save_adapter(adapter, module, card)
    return module, adapter


def pixels_of(pictures, module):
    preprocessing = Preprocessing.of(module.backbone)
    return torch.stack([preprocessing.to_tensor(Image.open(path)) for path in sorted(pictures.glob("*.png"))])


def draw_pictures(folder):
    """Three pictures of different shapes, 0.png to 2.png."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate([(45, 70), (64, 33), (32, 32)]):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def export(dtrap, adapter, output, *words):
    status, out, err = dtrap("export", "--adapter", adapter, "--output", output, *words)
    assert status == 0, err
    return out


def predicted(dtrap, saved, pictures, tmp_path):
    """Probabilities of the pictures as `dtrap predict` writes them."""
    return torch.tensor(predicted_table(dtrap, saved, pictures, tmp_path).to_numpy(), dtype=torch.float32)


def predicted_table(dtrap, saved, pictures, tmp_path):
    """The same with a column for each class."""
    status, _, err = dtrap("predict", "--adapter", saved, "--images", pictures, "--output", "p.csv", "--overwrite")
    assert status == 0, err
    return pd.read_csv(tmp_path / "p.csv").iloc[:, 5:]  # after path, label, score, runner-up and its score
