"""How a run's test images became square: in its config, identity, adapters, predictions and exports."""

import csv
import json
import shutil
from functools import partialmethod

import open_clip
import pytest
import torch
import yaml
from all_way_runs import results
from coop_layouts import make_coop_eurosat
from dtrap.datamodules.images import open_image
from dtrap.lightning_modules import FewShotClassifier
from PIL import Image
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """EuroSAT of CoOp with images that are not square, which squash and crop show differently."""
    root = make_coop_eurosat(tmp_path_factory.mktemp("all_way"), counts=(3, 1, 3))
    for path in root.rglob("*.jpg"):
        Image.open(path).resize((60, 24)).save(path)
    return root


def words(root, folder, *more):
    return [
        "fit", "--config", "coop/eurosat_1shot.yaml", "--config", "backbones/tiny.yaml",
        "--config", "all_way/clip_lora.yaml", "--data.root", root, "--data.all_way.batch_size", 6,
        "--trainer.max_epochs", 2, "--data.all_way.seeds", "[1]", "--protocol.folder", folder,
        "--protocol.save_adapters", "true", *more,
    ]  # fmt: skip


def fitted(dtrap, root, folder, *more):
    status, _, err = dtrap(*words(root, folder, *more))
    assert status == 0, err
    card = min((folder / "adapters").glob("*.json"))
    stored = yaml.safe_load((folder / "config.yaml").read_text())["data"]["init_args"]
    return card.with_suffix(".safetensors"), json.loads(card.read_text())["preprocessing"], stored


def test_the_default_is_written_into_config_identity_and_card(dtrap, root, tmp_path):
    _, card, stored = fitted(dtrap, root, tmp_path / "run")
    assert stored["test_preprocessing"] == "backbone"
    identity = json.loads((tmp_path / "run" / "identity.json").read_text())["methods"]
    assert {m["data"]["init_args"]["test_preprocessing"] for m in identity.values()} == {"backbone"}
    assert (card["resize_mode"], card["interpolation"], card["image_size"]) == ("shortest", "bicubic", 48)
    _, card, stored = fitted(dtrap, root, tmp_path / "other", "--data.test_preprocessing", "squash")
    assert stored["test_preprocessing"] == "squash"
    assert (card["resize_mode"], card["interpolation"]) == ("squash", "bilinear")
    status, _, err = dtrap(*words(root, tmp_path / "run", "--data.test_preprocessing", "squash"))
    assert status == 2
    assert "data.test_preprocessing: backbone in the folder, squash now" in err


PREDICT_STEP = FewShotClassifier.predict_step


def watched_step(module, seen, batch, batch_idx):
    seen.append(batch["images"])
    return PREDICT_STEP(module, batch, batch_idx)


def labels_of(path):
    with open(path) as file:
        return [(row["path"], row["label"]) for row in csv.DictReader(file)]


def test_predictions_and_tests_take_the_transform_of_the_training(dtrap, root, tmp_path, monkeypatch):
    for option in ("backbone", "squash"):
        adapter, _, _ = fitted(dtrap, root, tmp_path / option, "--data.test_preprocessing", option)
        [row] = results(tmp_path / option)
        status, out, err = dtrap("test", "--adapter", adapter)
        assert status == 0, err
        assert f"{row['accuracy']:.1f} %, {row['accuracy']:.1f} % when it was saved" in out
        seen = []
        with monkeypatch.context() as patch:
            patch.setattr(FewShotClassifier, "predict_step", partialmethod(watched_step, seen))
            status, _, err = dtrap("predict", "--adapter", adapter, "--images", root, "--output", f"{option}.csv")
        assert status == 0, err
        with open(f"{option}.csv") as file:
            first = next(csv.DictReader(file))["path"]
        shown = open_image(first)
        mode = {"backbone": ("shortest", "bicubic"), "squash": ("squash", "bilinear")}[option]
        transform = open_clip.transform.image_transform(48, False, resize_mode=mode[0], interpolation=mode[1])
        torch.testing.assert_close(seen[0][0], transform(shown), rtol=0, atol=1e-5)


def test_another_option_than_the_adapters_is_refused(dtrap, root, tmp_path):
    adapter, _, _ = fitted(dtrap, root, tmp_path / "run")
    status, _, err = dtrap("test", "--adapter", adapter, "--data.test_preprocessing", "squash")
    assert status == 2
    assert "trained with test_preprocessing backbone, but here it is squash. Leave out --data.test_preprocessing" in err


