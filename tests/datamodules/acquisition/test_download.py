import errno
import hashlib
import http.client
import io
import random
import shutil
import urllib.error
import urllib.request
from email.message import Message

import pytest
from dtrap.datamodules.acquisition import download as module
from dtrap.datamodules.acquisition.download import download
from dtrap.errors import DtrapError
from file_server import FileServer
from rich.console import Console

BODY = random.Random(0).randbytes(100_000)
OTHER = random.Random(1).randbytes(100_000)
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FileServer().running() as server:
        server.files["/set.zip"] = BODY
        yield server


@pytest.fixture
def target(tmp_path):
    return tmp_path / "downloads" / "set.zip"


@pytest.fixture
def fetch_file(server, target):
    """Return a function that downloads /set.zip and keeps the waits between tries and the printed text."""

    def run(path="/set.zip", **options):
        waits, console = [], Console(file=io.StringIO(), width=20)
        try:
            download(server.address + path, target, console, wait=waits.append, **options)
        finally:
            run.waits, run.printed = waits, console.file.getvalue()

    return run


def ranges(server):
    return [headers.get("Range") for _, headers in server.requests]


def left_over(target):
    return sorted(path.name for path in target.parent.iterdir())


@pytest.mark.parametrize("checksum", [MD5, f"sha256:{hashlib.sha256(BODY).hexdigest()}", None])
def test_a_download_leaves_the_file_alone(fetch_file, target, checksum):
    fetch_file(checksum=checksum, size=len(BODY))
    assert target.read_bytes() == BODY
    assert left_over(target) == ["set.zip"]


def test_a_cut_connection_is_resumed_where_it_ended(server, fetch_file, target):
    server.cuts = [30_000, 20_000]
    fetch_file(checksum=MD5)
    assert target.read_bytes() == BODY
    assert ranges(server) == [None, "bytes=30000-", "bytes=50000-"]
    assert fetch_file.waits == [1.0, 1.0]
    assert "cut after 30000 of 100000 bytes" in fetch_file.printed


def test_the_next_call_resumes_the_part_of_the_last(server, fetch_file, target):
    server.cuts, server.statuses = [30_000], [0, 503, 503]
    with pytest.raises(DtrapError, match=r"3 times in a row.*set\.zip\.part is kept \(30\.0 kB\).*same command"):
        fetch_file(checksum=MD5, tries=3)
    assert fetch_file.waits == [1.0, 2.0]
    assert not target.exists()
    server.requests.clear()
    fetch_file(checksum=MD5)
    assert target.read_bytes() == BODY
    assert ranges(server) == ["bytes=30000-"]
    assert left_over(target) == ["set.zip"]


def test_without_ranges_the_download_starts_from_the_beginning(server, fetch_file, target):
    server.ranges, server.cuts = False, [30_000]
    fetch_file(checksum=MD5)
    assert target.read_bytes() == BODY
    assert "from the beginning" in fetch_file.printed


def test_a_server_that_names_no_version_is_never_resumed(server, fetch_file, target):
    server.etags, server.cuts = False, [30_000]
    fetch_file()
    assert ranges(server) == [None, None]
    assert target.read_bytes() == BODY


def test_a_weak_etag_is_not_resumed(server, fetch_file, target):
    server.weak, server.cuts = True, [30_000]
    fetch_file()
    assert ranges(server) == [None, None]
    assert target.read_bytes() == BODY


def test_the_date_replaces_a_missing_etag(server, fetch_file, target):
    server.etags, server.dates, server.cuts = False, True, [30_000]
    fetch_file()
    assert ranges(server) == [None, "bytes=30000-"]
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("obeys", [True, False], ids=["if-range", "server ignores if-range"])
def test_parts_of_two_versions_are_never_combined(server, fetch_file, target, obeys):
    server.cuts, server.statuses = [30_000], [0, 503]
    with pytest.raises(DtrapError):
        fetch_file(tries=1)
    server.files["/set.zip"], server.if_range, server.statuses = OTHER, obeys, []
    fetch_file()
    assert target.read_bytes() == OTHER


def test_a_part_of_another_address_is_not_continued(server, fetch_file, target):
    server.etags, server.dates, server.cuts = False, True, [30_000]
    with pytest.raises(DtrapError):
        fetch_file(tries=1)
    server.files["/mirror.zip"] = OTHER
    fetch_file("/mirror.zip")
    assert target.read_bytes() == OTHER


def test_a_whole_part_needs_no_more_bytes(server, fetch_file, target):
    server.cuts = [30_000]
    with pytest.raises(DtrapError):
        fetch_file(tries=1)
    target.with_name("set.zip.part").write_bytes(BODY)
    fetch_file(checksum=MD5)
    assert target.read_bytes() == BODY
    assert ranges(server) == [None, "bytes=100000-"]


