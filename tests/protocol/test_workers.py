"""Worker processes through Ray: the same rows, files and messages as one process, also where a worker dies."""

import sys

import all_way_runs
import pytest
from dtrap.errors import DtrapError
from dtrap.protocol.workers import pool
from dtrap.protocol.workers.options import Workers, parse_workers
from layouts import make_eurosat
from run_folders import numbers, summary_of
from safetensors.torch import load_file

ray = pytest.importorskip("ray", reason="Ray is not installed")


@pytest.fixture(scope="module")
def runtime():
    """A Ray runtime that the tests share: its start takes seconds."""
    from dtrap.protocol.workers.cluster import connect

    cluster = connect(Workers(count=2))
    yield cluster
    cluster.close()


@pytest.fixture
def files(words):
    return [*words, "--protocol.save_adapters", "true"]


def measures(folder):
    found = summary_of(folder)
    found.pop("device")
    return found


def test_workers_write_what_one_process_writes(runtime, dtrap, files, tmp_path):
    status, alone, _ = dtrap(*files, "--protocol.folder", "alone")
    assert status == 0
    status, together, errors = dtrap(*files, "--protocol.folder", "together", "--protocol.workers", "2")
    assert status == 0, errors
    assert numbers(tmp_path / "together") == numbers(tmp_path / "alone")
    assert measures(tmp_path / "together") == measures(tmp_path / "alone")
    assert (tmp_path / "together/metrics.csv").read_text().count("\n") == 4
    paths = sorted((tmp_path / "alone/adapters").iterdir())
    assert [path.name for path in paths] == sorted(path.name for path in (tmp_path / "together/adapters").iterdir())
    for path in paths:
        if path.suffix == ".safetensors":
            first, second = load_file(path), load_file(tmp_path / "together/adapters" / path.name)
            assert all(first[name].equal(second[name]) for name in first)
            assert first.keys() == second.keys()
    assert [line for line in alone.splitlines() if line.startswith("EuroSAT")] == [
        line for line in together.splitlines() if line.startswith("EuroSAT")
    ]
    assert "Workers: 2, 1 thread each" in together
    assert "raylet" not in together + errors


def test_a_worker_trains_episodes_side_by_side(runtime, dtrap, words, tmp_path):
    exact = [*words, "--trainer.precision", "64-true"]
    assert dtrap(*exact, "--protocol.folder", "alone")[0] == 0
    status, output, errors = dtrap(
        *exact, "--protocol.folder", "together", "--protocol.workers", "1", "--protocol.side_by_side", "2"
    )
    assert status == 0, errors
    assert "svl-ra: 2 episodes side by side" in output
    first, second = numbers(tmp_path / "alone"), numbers(tmp_path / "together")
    assert first.keys() == second.keys()
    for key, row in first.items():
        assert row["losses"]["end"] == pytest.approx(second[key]["losses"]["end"], rel=1e-9)
        assert row["confusion"] == second[key]["confusion"]


def test_predictions_of_workers_are_those_of_one_process(runtime, dtrap, files, root, tmp_path):
    assert dtrap(*files, "--protocol.episodes", "1", "--protocol.folder", "run")[0] == 0
    adapter = tmp_path / "run/adapters/episode_0000_svl-ra.safetensors"
    words = ["predict", "--adapter", adapter, "--images", root]
    assert dtrap(*words, "--output", "alone.csv")[0] == 0
    status, _, errors = dtrap(*words, "--output", "together.csv", "--protocol.workers", "2")
    assert status == 0, errors
    assert (tmp_path / "together.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


def test_the_item_of_a_worker_that_dies_is_run_again(runtime, dtrap, words, tmp_path):
    callback = [
        "--trainer.callbacks+=dying.Dies", "--trainer.callbacks.folder", str(tmp_path),
        "--trainer.callbacks.episode", "1", "--trainer.callbacks.times",
    ]  # fmt: skip
    one = [*words, "--protocol.compare", "null", "--protocol.episodes", "2"]
    assert dtrap(*one, *callback, "0", "--protocol.folder", "alone")[0] == 0
    run = [*one, *callback, "1", "--protocol.folder", "killed", "--protocol.workers", "1"]
    status, output, errors = dtrap(*run)
    assert status == 0, errors
    assert "A worker died while it ran episode 1 of 'svl-ra'" in output
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "alone")


