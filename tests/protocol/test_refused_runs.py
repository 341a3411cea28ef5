"""Runs that `dtrap fit` refuses or ends with a message: nothing is mixed, and nothing is lost."""

import os

import pytest
from dtrap.protocol import run_folder as results
from layouts import make_eurosat, make_folder
from run_folders import numbers, rows_of


def test_another_config_in_the_same_folder_is_refused_with_the_difference(dtrap, words, tmp_path):
    dtrap(*words, "--protocol.folder", "run")
    before = numbers(tmp_path / "run")
    status, _, err = dtrap(*words, "--protocol.folder", "run", "--model.tuner.rank", 4, "--data.shot", 2)
    assert status == 2
    assert "model.tuner.rank: 16 in the folder, 4 now" in err
    assert "data.shot: 1 in the folder, 2 now" in err
    assert "--protocol.overwrite" in err
    status, _, err = dtrap(*words[:-2], "--config", "methods/baseline.yaml", "--protocol.folder", "run")
    assert status == 2
    assert "anti_visual_weight" in err
    assert numbers(tmp_path / "run") == before

    status, _, _ = dtrap(*words, "--protocol.folder", "run", "--model.tuner.rank", 4, "--protocol.overwrite", "true")
    assert status == 0
    assert numbers(tmp_path / "run") != before


def test_changed_data_files_are_refused(dtrap, words, root, tmp_path):
    dtrap(*words, "--protocol.folder", "run", "--protocol.episodes", 1)
    copy = make_eurosat(tmp_path / "other", per_class=5)
    status, _, err = dtrap(*words, "--protocol.folder", "run", "--data.root", copy)
    assert status == 2
    assert str(copy) in err


def test_a_finished_run_is_shown_without_its_data_but_not_with_other_data(dtrap, words, tmp_path):
    dtrap(*words, "--protocol.folder", "run", "--protocol.episodes", 1)
    asked = [*words, "--protocol.folder", "run", "--protocol.episodes", 1, "--data.root"]
    status, out, err = dtrap(*asked, make_eurosat(tmp_path / "other", per_class=5))
    assert status == 2
    assert "its rows come from other data files" in err
    assert "Already finished" not in out
    status, out, err = dtrap(*asked, tmp_path / "not_mounted")
    assert status == 0, err
    assert "Already finished" in out


def test_a_run_without_rows_leaves_the_folder_to_others(dtrap, words, tmp_path):
    dtrap(*words, "--protocol.folder", "run", "--data.root", "nowhere", "--model.tuner.rank", 4)
    dtrap(*words, "--protocol.folder", "run", "--model.backbone.pretrained", "nowhere.pt", "--model.tuner.rank", 4)
    status, _, err = dtrap(*words, "--protocol.folder", "run", "--protocol.episodes", 1)
    assert status == 0, err
    assert "rank: 16" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_run_resumes_after_the_advice_to_skip_images(dtrap, words, tmp_path):
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
def test_a_mistake_together_with_overwrite_deletes_nothing(dtrap, words, tmp_path, mistake):
    dtrap(*words, "--protocol.folder", "run", "--protocol.episodes", 1)
    before = numbers(tmp_path / "run")
    status, _, _ = dtrap(*words, "--protocol.folder", "run", "--protocol.overwrite", "true", *mistake)
    assert status == 2
    assert numbers(tmp_path / "run") == before


def test_a_finished_run_without_adapters_says_so(dtrap, words):
    dtrap(*words, "--protocol.episodes", 1)
    _, out, _ = dtrap(*words, "--protocol.episodes", 1, "--protocol.save_adapters", "true")
    assert "Adapters:" not in out
    assert "saved no adapters; use --protocol.overwrite true" in out


def test_results_in_the_image_folder_are_refused(dtrap, tmp_path, tiny_model):
    make_folder(tmp_path / "photos", counts=(2, 2))
    for root, more in ((".", []), ("photos", ["--protocol.folder", "photos/run"])):
        status, _, err = dtrap("fit", "--config", "folder.yaml", "--data.root", root, *tiny_model, *more)
        assert status == 2
        assert "--protocol.folder" in err
    assert sorted(path.name for path in tmp_path.glob("*")) == ["photos"]


def test_a_folder_that_is_not_a_run_folder_is_not_touched(dtrap, words, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("precious: true\n")
    for more in ([], ["--protocol.overwrite", "true"]):
        status, _, err = dtrap(*words, "--protocol.folder", "mine", *more)
        assert status == 2
        assert "config.yaml" in err
    assert (tmp_path / "mine" / "config.yaml").read_text() == "precious: true\n"


def test_a_full_disk_is_one_message_and_the_run_resumes_later(dtrap, words, tmp_path, monkeypatch):
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


def test_a_bad_image_is_named_with_the_remedy(dtrap, words, tmp_path):
    broken = make_eurosat(tmp_path / "broken", per_class=3)
    for path in broken.rglob("*_2.jpg"):
        path.write_bytes(b"\xff\xd8 cut off")
    status, _, err = dtrap(*words, "--data.root", broken)
    assert status == 2
    assert "_2.jpg" in err
    assert "bad_images" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.descriptions", "texts.yaml"], ["none for the class ", "and 24 more"]),
        (["--model.template", "[a photo of {}., a view of {}.]"], ["looks like a list", "'a photo of a {}.'"]),
        (["--config", "tuners/coop.yaml"], ["is too long", "--model.tuner.context_tokens"]),
        (["--model.template", "a very very very very long photo with too many words of a {}."], ["class '", "tokens"]),
    ],
)
def test_mistakes_in_prompts_are_found_before_the_first_episode(dtrap, tmp_path, words, told):
    (tmp_path / "texts.yaml").write_text("{circle: [a circle.]}")
    status, out, err = dtrap("fit", "--config", "demo.yaml", *words)
    assert status == 2
    assert "episode" not in out
    for part in told:
        assert part in err
