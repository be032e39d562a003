"""run.json: what a run began with (config, data, versions, environment), compared at each start."""

import hashlib
import importlib.util
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
from unimix_jax.config.fields import FIELDS, SEEN_IN_DATA
from unimix_jax.data.digests import content, digest
from unimix_jax.data.types import Splits
from unimix_jax.errors import UserError
from unimix_jax.training import checkpoints, rundir, schedules

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_log = logging.getLogger(__name__)

_USER_NAME = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")  # "module:function"
_LARGEST_MODULE = 16 * storage.MIB


def plain(config: "ConfigDict") -> dict:
    """Return a config as nested dicts of JSON values."""
    return json.loads(config.to_json_best_effort())


# Fields that may differ between the processes of a run: machines have their own paths, cores and logs.
_OF_A_MACHINE = (
    "data.threads",
    "data.workers",
    "parallel.cpu_threads",
    "parallel.timeout",
    "parallel.notice",
    "loggers",
)


def common(config: "ConfigDict") -> dict:
    """Return the fields of a config, by their dotted names, in which the processes of a run must agree."""
    left_out = {name for name, field in FIELDS.items() if field.resume == SEEN_IN_DATA}.union(_OF_A_MACHINE)
    return {name: value for name, value in flat(plain(config)).items() if name not in left_out}


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
        # -1 epochs of warm-up are others in a run of another length; then the length is what differs.
        differing = [k for k in differing if (repr(old.get(k)), k in old) != (repr(new.get(k)), k in new)]
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
      UserError: the data differs from the data that the run began with, or the number of devices where it matters.
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
        "code": _digests_of_user_code(config),
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
    _check_devices(config, rundir.environment(starts[0]), environment)
    _compare_code(previous, start["code"])
    return {"id": run_id, "seed": config.seed, "data": data, "starts": starts, "state": "running"}


def _check_devices(config: "ConfigDict", began: dict, now: dict) -> None:
    """Refuse another number of devices where each has statistics of its own, which are other numbers then."""
    before, here = began.get("devices"), now.get("devices")
    if before != here and None not in (before, here) and config.parallel.batch_norm == "device":
        raise UserError(
            f"config.parallel.batch_norm is device, and this run began on {before} devices, each with statistics of "
            f"its own: it can go on on so many only, not on {here}"
        )


def warn_of_changed_code(run: dict) -> None:
    """Log which modules of the user are no longer as they were when a finished run last started.

    Args:
      run: the content of its run.json.
    """
    for module, digest_before in (_code_of_starts(run) or [{}])[-1].items():
        if _digest_of_module(module) != digest_before:
            _log.warning(
                "the module %s, on which parts of the config depend, was changed or is gone since this run was "
                "started; the results are those of the module as it was",
                module,
            )


def _compare_code(previous: dict, code: dict[str, str]) -> None:
    """Log which modules of the user are others than at earlier starts of the run."""
    for module in sorted(code):
        earlier = [digests[module] for digests in _code_of_starts(previous) if module in digests]
        if earlier and earlier[-1] != code[module]:
            when = "since the last start"
        elif any(each != code[module] for each in earlier):
            when = "since an earlier start, and changed back or again"
        else:
            continue
        _log.warning(
            "the module %s, on which parts of the config depend, was changed %s, and is used as it is now", module, when
        )


def _code_of_starts(run: dict) -> list[dict[str, str]]:
    """Return the digests of the user's modules at each start; older versions kept those of the last start only."""
    codes = [start.get("code") for start in run.get("starts", [])]
    if codes and codes[-1] is None:
        codes[-1] = run.get("code")
    return [code for code in codes if isinstance(code, dict)]


def _digests_of_user_code(config: "ConfigDict") -> dict[str, str]:
    """Return a digest of each module on which the "module:object" of a config depend, by the module's name.

    These are the modules that the config names, those that define the objects, and all modules imported so far that
    are in the same package; or, for a module that is in no package, in the same folder. Of an installed package they
    are the first two only: it has a version.
    """
    texts = [text for value in flat(plain(config)).values() for text in (value if isinstance(value, list) else [value])]
    modules = set()
    for match in [_USER_NAME.fullmatch(text) for text in texts if isinstance(text, str)]:
        if match:
            named = sys.modules.get(match[1])
            defining = getattr(getattr(named, match[2], None), "__module__", None)
            modules |= {match[1], *([defining] if isinstance(defining, str) else ()), *_modules_beside(match[1])}
    digests = {name: _digest_of_module(name) for name in sorted(modules)}
    return {name: value for name, value in digests.items() if value is not None}


def _modules_beside(name: str) -> set[str]:
    """Return the imported modules of the same package as a module of the user, or of the same folder."""
    file, package = _file_of_module(name), name.partition(".")[0]
    if file is None or package == unimix_jax.__name__ or not {"site-packages", "dist-packages"}.isdisjoint(file.parts):
        return set()
    in_package = package != name or hasattr(sys.modules.get(name), "__path__")
    beside = set()
    for other in [*sys.modules]:
        path = _file_of_module(other) if other != "__main__" else None
        same = other.partition(".")[0] == package if in_package else path and path.parent == file.parent
        if same and path is not None and path.suffix == ".py":
            beside.add(other)
    return beside


def _file_of_module(name: str) -> pathlib.Path | None:
    """Return the file of a module, which need not be imported; None if there is none."""
    if name in sys.modules:
        # Not by getattr, which makes lazy modules import what they stand for.
        file = getattr(sys.modules[name], "__dict__", {}).get("__file__")
    else:
        try:
            spec = importlib.util.find_spec(name)
        except Exception:  # its package is the user's program and may raise anything
            return None
        file = spec.origin if spec is not None else None
    return pathlib.Path(file) if isinstance(file, str) and pathlib.Path(file).is_file() else None


def _digest_of_module(name: str) -> str | None:
    """Return a digest of the file of a module; None if there is none."""
    file = _file_of_module(name)
    return None if file is None else hashlib.sha256(storage.read_bytes(file, _LARGEST_MODULE)).hexdigest()[:16]


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
