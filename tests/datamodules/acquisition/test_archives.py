import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import tracemalloc
import warnings
import zipfile
from contextlib import contextmanager
from functools import partial

import pytest
from dtrap.datamodules.acquisition.archives import Limits, extract
from dtrap.errors import DtrapError


def make_zip(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in entries.items():
            archive.writestr(name, contents)


def make_tar(path, entries, mode="w:gz"):
    """Write a tar archive; an entry is the contents of a file, or a function that changes the member."""
    with tarfile.open(path, mode) as archive:
        for name, contents in entries.items():
            member = tarfile.TarInfo(name)
            if callable(contents):
                contents(member)
                archive.addfile(member)
            else:
                member.size = len(contents)
                archive.addfile(member, io.BytesIO(contents))


def symlink_to(goal):
    def change(member):
        member.type, member.linkname = tarfile.SYMTYPE, goal

    return change


def hard_link_to(goal):
    def change(member):
        member.type, member.linkname = tarfile.LNKTYPE, goal

    return change


def kind(value):
    def change(member):
        member.type = value

    return change


def zip_entry(name, mode):
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, mode << 16
    return entry


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path):
    """A folder for the target, next to a file that no archive may touch."""
    (tmp_path / "place").mkdir()
    (tmp_path / "outside.txt").write_bytes(b"mine")
    return tmp_path / "place"


def assert_refused(archive, place, match, **options):
    with pytest.raises(DtrapError, match=match):
        extract(archive, place / "set", **options)
    assert os.listdir(place) == []
    assert (place.parent / "outside.txt").read_bytes() == b"mine"


FILES = {"set/a/1.jpg": b"one", "set/b/2.jpg": b"two", "read.me": b"text"}


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz"])
def test_every_kind_of_archive(tmp_path, place, name):
    compression = {"gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz", "tar": "w"}
    if name == "x.zip":
        make_zip(tmp_path / name, FILES)
    else:
        make_tar(tmp_path / name, FILES, compression[name.rpartition(".")[2]])
    extract(tmp_path / name, place / "new" / "folder")
    assert tree(place) == {f"new/folder/{path}": contents for path, contents in FILES.items()}


def test_a_folder_of_the_archive_joins_what_is_there(tmp_path, place):
    make_zip(tmp_path / "x.zip", FILES)
    (place / "set").mkdir()
    (place / "set" / "split.json").write_bytes(b"{}")
    extract(tmp_path / "x.zip", place / "set", inside="set", last="a")
    assert tree(place) == {"set/a/1.jpg": b"one", "set/b/2.jpg": b"two", "set/split.json": b"{}"}
    assert sorted(os.listdir(place / "set")) == ["a", "b", "split.json"]


def test_nothing_is_overwritten(tmp_path, place):
    make_zip(tmp_path / "x.zip", FILES)
    (place / "set" / "b").mkdir(parents=True)
    (place / "set" / "b" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(DtrapError, match=r"b exists and is not overwritten"):
        extract(tmp_path / "x.zip", place / "set", inside="set")
    assert tree(place) == {"set/b/mine.jpg": b"mine"}
    assert os.listdir(place / "set") == ["b"]


def test_an_empty_folder_is_filled(tmp_path, place):
    make_zip(tmp_path / "x.zip", FILES)
    (place / "set" / "b").mkdir(parents=True)
    extract(tmp_path / "x.zip", place / "set", inside="set")
    assert tree(place) == {"set/a/1.jpg": b"one", "set/b/2.jpg": b"two"}


@contextmanager
def stopped_after(count, monkeypatch):
    """Let os.rename raise after this number of calls, as if the process were killed."""
    rename, calls = os.rename, []

    def run(source, target):
        calls.append(source)
        if len(calls) > count:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", run)
        yield


@pytest.mark.parametrize("count", range(5))
def test_the_next_call_completes_a_move_that_was_stopped(tmp_path, place, monkeypatch, count):
    make_zip(tmp_path / "x.zip", {"set/a/1.jpg": b"one", "set/b/2.jpg": b"two", "set/c": b"three", "set/d": b"four"})
    with stopped_after(count, monkeypatch), pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "x.zip", place / "set", inside="set", last="b")
    assert not (place / "set" / "b").exists()
    extract(tmp_path / "x.zip", place / "set", inside="set", last="b")
    assert tree(place / "set") == {"a/1.jpg": b"one", "b/2.jpg": b"two", "c": b"three", "d": b"four"}
    assert sorted(os.listdir(place / "set")) == ["a", "b", "c", "d"]


