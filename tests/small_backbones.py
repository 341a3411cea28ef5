"""Six small random backbones in the formats of the real ones, written to files and loaded through our classes."""

import json
from functools import partial

import open_clip
import torch
import transformers
from dtrap.lightning_modules.backbones import OpenCLIP, Transformers
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

CLIP_WORDS = 49408
GEMMA_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
TEXTS = [
    "a photo of a annual crop land forest herbaceous vegetation highway or road industrial buildings pasture",
    "a centered satellite photo of permanent crop residential buildings river sea or lake type of flower pet food",
    "a drawing texture person doing aircraft circle square triangle star cross ring heart moon cat dog bird",
]


def _disturb(module):
    """Noise on all parameters, so that zero biases and unit norms hide nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


@register_model
def vit_small_siglip(num_classes=0, global_pool="map", **_):
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=4, class_token=False, num_classes=num_classes,
        global_pool=global_pool,
    )  # fmt: skip


@register_model
def vit_small_pe_core(num_classes=0, global_pool="map", **_):
    return Eva(
        img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, attn_type="rope", use_pre_transformer_norm=True,
        use_rot_pos_emb=True, ref_feat_shape=(4, 4), rope_grid_offset=1.0, rope_grid_indexing="xy",
        attn_pool_num_heads=2, attn_pool_mlp_ratio=4.0, norm_layer=partial(nn.LayerNorm, eps=1e-5),
        num_classes=num_classes, global_pool=global_pool,
    )  # fmt: skip


def gemma_tokenizer(folder):
    """Folder with a small tokenizer of SigLIP2's kind: pieces with spaces, end token, padding on the right."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    alphabet = [chr(code) for code in range(33, 127)] + ["▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=GEMMA_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    words = " ".join(TEXTS).split()
    tokenizer.train_from_iterator([piece for word in words for piece in (word, f" {word}")], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "eos_token", "bos_token", "unk_token", "mask_token"), GEMMA_SPECIAL, strict=True))
    config = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True, **names}
    config |= {"padding_side": "right", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def clip_tokenizer(folder):
    """Folder with CLIP's own tokenizer, made of the vocabulary that comes with open_clip."""
    folder.mkdir(parents=True, exist_ok=True)
    simple = SimpleTokenizer()
    start, end = "<|startoftext|>", "<|endoftext|>"
    vocabulary = {
        piece.replace("<start_of_text>", start).replace("<end_of_text>", end): number
        for piece, number in simple.encoder.items()
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) for pair, _ in sorted(simple.bpe_ranks.items(), key=lambda item: item[1])]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    config = {"tokenizer_class": "CLIPTokenizer", "bos_token": start, "model_max_length": 77}
    config |= dict.fromkeys(("eos_token", "unk_token", "pad_token"), end)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _open_clip(name, config, folder, tokenizer=None, statistics=None):
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": config, "preprocess_cfg": statistics or {}}
    (folder / f"{name}.json").write_text(json.dumps(content))
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (open_clip.CustomTextCLIP if "custom_text" in config else open_clip.CLIP)(**arguments)
        _disturb(model)
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = None  # the plain average
        model.train().visual(torch.randn(16, 3, config["vision_cfg"]["image_size"], config["vision_cfg"]["image_size"]))
    weights = folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
    return OpenCLIP(str(folder / f"{name}.json"), str(weights), tokenizer=tokenizer)


def open_clip_vit(folder):
    text = {"context_length": 32, "vocab_size": CLIP_WORDS, "width": 32, "heads": 2, "layers": 8}
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 8}
    return _open_clip(
        "small_vit", {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}, folder
    )


def open_clip_resnet(folder):
    text = {"context_length": 32, "vocab_size": CLIP_WORDS, "width": 32, "heads": 2, "layers": 4}
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    return _open_clip("small_rn", {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}, folder)


def open_clip_siglip2(folder):
    gemma_tokenizer(folder / "tokenizer")
    real = open_clip.get_model_config("ViT-B-16-SigLIP2")
    vision = real["vision_cfg"] | {"timm_model_name": "vit_small_siglip", "image_size": 32}
    text = real["text_cfg"] | {"vocab_size": 400, "width": 32, "heads": 4, "layers": 4}
    config = real | {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    return _open_clip("small_siglip2", config, folder, tokenizer=str(folder / "tokenizer"), statistics=half)


def open_clip_pe_core(folder):
    real = open_clip.get_model_config("PE-Core-B-16")
    vision = real["vision_cfg"] | {"timm_model_name": "vit_small_pe_core", "image_size": 32}
    text = real["text_cfg"] | {"width": 32, "heads": 2, "layers": 4}
    config = real | {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    return _open_clip("small_pe_core", config, folder, statistics={"mean": [0.5] * 3, "std": [0.5] * 3})


def save_transformers(folder, config, model_class):
    """A random model in `save_pretrained` layout, without tokenizer; gives it back."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config).eval()
        _disturb(model)
    model.save_pretrained(folder)
    return model


def clip_config(**text):
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    return transformers.CLIPConfig(
        projection_dim=24,
        text_config=tower | {"max_position_embeddings": 32, "vocab_size": CLIP_WORDS, **text},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
    )


def siglip_config(**vision):
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    return transformers.SiglipConfig(
        text_config=tower | {"vocab_size": 400, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
        vision_config=tower | {"image_size": 32, "patch_size": 8, **vision},
    )


def transformers_clip(folder):
    clip_tokenizer(folder)
    save_transformers(folder, clip_config(), transformers.CLIPModel)
    return Transformers(str(folder))


def transformers_siglip2(folder):
    gemma_tokenizer(folder)
    save_transformers(folder, siglip_config(), transformers.SiglipModel)
    return Transformers(str(folder))


SMALL = {
    "open_clip CLIP ViT": open_clip_vit,
    "open_clip CLIP ResNet": open_clip_resnet,
    "open_clip SigLIP2": open_clip_siglip2,
    "open_clip PE-Core": open_clip_pe_core,
    "transformers CLIP": transformers_clip,
    "transformers SigLIP2": transformers_siglip2,
}
