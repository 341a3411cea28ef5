"""The protocol through `dtrap fit`: the same numbers however the run is cut, and nothing mixed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dtrap.datamodules import collection
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.protocol import run_folder as results
from layouts import make_eurosat, make_folder
from scipy import stats

KILLED = Path(__file__).with_name("killed_fit.py")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_eurosat(tmp_path_factory.mktemp("data") / "eurosat", per_class=4)


@pytest.fixture
def words(root, tiny_model):
    return [
        "fit", "--config", "eurosat_1shot.yaml", "--data.root", str(root), "--data.query", "2", *tiny_model,
        "--trainer.max_epochs", "5", "--protocol.episodes", "3", "--protocol.compare", "methods/baseline.yaml",
    ]  # fmt: skip


def rows_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def numbers(folder):
    rows = {(row["episode"], row["method"]): row for row in rows_of(folder)}
    assert len(rows) == len(rows_of(folder)), "an episode stands twice"
    return {key: {k: v for k, v in row.items() if k != "seconds"} for key, row in sorted(rows.items())}


def summary_of(folder):
    def without_seconds(value):
        if isinstance(value, dict):
            return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
        return value

    return without_seconds(json.loads((folder / "summary.json").read_text()))


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
    assert f"{float(differences.mean()):+.2f} ± {half:.2f} (3 pairs)" in out


def test_a_finished_run_prints_its_result_without_loading_the_model(dtrap, words, monkeypatch):
    _, first, _ = dtrap(*words)
    monkeypatch.setattr(OpenCLIP, "__init__", None)
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


def test_the_method_alone_gives_the_same_numbers_as_beside_others(dtrap, words, tmp_path):
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


def test_another_config_in_the_same_folder_is_refused_with_the_difference(dtrap, words, tmp_path):
    dtrap(*words, "--protocol.folder", "run")
    before = numbers(tmp_path / "run")
    status, _, err = dtrap(*words, "--protocol.folder", "run", "--model.tuner.rank", 4, "--data.shot", 2)
    assert status == 2
    assert "model.tuner.init_args.rank: 16 in the folder, 4 now" in err
    assert "data.init_args.shot: 1 in the folder, 2 now" in err
    assert "--protocol.overwrite" in err
    status, _, err = dtrap(*words[:-2], "--config", "methods/baseline.yaml", "--protocol.folder", "run")
    assert status == 2
    assert "anti_visual_weight" in err
    assert numbers(tmp_path / "run") == before

    status, _, _ = dtrap(*words, "--protocol.folder", "run", "--model.tuner.rank", 4, "--protocol.overwrite", "true")
    assert status == 0
    assert numbers(tmp_path / "run") != before


def test_root_workers_and_device_do_not_make_another_experiment(dtrap, words, root, tmp_path):
    dtrap(*words, "--protocol.folder", "run")
    (tmp_path / "moved").symlink_to(root)
    status, out, err = dtrap(
        *words, "--protocol.folder", "run", "--data.root", tmp_path / "moved", "--data.num_workers", 2,
        "--trainer.accelerator", "cpu", "--trainer.logger", "false",
    )  # fmt: skip
    assert status == 0, err
    assert "Already finished" in out


def test_changed_data_files_are_refused(dtrap, words, root, tmp_path):
    dtrap(*words, "--protocol.folder", "run", "--protocol.episodes", 1)
    copy = make_eurosat(tmp_path / "other", per_class=5)
    status, _, err = dtrap(*words, "--protocol.folder", "run", "--data.root", copy)
    assert status == 2
    assert str(copy) in err


def test_a_finished_run_is_not_told_beside_other_data_but_without_data(dtrap, words, tmp_path):
    dtrap(*words, "--protocol.folder", "run", "--protocol.episodes", 1)
    asked = [*words, "--protocol.folder", "run", "--protocol.episodes", 1, "--data.root"]
    status, out, err = dtrap(*asked, make_eurosat(tmp_path / "other", per_class=5))
    assert status == 2
    assert "its rows come from other data files" in err
    assert "Already finished" not in out
    status, out, err = dtrap(*asked, tmp_path / "not_mounted")
    assert status == 0, err
    assert "Already finished" in out


def test_a_run_that_left_no_row_claims_no_folder(dtrap, words, tmp_path):
    dtrap(*words, "--protocol.folder", "run", "--data.root", "nowhere", "--model.tuner.rank", 4)
    dtrap(*words, "--protocol.folder", "run", "--model.backbone.pretrained", "nowhere.pt", "--model.tuner.rank", 4)
    status, _, err = dtrap(*words, "--protocol.folder", "run", "--protocol.episodes", 1)
    assert status == 0, err
    assert "rank: 16" in (tmp_path / "run" / "config.yaml").read_text()


def test_who_follows_the_advice_to_skip_goes_on(dtrap, words, tmp_path):
    broken = make_eurosat(tmp_path / "broken", per_class=5)
    asked = [*words, "--protocol.folder", "run", "--data.root", broken]
    dtrap(*asked, "--protocol.episodes", 1)
    for path in broken.rglob("*_2.jpg"):
        path.write_bytes(b"")
    status, _, err = dtrap(*asked)
    assert status == 2
    assert "--data.bad_images skip" in err
    before = rows_of(tmp_path / "run")
    status, out, err = dtrap(*asked, "--data.bad_images", "skip")
    assert status == 0, err
    assert "unreadable images left out" in out
    assert rows_of(tmp_path / "run")[: len(before)] == before


@pytest.mark.parametrize("mistake", [["--data.root", "nowhere"], ["--trainer.accelerator", "x"]])
def test_a_mistake_beside_overwrite_deletes_nothing(dtrap, words, tmp_path, mistake):
    dtrap(*words, "--protocol.folder", "run", "--protocol.episodes", 1)
    before = numbers(tmp_path / "run")
    status, _, _ = dtrap(*words, "--protocol.folder", "run", "--protocol.overwrite", "true", *mistake)
    assert status == 2
    assert numbers(tmp_path / "run") == before


def test_the_config_of_an_overwriting_run_goes_on_when_used_again(dtrap, words, tmp_path):
    more = ["--protocol.folder", "run", "--protocol.episodes", 1]
    dtrap(*words, *more)
    dtrap(*words, *more, "--protocol.overwrite", "true")
    before = rows_of(tmp_path / "run")
    status, _, err = dtrap("fit", "--config", "run/config.yaml", "--protocol.episodes", 2)
    assert status == 0, err
    assert rows_of(tmp_path / "run")[: len(before)] == before


def test_adapters_that_a_finished_run_has_not_saved_are_not_claimed(dtrap, words):
    dtrap(*words, "--protocol.episodes", 1)
    _, out, _ = dtrap(*words, "--protocol.episodes", 1, "--protocol.save_adapters", "true")
    assert "Adapters:" not in out
    assert "saved no adapters; use --protocol.overwrite true" in out


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


def test_results_do_not_go_among_the_images_of_a_folder(dtrap, tmp_path, tiny_model):
    make_folder(tmp_path / "photos", counts=(2, 2))
    for root, more in ((".", []), ("photos", ["--protocol.folder", "photos/run"])):
        status, _, err = dtrap("fit", "--config", "folder.yaml", "--data.root", root, *tiny_model, *more)
        assert status == 2
        assert "--protocol.folder" in err
    assert sorted(path.name for path in tmp_path.glob("*")) == ["photos"]


def test_a_folder_of_somebody_elses_is_left_alone(dtrap, words, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("precious: true\n")
    for more in ([], ["--protocol.overwrite", "true"]):
        status, _, err = dtrap(*words, "--protocol.folder", "mine", *more)
        assert status == 2
        assert "config.yaml" in err
    assert (tmp_path / "mine" / "config.yaml").read_text() == "precious: true\n"


def test_ctrl_c_prints_the_partial_summary_and_the_command_that_goes_on(dtrap, words, tmp_path, monkeypatch):
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


def test_a_full_disk_is_one_message_and_the_run_goes_on_later(dtrap, words, tmp_path, monkeypatch):
    original, calls = os.write, iter(range(10**6))

    def full(descriptor, content):
        if content.startswith(b'{"episode"') and next(calls) == 2:
            original(descriptor, content[:20])
            raise OSError(28, "No space left on device")
        return original(descriptor, content)

    monkeypatch.setattr(results.os, "write", full)
    status, _, err = dtrap(*words, "--protocol.folder", "run")
    assert status == 2
    assert "results.jsonl: cannot write (No space left on device)" in err
    assert len(rows_of(tmp_path / "run")) == 2
    status, _, _ = dtrap(*words, "--protocol.folder", "run")
    assert status == 0
    assert len(rows_of(tmp_path / "run")) == 6


def test_two_runs_in_one_folder_are_refused(dtrap, words, tmp_path):
    with results.RunFolder(tmp_path / "run").lock():
        status, _, err = dtrap(*words, "--protocol.folder", "run")
    assert status == 2
    assert "another run" in err


def test_bad_image_of_an_episode_names_file_and_remedy(dtrap, words, tmp_path):
    broken = make_eurosat(tmp_path / "broken", per_class=3)
    for path in broken.rglob("*_2.jpg"):
        path.write_bytes(b"\xff\xd8 cut off")
    status, _, err = dtrap(*words, "--data.root", broken)
    assert status == 2
    assert "_2.jpg" in err
    assert "bad_images" in err


def test_images_are_decoded_once_per_episode_for_all_methods(dtrap, words, monkeypatch):
    seen = []
    original = collection.open_image
    monkeypatch.setattr(collection, "open_image", lambda path: seen.append(path) or original(path))
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
    assert "photos 3 classes" in out
    assert " · 1 episode · " in out
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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.descriptions", "texts.yaml"], ["none for the class ", "and 24 more"]),
        (["--model.template", "[a photo of {}., a view of {}.]"], ["looks like a list", "'a photo of a {}.'"]),
        (["--config", "tuners/coop.yaml"], ["is too long", "--model.tuner.context_tokens"]),
        (["--model.template", "a very very very very long photo with too many words of a {}."], ["class '", "tokens"]),
    ],
)
def test_mistakes_in_prompts_are_told_before_the_first_episode(dtrap, tmp_path, words, told):
    (tmp_path / "texts.yaml").write_text("{circle: [a circle.]}")
    status, out, err = dtrap("fit", "--config", "demo.yaml", *words)
    assert status == 2
    assert "episode" not in out
    for part in told:
        assert part in err


@pytest.mark.filterwarnings("ignore")
def test_a_tuner_without_training_says_so_once(dtrap):
    status, out, err = dtrap(
        "fit", "--config", "demo.yaml", "--config", "tuners/tip_adapter.yaml", "--protocol.episodes", 2,
        "--data.query", 2,
    )  # fmt: skip
    assert status == 0, err
    assert "tip-adapter on tiny_clip/tiny_clip-c683ad6d: is made of each task's support images, frozen towers" in out
    assert "run with no optimizer" not in out + err
