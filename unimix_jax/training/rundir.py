"""The run directory: the names of its files, its lock, and how its files are read and written. No jax.

config.json  run.json  lock  checkpoints/  metrics.jsonl  metrics.json  log.txt
predictions.npz  predictions_validation.npz  images_test.txt  unreadable.txt  checked.json
report.html (.md .csv .json)  figures/
seal  log_N.txt  unreadable_N.txt  of several processes
seeds/SEED/ of replicates, stages/NAME/ of a stage after which another starts afresh: predictions and metrics
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import socket
import time
from collections.abc import Iterator

import numpy as np

from unimix_jax import storage
from unimix_jax.errors import InUse, UserError
from unimix_jax.storage import read_json, write_whole

_log = logging.getLogger(__name__)

CHECKED = "checked.json"
CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
LOCK = "lock"
LOG = "log.txt"
METRICS = "metrics.json"
METRICS_LINES = "metrics.jsonl"
RUN = "run.json"
SEAL = "seal"  # a random text, by which other processes see that they have the same folder
UNREADABLE = "unreadable.txt"
# Files that a run writes before config.json.
_BEFORE_CONFIG = (LOCK, LOG, SEAL, SEAL + ".tmp", UNREADABLE, UNREADABLE + ".tmp", CHECKED, CHECKED + ".tmp")

_OF_PROCESSES = re.compile(r"(log|unreadable)_\d+\.txt(\.tmp)?")
_LONGEST_SIGHT = 30.0  # seconds in which a new file is seen on a shared folder

# Names in `environment` of run.json, and backends of the layers, that had another name before.
_NEW_NAMES = {"kernels": "ops", "how": "spmd", "cores": "cpu_threads"}
_NEW_OPS = {"native": "cpu_kernels", "plain": "xla"}
_ALWAYS_BEFORE = {"steps_per_dispatch": 1, "matmul_precision": "default"}  # what older runs did not record
_MOST_METRICS = 256 * storage.MIB  # bytes of metrics.jsonl, a million lines
_LONGEST_LINE = 1 << 16
_SHOWN = ("accuracy", "many", "medium", "few", "ece", "mce")  # measures that are shown when a run ends


def log_file(process: int) -> str:
    """Return the name of the log of a process."""
    return LOG if process == 0 else f"log_{process}.txt"


def unreadable_file(process: int) -> str:
    """Return the name of the list of images that a process could not read."""
    return UNREADABLE if process == 0 else f"unreadable_{process}.txt"


def predictions_file(split: str) -> str:
    """Return the name of the file that holds a split's predictions."""
    return "predictions.npz" if split == "test" else f"predictions_{split}.npz"


def seed_folder(seed: int) -> str:
    """Return the folder of a replicate's predictions and metrics, in the run directory."""
    return f"seeds/{seed}"


def stage_folder(stage: str) -> str:
    """Return the folder of what a stage left that another one after the run follows, in the run directory."""
    return f"stages/{stage}"


def create_stage_folder(directory: pathlib.Path, stage: str) -> pathlib.Path:
    """Return the path of the folder of a stage, which is made if needed.

    Args:
      directory: of the run.
      stage: its name.
    """
    folder = directory / stage_folder(stage)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def create_seed_folder(directory: pathlib.Path, seed: int) -> pathlib.Path:
    """Return the path of a replicate's folder, which is made if needed.

    Args:
      directory: of the run.
      seed: of the replicate.
    """
    folder = directory / seed_folder(seed)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def list_file(split: str) -> str:
    """Return the name of the list of a split's images, a line for each row of its predictions."""
    return f"images_{split}.txt"


def new_rundir(name: str, root: str | os.PathLike = "runs") -> pathlib.Path:
    """Make a new run directory for this process alone: root/NAME-DATE-TIME.

    Args:
      name: the first part of the directory's name.
      root: the directory above it, made if needed.

    Returns:
      The new directory.

    Raises:
      UserError: the directory cannot be made.
    """
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for candidate in (stem, *(f"{stem}-{i}" for i in range(2, 1000))):
        try:
            path = pathlib.Path(root, candidate)
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if not path.is_dir():
                raise UserError(f"cannot make a run directory under {root}; give a --workdir") from None
        except OSError as error:
            raise UserError(f"cannot make a run directory under {root} ({error.strerror}); give a --workdir") from None
    raise UserError(f"too many runs of this second under {root}; give a --workdir")


