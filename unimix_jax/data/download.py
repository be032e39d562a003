"""Fetching an archive over a network that breaks, and taking known files out of it. Touches files."""

import hashlib
import http.client
import logging
import os
import pathlib
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib

from unimix_jax import workdir
from unimix_jax.errors import UserError

_BLOCK = 1 << 20  # bytes read at once
_PATIENCE = 5  # breaks in a row without a new byte before giving up
_PAUSE = 1.0  # seconds before the second try in a row; then 3, 7, 15
_log = logging.getLogger(__name__)


def fetch(url: str, path: pathlib.Path, md5: str, timeout: float = 60.0) -> None:
    """Download `url` to `path`, whole or not at all.

    What has arrived stays in `path`.part; a broken connection goes on from there, at once and in a
    later call. The file gets its name only when its digest is right.

    Args:
      url: http or https.
      path: the file to make; its folder is made if needed.
      md5: the published digest, in hex.
      timeout: seconds without a byte that count as a break.

    Raises:
      UserError: the server cannot be reached or refuses, the digest is another, the disk cannot be
        written, or another process downloads the same file.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file:
            try:
                workdir.lock(file)
            except BlockingIOError:
                raise UserError(f"another process is downloading {path}") from None
            _receive(url, file, timeout)
            file.flush()
            try:
                check(part, md5)
            except UserError:
                part.unlink()
                raise
            os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def check(path: pathlib.Path, md5: str) -> None:
    """Refuse a file that is not the published one.

    Raises:
      UserError: its MD5 is another.
    """
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        raise UserError(f"{path} has the MD5 {found} instead of the published {md5}; it is not the official file")


def _receive(url: str, file, timeout: float) -> None:
    """Append what is missing to `file`, through breaks."""
    from tqdm import tqdm

    breaks = 0
    with tqdm(unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1], disable=None, mininterval=1) as bar:
        while True:
            have = file.seek(0, os.SEEK_END)
            try:
                whole = _receive_once(url, file, have, timeout, bar)
                reason = "the connection broke"
            except _Broken as error:
                whole, reason = False, str(error)
            if whole:
                return
            breaks = breaks + 1 if file.seek(0, os.SEEK_END) == have else 0
            if breaks >= _PATIENCE:
                raise UserError(f"cannot download {url}: {reason}; what has arrived is kept, the same command goes on")
            _log.info("%s: %s, going on at byte %d", url, reason, file.tell())
            time.sleep(_PAUSE * (2**breaks - 1))


def _receive_once(url: str, file, have: int, timeout: float, bar) -> bool:
    """Append the bytes from `have` on over one connection; return whether the file is whole then."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # there is nothing after what we have; the digest decides
        if error.code < 500:
            raise UserError(f"cannot download {url}: the server answers {error.code} {error.reason}") from None
        raise _Broken(f"the server answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(str(getattr(error, "reason", error))) from None
    with response:
        if have and response.status != http.client.PARTIAL_CONTENT:
            file.truncate(have := 0)  # the server sends it all again
        length = response.headers.get("Content-Length")
        bar.total = have + int(length) if length else None
        bar.update(have - bar.n)
        while True:
            try:
                block = response.read(_BLOCK)
            except (OSError, http.client.HTTPException) as error:
                raise _Broken(str(error)) from None
            if not block:
                return bar.total is None or file.tell() >= bar.total
            file.write(block)
            bar.update(len(block))


class _Broken(Exception):
    """A connection ended before the file did."""


def extract(archive: pathlib.Path, folder: pathlib.Path, members: tuple[str, ...]) -> None:
    """Make `folder` with the named files of a .tar.gz, whole or not at all.

    Members are looked up as `folder.name/NAME` and read as bytes: no path, link or permission that
    the archive names is ever followed.

    Raises:
      UserError: `folder` is there already, the archive is damaged, or a member is missing or no plain file.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already and is not overwritten; move it away to unpack {archive.name}")
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        wanted = {f"{folder.name}/{name}": name for name in members}
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.isreg() and (name := wanted.pop(member.name.removeprefix("./"), None)):
                    with tar.extractfile(member) as source, open(temporary / name, "wb") as target:
                        shutil.copyfileobj(source, target, _BLOCK)
        if wanted:
            raise UserError(f"{archive} lacks {next(iter(wanted))}")
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"cannot unpack {archive}: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
