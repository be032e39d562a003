"""Fetching an archive over a network that breaks, and taking known files out of it. Touches files."""

import contextlib
import fcntl
import hashlib
import http.client
import logging
import os
import pathlib
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request

from unimix_jax.errors import UserError

_BLOCK = 1 << 20  # bytes read at once
_PATIENCE = 5  # breaks in a row without a new byte before giving up
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
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"another process is downloading {path}") from None
            _receive(url, file, timeout)
            file.flush()
            with open(part, "rb") as received:
                found = hashlib.file_digest(received, "md5").hexdigest()
            if found != md5:
                part.unlink()
                raise UserError(
                    f"{url} arrived with MD5 {found} instead of the published {md5}; it was deleted, try again"
                )
            os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def _receive(url: str, file, timeout: float) -> None:
    """Append what is missing to `file`, through breaks."""
    from tqdm import tqdm

    breaks, total = 0, None
    with tqdm(unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1], disable=None, mininterval=1) as bar:
        while True:
            have = file.seek(0, os.SEEK_END)
            reason = None
            request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
            try:
                with urllib.request.urlopen(request, timeout=timeout) as response:
                    if have and response.status != http.client.PARTIAL_CONTENT:
                        file.truncate(have := 0)  # the server sends it all again
                    length = response.headers.get("Content-Length")
                    total = bar.total = have + int(length) if length else None
                    bar.update(have - bar.n)
                    while block := response.read(_BLOCK):
                        file.write(block)
                        bar.update(len(block))
                if total is None or file.tell() >= total:
                    return
                reason = "the connection broke"
            except urllib.error.HTTPError as error:
                if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                    return  # there is nothing after what we have; the digest decides
                reason = f"the server answers {error.code} {error.reason}"
                if error.code < 500:
                    raise UserError(f"cannot download {url}: {reason}") from None
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                reason = str(getattr(error, "reason", error))
            breaks = breaks + 1 if file.seek(0, os.SEEK_END) == have else 0
            if breaks >= _PATIENCE:
                raise UserError(f"cannot download {url}: {reason}; what has arrived is kept, the same command goes on")
            _log.info("%s: %s, going on at byte %d", url, reason, file.tell())


def extract(archive: pathlib.Path, folder: pathlib.Path, members: tuple[str, ...]) -> None:
    """Make `folder` with the named files of a .tar.gz, whole or not at all.

    Members are looked up as `folder.name/NAME` and read as bytes: no path, link or permission that
    the archive names is ever followed.

    Raises:
      UserError: `folder` is there already, or a member is missing or no plain file.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already and is not overwritten; move it away to unpack {archive.name}")
    with contextlib.ExitStack() as stack:
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        tar = stack.enter_context(tarfile.open(archive, "r:gz"))
        wanted = {f"{folder.name}/{name}": name for name in members}
        for member in tar:
            if member.isreg() and (name := wanted.pop(member.name.removeprefix("./"), None)):
                with tar.extractfile(member) as source, open(temporary / name, "wb") as target:
                    shutil.copyfileobj(source, target, _BLOCK)
        if wanted:
            raise UserError(f"{archive} lacks {next(iter(wanted))}")
        temporary.chmod(0o755)
        os.replace(temporary, folder)
