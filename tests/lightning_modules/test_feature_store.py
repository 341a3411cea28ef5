"""The files of the feature store: bounded, shared by processes, and never half read."""

import os
import subprocess
import sys

import pytest
import torch
from dtrap.lightning_modules import feature_store
from dtrap.lightning_modules.feature_store import FeatureStores


def key(number):
    return number.to_bytes(16, "big")


def fill(folder, name, rows, **options):
    stores = FeatureStores(folder, **options)
    store = stores.of({"name": name})
    for number in range(rows):
        store.put(key(number), torch.full((8,), float(number)))
    stores.save(now=True)
    return stores, store


def test_features_come_back_in_another_process(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path; from dtrap.lightning_modules.feature_store import FeatureStores\n"
        "stores = FeatureStores(Path(sys.argv[1])); store = stores.of({'name': 'a'}); first = int(sys.argv[2])\n"
        "[store.put(n.to_bytes(16, 'big'), torch.full((8,), float(n))) for n in range(first, first + 5)]\n"
        "stores.save(now=True)"
    )
    mine = FeatureStores(tmp_path).of({"name": "a"})
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), first]) for first in ("0", "3")]
    assert [process.wait() for process in both] == [0, 0]
    assert mine.get(key(7)) is None
    mine.look_again()
    assert all(torch.equal(mine.get(key(number)), torch.full((8,), float(number))) for number in range(8))
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_oldest_stores_make_room(tmp_path):
    for age, name in enumerate("cba"):
        _, store = fill(tmp_path, name, 20)
        os.utime(store.folder, (1e9 - age, 1e9 - age))
    size = sum(path.stat().st_size for path in store.folder.iterdir())
    _, new = fill(tmp_path, "new", 20, most_bytes=3 * size + size // 2)
    kept = [FeatureStores(tmp_path).of({"name": name}).get(key(1)) is not None for name in ("a", "b", "c", "new")]
    assert kept == [False, True, True, True]
    assert new.get(key(19)) is not None
    total = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert total <= 3 * size + size // 2


def test_a_store_that_is_too_large_is_said_once_and_other_files_stay(tmp_path, caplog):
    (tmp_path / "mine.txt").write_text("x")
    stores, store = fill(tmp_path, "a", 20, most_bytes=500)
    store.put(key(99), torch.zeros(8))
    stores.save(now=True)
    assert caplog.text.count("would exceed 500 bytes") == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["mine.txt"]


def test_a_full_disk_is_said_once(tmp_path, caplog, monkeypatch):
    def full(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_store, "save_file", full)
    stores, store = fill(tmp_path, "a", 3)
    store.put(key(5), torch.zeros(8))
    stores.save(now=True)
    assert caplog.text.count("No space left on device") == 1
    assert not list(tmp_path.rglob("*.safetensors")) + list(tmp_path.rglob("*.tmp"))


def test_a_file_of_another_store_is_not_read(tmp_path, caplog):
    _, first = fill(tmp_path, "a", 3)
    second = FeatureStores(tmp_path).of({"name": "b"})
    (file,) = first.folder.glob("*.safetensors")
    second.folder.mkdir()
    (second.folder / file.name).write_bytes(file.read_bytes())
    second.look_again()
    assert second.get(key(1)) is None
    assert "belongs to another store" in caplog.text


@pytest.mark.parametrize("width", [1, 7])
def test_types_are_kept(tmp_path, width):
    stores = FeatureStores(tmp_path)
    for number, kind in enumerate((torch.float16, torch.bfloat16, torch.float32, torch.float64)):
        feature = torch.randn(width).to(kind)
        stores.of({"kind": str(kind)}).put(key(number), feature)
        stores.save(now=True)
        found = FeatureStores(tmp_path).of({"kind": str(kind)}).get(key(number))
        assert found.dtype == kind
        assert torch.equal(found, feature)
