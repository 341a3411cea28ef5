"""Nothing is lost in silence: vanished folders, leftovers of killed processes, full disks, missing rows."""

import os
import shutil
from collections import namedtuple

import pytest
from all_way_runs import words as all_way_words
from dtrap.errors import DtrapError
from dtrap.files import replacing
from dtrap.lightning_modules import FewShotClassifier
from dtrap.protocol import space
from dtrap.protocol.run_folder import ResultRows, RunFolder
from layouts import make_eurosat
from run_folders import rows_of

DEAD = 2**22 + 7  # more than the largest number of a process on Linux
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def at_step(monkeypatch):
    """Call a function in the n-th training step (from 0)."""

    def patch(number, call):
        original, calls = FewShotClassifier.training_step, iter(range(10**6))

        def step(self, *arguments):
            if next(calls) == number:
                call()
            return original(self, *arguments)

        monkeypatch.setattr(FewShotClassifier, "training_step", step)

    return patch


def emptied(run):
    for path in run.iterdir():
        path.unlink() if path.is_file() else shutil.rmtree(path)


def replaced(run):
    shutil.rmtree(run)
    run.mkdir()


@pytest.mark.parametrize("fate", [shutil.rmtree, lambda run: run.rename(run.with_name("moved")), emptied, replaced])
@pytest.mark.parametrize("more", [[], ["--protocol.save_adapters", "true", "--protocol.pictures", "2"]])
def test_a_folder_that_vanishes_stops_the_run_at_the_next_row(dtrap, words, tmp_path, at_step, fate, more):
    at_step(12, lambda: fate(tmp_path / "run"))
    status, _, err = dtrap(*words, *more, "--protocol.folder", "run")
    assert status == 2
    assert "the run folder run was deleted or moved while the run was writing to it" in err
    assert "rerun the same command" in err
    left = tmp_path / "run"
    assert not left.exists() or not any(path.is_file() for path in left.rglob("*"))
    if (tmp_path / "moved").exists():
        assert len(rows_of(tmp_path / "moved")) == 2
        (tmp_path / "moved").rename(left)
        assert dtrap(*words, *more, "--protocol.folder", "run")[0] == 0
        assert len(rows_of(left)) == 6


def test_a_folder_that_vanished_is_not_made_again_by_an_interrupt(dtrap, words, tmp_path, at_step):
    def vanish():
        shutil.rmtree(tmp_path / "run")
        raise KeyboardInterrupt

    at_step(12, vanish)
    status, _, err = dtrap(*words, "--protocol.folder", "run")
    assert status == 2
    assert "was deleted or moved" in err
    assert not (tmp_path / "run").exists()


def test_a_vanished_folder_gets_no_checkpoint(dtrap, tmp_path, at_step):
    root = make_eurosat(tmp_path / "eurosat", per_class=8)
    at_step(1, lambda: shutil.rmtree(tmp_path / "run"))
    status, _, err = dtrap(*all_way_words(root, "run", "--data.shot", 2, "--protocol.checkpoint_every", 1))
    assert status == 2
    assert "was deleted or moved" in err
    assert not (tmp_path / "run").exists()


def test_rows_that_are_deleted_during_the_run_end_it(dtrap, words, tmp_path, at_step):
    at_step(12, lambda: (tmp_path / "run" / "results.jsonl").unlink())
    status, _, err = dtrap(*words, "--protocol.folder", "run")
    assert status == 2
    assert "results.jsonl: rows of this run were deleted while it was running. Rerun the same command" in err
    assert dtrap(*words, "--protocol.folder", "run")[0] == 0


def test_a_run_that_ends_with_rows_missing_is_no_success(dtrap, words, monkeypatch):
    original, calls = ResultRows.append, iter(range(10**6))
    monkeypatch.setattr(ResultRows, "append", lambda *arguments: next(calls) == 3 or original(*arguments))
    status, _, err = dtrap(*words)
    assert status == 2
    assert "results.jsonl: 1 rows are missing. Rerun the same command" in err


