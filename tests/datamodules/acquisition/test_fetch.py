import dataclasses
import hashlib
import inspect
import io
import os
import subprocess
import tarfile
import zipfile
from pathlib import PurePosixPath

import pytest
import torchvision
from dtrap.datamodules.acquisition.fetch import fetch
from dtrap.datamodules.acquisition.sources import COOP_PAGE, SOURCES
from dtrap.datamodules.catalog import SETS
from dtrap.datamodules.chestx import ChestXDataModule
from dtrap.datamodules.eurosat import CLASS_NAMES, EuroSATDataModule
from dtrap.datamodules.isic import ISICDataModule
from dtrap.errors import DtrapError
from file_server import FileServer
from filelock import FileLock
from rich.console import Console

DOWNLOADED = sorted(name for name, source in SOURCES.items() if source.files)
BY_HAND = sorted(name for name, source in SOURCES.items() if not source.files)
ISIC_TABLE = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\nISIC_1,1.0,0.0,0.0,0.0,0.0,0.0,0.0\n"


def packed(name, entries):
    """Bytes of an archive whose kind follows from its name."""
    buffer = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(buffer, "w") as archive:
            for path, contents in entries.items():
                archive.writestr(path, contents)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, contents in entries.items():
            member = tarfile.TarInfo(path)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    return buffer.getvalue()


def published(file):
    """A small file in the layout that a source's file has."""
    name, makes = PurePosixPath(file.url).name, PurePosixPath(file.makes)
    if not file.archive:
        return b"labels"
    entry = makes.name if makes.suffix else f"{makes.name}/1.jpg"
    entries = {str(PurePosixPath(file.inside, entry)): b"image"}
    return packed(name, {file.nested: packed(file.nested, entries), "__MACOSX/x": b""} if file.nested else entries)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FileServer().running() as server:
        yield server


@pytest.fixture
def publish(server, monkeypatch):
    """Serve contents instead of a set's files, with their checksums unless `changes` say otherwise."""

    def run(name, contents, **changes):
        files = []
        for file, body in zip(SOURCES[name].files, contents, strict=True):
            path = f"/{PurePosixPath(file.url).name}"
            server.files[path] = body
            right = {"checksum": file.checksum and f"md5:{hashlib.md5(body).hexdigest()}", "size": len(body)}
            files.append(dataclasses.replace(file, url=server.address + path, **{**right, **changes}))
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], files=files))

    return run


@pytest.fixture
def run(tmp_path):
    """Fetch a set: name -> (exit status, what was printed)."""

    def run(name, root=tmp_path / "data"):
        console = Console(file=io.StringIO(), width=20)
        status = fetch(name, root, console)
        return status, console.file.getvalue()

    return run


def eurosat_archive():
    return packed("EuroSAT.zip", {f"2750/{name}/{name}_1.jpg": b"image" for name in CLASS_NAMES})


def isic_archives():
    truth, images = "ISIC2018_Task3_Training_GroundTruth", "ISIC2018_Task3_Training_Input"
    return [
        packed("x.zip", {f"{truth}/{truth}.csv": ISIC_TABLE, f"{truth}/LICENSE.txt": b""}),
        packed("x.zip", {f"{images}/ISIC_1.jpg": b"image", f"{images}/LICENSE.txt": b""}),
    ]


@pytest.mark.parametrize("name", DOWNLOADED)
def test_every_set_arrives_where_it_belongs(server, publish, run, tmp_path, name):
    publish(name, [published(file) for file in SOURCES[name].files])
    status, printed = run(name)
    assert status == 0
    for file in SOURCES[name].files:
        assert (tmp_path / "data" / file.makes).exists()
    for companion in SOURCES[name].companions:
        assert str(tmp_path / "data" / SOURCES[name].folder / companion) in printed
    assert (COOP_PAGE in printed) == bool(SOURCES[name].companions)
    hidden = [path for path in (tmp_path / "data").rglob(".*") if path.is_dir()]
    assert hidden == []


def test_source_license_size_and_target_are_printed_first(server, publish, tmp_path):
    publish("eurosat", [eurosat_archive()], checksum="md5:0")
    console = Console(file=io.StringIO(), width=20)
    with pytest.raises(DtrapError):
        fetch("eurosat", tmp_path / "data", console)
    printed = console.file.getvalue()
    assert "source:  https://github.com/phelber/EuroSAT" in printed
    assert f"{server.address}/EuroSAT.zip" in printed
    assert "license: MIT" in printed
    assert "size:    94 MB" in printed
    assert f"target:  {tmp_path / 'data' / 'eurosat'}" in printed


def test_eurosat_is_found_by_its_data_module(publish, run, tmp_path):
    publish("eurosat", [eurosat_archive()])
    assert run("eurosat")[0] == 0
    assert len(EuroSATDataModule(str(tmp_path / "data")).scan().paths) == 10


