"""`dtrap export --push` up to the calls of the hub's library, and the model card that is uploaded."""

import json

import pytest
import yaml
from dtrap.commands import hub_upload
from dtrap.commands.model_card import weights_license
from exported_runs import CLASSES, export, save_run, small_backbones
from huggingface_hub import ModelCard


@pytest.fixture(scope="module")
def backbones(tiny_clip_files, tmp_path_factory):
    return small_backbones(tiny_clip_files, tmp_path_factory.mktemp)


@pytest.fixture
def adapter(backbones, tmp_path):
    return save_run(tmp_path / "run", backbones["open_clip"], {"rank": 2})[1]


class Hub:
    """The hub's library without a network: notes what it is asked for."""

    def __init__(self, error=None):
        self.error, self.calls = error, []

    def create_repo(self, name, **options):
        self.calls.append(("create", name, options))
        if self.error is not None:
            raise self.error

    def upload_folder(self, **options):
        files = {path.name: path.read_bytes() for path in options["folder_path"].iterdir()}
        self.calls.append(("upload", options["repo_id"], files))


@pytest.fixture
def hub(monkeypatch):
    made = Hub()
    monkeypatch.setattr(hub_upload, "HfApi", lambda: made)
    monkeypatch.setattr(hub_upload, "get_token", lambda: "hf_of_a_test")
    return made


def test_a_pushed_folder_is_private_and_has_no_path_of_this_machine(dtrap, adapter, hub, tmp_path):
    said = export(dtrap, adapter, "model", "--push", "me/my-model")
    assert "https://huggingface.co/me/my-model" in said
    (created, uploaded) = hub.calls
    assert created == ("create", "me/my-model", {"private": True, "exist_ok": True})
    assert uploaded[1] == "me/my-model"
    files = uploaded[2]
    assert {"README.md", "dtrap.json", "open_clip_model.safetensors"} <= files.keys()
    assert "config.yaml" not in files
    for name, content in files.items():
        assert str(tmp_path).encode() not in content, name
        assert b"/tmp" not in content.partition(b"\0")[0], name
    export(dtrap, adapter, "public", "--push", "me/other", "--private", "false")
    assert hub.calls[-2][2]["private"] is False


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionError("no route to host"), "no route to host"),
        (OSError("Cannot reach https://huggingface.co: offline mode is enabled."), "offline mode"),
    ],
)
def test_a_failed_upload_is_one_sentence_and_keeps_the_folder(dtrap, adapter, hub, tmp_path, error, told):
    hub.error = error
    status, _, err = dtrap("export", "--adapter", adapter, "--output", "model", "--push", "me/my-model")
    assert status == 2
    assert told in err
    assert "hf upload me/my-model model" in err
    assert "Traceback" not in err
    assert (tmp_path / "model" / "README.md").is_file()


@pytest.mark.parametrize("name", ["my-model", "me/", "/x", "a/b/c", "me/ü", "me/a b"])
def test_another_name_than_owner_and_name_is_refused_before_the_work(dtrap, adapter, hub, tmp_path, name):
    status, _, err = dtrap("export", "--adapter", adapter, "--output", "model", "--push", name)
    assert status == 2
    assert "owner/name" in err
    assert not hub.calls
    assert not (tmp_path / "model").exists()


def test_without_a_token_one_sentence_says_how_to_get_one(dtrap, adapter, monkeypatch, tmp_path):
    monkeypatch.setattr(hub_upload, "get_token", lambda: None)
    status, _, err = dtrap("export", "--adapter", adapter, "--output", "model", "--push", "me/my-model")
    assert status == 2
    assert "hf auth login" in err
    assert "HF_TOKEN" in err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("form", ["plain", "peft"])
def test_the_card_is_what_the_hub_reads(dtrap, adapter, tmp_path, form):
    card = json.loads(adapter.with_suffix(".json").read_text())
    row = {"method": "svl-ra", "episode": 0, "seed": 1, "classes": CLASSES, "accuracy": card["accuracy"]}
    row |= {"test_images": 40, "binomial_interval": [61.5, 84.5], "zero_shot_accuracy": 50.0}
    (tmp_path / "run" / "results.jsonl").write_text(json.dumps(row) + "\n")
    export(dtrap, adapter, "model", "--form", form)
    read = ModelCard.load(tmp_path / "model" / "README.md")
    data = yaml.safe_load(read.content.split("---")[1])
    assert data["pipeline_tag"] == "image-classification"
    assert data["library_name"] == {"plain": "open_clip", "peft": "peft"}[form]
    assert data["license"] == "other"
    assert "few-shot" in data["tags"]
    for name in CLASSES:
        assert f". {name}\n" in read.text
    assert "not known to dtrap" in read.text  # of weights in a local file
    assert "Not measured" in read.text  # the card of this adapter has no accuracy


def test_an_accuracy_has_the_interval_of_its_run(dtrap, adapter, tmp_path):
    from dtrap.commands.model_card import row_of_run, save_model_card
    from dtrap.protocol.adapters import read_card

    card = read_card(adapter)
    card.accuracy = 75.0
    row = {"method": "svl-ra", "episode": 0, "seed": 1, "classes": CLASSES, "accuracy": 75.0}
    row |= {"test_images": 40, "binomial_interval": [58.8, 87.3], "zero_shot_accuracy": 50.0}
    (tmp_path / "run" / "results.jsonl").write_text(json.dumps(row) + "\n")
    found = row_of_run(adapter, card)
    save_model_card(tmp_path, "onnx", card, found, None)
    read = ModelCard.load(tmp_path / "README.md")
    (result,) = read.data.eval_results
    assert result.metric_value == 0.75
    assert "95% interval 58.80 to 87.30" in result.metric_name
    assert "75.00 % of the held-out images" in read.text
    assert "Without tuning (zero-shot): 50.00 %" in read.text
    row["accuracy"] = 80.0  # of a run that was made again
    (tmp_path / "run" / "results.jsonl").write_text(json.dumps(row) + "\n")
    assert row_of_run(adapter, card) is None


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        ("ViT-B-16-quickgelu/openai", "mit"),
        ("ViT-B-16-SigLIP2/webli", "apache-2.0"),
        ("PE-Core-B-16/meta", "apache-2.0"),
        ("google/siglip2-base-patch16-224", "apache-2.0"),
        ("random/random-24be5dba", None),
        ("somebody/openai-like", None),
    ],
)
def test_a_license_is_named_where_it_is_known_only(identifier, expected):
    assert weights_license(identifier) == expected
