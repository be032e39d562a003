"""Fetching from a server on 127.0.0.1 that breaks connections, lies about ranges, or sends other bytes."""

import contextlib
import hashlib
import http.server
import io
import os
import pathlib
import tarfile
import threading

import numpy as np
import pytest

from unimix_jax import storage
from unimix_jax.data import download
from unimix_jax.data.sources import cifar
from unimix_jax.errors import Failure, UserError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; breaks off after each number of bytes in `breaks`, once each."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.breaks, self.status, self.ranges, self.asked = CONTENT, [], None, True, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/archive.tar.gz"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, start = self.server, 0
        server.asked.append(self.headers.get("Range"))
        if server.status:
            return self.send_error(server.status)
        if server.ranges and (asked := self.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                return self.send_error(416)
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(download, "_PAUSE", 0)


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def test_a_file_arrives_whole(server, tmp_path):
    download.fetch(server.url, tmp_path / "new" / "a", MD5)
    assert (tmp_path / "new" / "a").read_bytes() == CONTENT
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a"]


def test_broken_connections_are_resumed_where_they_broke(server, tmp_path):
    server.breaks = [1_000_000, 500_000]
    download.fetch(server.url, tmp_path / "a", MD5)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.breaks, server.ranges = [1_000_000], False
    download.fetch(server.url, tmp_path / "a", MD5)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_later_call_goes_on_and_a_whole_part_is_only_checked(server, tmp_path):
    (tmp_path / "a.part").write_bytes(CONTENT[:2_000_000])
    download.fetch(server.url, tmp_path / "a", MD5)
    (tmp_path / "b.part").write_bytes(CONTENT)
    download.fetch(server.url, tmp_path / "b", MD5)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == CONTENT
    assert server.asked == ["bytes=2000000-", "bytes=3000000-"]


def test_a_server_that_gives_nothing_is_left_and_what_came_is_kept(server, tmp_path):
    server.breaks = [1000] + [0] * 50
    with pytest.raises(UserError, match="what has arrived is kept, the same command goes on"):
        download.fetch(server.url, tmp_path / "a", MD5)
    assert (tmp_path / "a.part").read_bytes() == CONTENT[:1000]
    assert not (tmp_path / "a").exists()


def test_other_bytes_never_get_the_name(server, tmp_path):
    server.content = CONTENT[::-1]
    with pytest.raises(UserError, match=f"instead of the published {MD5}"):
        download.fetch(server.url, tmp_path / "a", MD5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [404, 403])
def test_a_refusal_is_told_at_once(server, tmp_path, status):
    server.status = status
    with pytest.raises(UserError, match=f"the server answers {status}"):
        download.fetch(server.url, tmp_path / "a", MD5)
    assert len(server.asked) == 1


def test_nobody_there(tmp_path):
    with pytest.raises(UserError, match="cannot download http://127.0.0.1:1/a"):
        download.fetch("http://127.0.0.1:1/a", tmp_path / "a", MD5)


@pytest.fixture
def replying(fuzz):
    """Return the benchmark's server that answers with the bytes it is given."""
    return fuzz.replying


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pieces", "again", "message"),
    [
        ([HEAD + b"Content-Length: many\r\n\r\nx"], False, "sends no length but 'many'"),
        ([HEAD + b"Content-Length: -5\r\n\r\nx"], False, "sends no length but '-5'"),
        ([HEAD + b"Content-Length: 99999999999\r\n\r\nx"], False, "has 99999999999 bytes, more than 5000"),
        ([HEAD + b"\r\n", b"x" * 1000], True, "sends more than 5000 bytes"),
        ([CHUNKED, b"3e8\r\n" + b"x" * 1000 + b"\r\n"], True, "sends more than 5000 bytes"),
        ([CHUNKED + b"-1\r\n", b"x" * 1000], True, "sends more than 5000 bytes"),
        ([CHUNKED + b"-5\r\nxxxxx\r\n"], False, "cannot download|instead of the published"),
        ([CHUNKED + b"zz\r\nxxxxx\r\n"], False, "cannot download"),
        ([CHUNKED + b"1\r\nx\r\n0\r\n", b"a: b\r\n"], True, "bytes came in 0.2 s"),  # a trailer without end
        ([b"HTTP/1.1 100 Continue\r\n\r\n"], True, "bytes came in 0.2 s"),
        ([HEAD + b"a: b\r\n" * 200], False, "got more than 100 headers"),
        ([HEAD + b"Content-Length: 3000\r\n\r\n", b"x"], True, "bytes came in 0.2 s"),  # a trickle
        ([b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n"], False, "cannot download"),
        ([b"HTTP/1.1 404 \x1b[2Jno\r\n\r\n"], False, "the server answers 404  "),
        ([b"\x1b\0\r\n\r\n"], False, "cannot download"),
    ],
)
def test_replies_that_are_none_or_never_end_get_a_sentence(tmp_path, monkeypatch, replying, pieces, again, message):
    monkeypatch.setattr(download, "_PATIENCE", 1)
    with (
        replying(*pieces, pause=0.01, again=again) as url,
        pytest.raises(UserError, match=message) as told,
    ):
        download.fetch(url, tmp_path / "a", MD5, limit=5000, timeout=0.2 if "0.2 s" in message else 30)
    assert str(told.value).isprintable()
    assert not (tmp_path / "a").exists()


def test_connections_that_bring_little_each_are_left(server, tmp_path):
    server.breaks = [1000] * 50
    with pytest.raises(UserError, match="what has arrived is kept"):
        download.fetch(server.url, tmp_path / "a", MD5)
    assert (tmp_path / "a.part").read_bytes() == CONTENT[:5000]


@pytest.mark.parametrize("md5", [MD5, "0" * 32])
def test_a_part_is_closed_before_it_is_renamed_or_removed(server, tmp_path, monkeypatch, md5):
    """Windows refuses both of a file that is open."""
    opened, closed = [], []
    monkeypatch.setattr(storage, "lock", opened.append)
    for owner, name in ((os, "replace"), (pathlib.Path, "unlink")):
        monkeypatch.setattr(owner, name, lambda *_: closed.append(opened[0].closed))
    with contextlib.suppress(UserError):
        download.fetch(server.url, tmp_path / "a", md5)
    assert closed == [True]


def test_a_full_disk_is_a_failure_and_no_mistake(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_receive", full)
    with pytest.raises(Failure, match="cannot write .*: No space left on device"):
        download.fetch(server.url, tmp_path / "a", MD5)


def test_a_part_that_is_no_file_is_not_written_to(server, tmp_path):
    (tmp_path / "a.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match="it must be a regular file"):
        download.fetch(server.url, tmp_path / "a", MD5)
    assert server.asked == []


def archive(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_only_known_members_are_taken(tmp_path):
    members = {"set/a": b"1", "set/b": b"2", "../evil": b"x", "/tmp/evil": b"x", "set/other": b"x"}
    (tmp_path / "t.tar.gz").write_bytes(archive(members))
    download.extract(tmp_path / "t.tar.gz", tmp_path / "set", ("a", "b"))
    assert {p.name: p.read_bytes() for p in (tmp_path / "set").iterdir()} == {"a": b"1", "b": b"2"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set", "t.tar.gz"]


@pytest.mark.parametrize("members", [{"set/a": b"1"}, {"set/a": b"1", "set/b": None}])
def test_a_lacking_member_or_a_link_leaves_nothing(tmp_path, members):
    (tmp_path / "t.tar.gz").write_bytes(archive(members))
    with pytest.raises(UserError, match="lacks set/b"):
        download.extract(tmp_path / "t.tar.gz", tmp_path / "set", ("a", "b"))
    assert [p.name for p in tmp_path.iterdir()] == ["t.tar.gz"]


def test_a_member_larger_than_its_kind_leaves_nothing(tmp_path):
    (tmp_path / "t.tar.gz").write_bytes(archive({"set/a": b"1" * 5000}))
    with pytest.raises(UserError, match="holds a with 5000 bytes, more than 4000"):
        download.extract(tmp_path / "t.tar.gz", tmp_path / "set", ("a",), limit=4000)
    assert [p.name for p in tmp_path.iterdir()] == ["t.tar.gz"]


def test_a_folder_that_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "t.tar.gz").write_bytes(archive({"set/a": b"1"}))
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="is not overwritten"):
        download.extract(tmp_path / "t.tar.gz", tmp_path / "set", ("a",))


def test_cifar_is_fetched_unpacked_and_read(server, tmp_path, monkeypatch):
    layout = cifar.LAYOUTS["cifar10"]
    rows = np.random.default_rng(1).integers(1, 256, (10, 3073), np.uint8)
    rows[:, 0] = np.arange(10)
    train, test, names = layout.binary_files
    members = {f"{layout.binary}/{file}": rows.tobytes() for file in (*train, test)}
    members[f"{layout.binary}/{names}"] = b"\n".join(b"class%d" % c for c in range(10))
    server.content = archive(members)
    changed = layout._replace(md5=hashlib.md5(server.content).hexdigest())
    monkeypatch.setitem(cifar.LAYOUTS, "cifar10", changed)
    monkeypatch.setattr(cifar, "HOME", server.url.removesuffix("archive.tar.gz"))
    (train_rows, labels), _, _ = cifar.read_rows("cifar10", str(tmp_path), fetch=True)
    np.testing.assert_array_equal(train_rows[:10], rows[:, 1:])
    np.testing.assert_array_equal(labels, np.tile(np.arange(10), 5))
    assert [p.name for p in tmp_path.iterdir()] == [layout.binary]
    cifar.read_rows("cifar10", str(tmp_path), fetch=True)  # the second time nothing is fetched
    assert len(server.asked) == 1


def test_an_archive_that_was_there_is_checked_and_kept(server, tmp_path, monkeypatch):
    layout = cifar.LAYOUTS["cifar10"]
    archive_there = tmp_path / layout.archive
    archive_there.write_bytes(b"my own")
    with pytest.raises(UserError, match="it is not the official file"):
        cifar.read_rows("cifar10", str(tmp_path), fetch=True)
    assert archive_there.read_bytes() == b"my own"
    content = archive({f"{layout.binary}/data_batch_1.bin": b"x" * 3000})
    archive_there.write_bytes(content[:-50])
    changed = layout._replace(md5=hashlib.md5(content[:-50]).hexdigest())
    monkeypatch.setitem(cifar.LAYOUTS, "cifar10", changed)
    with pytest.raises(UserError, match="cannot unpack"):
        cifar.read_rows("cifar10", str(tmp_path), fetch=True)
    assert [p.name for p in tmp_path.iterdir()] == [layout.archive]
    assert server.asked == []
