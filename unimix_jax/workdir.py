"""The run directory: its names, its lock, files written whole or not at all. numpy only; touches files.

config.json  run.json  lock  checkpoints/  metrics.jsonl  metrics.json  log.txt
predictions.npz  predictions_validation.npz  images_test.txt  unreadable.txt  checked.json
report.html (.md .csv .json)  figures/
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import pathlib
import socket
import time

import numpy as np

from unimix_jax import batch, storage
from unimix_jax.batch import Predictions
from unimix_jax.errors import UserError
from unimix_jax.storage import read_json

_log = logging.getLogger(__name__)

CHECKED = "checked.json"
CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
LOCK = "lock"
LOG = "log.txt"
METRICS = "metrics.json"
METRICS_LINES = "metrics.jsonl"
RUN = "run.json"
UNREADABLE = "unreadable.txt"
# What a run writes before config.json.
_BEFORE_CONFIG = (LOCK, LOG, UNREADABLE, UNREADABLE + ".tmp", CHECKED, CHECKED + ".tmp")

# Keys in which a resumed run may differ: they change what is recorded and kept, how long it takes, or the last bits
# of sums (residence, the threads and programs of layers, the wrapping over devices, remat).
NEUTRAL = (
    "data.residence",
    "data.threads",
    "data.workers",
    "eval_every",
    "log_every",
    "parallel.cores",
    "parallel.how",
    "parallel.native",
    "remat",
)
NEUTRAL_GROUPS = ("checkpoint.",)
# Keys that say where data is and which of it is taken: they may differ as long as the data is the same, which its
# digests in run.json say. With `skip_unreadable` other images may be trained on, and then the run is refused.
SEEN_IN_DATA = (
    "data.dir",
    "data.download",
    "data.file",
    "data.layout",
    "data.max_megapixels",
    "data.skip_other_files",
    "data.skip_unreadable",
    "data.test_list",
    "data.train_list",
    "data.validation_list",
)
_MOST_METRICS = 256 * storage.MIB  # bytes of metrics.jsonl, a million lines
_LONGEST_LINE = 1 << 16
_SHOWN = ("accuracy", "many", "medium", "few", "ece", "mce")  # measures that are shown when a run ends


def predictions_file(split: str) -> str:
    """Return the name of the file that holds a split's predictions."""
    return "predictions.npz" if split == "test" else f"predictions_{split}.npz"


def list_file(split: str) -> str:
    """Return the name of the list of a split's images, a line for each row of its predictions."""
    return f"images_{split}.txt"


