"""The index of a large data set is kept beside the run, and made anew where folders changed."""

import os

import pytest
from coop_layouts import COOP_MAKERS
from dtrap.datamodules import ClassFoldersDataModule, EuroSATDataModule, index_cache
from dtrap.datamodules.catalogue import SETS
from dtrap.datamodules.index import ImageIndex
from dtrap.datamodules.index_cache import cached_index
from layouts import make_eurosat, make_folder


@pytest.fixture
def scans(monkeypatch):
    """Number of scans; every index counts as large."""
    monkeypatch.setattr(index_cache, "LEAST_IMAGES", 1)
    found = []
    for module in (EuroSATDataModule, ClassFoldersDataModule):
        original = module.scan
        monkeypatch.setattr(module, "scan", lambda self, original=original: found.append(1) or original(self))
    return found


@pytest.fixture
def read(tmp_path):
    def index(root, **settings):
        module = ClassFoldersDataModule(root, **settings)
        module.index_file = tmp_path / "run" / "index.json"
        return module.index

    return index


def test_a_second_start_reads_the_same_index_without_listing(tmp_path, scans, read):
    root = make_folder(tmp_path / "photos", counts=(3, 2, 4))
    first = read(root)
    assert read(root) == first
    assert len(scans) == 1
    assert read(root).fingerprint() == first.fingerprint()


def touch_new(root):
    (root / "cls_00" / "new.jpg").write_bytes(b"")


def remove(root):
    next((root / "cls_01").iterdir()).unlink()


def new_class(root):
    (root / "cls_99").mkdir()
    (root / "cls_99" / "a.jpg").write_bytes(b"")


def fill_empty(root):
    (root / "empty" / "a.jpg").write_bytes(b"")


def rename_class(root):
    (root / "cls_00").rename(root / "cls_zero")


def table(root):
    (root / "names.txt").write_text("x")


@pytest.mark.parametrize("change", [touch_new, remove, new_class, fill_empty, rename_class, table])
def test_a_changed_folder_is_listed_again(tmp_path, scans, read, change):
    root = make_folder(tmp_path / "photos", counts=(3, 2, 4))
    (root / "empty").mkdir()
    read(root)
    change(root)
    for entry in (root, *root.iterdir()):  # on file systems with coarse times
        if entry.is_dir():
            os.utime(entry, ns=(entry.stat().st_atime_ns, entry.stat().st_mtime_ns + (change is not table) * 10**9))
    changed = read(root)
    assert len(scans) == 2
    fresh = ClassFoldersDataModule(root).index
    assert changed == fresh


@pytest.mark.parametrize("late", ["imagenet", "sun397"])
def test_empty_folders_that_are_filled_and_lists_that_are_rewritten_are_read_again(tmp_path, monkeypatch, late):
    monkeypatch.setattr(index_cache, "LEAST_IMAGES", 1)
    root = COOP_MAKERS[late](tmp_path / "data", (3, 2, 2))

    def read():
        module = SETS[f"coop/{late}"](root)
        module.index_file = tmp_path / "index.json"
        return module.index

    if late == "imagenet":  # the folders of val are there, but its images come later
        places = {
            path: tmp_path / f"{path.parent.name}_{path.name}"
            for path in (root / "imagenet" / "images" / "val").rglob("*.JPEG")
        }
        for path, elsewhere in places.items():
            path.rename(elsewhere)
    else:
        folder = root / "sun397"
        (folder / "split_zhou_SUN397.json").unlink()
        (folder / "Partitions").mkdir()
        for part in ("Training", "Testing"):
            (folder / f"{part}_01.txt").rename(folder / "Partitions" / f"{part}_01.txt")
    first = read()
    assert read() == first
    assert (tmp_path / "index.json").is_file()
    if late == "imagenet":
        for path, elsewhere in places.items():
            elsewhere.rename(path)
    else:
        partition = folder / "Partitions" / "Training_01.txt"
        partition.write_text("".join(partition.read_text().splitlines(keepends=True)[:-3]))
    assert read() == SETS[f"coop/{late}"](root).index != first


def test_other_settings_another_root_and_a_damaged_file_are_not_taken(tmp_path, scans, read):
    root = make_folder(tmp_path / "photos", counts=(3, 2))
    read(root)
    assert read(root, class_names={"cls_00": "leaf"}).class_names[0] == "leaf"
    read(make_folder(tmp_path / "others", counts=(3, 2)))
    assert len(scans) == 3
    (tmp_path / "run" / "index.json").write_text('{"format": "dtrap-index/1"')
    read(root)
    assert len(scans) == 4


def test_small_sets_are_not_kept(tmp_path, read):
    read(make_folder(tmp_path / "photos", counts=(3, 2)))
    assert not (tmp_path / "run").exists()


def test_splits_missing_files_and_notes_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(index_cache, "LEAST_IMAGES", 1)
    (tmp_path / "a").mkdir()
    paths = [str(tmp_path / "a" / f"{number}.jpg") for number in range(4)]
    index = ImageIndex(
        paths, [0, 0, 1, 0], ["x", "ÿ"], (str(tmp_path),), ("gone.jpg",), ("a note",), ["train", "train", "val", "test"]
    )
    file = tmp_path / "run.json"
    assert cached_index(file, {}, tmp_path / "a", lambda: index) == index
    again = cached_index(file, {}, tmp_path / "a", lambda: pytest.fail("scanned again"))
    assert again == index


def test_a_run_keeps_it_in_its_folder(dtrap, tmp_path, scans, tiny_model):
    root = make_eurosat(tmp_path / "eurosat", per_class=3)
    words = ["fit", "--config", "eurosat_1shot.yaml", "--data.root", root, "--data.query", 2, *tiny_model]
    words += ["--trainer.max_epochs", 1, "--protocol.folder", "run"]
    for episodes in (1, 2):
        status, _, err = dtrap(*words, "--protocol.episodes", episodes)
        assert status == 0, err
    assert len(scans) == 1
    assert (tmp_path / "run" / "index.json").is_file()


def test_class_folders_are_measured_in_both_protocols(dtrap, tmp_path, tiny_model):
    root = make_folder(tmp_path / "photos", counts=(6, 6, 6, 6, 6))
    words = ["--config", "class_folders_1shot.yaml", "--data.root", root, *tiny_model, "--trainer.max_epochs", 1]
    status, out, err = dtrap("fit", *words, "--data.query", 2, "--protocol.episodes", 1)
    assert status == 0, err
    assert "photos 5-way 1-shot · 1 episode · " in out
    assert list((tmp_path / "runs").glob("photos_5way_1shot_*"))
    status, out, err = dtrap("fit", *words, "--config", "all_way/clip_lora.yaml", "--trainer.max_epochs", 1)
    assert status == 0, err
    assert "photos all-way 1-shot · 3 seeds · " in out
    assert list((tmp_path / "runs").glob("photos-all-way_1shot_*"))
