"""What the run directory says of its run: the config it began with, and run.json. Touches files."""

import json
import logging
import pathlib
import resource
import subprocess
import sys
import time

import unimix_jax
from unimix_jax import workdir
from unimix_jax.data import sources
from unimix_jax.errors import UserError
from unimix_jax.training import parallel

_log = logging.getLogger(__name__)


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
        _log.info("this run began with another %s; it changes no number", ", ".join(neutral))
    return workdir.read_json(directory / workdir.RUN) or {}


def begin(record: dict, config, splits: sources.Splits) -> dict:
    """Return run.json for a run that begins or goes on.

    Args:
      record: of `earlier`.

    Raises:
      UserError: the data is not what the run began with.
    """
    data = {
        name: {"images": len(source.labels), "digest": sources.digest(source)}
        for name, source in {"train": splits.train, **splits.evaluated}.items()
    }
    data["train"]["counts"] = splits.counts.tolist()
    here = {
        "version": unimix_jax.__version__,
        "commit": _commit(),
        "command": sys.argv,
        "seed": config.seed,
        "environment": parallel.environment(),
        "devices": len(parallel.local_devices(config.parallel.devices)),
        "data": data,
    }
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    if not record:
        return {**here, "begun": now, "resumed": [], "state": "running"}
    for name, described in data.items():
        if record["data"].get(name) != described:
            raise UserError(
                f"the {name} images are not those that this run began with; restore them or give a new --workdir"
            )
    for key in ("version", "commit", "environment", "devices"):
        old, new = workdir.flat({key: record[key]}), workdir.flat({key: here[key]})
        for name in sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k)):
            _log.warning(
                "this run began with %s %s and goes on with %s: the result may differ in its last bits",
                name,
                old.get(name),
                new.get(name),
            )
    return {**record, "resumed": [*record["resumed"], now], "state": "running"}


def peak_memory_mib() -> int:
    """Return the most memory this process has held, in MiB."""
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