def fresh(name: str, root: str | os.PathLike = "runs") -> pathlib.Path:
    """Make a directory that was not there before, for this process alone: root/NAME-DATE-TIME.

    Raises:
      UserError: it cannot be made.
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
    """Make the run directory if it is not there, and see that it can be written.

    Raises:
      UserError: it cannot be made or written, or is a file, or holds files but no run, or has a name in which
        checkpoints cannot be written.
    """
    directory = pathlib.Path(directory)
    if not _is_utf8(directory.absolute()):
        raise UserError(
            f"the path of the run directory {directory.absolute()} is not UTF-8 in this locale, and checkpoints cannot "
            "be written there; give another --workdir, or set PYTHONUTF8=1 in the environment if the name is UTF-8"
        )
    # What a run leaves that was stopped before it had written its config.
    own = (*_BEFORE_CONFIG, CONFIG + ".tmp")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        strangers = sorted(path.name for path in directory.iterdir() if path.name not in own)
        if strangers and not (directory / CONFIG).exists():
            raise UserError(
                f"{directory} holds other files ({strangers[0]}, ...) and no run; give an empty or new --workdir"
            )
        for name in (LOCK, LOG):  # to open a pipe would wait for its reader
            if os.path.lexists(directory / name):
                storage.open_regular(directory / name).close()
        # A file that is ours in any case: a trial under another name would be a stranger once the process is killed.
        with open(directory / LOCK, "a"):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write the run directory {directory} ({reason}); give another --workdir") from None
    return directory


def _is_utf8(path: pathlib.Path) -> bool:
    """Whether the bytes of a path are its text in UTF-8, which libraries take for granted."""
    try:
        return str(path).encode() == os.fsencode(path)
    except UnicodeEncodeError:
        return False


def discard(directory: pathlib.Path) -> None:
    """Remove a directory in which no run has begun: what was written before, and itself if nothing else is there."""
    if directory.is_dir() and not (directory / CONFIG).exists():
        for name in _BEFORE_CONFIG:
            (directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()


@contextlib.contextmanager
def locked(directory: pathlib.Path):
    """Hold the directory for this process; the lock goes with the process, however it ends.

    It is local (see `lock`): on network file systems and buckets it may protect nothing, and where there are no locks
    at all the run goes on without.

    Raises:
      UserError: another process holds it.
    """
    with open(directory / LOCK, "a+") as file:
        try:
            lock(file)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{directory} is in use by {holder}; wait for it or give another --workdir") from None
        except OSError as error:
            _log.warning("%s cannot be locked (%s): see that no second run uses it", directory, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


_LOCKED_BYTE = 2**30  # of a file, under Windows: far behind its content, which others could not read else


def lock(file) -> None:
    """Take the lock of an open file for this process; it goes when the file is closed, or with the process.

    Advisory under Unix (`flock`), of one byte under Windows.

    Raises:
      BlockingIOError: another process has it.
      OSError: there are no locks on this file system.
    """
    try:
        import fcntl
    except ImportError:
        import msvcrt

        place = file.tell()
        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(error.errno, error.strerror) from None
        finally:
            file.seek(place)
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Write a file such that a reader, or a crash, sees the old content or the new, nothing between.

    Raises:
      OSError: it cannot be written; it names the file.
    """
    # A path may hold bytes that are no text; a report shows them as \udcXX.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_json(path: pathlib.Path, value: dict) -> None:
    """Write sorted, indented JSON, whole or not at all; a value that is not finite is refused."""
    write_whole(path, json_text(value))


def json_text(value: dict) -> str:
    """Return sorted, indented JSON; a value that is not finite is refused."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_record(path: pathlib.Path) -> dict | None:
    """Read run.json; None if it is not there.

    Raises:
      UserError: it is there but is no record of a run that could go on.
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


def read_results(path: pathlib.Path) -> dict | None:
    """Read metrics.json; None if it is not there.

    Raises:
      UserError: it is there but holds other things than a run's measures.
    """
    results = read_json(path)
    if results is None:
        return None
    parts = {name: results[name] for name in ("test", "validation", "best") if name in results}
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
    """Return a digest of each result of a run that is there: measures, predictions, lists of their images."""
    names = [METRICS, *(f(split) for split in ("test", "validation") for f in (predictions_file, list_file))]
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
      run: what run.json holds; one of before the digests were kept tells nothing.

    Returns:
      The names of files that were changed since the run was finished, and of those that are gone.
    """
    written = run.get("outputs") if isinstance(run, dict) else None
    if not isinstance(written, dict):
        return [], []
    there = output_digests(directory)
    changed = sorted(name for name in there if written.get(name, there[name]) != there[name])
    return changed, sorted(written.keys() - there.keys())


def append_metrics(path: pathlib.Path, record: dict) -> None:
    """Add one line to metrics.jsonl; a number that is not finite becomes null."""
    finite = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in record.items()}
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def read_metrics(path: pathlib.Path) -> list[dict]:
    """Read the records of metrics.jsonl; lines that are no record of a run are passed over, aloud.

    Returns:
      The records in their order; each has `step` and `epoch`; one with a `split` is an evaluation.

    Raises:
      UserError: it is no regular file, or larger than any run writes it.
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
    """Return the record of a line of metrics.jsonl, None if the line is torn or holds something else."""
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
    return type(value) in (int, float)  # a truth value is none