def create(directory: str | os.PathLike) -> pathlib.Path:
    """Make a run directory if it does not exist, and check that it can be written.

    Args:
      directory: its path.

    Returns:
      The path.

    Raises:
      UserError: it is an address such as gs://...; it cannot be made or written, is a file, holds files but no run, or
        has a path in which checkpoints cannot be written.
    """
    if "://" in os.fspath(directory):
        raise UserError(
            f"the run directory {os.fspath(directory)} is an address; it must be a folder: mount a bucket as one, as "
            "gcsfuse does"
        )
    directory = pathlib.Path(directory)
    if not _is_utf8(directory.absolute()):
        raise UserError(
            f"the path of the run directory {directory.absolute()} is not UTF-8 in this locale, and checkpoints cannot "
            "be written there; give another --workdir, or set PYTHONUTF8=1 in the environment if the name is UTF-8"
        )
    # Files of a run that was stopped before it had written its config.
    own = (*_BEFORE_CONFIG, CONFIG + ".tmp")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        there = (path.name for path in directory.iterdir() if not _OF_PROCESSES.fullmatch(path.name))
        strangers = sorted(name for name in there if name not in own)
        if strangers and not (directory / CONFIG).exists():
            raise UserError(
                f"{directory} holds other files ({strangers[0]}, ...) and no run; give an empty or new --workdir"
            )
        for name in (LOCK, LOG):  # to open a pipe would wait for its reader
            if os.path.lexists(directory / name):
                storage.open_regular(directory / name).close()
        # The lock is ours in any case; a test file with another name would stay as a foreign file after a kill.
        with open(directory / LOCK, "a"):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write the run directory {directory} ({reason}); give another --workdir") from None
    return directory


def seal(directory: pathlib.Path, text: str) -> str:
    """Write a text into the run directory, by which other processes see that it is the same one; return it."""
    storage.write_whole(directory / SEAL, text)
    return text


def is_sealed(directory: pathlib.Path, text: str) -> bool:
    """Return whether the run directory has this seal; waits for it as long as shared folders may take.

    Args:
      directory: of the run, as this process sees it.
      text: of `seal`.
    """
    end = time.monotonic() + _LONGEST_SIGHT
    while True:
        with contextlib.suppress(OSError, UserError):
            if storage.read_text(directory / SEAL, 1024) == text:
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


def _is_utf8(path: pathlib.Path) -> bool:
    """Return whether the bytes of a path are its text in UTF-8, which libraries take for granted."""
    try:
        return str(path).encode() == os.fsencode(path)
    except UnicodeEncodeError:
        return False


