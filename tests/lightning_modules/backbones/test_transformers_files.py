"""Where the files of a transformers backbone come from: folders, the hub, its cache; and what is wrong with them."""

import http.server
import json
import shutil
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import torch
import transformers
from dtrap.errors import DtrapError
from dtrap.lightning_modules.backbones import OpenCLIP, Transformers, hub
from small_backbones import clip_config, gemma_tokenizer, save_transformers, siglip_config

from .conftest import change, write_config

PROMPTS = ["a photo of a sea or lake", "a drawing of a Cat"]
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_random_weights_need_the_config_alone(folder, tmp_path):
    shutil.copy(folder / "config.json", tmp_path)

    def drawn(seed):
        torch.manual_seed(seed)
        with pytest.warns(UserWarning, match="random weights"):
            return Transformers(str(tmp_path), random_weights=True)

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert first.identifier == f"{tmp_path.name}/random"
    assert torch.equal(first.encode_image(IMAGES), again.encode_image(IMAGES))
    assert not torch.equal(first.encode_image(IMAGES), other.encode_image(IMAGES))
    with pytest.raises(DtrapError, match=r"no tokenizer\.json"):
        first.tokenize(["cat"])


def test_missing_files_are_named(copied):
    (copied / "model.safetensors").rename(copied / "kept")
    with pytest.raises(DtrapError, match=r"no model\.safetensors.*Expected config\.json") as refused:
        Transformers(str(copied))
    assert "pickle" not in str(refused.value)
    (copied / "kept").rename(copied / "pytorch_model.bin")
    with pytest.raises(
        DtrapError, match=r"pytorch_model\.bin is not read, since a pickle can run code.*save_pretrained"
    ):
        Transformers(str(copied))
    (copied / "config.json").unlink()
    with pytest.raises(DtrapError, match=r"no config\.json"):
        Transformers(str(copied))


def test_damaged_files_are_named(copied):
    (copied / "model.safetensors").write_bytes((copied / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(DtrapError, match=r"model\.safetensors: not a valid safetensors"):
        Transformers(str(copied))
    (copied / "config.json").write_text("{")
    with pytest.raises(DtrapError, match=r"config\.json: not a JSON"):
        Transformers(str(copied))


def test_weights_of_another_model_are_refused(folder, tmp_path):
    make, model = (clip_config, transformers.CLIPModel), (siglip_config, transformers.SiglipModel)
    config, model_class = make if folder.name == "clip" else model
    changed = config()
    changed.vision_config.intermediate_size = 48
    save_transformers(tmp_path, changed, model_class)
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(DtrapError, match=r"model\.safetensors: these weights do not fit config\.json.*fc1"):
        Transformers(str(tmp_path))
    for path in tmp_path.glob("*.safetensors"):
        shutil.copy(folder / "model.safetensors", path)
    change(tmp_path / "config.json", vision_config={"num_hidden_layers": 0, "hidden_size": "wide"})
    with pytest.raises(DtrapError, match=r"cannot build .* from its config\.json"):
        Transformers(str(tmp_path))


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("siglip2", "NaFlex.*fixed resolution, such as google/siglip2-base-patch16-224"),
        ("bert", "model_type 'bert'.*clip or siglip.*OpenCLIP"),
        (None, "model_type None"),
    ],
)
def test_models_that_are_not_offered(copied, model_type, message):
    change(copied / "config.json", model_type=model_type)
    with pytest.raises(DtrapError, match=message):
        Transformers(str(copied))


def test_siglip_without_a_pool_is_refused(tmp_path):
    save_transformers(tmp_path, siglip_config(vision_use_head=False), transformers.SiglipModel)
    with pytest.raises(DtrapError, match="no attention pool"):
        Transformers(str(tmp_path))


def test_wrong_tokenizers_are_named(folders, tmp_path):
    folder = shutil.copytree(folders / "siglip", tmp_path / "unreadable")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DtrapError, match=r"tokenizer in .*unreadable is not usable"):
        Transformers(str(folder)).tokenize(["cat"])
    folder = tmp_path / "few words"
    shutil.copytree(folders / "clip", folder)
    save_transformers(folder, clip_config(vocab_size=300, bos_token_id=298, eos_token_id=299), transformers.CLIPModel)
    with pytest.raises(DtrapError, match=r"returned token \d+, but .* has 300 tokens.*own tokenizer files"):
        Transformers(str(folder)).tokenize(["cat"])
    folder = shutil.copytree(folders / "clip", tmp_path / "another kind", ignore=shutil.ignore_patterns("*.txt", "v*"))
    gemma_tokenizer(folder)
    with pytest.raises(DtrapError, match="does not end prompts with token 49407"):
        Transformers(str(folder)).tokenize(["cat"])


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "tiny_clip.json", "/no/such"])
def test_neither_folder_nor_repository(name):
    with pytest.raises(DtrapError, match=f"'{name}'.*neither a folder.*nor a repository"):
        Transformers(name)


@pytest.mark.usefixtures("no_network")
def test_without_network_one_error_within_five_seconds(tmp_path):
    start = time.perf_counter()
    with pytest.raises(
        DtrapError, match=r"config\.json of 'some/model' is not cached.*model\.backbone\.name.*or set HF_HOME"
    ):
        Transformers("some/model", cache_dir=str(tmp_path))
    assert time.perf_counter() - start < 5


