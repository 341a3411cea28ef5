"""A run over a user's own images: what it prints, and the files that it leaves to look at."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from dtrap.protocol.image_results import Guesses, ImageResults, percent
from dtrap.protocol.result_sheet import MOST_UNSURE, MOST_WRONG, result_sheet
from layouts import make_folder
from PIL import Image
from safetensors.torch import load_file
from scipy import stats

HEAD = ["--config", "tuners/linear_head.yaml", "--config", "methods/baseline.yaml", "--data.views", "1"]


@pytest.fixture
def words(tmp_path, tiny_model):
    root = make_folder(tmp_path / "photos", counts=(7, 6, 6))
    short = [*HEAD, "--trainer.max_epochs", "3", "--data.held_out", "0.4", "--protocol.feature_store", "false"]
    return ["fit", "--config", "folder.yaml", "--data.root", root, *tiny_model, *short, "--protocol.folder", "run"]


def test_confusion_classes_and_images_are_those_of_the_row(dtrap, words, tmp_path):
    status, out, err = dtrap(*words)
    assert status == 0, err
    row = json.loads((tmp_path / "run/results.jsonl").read_text())
    test = tmp_path / "run/test"
    assert pd.read_csv(test / "confusion.csv", index_col=0).to_numpy().tolist() == row["confusion"]
    classes = pd.read_csv(test / "per_class.csv")
    assert classes["right"].tolist() == np.diag(row["confusion"]).tolist()
    for line in classes.to_dict("records"):
        interval = stats.binomtest(line["right"], line["test_images"]).proportion_ci(0.95, "exact")
        assert (line["low"], line["high"]) == pytest.approx((100 * interval.low, 100 * interval.high), abs=0.01)
        assert f"{line['right']} of {line['test_images']}" in out
    images = pd.read_csv(test / "test_images.csv")
    assert len(images) == row["test_images"]
    assert 100 * images["right"].mean() == pytest.approx(row["accuracy"])
    assert 100 * (images["zero_shot"] == images["class"]).mean() == pytest.approx(row["zero_shot_accuracy"])
    assert classes["zero_shot_right"].sum() == (images["zero_shot"] == images["class"]).sum()
    assert (images["probability"] >= images["runner_up_probability"]).all()
    saved = load_file(tmp_path / "run/predictions/episode_0000_baseline.safetensors")
    for key, column in (("scores", "probability"), ("zero_shot_scores", "zero_shot_probability")):
        chances = saved[key].double().softmax(dim=1).max(dim=1).values
        assert torch.allclose(chances, torch.tensor(images[column].to_numpy()), atol=1e-4)
    assert Image.open(test / "wrong_or_unsure.png").width > 800
    for name in ("wrong_or_unsure.png", "per_class.csv", "confusion.csv", "test_images.csv"):
        assert f"run/test/{name}" in out


def test_a_run_with_one_task_is_called_neither_episode_nor_by_its_method(dtrap, words):
    for run in range(2):  # the second one finds it finished
        status, out, err = dtrap(*words)
        assert status == 0
        assert not re.search("episode|baseline|svl-ra|support", out + err, re.IGNORECASE), out + err
        assert re.search(r"trained on 12 images, tested on 7 · \d", out)
        assert ("Already finished" in out) == bool(run)


def test_without_test_images_one_sentence_says_how_to_get_them(dtrap, words, tmp_path):
    at = words.index("--data.held_out")
    status, out, _ = dtrap(*words[:at], *words[at + 2 :])
    assert status == 0
    assert (
        "There are no test images, so no accuracy: --data.query_root FOLDER tests on others, or --data.held_out" in out
    )
    assert not (tmp_path / "run/test").exists()


def test_compared_methods_have_files_of_their_own(dtrap, words, tmp_path):
    both = [*words, "--protocol.compare", "methods/svl.yaml", "--protocol.pictures", "1"]
    assert dtrap(*both)[0] == 0
    names = {path.name for path in (tmp_path / "run/test").iterdir()}
    assert {"confusion.csv", "confusion.svl.csv", "wrong_or_unsure.png", "wrong_or_unsure.svl.png"} <= names
    status, _, _ = dtrap("report", "run", "--html", "page.html")
    assert status == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("wrong and least certain test images") >= 2
    assert re.search(r"\d of 3: \d+\.\d, \d+\.\d to \d+\.\d", page)


def test_repeats_count_from_one_and_pool_their_images(dtrap, words, tmp_path):
    status, out, err = dtrap(*words, "--data.repeats", "2")
    assert status == 0
    assert "episode" not in (out + err).lower()
    rows = [json.loads(line) for line in (tmp_path / "run/results.jsonl").read_text().splitlines()]
    images = pd.read_csv(tmp_path / "run/test/test_images.csv")
    assert images["repeat"].value_counts().to_dict() == {1: 7, 2: 7}
    confusion = pd.read_csv(tmp_path / "run/test/confusion.csv", index_col=0).to_numpy()
    assert (confusion == np.sum([row["confusion"] for row in rows], axis=0)).all()
    assert pd.read_csv(tmp_path / "run/test/per_class.csv")["low"].isna().all(), "an image may count twice"
    assert "repeat 2 of 2" in out


def test_starting_over_leaves_no_file_of_the_earlier_run(dtrap, words, tmp_path):
    assert dtrap(*words)[0] == 0
    at = words.index("--data.held_out")
    assert dtrap(*words[:at], *words[at + 2 :], "--protocol.overwrite", "true")[0] == 0
    assert not (tmp_path / "run/test").exists()


def results(scores, labels, names, zero_shot=None):
    images = [f"{names[label]}/{number}.png" for number, label in enumerate(labels)]
    before = None if zero_shot is None else Guesses.of(np.asarray(zero_shot, dtype=float))
    labels = np.asarray(labels)
    return ImageResults(names, images, np.zeros(len(labels)), labels, Guesses.of(np.asarray(scores)), before)


def test_wrong_images_come_in_the_order_of_their_certainty_then_the_least_certain():
    found = results([[3.0, 0, 0], [0, 9.0, 0], [1.0, 0, 0], [0, 0, 0.5]], [1, 0, 0, 2], ["a", "b", "c"])
    assert found.wrong == [1, 0]
    assert found.unsure == [3, 2]


@pytest.mark.parametrize("wrong", [0, 5, 60])
def test_the_sheet_says_how_many_it_shows(wrong):
    labels = np.zeros(80, dtype=int)
    scores = np.tile([4.0, 0.0], (80, 1)) + np.arange(80)[:, None] * [0.01, 0]
    scores[:wrong] = scores[:wrong, ::-1]
    found = results(scores, labels, ["a long name of a class" * 4, "b_c"], scores[:, ::-1])
    white = Image.new("RGB", (30, 20), "white")
    figure = result_sheet(found, lambda place: None if place == 79 else white, "photos")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[1].startswith(f"{wrong or 'none'} of 80 test images wrong")
    shown = min(wrong, MOST_WRONG)
    assert len(figure.axes[0].images) == shown + MOST_UNSURE
    assert len(figure.axes[0].lines) == shown + MOST_UNSURE, "a white image has a frame"
    assert sum(text.startswith("zero-shot: ") for text in texts) == shown + MOST_UNSURE
    assert sum(text == "true: a long name" or text.startswith("true: ") for text in texts) == shown
    if wrong == 60:
        assert "25 of 60 wrong, the most certain first" in texts


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "100 %"), (0.9999, ">99 %"), (0.994, "99 %"), (0.001, "<1 %"), (0.0, "0 %")]
)
def test_a_probability_is_not_rounded_to_certainty(value, text):
    assert percent(value) == text


def test_the_quick_config_trains_a_head_without_warnings(dtrap, words, tiny_model, tmp_path):
    root = words[words.index("--data.root") + 1]
    status, out, err = dtrap(
        "fit", "--config", "quick.yaml", *tiny_model, "--data.root", root, "--data.held_out", "0.3",
        "--trainer.max_epochs", "2", "--protocol.folder", "quick",
    )  # fmt: skip
    assert status == 0
    assert "Warning" not in out + err
    assert "frozen towers" in out
    assert list((tmp_path / "quick/adapters").glob("*.safetensors"))
