import hashlib
import http.server
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from dtrap.errors import DtrapError
from dtrap.lightning_modules.backbones import Backbone, OpenCLIP, checkpoint, hub
from dtrap.lightning_modules.backbones import open_clip as module
from dtrap.lightning_modules.backbones.attention import SeparateAttention

from .conftest import assert_close, write_config

pytestmark = pytest.mark.filterwarnings("ignore:The backbone has random weights")


def test_files_give_the_model_of_open_clip_frozen(tiny_files):
    config, weights, model = tiny_files
    backbone = OpenCLIP(config, weights)
    images = torch.randn(2, 3, 32, 32)
    tokens = backbone.tokenize(["a photo of a Dog.", "a cat"])
    assert torch.equal(tokens, open_clip.tokenize(["a photo of a Dog.", "a cat"], context_length=12))
    assert_close(backbone.encode_image(images), model.encode_image(images))
    assert_close(backbone.encode_text(tokens), model.encode_text(tokens))
    assert isinstance(backbone, Backbone)
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_facts_come_from_the_model(tiny_files, tmp_path):
    config, weights, _ = tiny_files
    backbone = OpenCLIP(config, weights)
    digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    assert backbone.identifier == f"tiny/weights-{digest[:8]}"
    assert (backbone.image_size, backbone.context_length, backbone.feature_dim) == (32, 12, 24)
    assert backbone.image_mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert backbone.logit_bias is None
    wrapped = tmp_path / "wrapped.json"
    wrapped.write_text(f'{{"model_cfg": {Path(config).read_text()}, "preprocess_cfg": {{"mean": [0.1, 0.2, 0.3]}}}}')
    assert OpenCLIP(str(wrapped), weights).image_mean == (0.1, 0.2, 0.3)
    biased = write_config(tmp_path, "biased.json", init_logit_bias=-10)
    assert OpenCLIP(biased, None).logit_bias == -10


@pytest.mark.parametrize("custom_text", [False, True])
def test_attention_layers_are_named_within_the_backbone(tmp_path, custom_text):
    backbone = OpenCLIP(write_config(tmp_path, custom_text=custom_text), None)
    text = "model.text.transformer" if custom_text else "model.transformer"
    assert backbone.attention_layers("vision") == [f"model.visual.transformer.resblocks.{i}.attn" for i in (0, 1)]
    assert backbone.attention_layers("text") == [f"{text}.resblocks.{i}.attn" for i in (0, 1)]
    for tower in ("vision", "text"):
        for name in backbone.attention_layers(tower):
            assert isinstance(backbone.get_submodule(name), SeparateAttention)


def test_shipped_files_are_found_by_their_bare_names(tiny_files, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "ASSETS", tmp_path)
    assert OpenCLIP("tiny.json", "weights.safetensors").identifier.startswith("tiny/weights-")


def test_random_weights_follow_the_seed_and_warn(tmp_path):
    config = write_config(tmp_path)
    images = torch.randn(1, 3, 32, 32)

    def features(seed):
        torch.manual_seed(seed)
        with pytest.warns(UserWarning, match="random weights"):
            return OpenCLIP(config, None).encode_image(images)

    assert torch.equal(features(1), features(1))
    assert not torch.equal(features(1), features(2))