def test_files_added_between_two_calls_are_not_overwritten(tmp_path, place, monkeypatch):
    make_zip(tmp_path / "x.zip", FILES)
    with stopped_after(2, monkeypatch), pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "x.zip", place / "set", inside="set")
    (place / "set" / "b").write_bytes(b"mine")
    with pytest.raises(DtrapError, match="b exists and is not overwritten"):
        extract(tmp_path / "x.zip", place / "set", inside="set")
    (place / "set" / "b").rename(tmp_path / "mine")
    extract(tmp_path / "x.zip", place / "set", inside="set")
    assert tree(place / "set") == {"a/1.jpg": b"one", "b/2.jpg": b"two"}


def test_another_archive_than_expected(tmp_path, place):
    make_zip(tmp_path / "x.zip", FILES)
    assert_refused(tmp_path / "x.zip", place, "has no '2750'; found read.me, set", inside="2750")
    assert_refused(tmp_path / "x.zip", place, "has no 'set/c'", inside="set", last="c")


OUTSIDE = ["../outside.txt", "a/../../outside.txt", "..", "a\\..\\..\\outside.txt", "C:outside.txt", "C:/outside.txt"]
OUTSIDE += ["a/C:/outside.txt", "a/b.txt:stream"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_paths_that_lead_out(tmp_path, place, make, name):
    make(tmp_path / "x", {"good.jpg": b"good", name: b"hostile"})
    assert_refused(tmp_path / "x", place, "leads out of the folder|has an absolute path")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_absolute_paths(tmp_path, place, make):
    make(tmp_path / "x", {"good.jpg": b"good", str(tmp_path / "outside.txt"): b"hostile"})
    assert_refused(tmp_path / "x", place, "has an absolute path")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_too_many_nested_folders(tmp_path, place, make):
    make(tmp_path / "x", {"a/" * 99 + "1.jpg": b"deep"})
    extract(tmp_path / "x", place / "set")
    shutil.rmtree(place / "set")
    make(tmp_path / "x", {"a/" * 100 + "1.jpg": b"deeper"})
    assert_refused(tmp_path / "x", place, r"a/\.\.\.' lies in 100 folders")


@pytest.mark.parametrize("second", ["a/1.jpg", "./a//1.jpg"])
def test_two_files_of_one_name_in_a_zip(tmp_path, place, second):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("a/1.jpg", b"one")
        archive.writestr(second, b"two")
    assert_refused(tmp_path / "x.zip", place, f"entry '{second}' appears twice")


@pytest.mark.parametrize("link", [symlink_to("b/2.jpg"), hard_link_to("b/2.jpg")])
def test_a_link_named_like_a_file(tmp_path, place, link):
    entries = {"a.jpg": b"one", "b/2.jpg": b"two", "./a.jpg": link}
    for order in (entries, dict(reversed(entries.items()))):
        make_tar(tmp_path / "x.tar", order, "w")
        assert_refused(tmp_path / "x.tar", place, "entry './a.jpg' appears twice")


def test_two_files_of_one_name_in_a_tar(tmp_path, place):
    make_tar(tmp_path / "x.tar", {"a.jpg": b"one", "./a.jpg": b"two"}, "w")
    assert_refused(tmp_path / "x.tar", place, "entry './a.jpg' appears twice")


def test_a_tar_that_looks_like_a_zip_at_both_ends_is_a_tar(tmp_path, place):
    make_zip(tmp_path / "inner.zip", {"inner.jpg": b"inner"})
    entries = {"PK/1.jpg": b"one", "inner.zip": (tmp_path / "inner.zip").read_bytes()}
    make_tar(tmp_path / "x.tar", entries, "w")
    assert zipfile.is_zipfile(tmp_path / "x.tar")
    extract(tmp_path / "x.tar", place / "set")
    assert tree(place / "set") == entries


LINK_OUT = "would link to '.*outside the destination|is a link to"


@pytest.mark.parametrize("goal", ["../../../outside.txt", "/etc/passwd", "a/../../../../outside.txt", ".."])
def test_symbolic_links_out(tmp_path, place, goal):
    make_tar(tmp_path / "x.tgz", {"good.jpg": b"good", "a/link": symlink_to(goal)})
    assert_refused(tmp_path / "x.tgz", place, LINK_OUT)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(zip_entry("a/link", stat.S_IFLNK | 0o777), goal)
    assert_refused(tmp_path / "x.zip", place, "is a link")


def test_a_file_written_through_a_link(tmp_path, place):
    make_tar(tmp_path / "x.tgz", {"a": symlink_to(str(tmp_path)), "a/outside.txt": b"hostile"})
    assert_refused(tmp_path / "x.tgz", place, "is a link to")


@pytest.mark.parametrize("goal", ["../../outside.txt", "/etc/passwd"])
def test_hard_links_out(tmp_path, place, goal):
    make_tar(tmp_path / "x.tgz", {"link": hard_link_to(goal)})
    assert_refused(tmp_path / "x.tgz", place, LINK_OUT)


def test_links_within_become_copies(tmp_path, place):
    make_tar(
        tmp_path / "x.tgz", {"a/link": symlink_to("../b/1.jpg"), "b/1.jpg": b"one", "c/link": hard_link_to("b/1.jpg")}
    )
    extract(tmp_path / "x.tgz", place / "set")
    assert tree(place / "set") == {"a/link": b"one", "b/1.jpg": b"one", "c/link": b"one"}
    assert not any(path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1) for path in place.rglob("*"))


