"""A tiny CLIP with random weights in the real file formats, shared by all tests."""

import json
import os
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from dtrap.cli import main
from dtrap.lightning_modules.backbones import OpenCLIP
from safetensors.torch import save_file

TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Features and checksums are kept in a temporary folder, also those of child processes."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


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


@pytest.fixture
def damaged(root, tmp_path):
    """A copy of the images of the test file's `root`, to damage."""
    return Path(shutil.copytree(root, tmp_path / "damaged"))


@pytest.fixture
def dtrap(capsys, monkeypatch, tmp_path):
    """The command line in this process and in an empty folder: words -> (exit status, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return run


@pytest.fixture
def tiny_model(tiny_clip_files):
    """Options that put the random tiny CLIP in place of the config's backbone."""
    config, checkpoint = tiny_clip_files
    return ["--model.backbone.name", str(config), "--model.backbone.pretrained", str(checkpoint)]