def test_a_card_from_before_the_option_means_squash(dtrap, root, tmp_path):
    adapter, _, _ = fitted(dtrap, root, tmp_path / "run", "--data.test_preprocessing", "squash")
    card = json.loads(adapter.with_suffix(".json").read_text()) | {"format": "dtrap-adapter/1"}
    later = ("preprocessing", "model", "files", "data", "methods", "precision")
    old = {name: value for name, value in card.items() if name not in later}
    adapter.with_suffix(".json").write_text(json.dumps(old))
    save_file(load_file(adapter), adapter)  # without a card inside
    config = tmp_path / "run" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    del content["data"]["init_args"]["test_preprocessing"]
    config.write_text(yaml.safe_dump(content))
    status, out, err = dtrap("test", "--adapter", adapter)
    assert status == 0, err
    [row] = results(tmp_path / "run")
    assert f"{row['accuracy']:.1f} %, {row['accuracy']:.1f} % when it was saved" in out


@pytest.mark.parametrize("option", ["backbone", "squash"])
def test_an_export_says_how_images_become_square(dtrap, root, tmp_path, option):
    adapter, _, _ = fitted(dtrap, root, tmp_path / "run", "--data.test_preprocessing", option)
    status, _, err = dtrap("export", "--adapter", adapter, "--output", "model")
    assert status == 0, err
    stated = json.loads((tmp_path / "model" / "open_clip_config.json").read_text())["preprocess_cfg"]
    mode = {"backbone": ("shortest", "bicubic"), "squash": ("squash", "bilinear")}[option]
    assert (stated["resize_mode"], stated["interpolation"]) == mode
    for source in (adapter, "model"):
        status, _, err = dtrap("predict", "--adapter", source, "--images", root, "--output", f"{source}.csv")
        assert status == 0, err
    first, second = (labels_of(f"{source}.csv") for source in (adapter, "model"))
    assert first == second


def test_a_folder_from_before_the_option_goes_on_squashed(dtrap, root, tmp_path):
    """One of two seeds is done; its identity lacks the option."""
    run, seeds = tmp_path / "run", ("--data.all_way.seeds", "[1, 2]")
    fitted(dtrap, root, run, "--data.test_preprocessing", "squash", *seeds)
    whole = results(run)
    lines = (run / "results.jsonl").read_text().splitlines()
    (run / "results.jsonl").write_text(lines[0] + "\n")
    stored = json.loads((run / "identity.json").read_text())
    del stored["methods"]["svl-ra"]["data"]["init_args"]["test_preprocessing"]
    (run / "identity.json").write_text(json.dumps(stored))
    shutil.copytree(run, tmp_path / "copy")
    status, _, err = dtrap(*words(root, run, *seeds))
    assert status == 0, err
    assert results(run) == whole
    stored = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    assert stored["test_preprocessing"] == "squash"
    status, _, err = dtrap(*words(root, tmp_path / "copy", *seeds, "--data.test_preprocessing", "backbone"))
    assert status == 2
    assert "data.test_preprocessing: squash in the folder, backbone now" in err


def test_value_range_travels_with_the_adapter(dtrap, tmp_path):
    import numpy as np

    ramp = np.linspace(0, 4095, 256, dtype=np.uint16).reshape(16, 16)
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "deep" / name).mkdir(parents=True)
        for image in range(3):
            Image.fromarray(np.roll(ramp, 40 * number + image)).save(tmp_path / "deep" / name / f"{image}.png")
    status, _, err = dtrap(
        "fit", "--config", "folder.yaml", "--config", "backbones/tiny.yaml", "--data.root", tmp_path / "deep",
        "--data.value_range", "[0,4095]", "--trainer.max_epochs", 2, "--protocol.folder", "run",
    )  # fmt: skip
    assert status == 0, err
    [adapter] = (tmp_path / "run" / "adapters").glob("*.safetensors")
    assert json.loads(adapter.with_suffix(".json").read_text())["preprocessing"]["value_range"] == [0, 4095]
    status, _, err = dtrap("predict", "--adapter", adapter, "--images", tmp_path / "deep")
    assert status == 0, err
    assert "come out dark" not in err
