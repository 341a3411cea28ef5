import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from dtrap.errors import DtrapError
from dtrap.files import write_atomically
from dtrap.protocol.run_folder import ResultRows, RunFolder


def row(episode, method="svl-ra", **more):
    return {
        "episode": episode,
        "method": method,
        "seed": 1,
        "classes": ["Mélanome", "Nævus"],
        "accuracy": 50.0 + episode,
        "confusion": [[3, 1], [0, 4]],
        **more,
    }


@pytest.fixture
def rows(tmp_path):
    return ResultRows(tmp_path / "run" / "results.jsonl")


def test_rows_come_back_as_written(rows):
    assert rows.read() == []
    for episode in (0, 2, 1):
        rows.append(row(episode))
    assert rows.read() == [row(0), row(2), row(1)]
    assert rows.path.read_bytes().count(b"\n") == 3


def test_missing_and_finished_are_per_method(rows):
    for episode in (0, 3, 7):
        rows.append(row(episode))
    rows.append(row(1, "baseline"))
    assert rows.finished("svl-ra") == {0, 3, 7}
    assert rows.missing("svl-ra", 5) == [1, 2, 4]
    assert rows.missing("baseline", 3) == [0, 2]
    assert rows.missing("unheard of", 2) == [0, 1]


def test_the_first_of_two_rows_of_an_episode_counts(rows):
    rows.append(row(0, accuracy=10.0))
    rows.append(row(0, "baseline", accuracy=20.0))
    rows.append(row(0, accuracy=30.0))
    assert [found["accuracy"] for found in rows.read()] == [10.0, 20.0]


def test_arrays_and_numbers_that_are_not_finite_become_valid_json(rows):
    rows.append(
        row(
            0,
            accuracy=float("nan"),
            seconds=np.float32(1.5),
            confusion=np.array([[1, 2], [3, 4]]),
            losses={"end": {"total": float("inf"), "visual": np.array([np.nan, 2.0])}},
        )
    )

    def refuse(constant):
        pytest.fail(f"{constant} is no JSON")

    json.loads(rows.path.read_text(), parse_constant=refuse)
    (found,) = rows.read()
    assert found["accuracy"] is None
    assert found["seconds"] == 1.5
    assert found["confusion"] == [[1, 2], [3, 4]]
    assert found["losses"] == {"end": {"total": None, "visual": [None, 2.0]}}


def test_a_kill_at_any_byte_of_the_last_row_costs_that_row_only(rows):
    for episode in range(3):
        rows.append(row(episode))
    whole = rows.path.read_bytes()
    start = whole.rstrip().rfind(b"\n") + 1
    for end in range(start, len(whole)):
        rows.path.write_bytes(whole[:end])
        kept = 3 if end == len(whole) - 1 else 2  # only the line break is missing there
        assert rows.read() == [row(episode) for episode in range(kept)], end
        for episode in rows.missing("svl-ra", 4):
            rows.append(row(episode))
        assert rows.path.read_bytes() == whole + json.dumps(row(3), ensure_ascii=False).encode() + b"\n", end


@pytest.mark.parametrize("rubbish", [b"\0\0\0\0", b'{"episode": 1}\n', b"[1, 2]\n\n", b"\xff\xfe{\n", b"17"])
def test_a_last_line_that_is_no_row_is_cut_off(rows, rubbish):
    rows.append(row(0))
    with rows.path.open("ab") as file:
        file.write(rubbish)
    assert rows.read() == [row(0)]
    rows.append(row(1))
    assert rows.read() == [row(0), row(1)]


def test_reading_changes_nothing(rows):
    rows.append(row(0))
    content = rows.path.read_bytes() + b'{"epis'
    rows.path.write_bytes(content)
    rows.read()
    assert rows.path.read_bytes() == content


def test_a_bad_line_before_the_last_is_an_error_with_file_and_line(rows):
    rows.append(row(0))
    with rows.path.open("a") as file:
        file.write("not a row\n")
    whole = rows.path.read_bytes() + json.dumps(row(1)).encode() + b"\n"
    rows.path.write_bytes(whole)
    with pytest.raises(DtrapError, match=r"results\.jsonl, line 2: .*not a row"):
        rows.read()
    assert rows.path.read_bytes() == whole


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("room", [0, 1, 40])
def test_a_full_disk_is_an_error_and_leaves_whole_rows(rows, monkeypatch, room):
    rows.append(row(0))
    written = rows.path.read_bytes()
    write = os.write
    left = [room]

    def write_what_fits(descriptor, content):
        if not left[0]:
            full_disk()
        count = write(descriptor, content[: left[0]])
        left[0] -= count
        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_what_fits)
        with pytest.raises(DtrapError, match=r"results\.jsonl.*No space left on device.*Free space"):
            rows.append(row(1))
    assert rows.path.read_bytes() == written
    rows.append(row(1))
    assert rows.read() == [row(0), row(1)]


def test_a_row_is_not_taken_as_written_before_it_is_on_the_disk(rows, monkeypatch):
    rows.append(row(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(DtrapError, match="No space left"):
            rows.append(row(1))
    assert rows.read() == [row(0)]


def test_a_write_in_several_pieces_is_one_row(rows, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:7]))
    rows.append(row(0))
    assert rows.read() == [row(0)]


def test_a_folder_in_place_of_the_file_is_an_error(rows):
    rows.path.mkdir(parents=True)
    with pytest.raises(DtrapError, match=r"results\.jsonl: cannot read"):
        rows.read()


HOLD = """
import sys, time
from dtrap.protocol.run_folder import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    folder = RunFolder(tmp_path / "run")
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(DtrapError, match=r"another run is writing to .*run") as caught, folder.lock():
            pass
        assert "--protocol.folder" in str(caught.value)
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    for _ in range(2):
        with folder.lock():
            assert folder.path.is_dir()


def test_the_lock_is_exclusive_within_one_process_too(tmp_path):
    with (
        RunFolder(tmp_path).lock(),
        pytest.raises(DtrapError, match="another run is writing"),
        RunFolder(tmp_path).lock(),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DtrapError, match="cannot write"), RunFolder(tmp_path / "file" / "run").lock():
        pass


def test_small_files_are_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    folder.write_json(folder.summary, {"mean": float("nan"), "names": ("é",), "root": tmp_path})
    expected = {"mean": None, "names": ["é"], "root": str(tmp_path)}
    assert json.loads(folder.summary.read_text(encoding="utf-8")) == expected
    for failing in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, failing, full_disk)
            with pytest.raises(DtrapError, match=r"summary\.json: cannot write \(No space"):
                folder.write_text(folder.summary, "half")
        assert json.loads(folder.summary.read_text(encoding="utf-8")) == expected
        assert os.listdir(folder.path) == ["summary.json"]


def test_atomic_writes_make_the_folders_they_need(tmp_path):
    write_atomically(tmp_path / "pictures" / "0" / "a.png", b"\x00\x01")
    assert (tmp_path / "pictures" / "0" / "a.png").read_bytes() == b"\x00\x01"


def test_clear_deletes_the_files_of_a_run_and_no_others(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_text(folder.config, "seed: 1\n")
    folder.rows.append(row(0))
    folder.write_text(folder.adapters / "0.json", "{}")
    folder.write_text(tmp_path / "notes.txt", "mine")
    folder.clear()
    folder.clear()
    assert os.listdir(tmp_path) == ["notes.txt"]
