"""What the run directory says of its run: the config it began with, and run.json. Touches files."""

import hashlib
import json
import logging
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterable

import numpy as np

import unimix_jax
from unimix_jax import workdir
from unimix_jax.data.splits import Splits, digest
from unimix_jax.errors import UserError

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
    differing, neutral = workdir.differing_keys(begun_with, plain(config))
    if differing:
        old, new = workdir.flat(begun_with), workdir.flat(plain(config))
        shown = ", ".join(f"{k} ({old.get(k, 'absent')} there, {new.get(k, 'absent')} here)" for k in differing[:5])
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"{directory} holds a run with another config, differing in {shown}{more}; give another --workdir"
        )
    if neutral:
        _log.info("this run began with another %s", ", ".join(neutral))
    return workdir.read_json(directory / workdir.RUN) or {}


def begin(
    record: dict, config, splits: Splits, test_prior: np.ndarray, environment: dict, weights: str | None = None
) -> dict:
    """Return run.json for a run that begins or goes on.

    Args:
      record: of `earlier`.
      config, splits, test_prior: of the run.
      environment: of `parallel.environment`.
      weights: digest of the trained weights that a run begins from; None for none, or those of the earlier start.

    Raises:
      UserError: the data is not what the run began with.
    """
    data = {
        name: {"images": len(source.labels), "digest": digest(source)}
        for name, source in {"train": splits.train, **splits.evaluated}.items()
    }
    data["train"]["counts"] = splits.counts.tolist()
    data["test_prior"] = {"digest": hashlib.sha256(np.ascontiguousarray(test_prior)).hexdigest()[:16]}
    if weights or "init" in record.get("data", {}):
        data["init"] = {"digest": weights} if weights else record["data"]["init"]
    for name in data.keys() | record.get("data", data).keys():
        if record and record["data"].get(name) != data.get(name):
            other = {"test_prior": "test prior is not that", "init": "file of config.init is not that"}
            what = other.get(name, f"{name} images are not those")
            raise UserError(f"the {what} which this run began with; restore it or give a new --workdir")
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
    return {"seed": config.seed, "data": data, "starts": starts, "state": "running"}


def unreadable(directory: pathlib.Path, names: Iterable[str]) -> None:
    """Add images that could not be read to the run's list of them, each once, aloud."""
    if not names:
        return
    path = directory / workdir.UNREADABLE
    with _UNREADABLE:
        known = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1] if path.exists() else []
        new = [name for name in dict.fromkeys(names) if name not in known]
        if new:
            _log.warning(
                "cannot be read and is passed over: %s (%d so far, see %s)", ", ".join(new), len(known) + len(new), path
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
