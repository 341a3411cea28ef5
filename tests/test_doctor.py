"""`dtrap doctor`: versions, device, weight files and features."""

import ast
import hashlib
import json
import os
import re
from pathlib import Path

import dtrap
import pytest
import torch
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.protocol.doctor import device as device_module
from dtrap.protocol.doctor import features
from dtrap.protocol.doctor.device import try_precisions
from dtrap.protocol.doctor.installation import EXTRAS, extras
from dtrap.protocol.doctor.weights import find_weight_files
from huggingface_hub.file_download import repo_folder_name
from packaging.requirements import Requirement
from safetensors.torch import save_file
from small_backbones import clip_config, save_transformers
from transformers import CLIPModel

ROOT = Path(dtrap.__file__).resolve().parent


def test_the_shipped_model_is_sound(dtrap, tmp_path):
    status, output, errors = dtrap("doctor", "--backbone", "tiny", "--save", tmp_path / "here.json")
    assert (status, errors) == (0, "")
    for words in (
        "32-true",
        "the default of a run",
        "comes with dtrap",
        "Published logits of dtrap: agree",
        "here.json",
    ):
        assert words in output
    status, output, _ = dtrap("doctor", "--backbone", "tiny", "--compare", tmp_path / "here.json")
    assert status == 0
    assert ": the same (largest 1 - cosine" in output


def test_other_features_are_found(dtrap, tmp_path):
    dtrap("doctor", "--backbone", "tiny", "--save", tmp_path / "here.json")
    content = json.loads((tmp_path / "here.json").read_text())
    content["image"] = content["image"][::-1]
    (tmp_path / "here.json").write_text(json.dumps(content))
    status, output, _ = dtrap("doctor", "--backbone", "tiny", "--compare", tmp_path / "here.json")
    assert status == 1
    assert "DIFFERENT" in output


def test_without_a_name_all_weights_are_listed_and_nothing_fails(dtrap, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    status, output, _ = dtrap("doctor")
    assert status == 0
    assert "biomedclip            not cached" in output
    assert "dtrap[onnx]" in output


def test_weights_that_are_not_there_are_a_fault_when_asked_for(dtrap):
    status, output, _ = dtrap("doctor", "--backbone", "dfn")
    assert status == 1
    assert "Download open_clip_model.safetensors from https://huggingface.co/apple/DFN2B-CLIP-ViT-B-16" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbone", "clipp"], "config 'clipp' not found"),
        (["--backbone", "folder.yaml"], "has no model.backbone with a class_path. Expected one of biomedclip, clip"),
        (["--backbone", "tiny", "--compare", "none.json"], "--compare none.json: cannot be read"),
        (["--accelerator", "tpu9"], "--accelerator tpu9 is not available here"),
        (["--bakbone", "tiny"], "unknown option '--bakbone'. Did you mean '--backbone'?"),
    ],
)
def test_mistakes_are_one_sentence(dtrap, words, message):
    status, _, errors = dtrap("doctor", *words)
    assert status == 2
    assert message in errors
    assert "Traceback" not in errors


def put_into_cache(cache, repo, files):
    """Lay files into a hub cache as a download does: a link to a file that is named after its checksum."""
    folder = cache / repo_folder_name(repo_id=repo, repo_type="model")
    for name in ("refs", "blobs", "snapshots/1234"):
        (folder / name).mkdir(parents=True)
    (folder / "refs/main").write_text("1234")
    for file in files:
        blob = folder / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        os.symlink(blob, folder / "snapshots/1234" / file.name)


def test_a_damaged_download_is_found(tmp_path, dtrap):
    save_transformers(tmp_path / "model", clip_config(), CLIPModel)
    files = [tmp_path / "model" / name for name in ("config.json", "model.safetensors")]
    put_into_cache(tmp_path / "hub", "owner/clip", files)
    arguments = {"name": "owner/clip", "cache_dir": str(tmp_path / "hub")}
    found = find_weight_files("dtrap.lightning_modules.backbones.Transformers", arguments)
    assert (found.published, found.size) == (True, files[1].stat().st_size)
    content = bytearray(files[1].read_bytes())
    content[-1] ^= 1
    found.paths[0].resolve().write_bytes(content)
    found = find_weight_files("dtrap.lightning_modules.backbones.Transformers", arguments)
    assert found.published is False
    assert "rm " in found.remark
    own = find_weight_files("Transformers", {"name": str(tmp_path / "model")})
    assert own.published is None
    assert hashlib.sha256(files[1].read_bytes()).hexdigest()[:16] in own.remark


def test_published_logits_are_compared_where_the_image_is_given(dtrap, tmp_path, monkeypatch):
    backbone = OpenCLIP("tiny_clip.json", "tiny_clip.safetensors")
    picture = features.drawn_image().transpose(1)
    picture.save(tmp_path / "cats.png")
    inputs = features.preprocessing_of(backbone).using("backbone").to_tensor(picture)[None]
    with torch.no_grad():  # as open_clip itself computes them
        image, texts, scale = backbone.model(inputs, backbone.tokenize(["a star", "a moon"]))
    logits = (scale * image @ texts.T)[0].tolist()
    entry = {"models": [backbone.identifier], "image": "cats.png (https://example.org)", "texts": ["a star", "a moon"]}
    entry |= {"logits": logits, "tolerance": 0.01, "source": "a test"}
    (tmp_path / "published.json").write_text(json.dumps([entry]))
    monkeypatch.setattr(features, "PUBLISHED", tmp_path / "published.json")
    status, output, _ = dtrap("doctor", "--backbone", "tiny")
    assert status == 0
    assert "get cats.png (https://example.org) and give it with --image" in output
    status, output, _ = dtrap("doctor", "--backbone", "tiny", "--image", tmp_path / "cats.png")
    assert status == 0
    assert "Published logits of a test: agree" in output
    features.drawn_image().save(tmp_path / "dogs.png")
    status, output, _ = dtrap("doctor", "--backbone", "tiny", "--image", tmp_path / "dogs.png")
    assert status == 1
    assert "DIFFER" in output


def test_a_device_with_wrong_numbers_is_found(monkeypatch):
    trials = {trial.precision: trial for trial in try_precisions(torch.device("cpu"))}
    assert all(trial.works for trial in trials.values() if trial.error is not None)
    assert trials["32-true"].default
    whole = device_module._outcome

    def spoiled(device, dtype, low):
        found = whole(device, dtype, low)
        return found if dtype == torch.float64 else [value * 1.001 for value in found]

    monkeypatch.setattr(device_module, "_outcome", spoiled)
    assert not try_precisions(torch.device("cpu"))[0].works


def test_the_extras_are_those_of_the_package():
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    listed = dict(re.findall(r"^(\w+) = (\[.*?\])$", section, re.MULTILINE | re.DOTALL))
    for extra, names in EXTRAS.items():
        assert [Requirement(each).name for each in ast.literal_eval(listed[extra])] == list(names)
        assert f"dtrap[{extra}]" in extras()
    assert listed.keys() - EXTRAS.keys() == {"test", "dev", "docs", "all"}


def test_a_file_of_your_own_config_is_read(dtrap, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    section = {"class_path": "dtrap.lightning_modules.backbones.OpenCLIP"}
    section["init_args"] = {"name": "tiny_clip.json", "pretrained": str(tmp_path / "w.safetensors")}
    (tmp_path / "mine.yaml").write_text(json.dumps({"model": {"backbone": section}}))
    status, output, errors = dtrap("doctor", "--backbone", tmp_path / "mine.yaml")
    assert status == 2
    assert "a file of your own" in output
    assert "these weights do not fit" in errors