def test_a_part_longer_than_the_file_is_discarded(server, fetch_file, target):
    server.cuts = [30_000]
    with pytest.raises(DtrapError):
        fetch_file(tries=1)
    target.with_name("set.zip.part").write_bytes(BODY + b"more")
    fetch_file(checksum=MD5)
    assert target.read_bytes() == BODY


def test_a_wrong_checksum_leaves_nothing(server, fetch_file, target):
    server.files["/set.zip"] = OTHER
    with pytest.raises(DtrapError, match=rf"checksum {hashlib.md5(OTHER).hexdigest()}, expected {MD5[4:]}"):
        fetch_file(checksum=MD5)
    assert left_over(target) == []


def test_another_size_is_refused_before_the_first_byte(server, fetch_file, target):
    with pytest.raises(DtrapError, match="has 100000 bytes, expected 99999"):
        fetch_file(size=99_999)
    assert left_over(target) == []


def test_an_answer_of_another_size_leaves_the_part(server, fetch_file, target):
    server.cuts = [30_000]
    with pytest.raises(DtrapError):
        fetch_file(checksum=MD5, size=len(BODY), tries=1)
    server.files["/set.zip"] = b"<html>Please log in to the network.</html>"
    with pytest.raises(DtrapError, match=r"has 42 bytes, expected 100000.*set\.zip\.part is kept \(30\.0 kB\)"):
        fetch_file(checksum=MD5, size=len(BODY))
    assert target.with_name("set.zip.part").read_bytes() == BODY[:30_000]
    server.files["/set.zip"] = BODY
    fetch_file(checksum=MD5, size=len(BODY))
    assert ranges(server)[-1] == "bytes=30000-"
    assert target.read_bytes() == BODY


def test_a_resumed_answer_of_another_size_leaves_the_part(server, fetch_file, target):
    server.cuts = [30_000]
    with pytest.raises(DtrapError):
        fetch_file(tries=1)
    with pytest.raises(DtrapError, match=r"has 100000 bytes, expected 99999.*set\.zip\.part is kept \(30\.0 kB\)"):
        fetch_file(size=99_999)
    assert target.with_name("set.zip.part").read_bytes() == BODY[:30_000]


def test_without_a_length_the_size_is_compared_at_the_end(server, fetch_file, target):
    server.lengths = False
    with pytest.raises(DtrapError, match="has 100000 bytes, expected 100001"):
        fetch_file(size=100_001)
    fetch_file(size=100_000)
    assert target.read_bytes() == BODY


def test_without_a_length_no_more_than_the_size_is_written(server, fetch_file, target, monkeypatch):
    written, advance = [], module._Transfer.advance
    monkeypatch.setattr(module, "BLOCK", 10_000)
    monkeypatch.setattr(module._Transfer, "advance", lambda self, count: written.append(count) or advance(self, count))
    server.lengths = False
    with pytest.raises(DtrapError, match="sends more than the 35000 bytes expected"):
        fetch_file(size=35_000)
    assert sum(written) == 30_000
    assert left_over(target) == []


@pytest.mark.parametrize("number", [errno.EHOSTUNREACH, errno.ENETDOWN, errno.ECONNRESET])
def test_an_error_of_the_network_while_bytes_come_is_a_cut(server, fetch_file, target, monkeypatch, number):
    read, calls = http.client.HTTPResponse.read, []

    def fail_once(response, *count):
        calls.append(count)
        if len(calls) == 4:
            raise OSError(number, "the network is gone")
        return read(response, *count)

    monkeypatch.setattr(module, "BLOCK", 10_000)
    monkeypatch.setattr(http.client.HTTPResponse, "read", fail_once)
    fetch_file(checksum=MD5)
    assert ranges(server) == [None, "bytes=30000-"]
    assert "the connection was cut" in fetch_file.printed
    assert target.read_bytes() == BODY


def test_an_error_of_the_network_before_the_answer_is_a_cut(fetch_file, target, monkeypatch):
    answer, calls = http.client.HTTPConnection.getresponse, []

    def fail_once(connection):
        calls.append(connection)
        if len(calls) == 1:
            raise OSError(errno.EHOSTUNREACH, "No route to host")
        return answer(connection)

    monkeypatch.setattr(http.client.HTTPConnection, "getresponse", fail_once)
    fetch_file(checksum=MD5)
    assert target.read_bytes() == BODY


def test_a_folder_with_the_name_of_the_file(server, fetch_file, target):
    target.mkdir(parents=True)
    with pytest.raises(DtrapError, match=r"set\.zip is a folder, expected a file"):
        fetch_file()
    assert server.requests == []


