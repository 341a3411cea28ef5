"""File and folder names that are not UTF-8 lose nothing: not the predictions, not the adapters of a training."""

import json
import os

import pandas as pd
import pytest
from dtrap.datamodules import FolderDataModule
from layouts import make_folder, picture

LATIN = os.fsdecode(b"caf\xe9")


@pytest.fixture
def photos(tmp_path):
    """Two classes; the names of an image and of its folder are not UTF-8."""
    root = make_folder(tmp_path / "photos", counts=(3, 3))
    picture(5).save(tmp_path / "other.png")
    (root / "cls_00" / LATIN).mkdir()
    (tmp_path / "other.png").rename(root / "cls_00" / LATIN / f"{LATIN}.png")
    return root


def test_a_training_and_its_predictions(dtrap, photos, tmp_path, tiny_model):
    words = ["--config", "folder.yaml", "--data.root", photos, *tiny_model, "--trainer.max_epochs", 1]
    words += ["--protocol.save_adapters", "true", "--protocol.folder", tmp_path / "run", "--data.held_out", 0.3]
    status, out, err = dtrap("fit", *words)
    assert status == 0, err
    (adapter,) = (tmp_path / "run" / "adapters").glob("*.safetensors")
    status, out, err = dtrap("predict", "--adapter", adapter, "--images", photos, "--output", tmp_path / "out.csv")
    assert status == 0, err
    paths = pd.read_csv(tmp_path / "out.csv")["path"]
    assert len(paths) == 7
    assert paths.str.contains(r"cls_00/caf\udce9/caf\udce9.png", regex=False).sum() == 1
    status, out, err = dtrap("fit", *words)
    assert status == 0, err
    assert "Already finished" in out


def test_the_images_of_all_seeds(dtrap, photos, tmp_path, tiny_model):
    words = ["--config", "folder.yaml", "--config", "all_way/clip_lora.yaml", "--data.root", photos, *tiny_model]
    words += ["--data.shot", 1, "--trainer.max_epochs", 1, "--protocol.folder", tmp_path / "run"]
    status, _, err = dtrap("fit", *words, "--data.all_way.seeds", "[1]")
    assert status == 0, err
    subset = json.loads((tmp_path / "run" / "subset.json").read_text())
    files = [file for part in subset["seeds"]["1"].values() for file in part["cls_00"]]
    again = ["--data.subset", tmp_path / "run" / "subset.json", "--protocol.folder", tmp_path / "again"]
    status, _, err = dtrap("fit", *words, *again, "--data.all_way.seeds", "[1]")
    assert status == 0, (files, err)


def test_a_class_folder_is_refused_before_the_work(dtrap, photos, tmp_path, tiny_model):
    (photos / "cls_01").rename(photos / LATIN)
    words = ["--config", "folder.yaml", "--data.root", photos, *tiny_model, "--protocol.folder", tmp_path / "run"]
    status, _, err = dtrap("fit", *words)
    assert status != 0
    assert r"the name of the folder 'caf\udce9' is not UTF-8" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "results.jsonl").exists()


def test_a_root_is_refused_by_the_command_line_and_named_in_python(dtrap, photos, tmp_path):
    root = photos.rename(tmp_path / LATIN)
    status, _, err = dtrap("fit", "--config", "folder.yaml", "--data.root", root)
    assert status == 2
    assert r"caf\udce9' is not UTF-8" in err
    assert FolderDataModule(root).description == r"caf\udce9 2 classes · 7 images"
    status, _, err = dtrap("data", "check", root)
    assert status == 0, err