def test_leftovers_of_killed_processes_are_deleted_by_the_next_run(dtrap, words, tmp_path):
    run = tmp_path / "run"
    assert dtrap(*words, "--protocol.folder", "run", "--protocol.episodes", 1)[0] == 0
    left = ["adapters/.episode_0000_svl-ra.safetensors", "pictures/.episode_0000_svl-ra.png", ".config.baseline.yaml",
            "checkpoints/.episode_0000_svl-ra.ckpt", ".summary.json", ".identity.json"]  # fmt: skip
    left = [run / f"{name}.{DEAD}.tmp" for name in left]
    kept = [run / ".config.yaml.1.tmp", run / ".notes.3.tmp", run / f".notes.txt.{DEAD}.tmp", run / "config.yaml"]
    for path in [*left, *kept[:-1]]:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    assert dtrap(*words, "--protocol.folder", "run", "--protocol.episodes", 1)[0] == 0
    assert [path for path in left if path.exists()] == []
    assert [path for path in kept if not path.exists()] == []
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize(
    "process", [DEAD, os.getpid()], ids=["dead", "own"]
)  # in containers, all processes may have the same number
def test_what_a_killed_export_left_is_deleted_by_the_next(tmp_path, process):
    left = tmp_path / f".model.{process}.tmp"
    left.mkdir()
    (left / "weights").write_text("half")
    other = tmp_path / f".model.2.{DEAD}.tmp"
    other.mkdir()
    with replacing(tmp_path / "model") as folder:
        folder.mkdir()
    assert sorted(os.listdir(tmp_path)) == sorted([other.name, "model"])


def test_a_run_that_does_not_fit_on_the_disk_is_refused_before_it_begins(dtrap, words, tmp_path, monkeypatch):
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 40_000, 40_000))
    more = ["--protocol.folder", "run", "--protocol.save_adapters", "true"]
    status, _, err = dtrap(*words, *more)
    assert status == 2
    # 2 blocks, q, k and v, rank 16 x (32 + 32) numbers of 4 bytes
    assert "run: the run would write 6 adapters of 24.6 kB, 147.5 kB in all, but 40.0 kB are free there." in err
    assert "--protocol.folder" in err
    assert os.listdir(tmp_path / "run") in ([], [".lock"])
    assert dtrap(*words, "--protocol.folder", "run", "--protocol.episodes", 1)[0] == 0
    before = rows_of(tmp_path / "run")
    assert dtrap(*words, *more, "--protocol.overwrite", "true")[0] == 2
    assert rows_of(tmp_path / "run") == before


def test_checkpoints_count_and_so_does_what_an_overwriting_run_deletes(dtrap, tmp_path, monkeypatch):
    root = make_eurosat(tmp_path / "eurosat", per_class=8)
    words = all_way_words(root, "run", "--data.shot", 2, "--trainer.max_epochs", 1)
    words += ["--protocol.save_adapters", "false"]
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 0))
    status, _, err = dtrap(*words)
    assert status == 2
    assert "the run would write checkpoints of " in err
    assert "0 bytes are free" in err
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "old.ckpt").write_bytes(bytes(10**7))
    (tmp_path / "run" / "identity.json").write_text('{"main": "svl-ra", "methods": {"svl-ra": {}}}')
    status, _, err = dtrap(*words, "--protocol.overwrite", "true")
    assert status == 0, err


def test_an_interrupted_run_is_not_told_to_delete_its_checkpoint(dtrap, tmp_path, at_step):
    root = make_eurosat(tmp_path / "eurosat", per_class=8)

    def interrupt():
        raise KeyboardInterrupt

    at_step(2, interrupt)
    more = ["--data.shot", 2, "--protocol.checkpoint_every", 1, "--protocol.save_adapters", "true"]
    status, out, _ = dtrap(*all_way_words(root, "run", *more))
    assert status == 130
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    assert "overwrite" not in out
    assert "adapters" not in out.replace("--protocol.save_adapters true", "")


def test_episodes_without_adapters_are_counted(dtrap, words):
    dtrap(*words, "--protocol.episodes", 1)
    status, out, _ = dtrap(*words, "--protocol.episodes", 2, "--protocol.save_adapters", "true")
    assert status == 0
    assert "Adapters: " in out
    assert "2 of 4 episodes saved no adapters" in out


def test_a_folder_that_is_not_locked_is_not_watched(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.check_present()
    with folder.lock():
        with pytest.raises(DtrapError, match="was deleted or moved"):
            folder.check_present()
        folder.write_json(folder.identity, {})
        folder.check_present()
