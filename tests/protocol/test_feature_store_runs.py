"""Runs with features on disk: the same rows, and only what is known is neither encoded nor decoded."""

import json
import os
from io import StringIO

import numpy as np
import pytest
from dtrap.datamodules import FolderDataModule, collection
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners import (
    CLIPAdapter,
    CoOp,
    FullFineTuning,
    LinearHead,
    LoRA,
    LPPlusPlus,
    TipAdapter,
    TipAdapterF,
)
from dtrap.protocol import run_protocol
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

FROZEN = [TipAdapter, TipAdapterF, LPPlusPlus, LinearHead, CLIPAdapter, lambda: CoOp(context_tokens=4)]
IMAGES = 3 * (2 + 3)  # of an episode, each used once


def draw(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def images(tmp_path):
    """Three classes of eight noisy images."""
    root = tmp_path / "images"
    for label, name in enumerate(("ash", "birch", "cedar")):
        (root / name).mkdir(parents=True)
        for number in range(8):
            draw(root / name / f"{number}.png", 8 * label + number)
    return root


@pytest.fixture
def run(images, tiny_clip_files, tmp_path, monkeypatch):
    """A run of two episodes: -> (rows without times, images encoded, images decoded, output)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    encoded, decoded = [], []
    encode, read = OpenCLIP.encode_image, collection.open_image
    monkeypatch.setattr(OpenCLIP, "encode_image", lambda self, x: encoded.append(len(x)) or encode(self, x))
    monkeypatch.setattr(collection, "open_image", lambda *words: decoded.append(words[0]) or read(*words))
    numbers = iter(range(100))

    def start(tuner, *, store=None, precision="32-true", weights=tiny_clip_files[1], **data):
        encoded.clear()
        decoded.clear()
        module = FolderDataModule(images, **{"way": 3, "shot": 2, "query": 3, "views": 3, **data})
        printed = StringIO()
        result = run_protocol(
            {"method": lambda: FewShotClassifier(OpenCLIP(str(tiny_clip_files[0]), str(weights)), tuner())},
            module,
            trainer={"max_epochs": 2, "precision": precision, "logger": False},
            console=Console(file=printed, width=300),
            episodes=2,
            folder=str(tmp_path / f"run{next(numbers)}"),
            feature_store=store,
        )
        rows = [{key: value for key, value in row.items() if "seconds" not in key} for row in result.rows]
        return rows, sum(encoded), len(decoded), printed.getvalue()

    return start


def other_features(content):
    first = 8 + int.from_bytes(content[:8], "little")  # behind the header; the features are the first tensor
    return content[:first] + bytes(2000) + content[first + 2000 :]


def stores(tmp_path):
    folder = tmp_path / "cache" / "dtrap" / "features"
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("tuner", FROZEN)
def test_rows_are_the_same_with_and_without_and_nothing_is_decoded_twice(run, tuner, tmp_path):
    without, all_encoded, all_decoded, out = run(tuner, store=False)
    assert "Feature store" not in out
    assert not stores(tmp_path)
    first, encoded, _, out = run(tuner)
    assert first == without
    assert encoded <= all_encoded  # a query of episode 1 may be one of episode 0
    assert f"Feature store: {all_encoded - encoded} of {all_encoded} image features read from" in out
    second, encoded, decoded, out = run(tuner)
    assert second == without
    assert (encoded, decoded) == (0, 0)
    assert all_decoded >= 2 * IMAGES
    assert f"Feature store: {all_encoded} of {all_encoded} image features read from" in out


def test_views_of_an_episode_are_stored_by_seed_and_episode(run):
    run(TipAdapter)
    _, encoded, _, _ = run(TipAdapter, seed=2)
    assert encoded >= 2 * 2 * 6  # two drawn views of six support images in two episodes, whatever is known of the rest
    _, encoded, decoded, _ = run(LinearHead, seed=2)
    assert (encoded, decoded) == (0, 0)  # another tuner of the same features


@pytest.mark.parametrize("tuner", [LoRA, FullFineTuning])
def test_a_tuner_that_changes_the_tower_reads_the_store_in_the_zero_shot_test_alone(run, tuner):
    without, all_encoded, _, _ = run(tuner, store=False)
    run(TipAdapter, store=True)
    rows, encoded, decoded, _ = run(tuner)
    assert rows == without
    assert all_encoded - encoded == 2 * 9  # the queries of two zero-shot tests
    assert decoded >= 2 * IMAGES


@pytest.mark.parametrize("words", [{"test_preprocessing": "backbone"}, {"precision": "bf16-mixed"}])
def test_another_preprocessing_or_precision_is_another_store(run, words, tmp_path):
    run(TipAdapter)
    rows, first, _, _ = run(TipAdapter, **words)
    again, encoded, _, _ = run(TipAdapter, **words)
    without, _, _, _ = run(TipAdapter, store=False, **words)
    assert len(stores(tmp_path)) == 2
    assert rows == without
    assert again == without
    assert encoded == 0 < first


def test_other_weights_are_another_store(run, tiny_clip_files, tmp_path):
    run(TipAdapter)
    weights = load_file(tiny_clip_files[1])
    weights["visual.proj"] = weights["visual.proj"] + 0.5
    save_file(weights, tmp_path / "other.safetensors")
    _, encoded, _, _ = run(TipAdapter, weights=tmp_path / "other.safetensors")
    assert encoded > 0
    assert len(stores(tmp_path)) == 2


def test_a_changed_image_is_encoded_again(run, images):
    run(TipAdapter)
    for path in sorted(images.rglob("*.png")):
        before = path.stat()
        draw(path, seed=1000 + int(path.stem))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps times
    rows, encoded, _, _ = run(TipAdapter)
    assert encoded > 0
    assert rows == run(TipAdapter, store=False)[0]


def test_a_bad_image_is_replaced_by_the_same_spare(run, images):
    (images / "ash" / "0.png").write_bytes(b"no image")
    without = run(TipAdapter, store=False, bad_images="skip")[0]
    assert run(TipAdapter, bad_images="skip")[0] == without
    rows, encoded, decoded, _ = run(TipAdapter, bad_images="skip")
    assert rows == without
    assert encoded == 0
    assert decoded <= 2  # the bad one alone is tried again


def test_a_damaged_file_is_reported_and_its_features_computed_again(run, tmp_path, caplog):
    without = run(TipAdapter)[0]
    for damage in (other_features, lambda content: content[:40]):
        (file,) = stores(tmp_path)[0].glob("*.safetensors")
        file.write_bytes(damage(file.read_bytes()))
        caplog.clear()
        assert run(TipAdapter)[0] == without
        assert f"{file} is damaged" in caplog.text


def test_a_folder_that_cannot_be_written_is_said_once(run, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    rows = run(TipAdapter)[0]
    assert caplog.text.count("is not stored") == 1
    assert rows == run(TipAdapter, store=False)[0]


def test_the_folder_is_that_of_the_option(run, tmp_path):
    run(TipAdapter, store=str(tmp_path / "mine"))
    assert not stores(tmp_path)
    (about,) = (tmp_path / "mine").glob("*/about.json")
    assert json.loads(about.read_text())["backbone"]["class"].endswith("OpenCLIP")


def test_a_stranger_s_pictures_are_not_stored(run, tmp_path, monkeypatch):
    monkeypatch.setattr(FolderDataModule, "load_image", lambda self, position: Image.new("RGB", (32, 32)))
    run(TipAdapter, store=True)
    assert not stores(tmp_path)
