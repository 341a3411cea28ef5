"""What a row, a summary and a result say of the test images behind an accuracy, through `dtrap fit`."""

import json

import pytest
import torch
from dtrap.datamodules import ShapesDataModule
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners import LoRA
from dtrap.protocol import run_protocol
from layouts import make_chestx, make_folder
from run_folders import rows_of, summary_of


@pytest.fixture
def photos(tmp_path):
    """Three classes to train on and unequal numbers of test images, none for the third class."""
    root = make_folder(tmp_path / "photos", counts=(4, 3, 5))
    return root, make_folder(tmp_path / "tests", counts=(6, 2))


def test_a_folder_run_says_what_it_was_trained_and_tested_on(dtrap, photos, tiny_model, tmp_path):
    root, queries = photos
    words = ["fit", "--config", "folder.yaml", "--data.root", root, "--data.query_root", queries, *tiny_model]
    status, out, err = dtrap(*words, "--trainer.max_epochs", 1, "--protocol.folder", "run")
    assert status == 0, err
    (row,) = rows_of(tmp_path / "run")
    assert (row["support_images"], row["test_images"]) == (12, 8)
    confusion = torch.tensor(row["confusion"])
    right = confusion.diag().float()
    assert row["balanced_accuracy"] == pytest.approx(100 * float((right[0] / 6 + right[1] / 2) / 2))
    assert 0 <= row["macro_f1"] <= 100
    assert "auroc" not in row
    low, high = row["binomial_interval"]
    line = f"trained on 12 images, tested on 8 · {row['accuracy']:.1f} % (95 % {low:.1f} to {high:.1f}, exact binomial)"
    assert f" · {line}" in out
    assert "episode" not in out.partition(" · trained on")[2].splitlines()[0]
    assert f"balanced accuracy {row['balanced_accuracy']:.1f} %" in out
    assert "1 of 3 classes has no test image: 'cls_02'" in out
    summary = summary_of(tmp_path / "run")["methods"]["svl-ra"]
    assert (summary["test_images"], summary["untested_classes"]) == (8, ["cls_02"])
    _, out, _ = dtrap("report", "run")
    assert "8 images" in out
    assert "1 of 3 classes of 'svl-ra' have no test image" in " ".join(out.split())


def test_two_classes_have_an_auroc(dtrap, tmp_path, tiny_model):
    root = make_folder(tmp_path / "photos", counts=(6, 6))
    words = ["fit", "--config", "folder.yaml", "--data.root", root, "--data.held_out", 0.5, *tiny_model]
    status, out, err = dtrap(*words, "--trainer.max_epochs", 1, "--protocol.folder", "run")
    assert status == 0, err
    (row,) = rows_of(tmp_path / "run")
    assert 0 <= row["auroc"] <= 100
    assert f"AUROC {row['auroc']:.1f} %" in out
    assert "balanced_accuracy" not in row


def test_chestx_has_an_auroc_and_keeps_its_accuracy(dtrap, tmp_path, tiny_model):
    root = make_chestx(tmp_path / "chestx", per_class=3)
    words = ["fit", "--config", "chestx_1shot.yaml", "--data.root", root, "--data.query", 2, *tiny_model]
    short = ["--protocol.episodes", 2, "--trainer.max_epochs", 1, "--protocol.folder", "run"]
    status, out, err = dtrap(*words, *short)
    assert status == 0, err
    assert all(0 <= row["auroc"] <= 100 and row["accuracy"] is not None for row in rows_of(tmp_path / "run"))
    assert "10 test images each" in out
    assert "AUROC" in out
    metrics = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"auroc", "auroc_mean", "test_images", "accuracy_episodes", "accuracy_images"} <= set(metrics)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["methods"]["svl-ra"]["auroc"]["count"] == 2


def test_run_protocol_prints_the_result_once_it_is_printed(tmp_path, capsys):
    data = ShapesDataModule(way=3, shot=1, query=4)
    trainer = {"max_epochs": 1, "accelerator": "cpu", "logger": False}
    model, tuner = OpenCLIP("tiny_clip.json", "tiny_clip.safetensors"), LoRA(rank=2)
    methods = {
        "slow": lambda: FewShotClassifier(model, tuner),
        "fast": lambda: FewShotClassifier(model, tuner, learning_rate=0.1),
    }
    result = run_protocol(methods, data, episodes=2, folder=str(tmp_path / "run"), trainer=trainer)
    assert "Shapes (x-ray) 3-way 1-shot" not in capsys.readouterr().out
    print(result)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Shapes (x-ray) 3-way 1-shot · slow · 2 episodes · 12 test images each · ")
    assert lines[2].startswith("slow minus fast, paired: ")
    assert lines[3] == f"Results: {tmp_path / 'run'}"
    assert list(result.frame()["test_images"]) == [12] * 4
    assert result.accuracy["slow"].images == 24