def discard(directory: pathlib.Path) -> None:
    """Remove what was written to a directory in which no run has begun, and the directory if it is then empty."""
    if directory.is_dir() and not (directory / CONFIG).exists():
        for name in _BEFORE_CONFIG:
            (directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
    """Lock the run directory for this process; the lock ends with the process, however that ends.

    The lock is local (see `storage.lock`): on network file systems and buckets it may protect nothing. If the file
    system has no locks, the run continues without one and logs a warning.

    Args:
      directory: of the run.

    Yields:
      Nothing.

    Raises:
      InUse: another process holds the lock.
    """
    with open(directory / LOCK, "a+") as file:
        try:
            storage.lock(file)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InUse(f"{directory} is in use by {holder}; wait for it or give another --workdir") from None
        except OSError as error:
            _log.warning("%s cannot be locked (%s): see that no second run uses it", directory, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def read_manifest(path: pathlib.Path) -> dict | None:
    """Read run.json.

    Args:
      path: of the file.

    Returns:
      Its content; None if it does not exist.

    Raises:
      UserError: the file does not describe a run that could be resumed.
    """
    record = read_json(path)
    if record is None:
        return None
    data, starts = record.get("data"), record.get("starts")
    sound = (
        isinstance(data, dict)
        and all(isinstance(part, dict) for part in data.values())
        and isinstance(starts, list)
        and len(starts) > 0
        and all(isinstance(start, dict) and isinstance(start.get("environment"), dict) for start in starts)
        and all(key in start for start in starts for key in ("version", "commit"))
        and isinstance(record.get("state"), str)
    )
    if not sound:
        raise UserError(f"{path} is no record of a run; restore it or start in a new --workdir")
    return record


def environment(start: dict) -> dict:
    """Return the environment of a start by the names that it has today.

    Args:
      start: an entry of `starts` in run.json, of this version or an older one.

    Returns:
      The versions, devices and options that `runtime.environment` recorded.
    """
    recorded = {_NEW_NAMES.get(name, name): value for name, value in start.get("environment", {}).items()}
    if "ops" in recorded:
        recorded["ops"] = _NEW_OPS.get(recorded["ops"], recorded["ops"])
    return _ALWAYS_BEFORE | recorded if recorded else recorded


def read_results(path: pathlib.Path) -> dict | None:
    """Read metrics.json.

    Args:
      path: of the file.

    Returns:
      Its content; None if it does not exist.

    Raises:
      UserError: the file holds something else than the metrics of a run.
    """
    results = read_json(path)
    if results is None:
        return None
    parts = {name: results[name] for name in ("test", "validation", "best") if name in results}
    kinds = [results[name] for name in ("ensemble", "deviation") if name in results]  # of replicates
    if kinds or "seeds" in results:
        if len(kinds) < 2 or not isinstance(results.get("seeds"), list) or not all(isinstance(k, dict) for k in kinds):
            raise UserError(f"{path} holds no measures of replicates; restore it or start in a new --workdir")
        parts |= {f"{i} {split}": kind.get(split) for i, kind in enumerate(kinds) for split in parts if split != "best"}
    sound = "test" in parts and all(
        isinstance(part, dict) and all(value is None or _is_number(value) for value in map(part.get, _SHOWN))
        for part in parts.values()
    )
    if sound and "best" in parts:
        sound = isinstance(parts["best"].get("split"), str) and _is_number(parts["best"].get("epoch"))
    if not sound:
        raise UserError(f"{path} holds no measures of a run; restore it or start in a new --workdir")
    return results


def output_digests(directory: pathlib.Path) -> dict[str, str]:
    """Return a digest of each result of a run, its replicates and stages, that exists: metrics, predictions, lists."""
    names = [METRICS, *(f(split) for split in ("test", "validation") for f in (predictions_file, list_file))]
    patterns = (seed_folder("*"), stage_folder("*"), f"{stage_folder('*')}/{seed_folder('*')}")
    folders = sorted(path for pattern in patterns for path in directory.glob(pattern) if path.is_dir())
    names += [f"{folder.relative_to(directory).as_posix()}/{name}" for folder in folders for name in names]
    digests = {}
    for name in names:
        if (directory / name).is_file():
            with storage.open_regular(directory / name) as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def changed_outputs(directory: pathlib.Path, run: dict | None) -> tuple[list[str], list[str]]:
    """Compare a finished run's results with their digests in run.json.

    Args:
      directory: of the run.
      run: the content of run.json; older versions wrote no digests, so that nothing is compared.

    Returns:
      The names of files that were changed since the run was finished, and of those that no longer exist.
    """
    written = run.get("outputs") if isinstance(run, dict) else None
    if not isinstance(written, dict):
        return [], []
    there = output_digests(directory)
    changed = sorted(name for name in there if written.get(name, there[name]) != there[name])
    return changed, sorted(written.keys() - there.keys())


def append_metrics(path: pathlib.Path, record: dict) -> None:
    """Append one line to metrics.jsonl; write null for a number that is not finite."""
    finite = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in record.items()}
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def read_metrics(path: pathlib.Path) -> list[dict]:
    """Read the records of metrics.jsonl; skip lines that are not records of a run, and log how many.

    Args:
      path: of the file.

    Returns:
      The records in their order; each has `step` and `epoch`; a record with a `split` is an evaluation.

    Raises:
      UserError: the file is not a regular file, or is larger than any run writes it.
    """
    try:
        data = storage.read_bytes(path, _MOST_METRICS)
    except FileNotFoundError:
        return []
    records, strange = [], []
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        record = _record(line)
        if record is None:
            strange.append(number)
        else:
            records.append(record)
    if strange:
        _log.warning(
            "%s: %d of its %d lines %s no record and %s passed over (line %s)",
            path,
            len(strange),
            len(strange) + len(records),
            *(("is", "is") if len(strange) == 1 else ("are", "are")),
            ", ".join(map(str, strange[:5])) + (", ..." if len(strange) > 5 else ""),
        )
    return records


def _record(line: bytes) -> dict | None:
    """Return the record in a line of metrics.jsonl; None if the line is incomplete or holds something else."""
    if len(line) > _LONGEST_LINE or not line.endswith(b"\n"):
        return None
    try:
        record = storage.parse_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or record["step"] < 0:
        return None
    words = {key: value for key, value in record.items() if key in ("split", "stage")}
    numbers = {key: value for key, value in record.items() if key not in words}
    measured = ("epoch", "accuracy") if "split" in record else ("epoch",)
    sound = (
        all(isinstance(value, str) for value in words.values())
        and all(value is None or _is_number(value) for value in numbers.values())
        and all(numbers.get(key) is not None for key in measured)
    )
    return record if sound else None


def _is_number(value) -> bool:
    return type(value) in (int, float)  # not bool


def truncate_metrics(path: pathlib.Path, step: int) -> None:
    """Drop the lines after `step`, which a resumed run writes again."""
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))


def write_list(path: pathlib.Path, names: tuple[str, ...], labels: np.ndarray, rows: np.ndarray) -> None:
    """Write a list file, a line "path label" for each image at positions `rows` of a split."""
    text = "".join(f"{names[i]} {labels[i]}\n" for i in rows.tolist())
    write_whole(path, text.encode("utf-8", "surrogateescape"))


def has_checkpoints(directory: pathlib.Path) -> bool:
    """Return whether a run directory holds checkpoints; the directory need not exist."""
    return any((directory / CHECKPOINTS).glob("[0-9]*"))