@pytest.mark.parametrize("form", ["plain", "training checkpoint", "custom text"])
def test_torch_files(tiny_files, tmp_path, form):
    config, _, model = tiny_files
    state = model.state_dict()
    if form == "training checkpoint":
        state = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}
    if form == "custom text":
        config = write_config(tmp_path, "custom.json", custom_text=True)
    torch.save(state, tmp_path / "weights.pt")
    images = torch.randn(1, 3, 32, 32)
    backbone = OpenCLIP(config, str(tmp_path / "weights.pt"))
    assert_close(backbone.encode_image(images), model.encode_image(images))


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize("writer", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_that_runs_code_is_refused(tiny_files, tmp_path, writer):
    target, path = tmp_path / "executed", tmp_path / "evil.pt"
    writer({"weights": Malicious(target)}, path)
    with pytest.raises(DtrapError, match=r"evil\.pt: refused"):
        OpenCLIP(tiny_files[0], str(path))
    assert not target.exists()


def test_torchscript_is_read_only_where_it_is_trusted(tmp_path):
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(DtrapError, match="refused"):
        checkpoint.read_weights(path)
    assert set(checkpoint.read_weights(path, trust_torchscript=True)) == {"weight", "bias"}


def test_published_checksum_decides_about_trust_and_activation(tmp_path, monkeypatch):
    path = tmp_path / "ViT-B-16.pt"
    path.write_bytes(b"published")
    checksum = hashlib.sha256(b"published").hexdigest()
    entry = {"url": f"https://openaipublic/{checksum}/ViT-B-16.pt", "quick_gelu": True}
    clip = module.Architecture("ViT-B-16-quickgelu", {"quick_gelu": True}, {}, {"openai": entry})
    assert module.find_weights(clip, str(path), None).verified
    with pytest.raises(DtrapError, match=r"backbone\.name ViT-B-16-quickgelu"):
        module.find_weights(module.Architecture("ViT-B-16", {}, {}, {"openai": entry}), str(path), None)
    path.write_bytes(b"changed")
    assert not module.find_weights(clip, str(path), None).verified


def test_damaged_and_unfitting_weights(tiny_files, tmp_path):
    config, weights, _ = tiny_files
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(Path(weights).read_bytes()[:1000])
    with pytest.raises(DtrapError, match=r"damaged\.safetensors: not a valid safetensors"):
        OpenCLIP(config, str(damaged))
    wider = write_config(tmp_path, "wider.json", text_cfg={"width": 32})
    with pytest.raises(DtrapError, match=r"do not fit the model 'wider'.*\[12, 16\] instead of \[12, 32\]"):
        OpenCLIP(wider, weights)
    deeper = write_config(tmp_path, "deeper.json", text_cfg={"layers": 3})
    with pytest.raises(DtrapError, match=r"12 missing \(transformer\.resblocks\.2"):
        OpenCLIP(deeper, weights)


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-B-16", "openai", "QuickGELU.*backbone.name ViT-B-16-quickgelu"),
        ("ViT-B-16", "metaclip-400m", "QuickGELU.*backbone.name ViT-B-16-quickgelu"),
        ("RN50", "openai", "QuickGELU.*backbone.name RN50-quickgelu"),
        ("ViT-B-61", None, "unknown backbone 'ViT-B-61'.*'ViT-B-16'"),
        ("mine.json", None, "unknown backbone 'mine.json'"),
        ("ViT-B-16-quickgelu", "opnai", "Unknown weights 'opnai'.*Did you mean 'openai'"),
        ("ViT-B-16-quickgelu", "datacomp_xl_s13b_b90k", "belongs to .*ViT-B-16"),
        ("ViT-B-16-quickgelu", "no/such.pt", "'no/such.pt'.*not found"),
        ("roberta-ViT-B-32", None, "roberta-base"),
    ],
)
def test_mistakes_are_named_with_the_remedy(name, pretrained, message):
    with pytest.raises(DtrapError, match=message):
        OpenCLIP(name, pretrained)


