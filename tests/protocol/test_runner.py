"""The protocol through `dtrap fit`: the same numbers however the run is cut, and nothing mixed."""

import os
import signal
import subprocess
import sys
from functools import wraps
from pathlib import Path

import pytest
import torch
from dtrap.datamodules import collection
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones import OpenCLIP
from layouts import make_folder
from run_folders import numbers, rows_of, summary_of
from scipy import stats

KILLED = Path(__file__).with_name("killed_fit.py")


def test_rows_hold_what_the_episode_was_and_gave(dtrap, words, tmp_path):
    status, out, err = dtrap(*words, "--protocol.folder", "run", "--protocol.pictures", 1)
    assert status == 0, err
    rows = rows_of(tmp_path / "run")
    assert [(row["episode"], row["method"]) for row in rows] == [
        (episode, method) for episode in range(3) for method in ("svl-ra", "baseline")
    ]
    for row in rows:
        confusion = torch.tensor(row["confusion"])
        assert confusion.sum(dim=1).tolist() == [2] * 5
        assert row["accuracy"] == pytest.approx(100 * float(confusion.diag().sum()) / 10)
        assert list(row["per_class"]) == row["classes"]
        assert row["per_class"][row["classes"][0]] == 50 * int(confusion[0, 0])
        assert 0 <= row["zero_shot_accuracy"] <= 100
        boundary, end = row["losses"]["boundary"], row["losses"]["end"]
        assert end.keys() == {"total", "L_vlm"}
        terms = {"total", "L_vlm", "L_ad", "L_ra"}
        assert (boundary or end).keys() == (terms if row["method"] == "svl-ra" else {"total", "L_vlm"})
    pairs = [(a, b) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    assert all(a["classes"] == b["classes"] and a["zero_shot_accuracy"] == b["zero_shot_accuracy"] for a, b in pairs)
    pictures = sorted(path.name for path in (tmp_path / "run" / "pictures").iterdir())
    assert pictures == ["episode_0000_baseline.png", "episode_0000_svl-ra.png"]

    differences = torch.tensor([a["accuracy"] - b["accuracy"] for a, b in pairs], dtype=torch.float64)
    half = float(stats.t.ppf(0.975, 2) * differences.std() / 3**0.5)
    stored = summary_of(tmp_path / "run")["differences"]["baseline"]
    assert stored["mean"] == pytest.approx(float(differences.mean()))
    assert stored["half_width"] == pytest.approx(half)
    said = f"{float(differences.mean()):+.2f} ± {half:.2f} (3 pairs), too few" if half else "identical (3 pairs)"
    assert said in out


def test_a_finished_run_prints_its_result_without_loading_the_model(dtrap, words, monkeypatch):
    _, first, _ = dtrap(*words)

    @wraps(OpenCLIP.__init__)
    def loaded(*arguments, **options):
        pytest.fail("the model was loaded")

    monkeypatch.setattr(OpenCLIP, "__init__", loaded)
    status, again, err = dtrap(*words)
    assert status == 0, err
    assert "Already finished" in again
    assert again.splitlines()[-3:] == first.splitlines()[-3:]
    assert "EuroSAT 5-way 1-shot · svl-ra · 3 episodes · " in again


def test_more_episodes_extend_a_run_and_are_those_of_one_long_run(dtrap, words, tmp_path):
    dtrap(*words, "--protocol.folder", "long")
    dtrap(*words, "--protocol.folder", "short", "--protocol.episodes", 1)
    assert len(rows_of(tmp_path / "short")) == 2
    dtrap(*words, "--protocol.folder", "short")
    assert numbers(tmp_path / "short") == numbers(tmp_path / "long")
    assert summary_of(tmp_path / "short") == summary_of(tmp_path / "long")


def test_a_method_alone_gives_the_same_numbers_as_with_others(dtrap, words, tmp_path):
    dtrap(*words, "--protocol.folder", "both")
    plain = words[:-2]
    dtrap(*plain, "--config", "methods/baseline.yaml", "--protocol.folder", "alone")
    both = numbers(tmp_path / "both")
    assert numbers(tmp_path / "alone") == {key: row for key, row in both.items() if key[1] == "baseline"}


def test_another_seed_draws_other_episodes(dtrap, words, tmp_path):
    dtrap(*words, "--protocol.folder", "one")
    dtrap(*words, "--protocol.folder", "two", "--data.seed", 2)
    first, second = (
        [row["classes"] for row in numbers(tmp_path / name).values() if row["method"] == "baseline"]
        for name in ("one", "two")
    )
    assert first != second


@pytest.mark.parametrize(("moment", "number"), [("step", 8), ("row", 4), ("write", 3)])
def test_killed_at_any_moment_and_started_again_it_ends_the_same(dtrap, words, tmp_path, moment, number):
    killed = [*words, "--protocol.folder", "killed"]
    done = subprocess.run(
        [sys.executable, KILLED, moment, str(number), *killed],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # as in this process: the last bits depend on the number of threads
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL
    left = (tmp_path / "killed" / "results.jsonl").read_bytes()
    assert left.endswith(b"\n") == (moment != "write")
    dtrap(*killed)
    dtrap(*words, "--protocol.folder", "whole")
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    assert summary_of(tmp_path / "killed") == summary_of(tmp_path / "whole")


def test_root_workers_and_device_do_not_make_another_experiment(dtrap, words, root, tmp_path):
    dtrap(*words, "--protocol.folder", "run")
    (tmp_path / "moved").symlink_to(root)
    status, out, err = dtrap(
        *words, "--protocol.folder", "run", "--data.root", tmp_path / "moved", "--data.num_workers", 2,
        "--trainer.accelerator", "cpu", "--trainer.logger", "false",
    )  # fmt: skip
    assert status == 0, err
    assert "Already finished" in out


def test_the_config_of_an_overwriting_run_resumes_when_used_again(dtrap, words, tmp_path):
    more = ["--protocol.folder", "run", "--protocol.episodes", 1]
    dtrap(*words, *more)
    dtrap(*words, *more, "--protocol.overwrite", "true")
    before = rows_of(tmp_path / "run")
    status, _, err = dtrap("fit", "--config", "run/config.yaml", "--protocol.episodes", 2)
    assert status == 0, err
    assert rows_of(tmp_path / "run")[: len(before)] == before


@pytest.mark.parametrize(
    "more",
    [
        ["--model.backbone.pretrained", "null"],
        ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "train/L_vlm",
         "--trainer.callbacks.patience", "1", "--trainer.callbacks.check_on_train_epoch_end", "true"],
    ],
    ids=["random weights", "a callback with a memory"],
)  # fmt: skip
def test_in_one_go_or_several_the_numbers_are_the_same(dtrap, words, tmp_path, more):
    dtrap(*words, *more, "--protocol.folder", "whole")
    for episodes in (1, 2, 3):
        status, _, err = dtrap(*words, *more, "--protocol.folder", "parts", "--protocol.episodes", episodes)
        assert status == 0, err
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_ctrl_c_prints_the_partial_summary_and_the_command_that_resumes(dtrap, words, tmp_path, monkeypatch):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell may have it ignored
    original, calls = FewShotClassifier.training_step, iter(range(10**6))

    def step(self, *arguments):
        if next(calls) == 22:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(FewShotClassifier, "training_step", step)
    status, out, err = dtrap(*words, "--protocol.folder", "run", "--protocol.overwrite", "true")
    assert status == 130, err
    assert "svl-ra · 2 of 3 episodes · " in out
    command = out.splitlines()[-1]
    assert command.startswith("Interrupted. Resume with: dtrap fit --config eurosat_1shot.yaml ")
    assert "overwrite" not in command
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    status, _, _ = dtrap(*words, "--protocol.folder", "run")
    assert status == 0
    dtrap(*words, "--protocol.folder", "whole")
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


def test_images_are_decoded_once_per_episode_for_all_methods(dtrap, words, monkeypatch):
    seen = []
    original = collection.open_image
    monkeypatch.setattr(collection, "open_image", lambda path, *more: seen.append(path) or original(path, *more))
    dtrap(*words, "--protocol.episodes", 2)
    assert len(seen) == 2 * 5 * 3


def test_frozen_text_is_encoded_once_per_class_for_the_whole_run(dtrap, words, monkeypatch):
    prompts = []
    original = OpenCLIP.encode_text
    monkeypatch.setattr(OpenCLIP, "encode_text", lambda self, t: prompts.append(len(t)) or original(self, t))
    dtrap(*words[:-2], "--data.way", 10, "--protocol.episodes", 3)
    assert sum(prompts) == 10


def test_folder_with_held_out_images_claims_an_accuracy(dtrap, tmp_path, tiny_model):
    photos = make_folder(tmp_path / "photos", counts=(4, 3, 5))
    status, out, err = dtrap(
        "fit", "--config", "folder.yaml", "--data.root", photos, "--data.held_out", 0.3, *tiny_model,
        "--trainer.max_epochs", 1,
    )  # fmt: skip
    assert status == 0, err
    assert "photos 3 classes · trained on 8 images, tested on 4 · " in out
    (row,) = rows_of(next(tmp_path.glob("runs/*")))
    assert sum(map(sum, row["confusion"])) == 4


def test_other_tuners_are_compared_under_their_names_and_transductive_ones_marked(dtrap):
    status, out, err = dtrap(
        "fit", "--config", "demo.yaml", "--protocol.episodes", 1, "--trainer.max_epochs", 1, "--data.query", 2,
        "--protocol.compare", "[tuners/clip_adapter.yaml, tuners/stepspt.yaml, methods/baseline.yaml]",
    )  # fmt: skip
    assert status == 0, err
    for name in ("svl-ra", "clip_adapter-svl-ra", "stepspt-svl-ra-transductive", "baseline"):
        assert f"Shapes (x-ray) 5-way 1-shot · {name} · 1 episode · " in out


def test_the_result_line_of_a_transductive_method_says_so_even_alone(dtrap, tmp_path):
    words = ["--config", "demo.yaml", "--config", "tuners/stepspt.yaml", "--protocol.compare", "null"]
    words += ["--protocol.episodes", 1, "--trainer.max_epochs", 1, "--data.query", 2, "--protocol.folder", "run"]
    status, out, err = dtrap("fit", *words, "--protocol.save_adapters", "true")
    assert status == 0, err
    assert "svl-ra-transductive · 1 episode · " in out
    assert "trains 491 of " in out  # batch norm 6, head 5 * 96 + 5
    status, out, err = dtrap("test", "--adapter", "run")
    assert status == 0, err
    assert "svl-ra-transductive · 1 episode · " in out


@pytest.mark.filterwarnings("ignore")
def test_a_tuner_without_training_says_so_once(dtrap):
    status, out, err = dtrap(
        "fit", "--config", "demo.yaml", "--config", "tuners/tip_adapter.yaml", "--protocol.episodes", 2,
        "--data.query", 2,
    )  # fmt: skip
    assert status == 0, err
    assert "tip-adapter on tiny_clip/tiny_clip-c683ad6d: built from each task's support images, frozen towers" in out
    assert "run with no optimizer" not in out + err
