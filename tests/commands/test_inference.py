"""Saved adapters: tested again, used for predictions, refused where they do not belong."""

import json

import pytest
from layouts import make_eurosat, picture


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_eurosat(tmp_path_factory.mktemp("data") / "eurosat", per_class=4)


@pytest.fixture
def fitted(dtrap, root, tiny_model, tmp_path):
    status, _, err = dtrap(
        "fit", "--config", "eurosat_1shot.yaml", "--data.root", root, "--data.query", 3, *tiny_model,
        "--trainer.max_epochs", 20, "--model.learning_rate", 0.01, "--protocol.episodes", 2,
        "--protocol.compare", "methods/baseline.yaml", "--protocol.save_adapters", "true", "--protocol.folder", "run",
    )  # fmt: skip
    assert status == 0, err
    return tmp_path / "run" / "adapters"


def rows_of(adapters):
    rows = [json.loads(line) for line in (adapters.parent / "results.jsonl").read_text().splitlines()]
    return {f"episode_{row['episode']:04d}_{row['method']}": row for row in rows}


def test_every_adapter_has_a_card_that_says_what_it_belongs_to(fitted):
    rows = rows_of(fitted)
    assert {path.stem for path in fitted.glob("*.safetensors")} == rows.keys()
    for name, row in rows.items():
        card = json.loads((fitted / f"{name}.json").read_text())
        assert card["backbone"].startswith("random/random-")
        assert card["tuner"] == "lora"
        assert card["class_names"] == row["classes"]
        assert card["template"] == "a photo of a {}."
        assert card["dataset"] == "EuroSAT 5-way 1-shot"
        assert (card["seed"], card["episode"], card["method"]) == (1, row["episode"], row["method"])
        assert card["accuracy"] == row["accuracy"]
        assert {"dtrap", "torch", "open_clip_torch", "peft"} <= card["versions"].keys()


def test_a_test_of_the_saved_adapters_gives_the_accuracies_of_the_fit(dtrap, fitted):
    status, out, err = dtrap("test", "--adapter", fitted)
    assert status == 0, err
    for name, row in rows_of(fitted).items():
        assert f"{name}.safetensors: {row['accuracy']:.1f} %, {row['accuracy']:.1f} % when it was saved" in out
    assert "EuroSAT 5-way 1-shot · svl-ra · 2 episodes · " in out


def test_predictions_are_those_of_the_tuned_model(dtrap, fitted, root, tmp_path):
    """The queries of an episode, given as a folder of new images, get the labels of the test."""
    name, row = next(iter(rows_of(fitted).items()))
    status, out, err = dtrap(
        "predict", "--adapter", fitted / f"{name}.safetensors", "--images", root, "--output", "p.csv"
    )
    assert status == 0, err
    assert "40 images labeled: p.csv" in out
    header, *lines = (tmp_path / "p.csv").read_text().splitlines()
    assert header.split(",")[5:] == row["classes"]
    labels = {tuple(line.split(",")[:2]) for line in lines}
    assert len(labels) == 40
    assert {label for _, label in labels} <= set(row["classes"])
    assert all(sum(map(float, line.split(",")[5:])) == pytest.approx(1, abs=1e-4) for line in lines)


def test_unreadable_images_are_listed_and_the_others_predicted(dtrap, fitted, tmp_path):
    new = tmp_path / "new"
    (new / "deeper").mkdir(parents=True)
    picture(1).save(new / "deeper" / "SOUND.PNG")
    (new / "empty.jpg").touch()
    adapter = next(fitted.glob("*.safetensors"))
    status, out, _ = dtrap("predict", "--adapter", adapter, "--images", new)
    assert status == 0
    assert "1 image could not be read" in out
    assert "empty.jpg" in out
    (new / "deeper" / "SOUND.PNG").unlink()
    status, _, _ = dtrap("predict", "--adapter", adapter, "--images", new, "--overwrite")
    assert status == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.tuner.rank", "4"], ["trained with rank 16, but here it is 4", "config of the run"]),
        (["--model.tuner.encoder", "both"], ["trained with encoder vision, but here it is both"]),
        (["--model.tuner.alpha", "640"], ["trained with alpha 8.0, but here it is 640"]),
        (["--model.objective.logit_scale", "50"], ["trained with logit scale 100.0, but here it is 50.0"]),
        (["--adapter", "nowhere.safetensors"], ["nowhere.safetensors", "no such adapter"]),
        (["--images", "nowhere"], ["nowhere", "does not exist"]),
        (["--output", "run"], ["run is a folder"]),
        (["--output", "run/config.yaml/x.csv"], ["x.csv: cannot write", "--output"]),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(dtrap, fitted, root, words, told):
    adapter = next(fitted.glob("*.safetensors"))
    config = ["--config", fitted.parent / "config.yaml"]
    status, _, err = dtrap("predict", *config, "--adapter", adapter, "--images", root, *words)
    assert status == 2
    assert "Traceback" not in err
    for part in told:
        assert part in err


def test_another_backbone_other_classes_and_a_broken_file_are_refused(dtrap, fitted, root, tmp_path):
    adapter = next(fitted.glob("*svl-ra.safetensors"))
    status, _, err = dtrap("predict", "--config", "backbones/tiny.yaml", "--adapter", adapter, "--images", root)
    assert status == 2
    assert "trained on the backbone random/random-" in err
    status, _, err = dtrap("test", "--adapter", adapter, "--data.seed", 2)
    assert status == 2
    assert "--data.seed 1" in err
    status, _, err = dtrap("test", "--adapter", adapter, "--data.way", 4)
    assert status == 2
    assert "trained for the classes" in err
    adapter.write_bytes(adapter.read_bytes()[:100])
    status, _, err = dtrap("predict", "--adapter", adapter, "--images", root)
    assert status == 2
    assert "safetensors" in err


@pytest.mark.parametrize("form", ["plain", "peft"])
def test_an_exported_folder_is_tested_and_predicts_like_its_adapter(dtrap, fitted, root, tmp_path, form):
    name, row = next(iter(rows_of(fitted).items()))
    adapter = fitted / f"{name}.safetensors"
    status, _, err = dtrap("export", "--adapter", adapter, "--output", "exported", "--form", form)
    assert status == 0, err
    status, out, err = dtrap("test", "--adapter", "exported")
    assert status == 0, err
    assert f"exported: {row['accuracy']:.1f} %, {row['accuracy']:.1f} % when it was saved" in out
    assert ("zero-shot " in out) == (form == "peft")
    tables = []
    for saved in (adapter, "exported"):
        status, _, err = dtrap("predict", "--adapter", saved, "--images", root, "--output", "p.csv", "--overwrite")
        assert status == 0, err
        lines = (tmp_path / "p.csv").read_text().splitlines()[1:]
        tables.append([[float(value) for value in line.split(",")[5:]] for line in lines])
    assert tables[1] == [pytest.approx(probabilities, abs=1e-5) for probabilities in tables[0]]


def test_an_exported_folder_refuses_other_classes_and_another_backbone(dtrap, fitted, root):
    adapter = next(fitted.glob("*svl-ra.safetensors"))
    for form in ("plain", "peft"):
        dtrap("export", "--adapter", adapter, "--output", form, "--form", form)
        status, _, err = dtrap("test", "--adapter", form, "--data.way", 4)
        assert status == 2
        assert "trained for the classes" in err
    status, _, err = dtrap("predict", "--config", "backbones/tiny.yaml", "--adapter", "peft", "--images", root)
    assert status == 2
    assert "trained on the backbone random/random-" in err
