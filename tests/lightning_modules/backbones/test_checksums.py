"""The checksum of a large file is kept until the file changes; whatever is wrong with the kept one, it is not used."""

import hashlib
import json
import os
import time

import pytest
from dtrap.files import sha256
from dtrap.lightning_modules.backbones import checksums


@pytest.fixture
def reads(monkeypatch, tmp_path):
    """The files that were read; every file is large, and has settled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "LEAST_BYTES", 1)
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", -1.0)
    found = []

    def read(path):
        found.append(path.name)
        return sha256(path)

    monkeypatch.setattr(checksums, "sha256", read)
    return found


def digest(content):
    return hashlib.sha256(content).hexdigest()


def entries(folder):
    return list((folder / "cache" / "dtrap" / "checksums").glob("*.json"))


def test_a_file_is_read_once(reads, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"one")
    assert [checksums.kept_sha256(path) for _ in range(3)] == [digest(b"one")] * 3
    assert reads == ["w.safetensors"]
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize("how", ["written", "replaced", "same time"])
def test_a_changed_file_is_read_again(reads, tmp_path, how):
    path, other = tmp_path / "w", tmp_path / "other"
    path.write_bytes(b"one")
    checksums.kept_sha256(path)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    time.sleep(0.02)
    if how == "replaced":
        other.write_bytes(b"two")
        os.replace(other, path)
    else:
        path.write_bytes(b"two")
    if how != "written":
        os.utime(path, ns=times)  # as `cp -p` and `rsync -t` do; the size is the same, too
    assert checksums.kept_sha256(path) == digest(b"two")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"sha256": 1}', None, b"\xff\xfe", "digest"])
def test_a_broken_entry_is_ignored_and_replaced(reads, tmp_path, content):
    path = tmp_path / "w"
    path.write_bytes(b"one")
    checksums.kept_sha256(path)
    (entry,) = entries(tmp_path)
    known = json.loads(entry.read_text())
    if content is None:
        known["bytes"] += 1
    entry.write_bytes(json.dumps(known | {"sha256": "0" * 63}).encode() if content in (None, "digest") else content)
    assert checksums.kept_sha256(path) == digest(b"one")
    assert json.loads(entry.read_text())["sha256"] == digest(b"one")
    assert reads == ["w", "w"]


def test_a_cache_that_cannot_be_written_is_no_error(reads, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file, not a folder")
    path = tmp_path / "w"
    path.write_bytes(b"one")
    assert [checksums.kept_sha256(path) for _ in range(2)] == [digest(b"one")] * 2
    assert len(reads) == 2


def test_a_file_that_has_just_changed_or_is_small_is_not_kept(reads, tmp_path, monkeypatch):
    path = tmp_path / "w"
    path.write_bytes(b"one")
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", 100.0)
    checksums.kept_sha256(path)
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", -1.0)
    monkeypatch.setattr(checksums, "LEAST_BYTES", 4)
    checksums.kept_sha256(path)
    assert entries(tmp_path) == []


def test_a_missing_file_and_a_fifo_are_errors_as_before(reads, tmp_path):
    with pytest.raises(FileNotFoundError):
        checksums.kept_sha256(tmp_path / "none")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="FIFO"):
        checksums.kept_sha256(tmp_path / "fifo")
