"""The download of an archive over a network that breaks, and the extraction of known files. Touches files."""

import contextlib
import hashlib
import http.client
import logging
import os
import pathlib
import queue
import shutil
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib

from unimix_jax import storage
from unimix_jax.errors import UserError, is_disk_failure, raise_write_error

_BLOCK = 1 << 20  # bytes read at once
_PATIENCE = 5  # breaks in a row without progress before giving up
_PROGRESS = 64 << 10  # bytes that a connection must bring to count as progress
_SLOWEST = 4 << 10  # bytes a second, over `timeout` seconds; a slower connection counts as broken
_PAUSE = 1.0  # seconds before the second try in a row; then 3, 7, 15
_log = logging.getLogger(__name__)


def fetch(url: str, path: pathlib.Path, md5: str, limit: int = storage.GIB, timeout: float = 60.0) -> None:
    """Download a file, whole or not at all.

    The bytes that have arrived stay in `path`.part, and the download continues from there, after a break and in a
    later call. The file gets its name only when its digest is right.

    Args:
      url: http or https.
      path: of the file; its folder is created if needed.
      md5: the published digest, in hexadecimal digits.
      limit: the largest size in bytes.
      timeout: seconds without a byte, or with less than 4 KiB a second, that count as a break.

    Raises:
      UserError: the server cannot be reached, refuses, is too slow or sends too much; the digest differs; the disk
        cannot be written; or another process downloads the same file.
      Failure: the disk is full, or failed.
    """  # noqa: DOC501, _Kept is caught below
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(part):
            storage.open_regular(part).close()
        try:
            with open(part, "ab") as file:
                try:
                    storage.lock(file)
                except BlockingIOError:
                    raise _Kept(f"another process is downloading {path}") from None
                _receive(url, file, limit, timeout)
            # Windows neither renames nor removes a file that is open.
            check(part, md5)
        except _Kept as error:
            raise UserError(str(error)) from None
        except UserError:
            part.unlink()
            raise
        os.replace(part, path)
    except OSError as error:
        raise_write_error(f"cannot write {path}", error)


def check(path: pathlib.Path, md5: str) -> None:
    """Refuse a file that is not the published one.

    Args:
      path: of the file.
      md5: the published digest, in hexadecimal digits.

    Raises:
      UserError: the digest of the file differs.
    """
    with storage.open_regular(path) as file:
        actual = hashlib.file_digest(file, "md5").hexdigest()
    if actual != md5:
        raise UserError(f"{path} has the MD5 {actual} instead of the published {md5}; it is not the official file")


class _Kept(Exception):
    """The download cannot continue now, but may later: the bytes that have arrived are kept."""


def _receive(url: str, file, limit: int, timeout: float) -> None:
    """Append the missing bytes to `file`, with a new connection after each break."""
    from tqdm import tqdm

    breaks = 0
    with tqdm(unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1], disable=None, mininterval=1) as bar:
        while True:
            have = file.seek(0, os.SEEK_END)
            try:
                whole = _receive_once(url, file, have, limit, timeout, bar)
                reason = "the connection broke"
            except _Broken as error:
                whole, reason = False, str(error)
            if whole:
                return
            breaks = breaks + 1 if file.seek(0, os.SEEK_END) < have + _PROGRESS else 0
            if breaks >= _PATIENCE:
                raise _Kept(f"cannot download {url}: {reason}; what has arrived is kept, the same command goes on")
            _log.info("%s: %s, going on at byte %d", url, reason, file.tell())
            time.sleep(_PAUSE * (2**breaks - 1))


