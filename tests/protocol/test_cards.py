"""A saved adapter as one file: enough for predictions anywhere, and one message for whatever is wrong with it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from layouts import make_folder, picture
from safetensors import safe_open
from safetensors.torch import load_file, save_file

OLD = Path(__file__).parents[1] / "data" / "old_run" / "demo" / "adapters"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_clip_files):
    """Adapters of the demo, of the embedded tiny CLIP and of a tiny CLIP in local files: (folder of either)."""
    from dtrap.cli import main

    folder = tmp_path_factory.mktemp("runs")
    config, weights = tiny_clip_files
    local = ["--model.backbone.name", str(config), "--model.backbone.pretrained", str(weights)]
    common = ["--config", "demo.yaml", "--protocol.save_adapters", "true", "--protocol.episodes", "2"]
    common += ["--trainer.max_epochs", "15", "--data.way", "3", "--data.query", "4"]
    runs = {
        "shipped": ["--protocol.compare", "[tuners/clip_adapter.yaml, methods/baseline.yaml]"],
        "local": [*local, "--protocol.compare", "null"],
    }
    for name, words in runs.items():
        with pytest.raises(SystemExit) as stop:
            main(["fit", *common, *words, "--protocol.folder", str(folder / name)])
        assert stop.value.code == 0
    return folder


@pytest.fixture
def mailed(run, tmp_path):
    """One adapter without its card and its run, and a folder of new images."""
    (tmp_path / "new").mkdir()
    picture(1).save(tmp_path / "new" / "1.png")
    picture(2).save(tmp_path / "new" / "2.png")
    return Path(
        shutil.copy(run / "shipped" / "adapters" / "episode_0001_svl-ra.safetensors", tmp_path / "x.safetensors")
    )


def card_of(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["dtrap_card"])


def with_card(path, change):
    """Write the file again with a changed card."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    content = change(json.loads(metadata["dtrap_card"]))
    save_file(load_file(path), path, metadata={**metadata, "dtrap_card": json.dumps(content)})


def predict(dtrap, adapter, *words):
    return dtrap("predict", "--adapter", adapter, "--images", "new", "--output", "p.csv", "--overwrite", *words)


def test_a_file_alone_predicts_as_in_its_run(dtrap, run, mailed, tmp_path):
    tables = []
    for adapter in (mailed, run / "shipped" / "adapters" / "episode_0001_svl-ra.safetensors"):
        status, _, err = predict(dtrap, adapter)
        assert status == 0, err
        tables.append((tmp_path / "p.csv").read_text())
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 3


def test_a_file_alone_is_tested_and_exported(dtrap, run, mailed):
    row = next(
        row
        for row in map(json.loads, (run / "shipped" / "results.jsonl").read_text().splitlines())
        if (row["episode"], row["method"]) == (1, "svl-ra")
    )
    status, out, err = dtrap("test", "--adapter", mailed)
    assert status == 0, err
    assert f"{mailed}: {row['accuracy']:.1f} %" in out
    assert dtrap("export", "--adapter", mailed, "--output", "out")[0] == 0
    (Path("out") / "config.yaml").unlink()
    status, out, err = dtrap("test", "--adapter", "out")
    assert status == 0, err
    assert f"out: {row['accuracy']:.1f} %" in out


def test_the_copy_of_the_card_may_be_missing_but_not_differ(dtrap, run, mailed):
    source = run / "shipped" / "adapters" / "episode_0001_svl-ra.json"
    copy = mailed.with_suffix(".json")
    shutil.copy(source, copy)
    assert json.loads(copy.read_text()) == card_of(mailed)
    assert predict(dtrap, mailed)[0] == 0
    copy.write_text(copy.read_text().replace("stripes", "zebra").replace('"seed": 1', '"seed": 2'))
    status, _, err = predict(dtrap, mailed)
    assert status == 2
    assert f"{copy}: differs from the card inside {mailed}" in err


def test_values_of_another_adapter_are_refused(dtrap, mailed):
    with safe_open(mailed, "pt") as file:
        metadata = file.metadata()
    save_file({name: value + 1 for name, value in load_file(mailed).items()}, mailed, metadata=metadata)
    status, _, err = predict(dtrap, mailed)
    assert status == 2
    assert "not those that were saved with its card" in err
    del metadata["dtrap_sha256"]
    save_file(load_file(mailed), mailed, metadata=metadata)
    status, _, err = predict(dtrap, mailed)
    assert status == 2
    assert "not those that were saved with its card" in err


