"""One walk over folders for all commands: which files are images, and what no entry of a folder can stop."""

import os
import socket

import pytest
from dtrap.datamodules.walk import left_out_line, list_folders, walk
from dtrap.errors import DtrapError
from layouts import picture


def names(paths, root):
    return [os.path.relpath(path, root) for path in paths]


@pytest.fixture
def root(tmp_path):
    for name in ("a.jpg", "2024-05/b.JPG", "2024-05/within/c.jpeg"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(0).save(tmp_path / "root" / name)
    return tmp_path / "root"


def test_sub_folders_belong_to_it(root):
    assert names(walk(root).images, root) == ["2024-05/b.JPG", "2024-05/within/c.jpeg", "a.jpg"]
    assert names(walk(root, recursive=False).images, root) == ["a.jpg"]


def test_what_is_no_image_is_counted_by_its_ending(root):
    for number in range(12):
        (root / "2024-05" / f"{number}.dcm").touch()
    for number in range(8):
        (root / f"{number}.SVG").touch()
    (root / "photo").touch()
    for name in (".DS_Store", "._a.jpg", "Thumbs.db", "desktop.ini", "@eaDir/a.jpg", "__MACOSX/._b.jpg", ".git/x.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    found = walk(root)
    assert left_out_line(found.left_out) == "21 files left out: 12 .dcm, 8 .svg, 1 without an ending"
    assert len(found.images) == 3
    assert not found.faults
    assert left_out_line({}) == ""


def test_links_to_folders_are_followed_but_never_in_a_circle(root, tmp_path):
    (tmp_path / "else" / "deep").mkdir(parents=True)
    picture(0).save(tmp_path / "else" / "deep" / "d.png")
    (root / "other").symlink_to(tmp_path / "else")
    (root / "zz").symlink_to(tmp_path / "else" / "deep")
    (tmp_path / "else" / "deep" / "back").symlink_to(root)
    (root / "2024-05" / "up").symlink_to("..")
    (root / "sibling").symlink_to("2024-05")
    (root / "top").symlink_to("/")
    found = walk(root)
    assert names(found.images, root) == ["2024-05/b.JPG", "2024-05/within/c.jpeg", "a.jpg", "other/deep/d.png"]
    assert left_out_line(found.left_out) == "5 files left out: 5 link to a folder that is read already"
    assert not found.faults


def test_entries_that_are_neither_file_nor_folder_are_never_opened(root):
    os.mkfifo(root / "pipe.jpg")
    os.mkfifo(root / "queue")
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "loop.png").symlink_to("loop.png")
    (root / "null.bmp").symlink_to("/dev/null")
    (root / "notes.txt").symlink_to("nowhere.txt")
    (root / "batch_2").symlink_to("/mnt/none/batch_2")
    here = os.getcwd()
    os.chdir(root)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket.gif")
    finally:
        os.chdir(here)
    found = walk(root)
    assert len(found.images) == 3
    faults = dict(zip(names((path for path, _ in found.faults), root), (why for _, why in found.faults), strict=True))
    assert faults == {
        "pipe.jpg": "FIFO",
        "gone.png": "broken link",
        "loop.png": "Too many levels of symbolic links",
        "null.bmp": "device",
        "socket.gif": "socket",
        "batch_2": "broken link",
    }
    assert left_out_line(found.left_out) == "2 files left out: 1 FIFO, 1 broken link"


def test_a_folder_that_cannot_be_read_is_listed_and_the_others_are_read(root, monkeypatch):
    original = os.scandir

    def scandir(path):
        if str(path).endswith("2024-05"):
            raise OSError(116, "Stale file handle")
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = walk(root)
    assert names(found.images, root) == ["a.jpg"]
    assert found.faults == [(str(root / "2024-05"), "the folder cannot be read (Stale file handle)")]
    with pytest.raises(DtrapError, match=r"2024-05: the folder cannot be read \(Stale file handle\)"):
        list_folders(root / "2024-05")


def test_names_of_any_kind(tmp_path):
    deep = tmp_path / "root"
    deep.mkdir()
    for name in (b"caf\xe9.jpg", b" .jpg", b"a\nb.png", "e\u0301.gif".encode(), b"x" * 251 + b".jpg"):
        (deep / os.fsdecode(name)).touch()
    assert len(walk(deep).images) == 5
    for number in range(200):
        deep = deep / f"level_{number}"
    os.makedirs(deep)
    (deep / "a.jpg").touch()
    assert len(walk(tmp_path / "root").images) == 6