def test_isic_is_found_by_its_data_module_and_has_no_published_checksum(publish, run, tmp_path):
    publish("isic", isic_archives())
    status, printed = run("isic")
    assert status == 0
    assert "ISIC2018_Task3_Training_Input.zip: no checksum is published; only its size of" in printed
    assert ISICDataModule(str(tmp_path / "data")).scan().class_names[0] == "Melanoma"


def test_both_eurosats_share_one_download(server, publish, run, tmp_path):
    for name in ("eurosat", "coop/eurosat"):
        publish(name, [eurosat_archive()])
        status, printed = run(name)
        assert status == 0
    assert len(server.requests) == 1
    assert "exists and is kept" in printed
    assert f"{tmp_path / 'data' / 'eurosat' / 'split_zhou_EuroSAT.json'}" in printed


def test_an_existing_split_file_is_kept_and_not_asked_for(publish, run, tmp_path):
    split = tmp_path / "data" / "dtd" / "split_zhou_DescribableTextures.json"
    split.parent.mkdir(parents=True)
    split.write_text("{}")
    publish("coop/dtd", [published(SOURCES["coop/dtd"].files[0])])
    status, printed = run("coop/dtd")
    assert status == 0
    assert "by hand" not in printed
    assert split.read_text() == "{}"
    assert (split.parent / "images" / "1.jpg").read_bytes() == b"image"


def test_an_archive_that_was_downloaded_by_hand_is_used(server, publish, run, tmp_path):
    publish("eurosat", [eurosat_archive()])
    (tmp_path / "data" / "downloads").mkdir(parents=True)
    (tmp_path / "data" / "downloads" / "EuroSAT.zip").write_bytes(eurosat_archive())
    assert run("eurosat")[0] == 0
    assert server.requests == []


def test_a_second_call_resumes_after_a_failure(server, publish, run, tmp_path):
    publish("isic", isic_archives())
    images = server.files.pop("/ISIC2018_Task3_Training_Input.zip")
    with pytest.raises(DtrapError, match="404"):
        run("isic")
    server.files["/ISIC2018_Task3_Training_Input.zip"] = images
    server.requests.clear()
    assert run("isic")[0] == 0
    assert [path for path, _ in server.requests] == ["/ISIC2018_Task3_Training_Input.zip"]


def test_a_wrong_checksum_puts_nothing_in_place(publish, run, tmp_path):
    publish("eurosat", [eurosat_archive()], checksum=f"md5:{hashlib.md5(b'other').hexdigest()}")
    with pytest.raises(DtrapError, match="expected"):
        run("eurosat")
    assert not (tmp_path / "data" / "eurosat").exists()
    assert list((tmp_path / "data" / "downloads").glob("EuroSAT*")) == []


def test_a_hostile_archive_puts_nothing_in_place(publish, run, tmp_path):
    publish("eurosat", [packed("x.zip", {"2750/River/1.jpg": b"image", "../../stolen.txt": b"hostile"})])
    with pytest.raises(DtrapError, match="leads out of the folder"):
        run("eurosat")
    assert list(tmp_path.rglob("stolen.txt")) == []
    assert not (tmp_path / "data" / "eurosat" / "2750").exists()


def test_leftovers_of_a_killed_process_are_deleted(publish, run, tmp_path):
    publish("eurosat", [eurosat_archive()])
    for folder in (tmp_path / "data", tmp_path / "data" / "eurosat"):
        (folder / ".eurosat-unpacking-x1" / "2750").mkdir(parents=True)
    (tmp_path / "data" / ".dtd-unpacking-x1").mkdir()
    assert run("eurosat")[0] == 0
    assert [path.name for path in (tmp_path / "data").rglob(".*-unpacking-*")] == [".dtd-unpacking-x1"]


def test_the_next_call_completes_a_move_that_was_stopped(publish, run, tmp_path, monkeypatch):
    publish("coop/dtd", [packed("x.tar.gz", {f"dtd/{name}/1": b"text" for name in ("imdb", "images", "labels")})])
    rename = os.rename

    def stop(source, target):
        if target == tmp_path / "data" / "dtd" / "labels":
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", stop)
        with pytest.raises(KeyboardInterrupt):
            run("coop/dtd")
    assert (tmp_path / "data" / "dtd" / "imdb").exists()
    assert not (tmp_path / "data" / "dtd" / "images").exists()
    assert run("coop/dtd")[0] == 0
    assert sorted(os.listdir(tmp_path / "data" / "dtd")) == ["images", "imdb", "labels"]


@pytest.mark.parametrize("name", DOWNLOADED)
def test_an_empty_folder_is_not_the_set(publish, run, tmp_path, name):
    publish(name, [published(file) for file in SOURCES[name].files])
    folders = [tmp_path / "data" / file.makes for file in SOURCES[name].files if not PurePosixPath(file.makes).suffix]
    for folder in folders:
        folder.mkdir(parents=True)
    status, printed = run(name)
    assert status == 0
    assert "is kept" not in printed
    assert all((folder / "1.jpg").read_bytes() == b"image" for folder in folders)


