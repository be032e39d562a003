"""What the run directory says of its run: the config it began with, its data, and run.json. Touches files."""

import hashlib
import json
import logging
import pathlib
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterable

import numpy as np

import unimix_jax
from unimix_jax import workdir
from unimix_jax.data import loading, sources
from unimix_jax.data.splits import Splits, content, digest
from unimix_jax.errors import Interrupted, UserError
from unimix_jax.training import checkpoints, optim

_log = logging.getLogger(__name__)
_UNREADABLE = threading.Lock()  # training reads ahead in a thread while an evaluation reads in another


def plain(config) -> dict:
    """Return a config as nested dicts of what JSON can hold."""
    return json.loads(config.to_json_best_effort())


def earlier(config, directory: pathlib.Path) -> dict:
    """Return run.json of the run that this directory holds, {} if it holds none.

    Raises:
      UserError: that run has another config.
    """
    begun_with = workdir.read_json(directory / workdir.CONFIG)
    if begun_with is None:
        return {}
    differing, neutral = workdir.differing_keys(*map(optim.with_warmup_as_it_is, (begun_with, plain(config))))
    if differing:
        old, new = workdir.flat(begun_with), workdir.flat(plain(config))
        shown = ", ".join(f"{k} ({old.get(k, 'absent')} there, {new.get(k, 'absent')} here)" for k in differing[:5])
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"{directory} holds a run with another config, differing in {shown}{more}; give another --workdir"
        )
    if neutral:
        _log.info("this run began with another %s", ", ".join(neutral))
    return workdir.read_record(directory / workdir.RUN) or {}


def begin(
    record: dict,
    config,
    splits: Splits,
    test_prior: np.ndarray,
    environment: dict,
    weights: str | None = None,
    saved: bool = True,
) -> dict:
    """Return run.json for a run that begins or goes on.

    Args:
      record: of `earlier`.
      config, splits, test_prior: of the run.
      environment: of `parallel.environment`.
      weights: digest of the trained weights that a run begins from; None for none, or those of the earlier start.
      saved: whether a step of the run has been saved.

    Raises:
      UserError: the data is not what the run began with.
    """
    data = {name: _facts(source) for name, source in {"train": splits.train, **splits.evaluated}.items()}
    data["train"]["counts"] = splits.counts.tolist()
    if splits.unreadable is not None:
        data["train"]["unreadable"] = splits.unreadable
    data["test_prior"] = {"digest": hashlib.sha256(np.ascontiguousarray(test_prior)).hexdigest()[:16]}
    if weights or "init" in record.get("data", {}):
        data["init"] = {"digest": weights} if weights else record["data"]["init"]
    if record:
        _check_data(record["data"], data, saved)
    identity = record.get("id") or (checkpoints.UNNAMED if record else secrets.token_hex(8))
    if record and "id" not in record:
        _log.info(
            "this run began before a run had a name of its own: its checkpoints are known by their steps and digests"
        )
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "version": unimix_jax.__version__,
        "commit": _commit(),
        "command": sys.argv,
        "environment": environment,
    }
    starts = [*record.get("starts", []), start]
    for key in ("version", "commit", "environment"):
        old, new = (workdir.flat({key: each[key]}) for each in (starts[0], start))
        for name in sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k)):
            _log.warning(
                "this run began with %s %s and goes on with %s: the result may differ in its last bits",
                name,
                old.get(name),
                new.get(name),
            )
    return {"id": identity, "seed": config.seed, "data": data, "starts": starts, "state": "running"}


def _facts(source) -> dict:
    """Return what a later start compares of a split."""
    facts = {"images": len(source.labels), "digest": digest(source)}
    if len(source.labels) > 100_000 and source.images is None:
        _log.info("looking at the sizes and some contents of %d images", len(source.labels))
    if (files := content(source)) is not None:
        facts["files"] = files
    return facts


def _check_data(before: dict, now: dict, saved: bool) -> None:
    """Refuse data other than that with which a run began; `before` may be of a version that noted less.

    A run of which no step has been saved may leave other images out because they cannot be read.

    Raises:
      UserError: which differ, and how.
    """
    for name in sorted(before.keys() | now.keys()):
        was, here = before.get(name, {}), now.get(name, {})
        noted = was.keys() | (here.keys() - {"files"} if was else here.keys())
        differing = [key for key in noted - {"unreadable"} if was.get(key) != here.get(key)]
        if not differing:
            continue
        if differing == ["files"]:
            sizes = [each.get("files", {}).get("bytes") for each in (was, here)]
            other = f"{sizes[0]} bytes in all then, {sizes[1]} now" if sizes[0] != sizes[1] else "of the same sizes"
            raise UserError(
                f"the {name} images have the names of those which this run began with, but other contents ({other}); "
                "restore them or give a new --workdir"
            )
        what = {"test_prior": "test prior is not that", "init": "file of config.init is not that"}
        why, left_out = "", [each.get("unreadable") or 0 for each in (was, here)]
        if left_out[0] != left_out[1]:
            everything = [each.get("images", 0) + count for each, count in zip((was, here), left_out, strict=True)]
            if not saved and everything[0] == everything[1]:
                _log.info(
                    "no step of this run has been saved: it begins anew with %d training images, %d that cannot be "
                    "read left out (%d before)",
                    here["images"],
                    *reversed(left_out),
                )
                continue
            why = (
                f": {left_out[0]} that cannot be read were left out then, {left_out[1]} now, by "
                "config.data.skip_unreadable"
            )
        raise UserError(
            f"the {what.get(name, f'{name} images are not those')} which this run began with{why}; restore it or give "
            "a new --workdir"
        )
    if any("files" in now[name] and "files" not in before.get(name, {}) for name in now):
        _log.info(
            "this run began before sizes and contents of images were noted: their names and labels are those it began "
            "with, and from now on the rest is compared, too"
        )