def _receive_once(url: str, file, have: int, limit: int, timeout: float, bar) -> bool:
    """Append the bytes from `have` on over one connection; return whether the file is whole afterwards."""
    # A thread talks to the server, because a read of a reply without an end never returns. The thread is then left
    # alone, and what it puts into the queue is dropped.
    replies = queue.Queue(maxsize=4)
    given_up = threading.Event()
    threading.Thread(target=_talk, args=(url, have, timeout, replies, given_up), daemon=True).start()
    try:
        total, since, before = None, time.monotonic(), 0
        while True:
            try:
                kind, value = replies.get(timeout=max(0.01, since + timeout - time.monotonic()))
            except queue.Empty:
                kind, value = None, None
            if kind == "failed":
                raise value
            if kind == "begun":
                again, length = value
                if have and again:
                    file.truncate(have := 0)  # the server sends it all again
                total = None if length is None else have + length
                bar.total = total
                bar.update(have - bar.n)
            elif kind == "block":
                before += len(value)
                if file.tell() + len(value) > limit:
                    raise UserError(f"{url} sends more than {limit} bytes; it is not the official file")
                file.write(value)
                bar.update(len(value))
            elif kind == "end":
                return value or total is None or file.tell() >= total
            if total is not None and total > limit:
                raise UserError(f"{url} has {total} bytes, more than {limit}; it is not the official file")
            if time.monotonic() - since >= timeout:
                if before < _SLOWEST * timeout:
                    raise _Broken(f"only {before} bytes came in {timeout:g} s")
                since, before = time.monotonic(), 0
    finally:
        given_up.set()
        while not replies.empty():  # a thread that waits to put its next block sees `given_up` then
            replies.get_nowait()


def _talk(url: str, have: int, timeout: float, replies: queue.Queue, given_up: threading.Event) -> None:
    """Put the answer of a server into a queue, as pairs.

    ("begun", (whether it sends from the first byte on, the number of bytes or None)), ("block", bytes), ("end", whether
    there was nothing to send), ("failed", the exception).
    """  # noqa: DOC501, they are put into the queue

    def put(kind, value):
        while not given_up.is_set():
            try:
                return replies.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
        raise _Broken("given up")

    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            response = urllib.request.urlopen(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            reason = "".join(c if c.isprintable() else " " for c in str(error.reason)[:100])
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                return put("end", True)  # the server has nothing after our bytes; the digest decides
            if error.code < 500:
                raise _Kept(f"cannot download {url}: the server answers {error.code} {reason}") from None
            raise _Broken(f"the server answers {error.code} {reason}") from None
        with response:
            length = response.headers.get("Content-Length")
            if length is not None and not (length.isdecimal() and len(length) < 16):
                raise _Broken(f"the server sends no length but {length[:40]!r}")
            put("begun", (response.status != http.client.PARTIAL_CONTENT, None if length is None else int(length)))
            # Each piece as it comes: `read` would wait for a whole block, and trusts the sizes of chunks.
            while block := response.read1(_BLOCK):
                put("block", block)
            return put("end", False)
    except (_Broken, _Kept) as error:
        failure = error
    except Exception as error:  # urllib and http.client raise nearly any type at malformed replies
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        failure = _Broken("".join(c if c.isprintable() else " " for c in reason[:200]))
    with contextlib.suppress(_Broken):
        put("failed", failure)
    return None


class _Broken(Exception):
    """A connection ended before the file did."""


def extract(archive: pathlib.Path, folder: pathlib.Path, members: tuple[str, ...], limit: int = storage.GIB) -> None:
    """Create a folder with the named files of a .tar.gz, whole or not at all.

    Members are looked up as `folder.name/NAME` and read as bytes; paths, links and permissions in the archive have no
    effect.

    Args:
      archive: path of the archive.
      folder: to create.
      members: names of the files in it.
      limit: the largest size of a member in bytes.

    Raises:
      UserError: the folder exists already, the archive is damaged, or a member is missing or is not a regular file.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already and is not overwritten; move it away to unpack {archive.name}")
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        wanted = {f"{folder.name}/{name}": name for name in members}
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.isreg() and (name := wanted.pop(member.name.removeprefix("./"), None)):
                    if member.size > limit:
                        raise UserError(f"{archive} holds {name} with {member.size} bytes, more than {limit}")
                    with tar.extractfile(member) as source, open(temporary / name, "wb") as target:
                        shutil.copyfileobj(source, target, _BLOCK)
        if wanted:
            raise UserError(f"{archive} lacks {next(iter(wanted))}")
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    except (tarfile.TarError, EOFError, MemoryError, OverflowError, ValueError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and is_disk_failure(error):
            raise_write_error(f"cannot unpack {archive}", error)
        raise UserError(f"cannot unpack {archive}: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