def test_a_file_that_may_not_be_read_is_not_called_missing(dtrap, mailed, monkeypatch):
    from dtrap.protocol import adapter_file

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(adapter_file, "open_file", refuse)
    assert "Permission denied" in predict(dtrap, mailed)[2]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("vision_cfg", [1]),
        ("text_cfg", "x"),
        ("text_cfg.tokenizer_kwargs", {"bpe_path": "pipe"}),
        ("preprocess_cfg", 3),
        ("preprocess_cfg.mean", ["x", "y", "z"]),
        ("preprocess_cfg.std", 1),
    ],
)
def test_a_hostile_config_of_an_exported_model_is_one_message(dtrap, mailed, part, value):
    assert dtrap("export", "--adapter", mailed, "--output", "out")[0] == 0
    os.mkfifo("pipe")
    config = Path("out", "open_clip_config.json")
    content = json.loads(config.read_text())
    section, _, option = part.partition(".")
    place = content if section == "preprocess_cfg" else content["model_cfg"]
    content_of = (place[section], option) if option else (place, section)
    content_of[0][content_of[1]] = value
    config.write_text(json.dumps(content))
    status, _, err = predict(dtrap, "out")
    assert status == 2
    assert "open_clip_config" in err
    assert len(err.splitlines()) == 1


def test_a_device_or_pipe_is_not_replaced_by_the_predictions(dtrap, mailed):
    os.mkfifo("p.csv")
    status, _, err = predict(dtrap, mailed)
    assert status == 2
    assert "p.csv is a FIFO" in err
    make_folder(Path("photos"), (1, 1))
    status, _, err = dtrap("data", "check", "photos", "--csv", "p.csv")
    assert status == 2
    assert "p.csv: cannot write (a device, FIFO or socket, not a file)" in err
    assert "--csv" in err
    assert Path("p.csv").is_fifo()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("card", ["new", "old"])
def test_values_that_are_not_finite_or_too_large_are_refused(dtrap, mailed, tmp_path, value, card):
    if card == "old":
        mailed = Path(shutil.copytree(OLD.parent, tmp_path / "old"), "adapters", "episode_0001_svl-ra.safetensors")
    with safe_open(mailed, "pt") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != "dtrap_sha256"}
    tensors = load_file(mailed)
    tensors[min(tensors)].view(-1)[0] = value
    save_file(tensors, mailed, metadata=metadata)
    for words in (["predict", "--images", "new"], ["test"], ["export", "--output", "out"]):
        status, out, err = dtrap(*words, "--adapter", mailed)
        assert status == 2
        assert min(tensors) in err
        assert "%" not in out
    assert not Path("predictions.csv").exists()
    assert not Path("out").exists()


def test_local_weights_are_told_by_checksum_and_asked_for_by_name(dtrap, run, tiny_clip_files, tmp_path):
    (tmp_path / "new").mkdir()
    picture(1).save(tmp_path / "new" / "1.png")
    adapter = Path(shutil.copy(next((run / "local" / "adapters").glob("*.safetensors")), tmp_path / "x.safetensors"))
    assert predict(dtrap, adapter)[0] == 0  # the files are still where they were
    here = (tmp_path / "p.csv").read_text()
    config, weights = (shutil.copy(path, tmp_path / f"renamed{path.suffix}") for path in tiny_clip_files)

    def elsewhere(card):
        for entry in card["files"].values():
            entry["path"] = f"/home/somebody/{Path(entry['path']).name}"
        card["model"]["backbone"]["init_args"] |= {name: entry["path"] for name, entry in card["files"].items()}
        return card

    with_card(adapter, elsewhere)
    status, _, err = predict(dtrap, adapter)
    assert status == 2
    assert "random.safetensors (SHA-256 " in err
    assert "--model.backbone.name FILE --model.backbone.pretrained FILE" in err
    status, _, err = predict(dtrap, adapter, "--model.backbone.name", config, "--model.backbone.pretrained", weights)
    assert status == 0, err
    assert (tmp_path / "p.csv").read_text() == here
    content = json.loads(config.read_text())
    config.write_text(json.dumps({"model_cfg": content, "preprocess_cfg": {"mean": [0.1, 0.1, 0.1]}}))
    status, _, err = predict(dtrap, adapter, "--model.backbone.name", config, "--model.backbone.pretrained", weights)
    assert status == 2
    assert "trained on the backbone" in err or "preprocessing.mean" in err