def test_an_item_that_kills_every_worker_ends_with_a_message(runtime, dtrap, words, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "MOST_DEATHS", 2)  # each death takes seconds
    callback = [
        "--trainer.callbacks+=dying.Dies", "--trainer.callbacks.folder", str(tmp_path),
        "--trainer.callbacks.episode", "0", "--trainer.callbacks.times", "9",
    ]  # fmt: skip
    one = [*words, "--protocol.compare", "null", "--protocol.episodes", "2", "--protocol.folder", "run"]
    status, _, errors = dtrap(*one, *callback, "--protocol.workers", "1")
    assert status == 2
    assert "episode 0 of 'svl-ra' has ended its worker process 2 times" in errors
    assert list(numbers(tmp_path / "run")) == [(1, "svl-ra")], "the other episode is run"


def test_an_error_of_a_worker_is_that_of_one_process(runtime, dtrap, words, root, damaged):
    words[words.index(str(root))] = str(damaged)
    for path in sorted(damaged.rglob("*.jpg"))[::2]:
        path.write_bytes(b"no picture")
    refused = [*words, "--data.bad_images", "skip", "--protocol.folder"]
    alone, together = dtrap(*refused, "alone"), dtrap(*refused, "together", "--protocol.workers", "2")
    assert alone[0] == together[0] == 2
    assert alone[2].splitlines()[-1] == together[2].splitlines()[-1]


def test_without_ray_nothing_is_touched(dtrap, words, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    status, _, errors = dtrap(*words, "--protocol.folder", "run", "--protocol.workers", "2")
    assert (status, errors.count("\n")) == (2, 1)
    assert "pip install 'dtrap[ray]'" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (3, Workers(count=3)),
        ("2", Workers(count=2)),
        ("auto", Workers()),
        ("host:6379", Workers(address="host:6379")),
        ("ray://host:10001", Workers(address="ray://host:10001")),
    ],
)
def test_values_of_the_option(value, wanted):
    assert parse_workers(value) == wanted


@pytest.mark.parametrize("value", [0, -1, "", "many", "host", "host:", "http://host:80", "host:99999", True])
def test_wrong_values_of_the_option(value):
    with pytest.raises(DtrapError, match=r"--protocol\.workers is .*; expected a number of at least 1, auto, or the"):
        parse_workers(value)


def test_a_seed_of_a_worker_that_dies_goes_on_at_its_checkpoint(runtime, dtrap, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a single worker takes all cores; the tests' own process has one thread
    root = make_eurosat(tmp_path / "data", per_class=9)
    callback = [
        "--trainer.callbacks+=dying.Dies", "--trainer.callbacks.folder", str(tmp_path),
        "--trainer.callbacks.episode", "0", "--trainer.callbacks.step", "6", "--trainer.callbacks.times",
    ]  # fmt: skip
    more = ["--data.all_way.seeds", "[1]", "--model.tuner.dropout", "0.5", "--protocol.checkpoint_every", 2]
    assert dtrap(*all_way_runs.words(root, "whole", *more, *callback, "0"))[0] == 0
    run = all_way_runs.words(root, "killed", *more, *callback, "1", "--protocol.workers", "1")
    status, _, errors = dtrap(*run)
    assert status == 0, errors
    assert [(tmp_path / name).read_text() for name in ("start0", "start1", "start2")] == ["0", "0", "4"]
    all_way_runs.assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
    assert not (tmp_path / "killed/checkpoints").exists()