def without_unreadable(
    splits: Splits, reading: loading.Reading, directory: pathlib.Path | None, stopped: threading.Event | None = None
) -> Splits:
    """Leave training images that cannot be read out, so that counts, priors and groups are of those that can.

    All are decoded once, before training. What was found is kept in the run directory: a start that goes on leaves
    the same images out, and looks at none.

    Args:
      splits: of photographs.
      reading: how they are read.
      directory: of the run; None keeps nothing.
      stopped: set from outside to leave.

    Raises:
      UserError: a class has no image left.
      Interrupted: `stopped` was set.
    """
    train = splits.train
    about = {"images": len(train.labels), "digest": digest(train)}
    about["max_megapixels"] = reading._asdict().get("max_megapixels")  # a larger image counts as unreadable
    kept = _known_unreadable(directory, about) if directory else None
    before = ((workdir.read_json(directory / workdir.RUN) or {}) if directory else {}).get("data", {}).get("train", {})
    if kept is not None:
        left_out = kept
        if len(left_out):
            _log.info("%d training images that could not be read when the run began are left out", len(left_out))
    elif before and "files" not in before:
        _log.warning(
            "this run began when images that cannot be read were counted and others of their class stood in for them; "
            "it goes on so"
        )
        left_out = np.zeros(0, np.int64)
    else:
        left_out = _unreadable_images(train, reading, stopped)
        if directory:
            unreadable(directory, [loading.path_of(train, i) for i in left_out.tolist()])
    if directory:
        workdir.write_json(directory / workdir.CHECKED, about | {"left_out": left_out.tolist()})
    readable = np.delete(np.arange(len(train.labels)), left_out)
    splits = splits._replace(train=train.take(readable) if len(left_out) else train, unreadable=len(left_out))
    sources.check_classes(splits)
    return splits


def _known_unreadable(directory: pathlib.Path, about: dict) -> np.ndarray | None:
    """Return what an earlier start kept in checked.json, int64[M]; None if that is not of these images."""
    kept = workdir.read_json(directory / workdir.CHECKED)
    if kept is None or {key: kept.get(key) for key in about} != about:
        return None
    left_out = kept.get("left_out")
    if not isinstance(left_out, list) or not all(type(i) is int and 0 <= i < about["images"] for i in left_out):
        return None
    return np.array(left_out, np.int64)


def _unreadable_images(source, reading: loading.Reading, stopped: threading.Event | None) -> np.ndarray:
    """Return the positions of the images that cannot be read, and say how the search goes."""
    total, begun = len(source.labels), time.monotonic()
    said = begun
    _log.info("reading all %d training images once, to find those that cannot be read", total)

    def told(done: int) -> None:
        nonlocal said
        if stopped is not None and stopped.is_set():
            raise Interrupted("before the first step, while the training images were looked at; start again to go on")
        if time.monotonic() - said > 30:
            said = time.monotonic()
            _log.info("read %d of %d training images", done, total)

    found = loading.unreadable(source, reading, told)
    _log.info("%d of %d training images cannot be read (%.1f s)", len(found), total, time.monotonic() - begun)
    return found


def unreadable(directory: pathlib.Path, names: Iterable[str]) -> None:
    """Add images that could not be read to the run's list of them, each once, aloud."""
    if not names:
        return
    path = directory / workdir.UNREADABLE
    with _UNREADABLE:
        known = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1] if path.exists() else []
        there = set(known)
        new = [name for name in dict.fromkeys(names) if name not in there]
        if new:
            shown = ", ".join(new[:5]) + (f" and {len(new) - 5} more" if len(new) > 5 else "")
            _log.warning(
                "cannot be read and is passed over: %s (%d so far, see %s)", shown, len(known) + len(new), path
            )
            text = "".join(f"{name}\n" for name in [*known, *new])
            workdir.write_whole(path, text.encode("utf-8", "surrogateescape"))


def count_unreadable(directory: pathlib.Path) -> int:
    """Return how many images the run's list of unreadable ones has."""
    path = directory / workdir.UNREADABLE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def peak_memory_mib() -> int | None:
    """Return the most memory this process has held, in MiB; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)


def _commit() -> str | None:
    """Return the commit of the clone that runs, None if it is no clone."""
    here = pathlib.Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
