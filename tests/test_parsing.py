"""JSON and YAML from anybody: one error in bounded time."""

import gzip
import os
import time
from itertools import pairwise

import pytest
from dtrap.parsing import parse_json, parse_yaml, read_json, read_yaml

LETTERS = "abcdefghij"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise(LETTERS)
)
MERGED = "a: &a {k: v}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n" for old, new in pairwise(LETTERS)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "aliases stand for more than 10,000 values in line 4"),
        (MERGED, "aliases stand for more than 10,000 values"),
        ("a: &a [*a]", "within its own value"),
        ("[" * 100_000, "nested"),
        ("{a: " * 100_000, "nested"),
        ("- " * 100_000, "nested"),
        ("x: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("x: !include /etc/passwd", "could not determine a constructor"),
        ("x: [1", "expected ',' or ']'"),
        ("x: " + "9" * 5000, "digits"),
        ("\0", "unacceptable character"),
    ],
    ids=lambda value: value[:20],
)
def test_yaml_is_refused_in_bounded_time(text, reason):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r".") as error:
        parse_yaml(text)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 10


def test_aliases_that_people_write_are_read():
    text = "a: &a {rank: 4, names: &n [x, y]}\nb: {<<: *a, rank: 5}\nc: *n\n"
    assert parse_yaml(text) == {
        "a": {"rank": 4, "names": ["x", "y"]},
        "b": {"rank": 5, "names": ["x", "y"]},
        "c": ["x", "y"],
    }


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{", "\ud800", ""])
def test_json_is_refused_with_one_error(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_large_files_and_pipes_are_not_read(tmp_path):
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(10 << 30)  # no bytes on the disk
    (tmp_path / "large.yaml").write_bytes(b"#" * (5 << 20))
    (tmp_path / "bomb.json.gz").write_bytes(gzip.compress(bytes(100 << 20)))
    (tmp_path / "damaged.json.gz").write_bytes(gzip.compress(b"{}" * 1000)[:20])
    for read, name in ((read_json, "large.json"), (read_yaml, "large.yaml"), (read_json, "bomb.json.gz")):
        with pytest.raises(ValueError, match="larger than"):
            read(tmp_path / name)
    with pytest.raises(ValueError, match="damaged gzip"):
        read_json(tmp_path / "damaged.json.gz")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(OSError, match="not a regular file"):
        read_json(tmp_path / "pipe.json")


@pytest.mark.parametrize("option", ["--model.tuner", "--trainer.logger", "--trainer.callbacks", "--model", "--data"])
def test_aliases_in_the_file_of_an_option_are_bounded(dtrap, tmp_path, option):
    (tmp_path / "bomb.yaml").write_text(BOMB)
    status, _, err = dtrap("fit", "--config", "demo.yaml", option, tmp_path / "bomb.yaml")
    assert status == 2
    assert "aliases stand for more than 10,000 values" in err
    assert len(err.splitlines()) == 1


def test_aliases_in_a_value_are_bounded(dtrap):
    status, _, err = dtrap("fit", "--config", "folder.yaml", "--data.root", "x", "--data.class_names", BOMB)
    assert status == 2
    assert "aliases stand for more than 10,000 values" in err


@pytest.mark.parametrize("form", [["--model.tuner", "pipe"], ["--trainer=pipe"], ["--data.subset", "pipe"]])
def test_pipes_as_values_are_refused_before_they_are_opened(dtrap, tmp_path, form):
    os.mkfifo(tmp_path / "pipe")
    status, _, err = dtrap("fit", "--config", "demo.yaml", *form)
    assert status == 2
    assert "pipe is a FIFO, device or socket" in err
