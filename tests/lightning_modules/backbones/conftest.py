import copy
import json
import shutil
import socket
import time

import open_clip
import pytest
import torch
from dtrap.lightning_modules.backbones import hub
from safetensors.torch import save_file
from small_backbones import SMALL

TINY = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def write_config(folder, name="tiny.json", **changes):
    """A small CLIP as an open_clip config file; `changes` replace keys of the towers' configs."""
    config = copy.deepcopy(TINY)
    for key, value in changes.items():
        if isinstance(value, dict) and key in config:
            config[key] |= value
        else:
            config[key] = value
    path = folder / name
    path.write_text(json.dumps(config))
    return str(path)


def reduced_model(name):
    """An open_clip model at full width, with two blocks a tower, few words and no zero weights."""
    config = open_clip.get_model_config(name)
    custom_text = config.pop("custom_text", False)
    config["text_cfg"] |= {"layers": 2, "vocab_size": 600}
    if "timm_model_name" not in config["vision_cfg"]:
        config["vision_cfg"]["layers"] = 2
    torch.manual_seed(0)
    model = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**config)
    if "timm_model_name" in config["vision_cfg"]:
        model.visual.trunk.blocks = model.visual.trunk.blocks[:2]
    disturb(model)
    return model.eval()


def disturb(module):
    """Add noise to all parameters, so that zero biases and unit norms hide nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))


def text_tower(model):
    return model.text if hasattr(model, "text") else model.transformer


def prompts_for(model):
    """Random tokens with an end token (the largest number) and padding behind it."""
    tokens = torch.randint(1, 599, (2, model.context_length))
    tokens[:, -4] = 599
    tokens[:, -3:] = 0
    return tokens


def assert_close(actual, expected, tolerance=1e-5):
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.fixture
def tiny_files(tmp_path):
    """Config and float16 safetensors file of a small CLIP, and the open_clip model that they describe."""
    config = write_config(tmp_path)
    torch.manual_seed(3)
    model = open_clip.CLIP(**TINY).eval()
    disturb(model)
    model.half().float()
    weights = tmp_path / "weights.safetensors"
    save_file({name: value.half().clone() for name, value in model.state_dict().items()}, weights)
    return config, str(weights), model


@pytest.fixture
def word_tokenizer(tmp_path):
    """Folder of a small word-level tokenizer in transformers' format, with an end token and padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", "a", "photo", "of", "dog", "cat"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    folder = tmp_path / "tokenizer"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A folder of each family: `clip` and `siglip`."""
    folder = tmp_path_factory.mktemp("transformers")
    makers = SMALL["transformers CLIP"], SMALL["transformers SigLIP2"]
    for name, make in zip(("clip", "siglip"), makers, strict=True):
        make(folder / name)
    return folder


@pytest.fixture(params=["clip", "siglip"])
def folder(folders, request):
    return folders / request.param


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the folder, to be spoiled."""
    return shutil.copytree(folder, tmp_path / folder.name)


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(params=["hangs", "refuses"])
def no_network(monkeypatch, request):
    def blocked(*arguments, **options):
        if request.param == "hangs":
            time.sleep(20)
        raise OSError("the network is blocked")

    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    monkeypatch.setattr(socket, "create_connection", blocked)
    if request.param == "hangs":
        monkeypatch.setattr(hub, "ANSWER_SECONDS", hub.ANSWER_SECONDS / 4)