def test_saved_paths_do_not_depend_on_the_folder_of_the_command(dtrap, tmp_path, tiny_clip_files, monkeypatch):
    from layouts import make_eurosat

    make_eurosat(tmp_path / "data", per_class=4)
    for path in tiny_clip_files:
        shutil.copy(path, tmp_path / path.name)
    words = ["--config", "eurosat_1shot.yaml", "--data.root", "data", "--data.query", 2, "--trainer.max_epochs", 1]
    words += ["--model.backbone.name", "random.json", "--model.backbone.pretrained", "random.safetensors"]
    words += ["--protocol.save_adapters", "true", "--protocol.folder", "run"]
    assert dtrap("fit", *words, "--protocol.episodes", 1)[0] == 0
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    status, out, err = dtrap("test", "--adapter", tmp_path / "run" / "adapters")
    assert status == 0, err
    status, out, err = dtrap("fit", "--config", tmp_path / "run" / "config.yaml", "--protocol.episodes", 2)
    assert status == 0, err
    assert os.listdir(tmp_path / "other") == []
    monkeypatch.chdir(tmp_path)
    status, out, err = dtrap("fit", *words, "--protocol.episodes", 2)
    assert status == 0, err
    assert "Already finished" in out


def test_a_folder_of_several_tuners_is_tested_as_it_was_fitted(dtrap, run):
    """The table with the paired differences and the result lines are those of the fit."""
    folder = run / "shipped"
    rows = list(map(json.loads, (folder / "results.jsonl").read_text().splitlines()))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    assert methods != sorted(methods)
    status, fitted, err = dtrap("fit", "--config", folder / "config.yaml", "--protocol.folder", folder)
    assert status == 0, err
    assert "Already finished" in fitted
    status, out, err = dtrap("test", "--adapter", folder)
    assert status == 0, err

    def table(text):  # of the accuracies; the gap is measured in a fit alone
        rows = [line for line in text.splitlines() if line.split()[:1] in [[name] for name in methods]]
        return [line for line in rows if "%" in line]

    assert [line.split()[0] for line in table(out)] == methods
    assert table(out) == table(fitted)
    assert [line for line in out.splitlines() if "3-way" in line] == [
        line for line in fitted.splitlines() if "3-way" in line
    ]
    assert f"{methods[0]} minus this" in out


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        "[1, 2, 3]",
        "3",
        "null",
        DEEP,
        '{"format": "dtrap-adapter/1", "class_names": ' + DEEP,
        '{"format": ["dtrap-adapter/1"]}',
        '{"format": "dtrap-adapter/1"}',
        "\x1b[31m",
    ],
    ids=lambda content: content[:30],
)
def test_a_damaged_card_is_one_message(dtrap, tmp_path, content):
    adapter = Path(shutil.copytree(OLD.parent, tmp_path / "old"), "adapters", "episode_0001_svl-ra.safetensors")
    adapter.with_suffix(".json").write_text(content)
    status, _, err = dtrap("predict", "--adapter", adapter, "--images", "new")
    assert status == 2
    assert "not an adapter card" in err
    assert len(err.splitlines()) == 1
    assert err.strip().isprintable()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("class_names", [1, 2, 3]),
        ("class_names", "abc"),
        ("class_names", []),
        ("class_names", [["a"], ["b"], ["c"]]),
        ("template", 3),
        ("template", [1]),
        ("prompts", ["a"]),
        ("prompts", {"a": "b"}),
        ("settings", []),
        ("logit_scale", "100"),
        ("accuracy", "high"),
        ("accuracy", True),
        ("accuracy", 1e308),
        ("seed", 1.5),
        ("episode", None),
        ("episode", -1),
        ("method", ""),
        ("method", {}),
        ("versions", 1),
        ("model", []),
        ("model", {"backbone": 3}),
        ("model", {"backbone": {"class_path": "OpenCLIP"}, "tuner": [[[]]]}),
        ("files", {"name": "x"}),
        ("files", {"nothing; rm -rf": {"path": "x", "sha256": "y"}}),
        ("preprocessing", [1]),
        ("preprocessing", {"image_size": "x"}),
        ("data", 3),
        ("data", {"class_path": "payload.Data"}),
        ("methods", [1]),
        ("precision", 16),
        ("unknown", 1),
        ("class_names", ["x" * 5000, "b", "c"]),
        ("method", "../../x"),
        ("logit_scale", -1),
        ("logit_scale", 1e300),
        ("model", {"backbone": {"class_path": "OpenCLIP", "init_args": {"name": None}}}),
        ("data", {"class_path": "ShapesDataModule", "init_args": {"template": "{} \ud800"}}),
    ],
)
def test_wrong_types_in_a_card_are_one_message(dtrap, mailed, field, value):
    with_card(mailed, lambda card: card | {field: value})
    status, _, err = dtrap("test", "--adapter", mailed)
    assert status == 2
    assert len(err.splitlines()) == 1
    assert str(mailed) in err or "episode" in err
    assert len(err) < 500