def test_two_processes_do_not_write_the_same_files(publish, run, tmp_path):
    publish("eurosat", [eurosat_archive()])
    (tmp_path / "data" / "downloads").mkdir(parents=True)
    with (
        FileLock(tmp_path / "data" / "downloads" / ".eurosat.lock"),
        pytest.raises(DtrapError, match="Another process is downloading EuroSAT"),
    ):
        run("eurosat")


@pytest.mark.parametrize("name", BY_HAND)
def test_instructions_for_a_download_by_hand(run, tmp_path, name):
    root = tmp_path / "my data"
    status, printed = run(name, root)
    assert status == 1
    assert "Nothing was downloaded" in printed
    assert f"'{root}'/{SOURCES[name].folder}" in printed
    assert not root.exists()
    (root / SOURCES[name].present[0]).mkdir(parents=True)
    assert run(name, root)[0] == 1
    (root / SOURCES[name].present[0] / "1.jpg").write_bytes(b"image")
    status, printed = run(name, root)
    assert status == 0
    assert "exists; nothing was downloaded" in printed


def test_the_printed_commands_unpack_chestx(run, tmp_path):
    root = tmp_path / "my data"
    (root / "ChestX").mkdir(parents=True)
    for number in (1, 12):
        archive = packed("x.tar.gz", {f"images/0000000{number}_000.png": b"image"})
        (root / "ChestX" / f"images_{number:03d}.tar.gz").write_bytes(archive)
    rows = "".join(f"0000000{number}_000.png,Mass\n" for number in (1, 12))
    _, printed = run("chestx", root)
    (root / "ChestX" / "Data_Entry_2017_v2020.csv").write_text("Image Index,Finding Labels\n" + rows)
    command = next(line for line in printed.splitlines() if line.startswith("  cd "))
    subprocess.run(["bash", "-c", command], check=True)
    assert len(ChestXDataModule(str(root / "ChestX")).scan().paths) == 2
    assert run("chestx", root)[0] == 0


def test_stanford_cars_says_that_its_address_is_gone(run):
    assert "original address (ai.stanford.edu/~jkrause/cars) is gone" in run("coop/stanford_cars")[1]


def test_an_unknown_name(run):
    with pytest.raises(
        DtrapError, match=r"unknown data set 'eurosatt'; expected one of isic, .*Did you mean 'eurosat'\?"
    ):
        run("eurosatt")


def test_a_root_that_cannot_be_made(run, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        DtrapError, match=r"file/data/downloads cannot be created .*Give a folder that can be written to"
    ):
        run("coop/dtd", tmp_path / "file" / "data")


def test_a_root_that_is_a_file(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DtrapError, match="is not a folder"):
        run("eurosat", tmp_path / "file")


def test_the_names_are_those_of_the_data_modules():
    assert set(SOURCES) == set(SETS)


@pytest.mark.parametrize("name", [name for name in DOWNLOADED if name.startswith("coop/")])
def test_the_folder_is_the_one_that_the_data_module_reads(publish, run, tmp_path, name):
    publish(name, [published(file) for file in SOURCES[name].files])
    run(name)
    module = SETS[name](str(tmp_path / "data"))
    assert module.find_folder() == tmp_path / "data" / SOURCES[name].folder
    assert (module.find_folder() / module.image_folder).is_dir()
    split = [module.split_file] if module.split_file else []
    assert SOURCES[name].companions[:1] == split


def test_addresses_and_checksums_are_torchvisions():
    datasets = torchvision.datasets
    flowers, prefix = datasets.Flowers102._file_dict, datasets.Flowers102._download_url_prefix
    theirs = {
        (datasets.DTD._URL, datasets.DTD._MD5),
        (datasets.Food101._URL, datasets.Food101._MD5),
        (datasets.SUN397._DATASET_URL, datasets.SUN397._DATASET_MD5),
        *((prefix + name, md5) for name, md5 in (flowers["image"], flowers["label"])),
        *datasets.OxfordIIITPet._RESOURCES,
    }
    names = ["coop/dtd", "coop/food101", "coop/sun397", "coop/flowers102", "coop/oxford_pets"]
    ours = {(file.url, file.checksum.partition(":")[2]) for name in names for file in SOURCES[name].files}
    assert theirs <= ours
    assert len(ours - theirs) == 1
    assert SOURCES["coop/fgvc_aircraft"].files[0].url == datasets.FGVCAircraft._URL


@pytest.mark.parametrize(
    ("name", "dataset"),
    [("eurosat", torchvision.datasets.EuroSAT), ("coop/caltech101", torchvision.datasets.Caltech101)],
)
def test_addresses_that_torchvision_writes_into_its_code(name, dataset):
    code = inspect.getsource(dataset.download)
    if "drive.google.com" in code:
        pytest.skip("this torchvision still names Google Drive, which cannot be resumed")
    file = SOURCES[name].files[0]
    assert file.url in code
    assert file.checksum.partition(":")[2] in code