def cut_metrics(path: pathlib.Path, step: int) -> None:
    """Drop the lines after `step`: a resumed run writes them again."""
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))


def flat(config: dict, prefix: str = "") -> dict:
    """Flatten nested dicts to dotted keys: {"data": {"dir": 1}} becomes {"data.dir": 1}."""
    pairs = {}
    for key, value in config.items():
        if isinstance(value, dict):
            pairs |= flat(value, f"{prefix}{key}.")
        else:
            pairs[prefix + key] = value
    return pairs


def differing_keys(old: dict, new: dict) -> tuple[list[str], list[str]]:
    """Compare two configs.

    Args:
      old, new: nested dicts as read from config.json (tuples are lists there).

    Returns:
      The dotted keys that differ and change numbers, and those that differ and do not, or do so only by way of the
      data, whose digests are compared.
    """
    old, new = flat(old), flat(json.loads(json.dumps(new)))
    missing = object()
    keys = sorted(k for k in old.keys() | new.keys() if old.get(k, missing) != new.get(k, missing))
    neutral = [k for k in keys if k in NEUTRAL + SEEN_IN_DATA or k.startswith(NEUTRAL_GROUPS)]
    return [k for k in keys if k not in neutral], neutral


def write_predictions(path: pathlib.Path, predictions: Predictions) -> None:
    """Write predictions as .npz (no pickles), whole or not at all; fields that are None are left out."""
    arrays = {k: np.asarray(v) for k, v in predictions._asdict().items() if v is not None}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def write_list(path: pathlib.Path, names: tuple[str, ...], labels: np.ndarray, rows: np.ndarray) -> None:
    """Write a list file, "path label" a line, of some of a split's images."""
    text = "".join(f"{names[i]} {labels[i]}\n" for i in rows.tolist())
    write_whole(path, text.encode("utf-8", "surrogateescape"))


def unused(path: pathlib.Path) -> pathlib.Path:
    """Return `path`, or with -2, -3, ... behind it, whichever is not there."""
    names = [path, *(path.with_name(f"{path.name}-{i}") for i in range(2, 1000))]
    return next(p for p in names if not p.exists())


def read_predictions(path: str | os.PathLike) -> Predictions:
    """Read what `write_predictions` wrote, or the same arrays from elsewhere, and check them.

    `probabilities` float[N, K] may stand in the place of `logits`: their logarithm is taken, 0 as the smallest
    positive float.

    Raises:
      UserError: no such file, no .npz, pickled objects in it, neither logits nor probabilities, or arrays that are
        no predictions.
    """
    arrays = storage.read_arrays(path, (*Predictions._fields, "probabilities"))
    if ("logits" in arrays) == ("probabilities" in arrays):
        which = "both 'logits' and 'probabilities'; one of them must go" if "logits" in arrays else "no array 'logits'"
        raise UserError(f"{path} holds {which}" + ("" if "logits" in arrays else " and no 'probabilities'"))
    if "probabilities" in arrays:
        arrays["logits"] = batch.logits_of_probabilities(arrays.pop("probabilities"), f"probabilities of {path}")
    if "class_names" in arrays:
        arrays["class_names"] = storage.names_of(arrays["class_names"], f"class_names of {path}")
    return batch.checked(Predictions(**arrays), str(path))


def read_cached(folder: str | os.PathLike, name: str) -> bytes | None:
    """Return what `write_cached` wrote; None if it is not there, or not whole.

    A folder that is an address (JAX takes gs://...) is let be.
    """
    if "://" in str(folder):
        return None
    try:
        data = storage.read_bytes(pathlib.Path(folder, name), storage.GIB)
    except (OSError, UserError):
        return None
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None


def write_cached(folder: str | os.PathLike, name: str, data: bytes) -> None:
    """Write a file that can be made anew, with its digest in front; a folder that cannot be written to is let be."""
    if "://" in str(folder):
        return
    with contextlib.suppress(OSError):
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        write_whole(pathlib.Path(folder, name), hashlib.sha256(data).digest() + data)
