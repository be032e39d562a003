"""run.json: what a run began with (config, data, versions, environment), compared at each start."""

import hashlib
import json
import logging
import pathlib
import re
import secrets
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np

import unimix_jax
from unimix_jax import storage
from unimix_jax.config import old_names
from unimix_jax.config.compare import differing_keys, flat
from unimix_jax.data.digests import content, digest
from unimix_jax.data.types import Splits
from unimix_jax.errors import UserError
from unimix_jax.training import checkpoints, rundir, schedules

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_log = logging.getLogger(__name__)

_USER_NAME = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*")  # "module:function"
_LARGEST_MODULE = 16 * storage.MIB


def plain(config: "ConfigDict") -> dict:
    """Return a config as nested dicts of JSON values."""
    return json.loads(config.to_json_best_effort())


def previous_manifest(config: "ConfigDict", directory: pathlib.Path) -> dict:
    """Read run.json of an earlier start in this directory, and compare its config with this one.

    Args:
      config: of this start.
      directory: of the run.

    Returns:
      The content of run.json; {} if there was no earlier start.

    Raises:
      UserError: the earlier start had another config.
    """
    old_config = storage.read_json(directory / rundir.CONFIG)
    if old_config is None:
        return {}
    old_config, renamed = old_names.with_new_names(old_config)
    old_names.warn(str(directory / rundir.CONFIG), renamed)
    differing, neutral = differing_keys(*map(schedules.with_warmup_as_it_is, (old_config, plain(config))))
    if differing:
        old, new = flat(old_config), flat(plain(config))
        shown = ", ".join(f"{k} ({old.get(k, 'absent')} there, {new.get(k, 'absent')} here)" for k in differing[:5])
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"{directory} holds a run with another config, differing in {shown}{more}; give another --workdir"
        )
    if neutral:
        _log.info("this run began with another %s", ", ".join(neutral))
    return rundir.read_manifest(directory / rundir.RUN) or {}


def new_manifest(
    previous: dict,
    config: "ConfigDict",
    splits: Splits,
    test_prior: np.ndarray,
    environment: dict,
    weights: str | None = None,
    saved: bool = True,
) -> dict:
    """Return what run.json is to hold for a run that begins or goes on.

    Args:
      previous: of `previous_manifest`.
      config: of the run.
      splits: of the run.
      test_prior: float64[K], of the run.
      environment: of `runtime.environment`.
      weights: digest of the trained weights that the run begins from; None for none, or for those of the first start.
      saved: whether a step of the run has been saved.

    Returns:
      The content for run.json.

    Raises:
      UserError: the data differs from the data that the run began with.
    """
    data = {name: _facts(source) for name, source in {"train": splits.train, **splits.evaluated}.items()}
    data["train"]["counts"] = splits.counts.tolist()
    if splits.unreadable is not None:
        data["train"]["unreadable"] = splits.unreadable
    data["test_prior"] = {"digest": hashlib.sha256(np.ascontiguousarray(test_prior)).hexdigest()[:16]}
    if weights or "init" in previous.get("data", {}):
        data["init"] = {"digest": weights} if weights else previous["data"]["init"]
    if previous:
        _check_data(previous["data"], data, saved)
    run_id = previous.get("id") or (checkpoints.UNNAMED if previous else secrets.token_hex(8))
    if previous and "id" not in previous:
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
    starts = [*previous.get("starts", []), start]
    for key in ("version", "commit", "environment"):
        first = rundir.environment(starts[0]) if key == "environment" else starts[0][key]
        old, new = flat({key: first}), flat({key: start[key]})
        for name in sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k)):
            _log.warning(
                "this run began with %s %s and goes on with %s: the result may differ in its last bits",
                name,
                old.get(name),
                new.get(name),
            )
    code = _digests_of_user_code(config)
    for module, digest_before in previous.get("code", {}).items():
        if module in code and code[module] != digest_before:
            _log.warning(
                "the module %s, which the config names, was changed since the last start, and is used as it is now",
                module,
            )
    return {"id": run_id, "seed": config.seed, "data": data, "code": code, "starts": starts, "state": "running"}


def _digests_of_user_code(config: "ConfigDict") -> dict[str, str]:
    """Return a digest of each module whose functions the config names as "module:function", by the module's name."""
    texts = [text for value in flat(plain(config)).values() for text in (value if isinstance(value, list) else [value])]
    modules = {match[1] for text in texts if isinstance(text, str) and (match := _USER_NAME.fullmatch(text))}
    digests = {}
    for name in sorted(modules):
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if file and pathlib.Path(file).is_file():
            digests[name] = hashlib.sha256(storage.read_bytes(file, _LARGEST_MODULE)).hexdigest()[:16]
    return digests


def _facts(source) -> dict:
    """Return the facts about a split that a later start compares."""
    facts = {"images": len(source.labels), "digest": digest(source)}
    if len(source.labels) > 100_000 and source.images is None:
        _log.info("looking at the sizes and some contents of %d images", len(source.labels))
    if (files := content(source)) is not None:
        facts["files"] = files
    return facts


def _check_data(before: dict, now: dict, saved: bool) -> None:
    """Refuse data that differs from the data with which the run began.

    A run of which no step has been saved may leave out other images that cannot be read.

    Args:
      before: `data` of run.json; older versions recorded less.
      now: the same of this start.
      saved: whether a step of the run has been saved.

    Raises:
      UserError: which data differs, and how.
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
        what = {"test_prior": "test prior is not that", "init": "file of config.pretrained is not that"}
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


def _commit() -> str | None:
    """Return the commit of the git clone that runs; None if it is not a clone."""
    here = pathlib.Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