@pytest.mark.parametrize("content", ["{", "[]", '{"embed_dim": 8}'])
def test_a_bad_config_is_named(tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(DtrapError, match=r"bad\.json"):
        OpenCLIP(str(tmp_path / "bad.json"), None)
    with pytest.raises(DtrapError, match=r"'odd'.*no_such_key"):
        OpenCLIP(write_config(tmp_path, "odd.json", vision_cfg={"no_such_key": 1}), None)


def test_a_config_has_no_tags(tiny_files):
    with pytest.raises(DtrapError, match="'tiny' has no published weights"):
        OpenCLIP(tiny_files[0])


def test_resnet_has_no_vision_attention_to_adapt():
    backbone = OpenCLIP("RN50", None)
    assert backbone.attention_layers("vision") == []
    assert len(backbone.attention_layers("text")) == 12
    assert backbone.encode_image(torch.zeros(1, 3, 224, 224)).shape == (1, 1024)


def test_a_file_for_a_published_model_takes_the_statistics_of_its_tags():
    siglip = module.find_architecture("ViT-B-16-SigLIP2")
    own_file = module.Weights("mine", None, None)
    found = module._evaluation_transform(siglip, own_file)
    assert (found["mean"], found["std"]) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (found["resize_mode"], found["interpolation"]) == ("squash", "bicubic")
    with pytest.warns(UserWarning, match="differ in image mean"):
        module._evaluation_transform(module.find_architecture("ViT-L-14"), own_file)


def test_too_long_prompts_are_refused(tiny_files):
    backbone = OpenCLIP(*tiny_files[:2])
    assert backbone.tokenize(["a " * 10]).shape == (1, 12)
    with pytest.raises(DtrapError, match=r"'a a a a a a a a a a a' has 13 tokens.*room for 12"):
        backbone.tokenize(["fine", " ".join(["a"] * 11)])


def siglip_like(folder, **text):
    text = {
        "hf_tokenizer_name": "nobody/no-such-tokenizer",
        "tokenizer_kwargs": {"clean": "canonicalize"},
    } | text
    return write_config(folder, text_cfg={"context_length": 6, "vocab_size": 8} | text)


def test_local_tokenizer_cleans_and_pads_as_the_model_wants(tmp_path, word_tokenizer):
    backbone = OpenCLIP(siglip_like(tmp_path), None, tokenizer=word_tokenizer)
    expected = [[3, 4, 5, 6, 1, 0], [7, 1, 0, 0, 0, 0]]
    assert backbone.tokenize(["A photo, of dog!", "cat"]).tolist() == expected
    with pytest.raises(DtrapError, match=r"has 7 tokens.*room for 6"):
        backbone.tokenize(["a photo of a dog cat"])


def test_wrong_tokenizers_are_named(tmp_path, word_tokenizer):
    with pytest.raises(DtrapError, match="'/no/such' is not a folder"):
        OpenCLIP(siglip_like(tmp_path), None, tokenizer="/no/such")
    with pytest.raises(DtrapError, match="not readable as a transformers tokenizer"):
        OpenCLIP(siglip_like(tmp_path), None, tokenizer=str(tmp_path)).tokenize(["cat"])
    with pytest.raises(DtrapError, match=r"token 7, but .* has 7 tokens"):
        OpenCLIP(siglip_like(tmp_path, vocab_size=7), None, tokenizer=word_tokenizer).tokenize(["cat"])


def within_five_seconds(action, message):
    start = time.perf_counter()
    with pytest.raises(DtrapError, match=message):
        action()
    assert time.perf_counter() - start < 5


@pytest.mark.usefixtures("no_network")
def test_without_network_one_error_within_five_seconds(tmp_path):
    cache = str(tmp_path)
    within_five_seconds(
        lambda: OpenCLIP(cache_dir=cache),
        "Weights 'openai' of 'ViT-B-16-quickgelu' are not cached.*model.backbone",
    )
    backbone = OpenCLIP(siglip_like(tmp_path), None, cache_dir=cache)
    within_five_seconds(lambda: backbone.tokenize(["cat"]), "tokenizer of tiny/random is not cached.*HF_HOME")


@pytest.mark.usefixtures("no_network")
def test_without_network_tokenizers_on_disk_load_at_once(tmp_path, word_tokenizer):
    config = siglip_like(tmp_path)
    snapshots = tmp_path / "models--nobody--no-such-tokenizer" / "snapshots"
    (snapshots.parent / "refs").mkdir(parents=True)
    (snapshots.parent / "refs" / "main").write_text("revision")
    shutil.copytree(word_tokenizer, snapshots / "revision")
    start = time.perf_counter()
    for options in ({"cache_dir": str(tmp_path)}, {"tokenizer": word_tokenizer}):
        assert OpenCLIP(config, None, **options).tokenize(["cat"])[0, 0] == 7
    assert time.perf_counter() - start < 5


class Mirror(http.server.BaseHTTPRequestHandler):
    """A hub with one file; for a repository named 'slow' the answer takes longer than anybody waits."""

    content = b"weights"

    def do_HEAD(self):
        if "/some/slow/" in self.path:
            time.sleep(8)
        found = self.path.endswith("/model.bin")
        self.send_response(200 if found else 404)
        self.send_header("ETag", '"0123"')
        self.send_header("X-Repo-Commit", "c" * 40)
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(self.content) if found else 0))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *arguments):
        pass


MIRROR_SCRIPT = """
import time
from dtrap.errors import DtrapError
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.backbones.hub import HubFiles

names = ["model.safetensors", "model.bin"]
print(HubFiles("some/repo", "", what="It is").require(names).read_bytes())
for load in (OpenCLIP, lambda: HubFiles("some/slow", "Fix it.", what="It is").require(names)):
    start = time.perf_counter()
    try:
        load()
    except DtrapError as error:
        print("in time" if time.perf_counter() - start < 5 else "late", error)
"""


def test_mirror_cache_and_timeout(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": address, "NO_PROXY": "127.0.0.1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", MIRROR_SCRIPT]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    server.shutdown()

    downloaded, weights, slow = result.stdout.splitlines()
    assert downloaded == "b'weights'"
    assert weights.startswith("in time Weights 'openai'")
    assert slow.startswith(f"in time It is not cached and could not be downloaded from {address}/some/")
    monkeypatch.setattr(hub, "hf_hub_download", None)
    cached = hub.HubFiles("some/repo", "", str(tmp_path / "hub")).require(["model.bin"])
    assert cached.read_bytes() == b"weights"