def test_names_of_links_do_not_fill_the_memory(tmp_path, place):
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        for number in range(20):
            member = tarfile.TarInfo(f"link{number}")
            member.type, member.linkname = tarfile.SYMTYPE, "./" * (1 << 19) + "1.jpg"
            archive.addfile(member)
    with memory_below(16 << 20):
        assert_refused(tmp_path / "x.tgz", place, "is a link with more than 4096 characters")


def test_a_python_without_the_data_filter(tmp_path, place, monkeypatch):
    make_tar(tmp_path / "x.tgz", FILES)
    monkeypatch.delattr(tarfile, "data_filter")
    assert_refused(tmp_path / "x.tgz", place, r"tarfile\.data_filter is missing\. Use Python 3\.10\.12, 3\.11\.4")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE])
def test_a_negative_size_does_not_send_the_reader_back(tmp_path, place, kind):
    header = tarfile.TarInfo("a")
    header.type, header.size = kind, -2 * tarfile.BLOCKSIZE
    (tmp_path / "x.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(tarfile.RECORDSIZE))
    refusal = "is a link to" if kind == tarfile.LNKTYPE else "has a negative size"
    assert_refused(tmp_path / "x.tar", place, refusal)


def test_a_negative_size_in_a_pax_header(tmp_path, place):
    header = tarfile.TarInfo("a.jpg")
    header.pax_headers = {"size": "-1024"}
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(header)
    assert_refused(tmp_path / "x.tar", place, "has a negative size|entries overlap")


@pytest.mark.parametrize("value", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_pipes(tmp_path, place, value):
    make_tar(tmp_path / "x.tgz", {"good.jpg": b"good", "special": kind(value)})
    assert_refused(tmp_path / "x.tgz", place, "'special' is a special file")


def test_a_device_in_a_zip(tmp_path, place):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(zip_entry("special", stat.S_IFCHR | 0o666), b"")
    assert_refused(tmp_path / "x.zip", place, "'special' is a link, a device or another special file")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_bombs(tmp_path, place, make):
    make(tmp_path / "x", {"zeros": bytes(3_000_000)})
    assert (tmp_path / "x").stat().st_size < 10_000
    assert_refused(tmp_path / "x", place, "more than 2.0 MB, which is too much for images", limits=Limits(2_000_000))
    extract(tmp_path / "x", place / "set", limits=Limits(3_000_000))
    assert (place / "set" / "zeros").stat().st_size == 3_000_000


def long_name(size):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, size
    return header.tobuf() + b"a".ljust(size, b"\0")


def pax_header(size, kind=tarfile.XHDTYPE):
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, size
    return header.tobuf() + (f"{size} comment=".encode()).ljust(size - 1, b"c") + b"\n"


@contextmanager
def memory_below(limit):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("opener", [open, gzip.open, bz2.open, lzma.open])
@pytest.mark.parametrize("header", [long_name, pax_header, partial(pax_header, kind=tarfile.XGLTYPE)])
def test_a_header_that_would_fill_the_memory(tmp_path, place, header, opener):
    with opener(tmp_path / "x", "wb") as file:
        file.write(header(16 << 20) + tarfile.TarInfo("a").tobuf() + bytes(tarfile.RECORDSIZE))
    with memory_below(12 << 20):
        assert_refused(tmp_path / "x", place, r"has a header of more than 4\.2 MB.*do not trust")


def test_a_chain_of_headers_that_would_fill_the_memory(tmp_path, place):
    with gzip.open(tmp_path / "x", "wb") as file:
        file.write(pax_header(1 << 20) * 20 + tarfile.TarInfo("a").tobuf() + bytes(tarfile.RECORDSIZE))
    assert_refused(tmp_path / "x", place, "has a header of more than")


def test_the_headers_of_many_entries_are_not_kept(tmp_path, place):
    with gzip.open(tmp_path / "x", "wb") as file:
        for number in range(40):
            header = pax_header(1 << 20, (tarfile.XHDTYPE, tarfile.XGLTYPE)[number % 2])
            file.write(header.replace(b"comment", b"word%03d" % number) + tarfile.TarInfo(f"{number}.jpg").tobuf())
        file.write(bytes(tarfile.RECORDSIZE))
    with memory_below(16 << 20):
        extract(tmp_path / "x", place / "set")
    assert len(os.listdir(place / "set")) == 40


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_large_files_are_within_the_limit(tmp_path, place, format):
    name, contents = "/".join(["folder" * 10] * 10) + "/1.jpg", os.urandom(6 << 20)
    with tarfile.open(tmp_path / "x.tgz", "w:gz", format=format, compresslevel=1) as archive:
        for path in (name, "2.jpg"):
            member = tarfile.TarInfo(path)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    extract(tmp_path / "x.tgz", place / "set")
    assert tree(place / "set") == {name: contents, "2.jpg": contents}


def test_copies_of_links_count(tmp_path, place):
    links = {f"link{number}": hard_link_to("zeros") for number in range(9)}
    make_tar(tmp_path / "x.tgz", {"zeros": bytes(300_000), **links})
    assert_refused(tmp_path / "x.tgz", place, "unpacks to more than 2.0 MB", limits=Limits(2_000_000))


def test_a_wrong_declared_size(tmp_path, place):
    make_zip(tmp_path / "x.zip", {"zeros": bytes(3_000_000)})
    declared = (3_000_000).to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes((tmp_path / "x.zip").read_bytes().replace(declared, (10).to_bytes(4, "little")))
    assert_refused(tmp_path / "x.zip", place, "cannot be unpacked", limits=Limits(2_000_000))


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_too_many_entries(tmp_path, place, make):
    make(tmp_path / "x", {f"{number}.jpg": b"" for number in range(11)})
    assert_refused(tmp_path / "x", place, "more than 10 entries", limits=Limits(10**9, entries=10))
    extract(tmp_path / "x", place / "set", limits=Limits(10**9, entries=11))


def test_the_default_limit_leaves_room_for_images(tmp_path):
    (tmp_path / "small").write_bytes(b"x")
    assert Limits.for_images(tmp_path / "small").size == 10**9
    os.truncate(tmp_path / "small", 10**9)
    assert Limits.for_images(tmp_path / "small").size == 3 * 10**9


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path):
    contents = bytearray(path.read_bytes())
    contents[contents.index(b"pixels") + 2] ^= 1
    path.write_bytes(contents)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_damaged_archives(tmp_path, place, make):
    make(tmp_path / "x", {f"{number}.jpg": os.urandom(5000) for number in range(5)})
    cut_in_half(tmp_path / "x")
    assert_refused(tmp_path / "x", place, "cannot be unpacked: .*download it again")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_with_other_bytes_within(tmp_path, place, mode):
    make_tar(tmp_path / "x", {f"{number}.txt": b"text %d " % number * 50_000 for number in range(4)}, mode)
    contents = bytearray((tmp_path / "x").read_bytes())
    contents[len(contents) // 2 : len(contents) // 2 + 50] = b"\xff" * 50
    (tmp_path / "x").write_bytes(contents)
    assert_refused(tmp_path / "x", place, "cannot be unpacked: .*download it again")


def test_a_damaged_header_in_a_tar_does_not_end_it(tmp_path, place):
    make_tar(tmp_path / "x.tar", {"1.jpg": b"one", "pixels.jpg": b"two", "3.jpg": b"three"}, "w")
    flip_a_byte(tmp_path / "x.tar")
    assert_refused(tmp_path / "x.tar", place, "a damaged header")


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a", "GNU.sparse.realsize": "10"}


@pytest.mark.parametrize("contents", [b"1\n0\nten\n", b"no number of parts"])
def test_damaged_maps_of_sparse_files(tmp_path, place, contents):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a")
        member.pax_headers, member.size = SPARSE, tarfile.BLOCKSIZE
        archive.addfile(member, io.BytesIO(contents.ljust(tarfile.BLOCKSIZE, b"\0")))
    assert_refused(tmp_path / "x.tar", place, "cannot be unpacked: .*download it again")


def test_a_sparse_file_that_reaches_into_the_next_entry(tmp_path, place):
    with tarfile.open(tmp_path / "x.tgz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a")
        member.pax_headers, member.size = SPARSE | {"GNU.sparse.realsize": "2048"}, 2 * tarfile.BLOCKSIZE
        archive.addfile(member, io.BytesIO(b"1\n0\n2048\n".ljust(member.size, b"\0")))
        archive.addfile(tarfile.TarInfo("b"))
    assert_refused(tmp_path / "x.tgz", place, "its entries overlap")


def test_a_changed_byte_in_a_zip(tmp_path, place):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("1.jpg", b"pixels" * 100)
    flip_a_byte(tmp_path / "x.zip")
    assert_refused(tmp_path / "x.zip", place, "Bad CRC-32")


@pytest.mark.parametrize("contents", [b"", b"<html>Not found</html>", gzip.compress(b"no tar archive", mtime=0)])
def test_a_file_that_is_not_an_archive(tmp_path, place, contents):
    (tmp_path / "x.zip").write_bytes(contents)
    assert_refused(tmp_path / "x.zip", place, "neither a zip nor a tar archive")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_too_little_room(tmp_path, place, make, monkeypatch):
    make(tmp_path / "x", {"a.jpg": os.urandom(50_000)})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 40_000))
    assert_refused(tmp_path / "x", place, r"40\.0 kB free; x needs 50\.")