def test_an_existing_file_is_verified_and_kept(server, fetch_file, target):
    target.parent.mkdir()
    target.write_bytes(BODY)
    fetch_file(checksum=MD5)
    target.write_bytes(OTHER)
    with pytest.raises(DtrapError, match=r"set\.zip has the md5 checksum .* Move it away"):
        fetch_file(checksum=MD5)
    assert target.read_bytes() == OTHER
    assert server.requests == []


def test_a_missing_file_is_not_tried_again(server, fetch_file):
    with pytest.raises(DtrapError, match=r"404 Not Found.*data set's page"):
        fetch_file("/gone.zip")
    assert len(server.requests) == 1


def test_a_failing_server_is_tried_again_with_longer_waits(server, fetch_file, target):
    server.statuses = [500, 503, 429]
    fetch_file(checksum=MD5)
    assert target.read_bytes() == BODY
    assert fetch_file.waits == [1.0, 2.0, 4.0]


def test_no_server_at_all(target):
    waits = []
    with pytest.raises(DtrapError, match=r"no connection .* 3 times in a row"):
        download("http://127.0.0.1:1/set.zip", target, Console(quiet=True), tries=3, wait=waits.append)
    assert waits == [1.0, 2.0]


def test_a_silent_server_does_not_hang(server, fetch_file, monkeypatch):
    monkeypatch.setattr(server, "send", lambda handler, body: handler.rfile.read(1))
    with pytest.raises(DtrapError, match="timed out"):
        fetch_file(tries=1, timeout=0.1)


def test_redirects_are_followed_and_resumed(server, fetch_file, target):
    server.redirects["/old.zip"], server.cuts = f"{server.address}/set.zip", [30_000]
    fetch_file("/old.zip", checksum=MD5)
    assert target.read_bytes() == BODY
    assert [(path, headers.get("Range")) for path, headers in server.requests][-1] == ("/set.zip", "bytes=30000-")


@pytest.mark.parametrize("goal", ["file:///etc/passwd", "ftp://127.0.0.1/set.zip", "data:,x"])
def test_redirects_lead_to_http_only(server, fetch_file, target, goal):
    server.redirects["/old.zip"] = goal
    with pytest.raises(DtrapError, match="302"):
        fetch_file("/old.zip")
    assert not target.exists()


@pytest.mark.parametrize("goal", ["http://example.org/set.zip", "ftp://example.org/set.zip"])
def test_no_redirect_from_https_to_less(goal):
    request = urllib.request.Request("https://example.org/set.zip")
    with pytest.raises(urllib.error.HTTPError, match="refused"):
        module._Redirects().redirect_request(request, io.BytesIO(), 302, "", Message(), goal)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/set.zip", "set.zip"])
def test_only_http_addresses(target, url):
    with pytest.raises(DtrapError, match="expected http or https"):
        download(url, target, Console(quiet=True))


def test_too_little_space_is_reported_before_the_first_byte(fetch_file, target, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 40_000))
    with pytest.raises(DtrapError, match=r"40\.0 kB free; the rest of set\.zip needs 100\.0 kB"):
        fetch_file()
    assert target.with_name("set.zip.part").read_bytes() == b""


def test_a_disk_that_fills_up_keeps_the_part(server, fetch_file, target, monkeypatch):
    class Full(io.FileIO):
        def write(self, block):
            if self.tell() >= 30_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(block)

    monkeypatch.setattr(module, "BLOCK", 10_000)
    monkeypatch.setattr(module, "open", lambda path, mode: Full(path, mode), raising=False)
    with pytest.raises(DtrapError, match=r"No space left on device\)\. Free space there and rerun the same command"):
        fetch_file(checksum=MD5)
    assert len(server.requests) == 1
    assert target.with_name("set.zip.part").read_bytes() == BODY[:30_000]
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch_file(checksum=MD5)
    assert ranges(server)[-1] == "bytes=30000-"
    assert target.read_bytes() == BODY


def test_an_interrupt_keeps_the_part_and_says_how_to_resume(server, fetch_file, target, monkeypatch):
    def interrupt(self, count):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "BLOCK", 30_000)
    with monkeypatch.context() as patch:
        patch.setattr(module._Transfer, "advance", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch_file(checksum=MD5)
    assert "set.zip.part holds 30.0 kB; rerun the same command to resume." in fetch_file.printed
    fetch_file(checksum=MD5)
    assert ranges(server) == [None, "bytes=30000-"]
    assert target.read_bytes() == BODY


def test_a_terminal_shows_a_bar_with_size_and_rate(server, target):
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None, _environ={})
    download(f"{server.address}/set.zip", target, console)
    assert "set.zip" in console.file.getvalue()
    assert "100.0/100.0 kB" in console.file.getvalue()