def cache(folder, cache_dir, revision="main", files="*"):
    """Puts a folder's files into a hub cache as those of 'some/model'."""
    repo = cache_dir / "models--some--model"
    reference = repo / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit := revision.replace("/", "-"))
    (repo / "snapshots" / commit).mkdir(parents=True)
    for path in folder.glob(files):
        shutil.copy(path, repo / "snapshots" / commit)
    for absent in ("preprocessor_config.json", "processor_config.json"):
        marker = repo / ".no_exist" / commit / absent
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    return repo / "snapshots" / commit


@pytest.mark.usefixtures("no_network")
def test_without_network_cached_files_load_at_once(folder, tmp_path):
    snapshot = cache(folder, tmp_path)
    start = time.perf_counter()
    backbone = Transformers("some/model", cache_dir=str(tmp_path))
    local = Transformers(str(folder))
    assert backbone.identifier == "some/model"
    assert torch.equal(backbone.tokenize(PROMPTS), local.tokenize(PROMPTS))
    assert torch.equal(backbone.encode_image(IMAGES), local.encode_image(IMAGES))
    assert time.perf_counter() - start < 5
    # the bot's conversion to safetensors, in a pull request's own snapshot
    (snapshot / "model.safetensors").unlink()
    cache(folder, tmp_path, "refs/pr/7", "*.safetensors")
    converted = Transformers("some/model", cache_dir=str(tmp_path))
    assert torch.equal(converted.encode_image(IMAGES), local.encode_image(IMAGES))


@pytest.mark.usefixtures("no_network")
def test_without_network_the_missing_file_is_named(folder, tmp_path):
    snapshot = cache(folder, tmp_path)
    (snapshot / "tokenizer_config.json").unlink()
    backbone = Transformers("some/model", cache_dir=str(tmp_path))
    with pytest.raises(DtrapError, match=r"\w+\.\w+ of 'some/model' is not cached.*HF_HOME"):
        backbone.tokenize(["cat"])
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(DtrapError, match=r"model\.safetensors of 'some/model' is not cached"):
        Transformers("some/model", cache_dir=str(tmp_path))


PULL_REQUESTS = [
    {"num": 2, "title": hub.CONVERSION_TITLE, "status": "open", "author": {"name": "nobody"}},
    {"num": 3, "title": hub.CONVERSION_TITLE, "status": "open", "author": {"name": hub.CONVERSION_BOT}},
]


class Mirror(http.server.SimpleHTTPRequestHandler):
    """A hub with 'some/model', whose weights are safetensors only in the pull request of the conversion bot."""

    folder: Path

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.wfile.write(self.answer())

    def answer(self):
        revision, _, filename = unquote(urlsplit(self.path).path).partition("/resolve/")[2].rpartition("/")
        content = None
        if "/discussions" in self.path:
            shared = {"isPullRequest": True, "repo": {"name": "some/model", "type": "model"}}
            rows = [row | shared | {"createdAt": "2024-01-01T00:00:00.000Z"} for row in PULL_REQUESTS]
            content = json.dumps({"discussions": rows, "count": len(rows), "start": 0}).encode()
        elif (self.folder / filename).is_file() and (filename.endswith("safetensors") == (revision == "refs/pr/3")):
            content = (self.folder / filename).read_bytes()
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{filename}"')
        self.send_header("X-Repo-Commit", ("a" if revision == "main" else "b") * 40)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        return content or b""

    def log_message(self, *arguments):
        pass


@pytest.fixture
def mirror(folders, monkeypatch):
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Handler", (Mirror,), {"folder": folders / "siglip"})
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
    forget = getattr(huggingface_hub.utils, "reset_sessions", getattr(huggingface_hub.utils, "close_session", None))
    forget()
    yield
    server.shutdown()
    forget()


@pytest.mark.usefixtures("mirror")
def test_a_download_takes_safetensors_from_the_bots_pull_request(folders, tmp_path, monkeypatch):
    local = Transformers(str(folders / "siglip"))

    def loaded():
        backbone = Transformers("some/model", cache_dir=str(tmp_path))
        assert torch.equal(backbone.encode_image(IMAGES), local.encode_image(IMAGES))
        assert torch.equal(backbone.tokenize(PROMPTS), local.tokenize(PROMPTS))

    loaded()
    monkeypatch.setattr(hub, "hf_hub_download", None)
    monkeypatch.setattr(hub, "require_reachable", None)
    loaded()


@pytest.mark.usefixtures("mirror")
@pytest.mark.filterwarnings("ignore:The backbone has random weights")
def test_a_model_of_open_clip_downloads_its_tokenizer_once(folders, tmp_path, monkeypatch):
    config = write_config(tmp_path, text_cfg={"hf_tokenizer_name": "some/model"})
    expected = OpenCLIP(config, None, tokenizer=str(folders / "siglip")).tokenize(["a sea"])
    assert torch.equal(OpenCLIP(config, None, cache_dir=str(tmp_path)).tokenize(["a sea"]), expected)
    monkeypatch.setattr(hub, "hf_hub_download", None)
    assert torch.equal(OpenCLIP(config, None, cache_dir=str(tmp_path)).tokenize(["a sea"]), expected)