def test_permissions_and_times_of_the_archive_are_ignored(tmp_path, place):
    def read_only(member):
        member.type, member.mode = tarfile.DIRTYPE, 0o000

    def old_program(member):
        member.mode, member.mtime = 0o755, 1

    make_tar(tmp_path / "x.tgz", {"a": read_only, "a/1.jpg": b"one", "a/2.jpg": old_program})
    extract(tmp_path / "x.tgz", place / "set")
    assert tree(place) == {"set/a/1.jpg": b"one", "set/a/2.jpg": b""}
    found = (place / "set" / "a" / "2.jpg").stat()
    assert not found.st_mode & 0o111
    assert found.st_mtime > 1


def nameless_zip(path, name="abc"):
    """A zip archive whose only entry has a name of the same length in which the first character is NUL, or none."""
    make_zip(path, {name: b"contents"})
    content = path.read_bytes()
    path.write_bytes(content.replace(name.encode(), b"\0" + name.encode()[1:]))


@pytest.mark.parametrize("name", ["", ".", "./.", "//", "/", "/etc/passwd", "C:/x", "..", "a/../../b"])
def test_a_zip_entry_without_a_usable_name_is_one_message(tmp_path, place, name):
    make_zip(tmp_path / "x.zip", {"fine.jpg": b"1", name or "abc": b"contents"})
    if not name:
        nameless_zip(tmp_path / "x.zip")
    assert_refused(tmp_path / "x.zip", place, "no name|absolute|leads out|unsafe")


@pytest.mark.parametrize("name", ["", "."])
def test_a_tar_entry_without_a_name_is_one_message(tmp_path, place, name):
    make_tar(tmp_path / "x.tar", {name: b"contents"}, "w")
    assert_refused(tmp_path / "x.tar", place, "no name")
