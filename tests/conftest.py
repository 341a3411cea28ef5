"""A tiny CLIP with random weights in the real file formats, shared by all tests."""

import json

import open_clip
import pytest
import torch
from dtrap.lightning_modules.backbones import OpenCLIP
from safetensors.torch import save_file

TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="session", autouse=True)
def _few_threads():
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tiny_clip_files(tmp_path_factory):
    """(config, checkpoint) of a random CLIP that open_clip itself loads."""
    folder = tmp_path_factory.mktemp("tiny_clip")
    config, checkpoint = folder / "random.json", folder / "random.safetensors"
    config.write_text(json.dumps(TINY))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.model.CLIP(**TINY)
    save_file(model.state_dict(), checkpoint)
    return config, checkpoint


@pytest.fixture
def tiny_backbone(tiny_clip_files):
    config, checkpoint = tiny_clip_files
    return OpenCLIP(str(config), str(checkpoint))
