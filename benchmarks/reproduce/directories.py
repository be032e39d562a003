"""Run directories: RUNS/SCALE/DATA_lt_IMBALANCE/METHOD/SEED, or FIRST_to_LAST of seeds that one program trains.

Where one of another config stands in the way, the next one is beside it: SEED-2, SEED-3. None is ever deleted.
"""

import itertools
import pathlib
import re

from benchmarks.reproduce import store
from unimix_jax import storage
from unimix_jax.training import rundir

_NAME = re.compile(r"(\d+)(?:_to_(\d+))?(?:-\d+)?")
_ALONE = "trained_one_by_one"  # a file: one of the seeds has a loss that is not finite


def of_config(folder: pathlib.Path, config: dict) -> list[tuple[pathlib.Path, range]]:
    """Return the directories of a folder whose run has a config, each with its seeds, the earliest seeds first.

    Args:
      folder: of all seeds.
      config: see `store.recorded`.
    """
    names = {path: _NAME.fullmatch(path.name) for path in folder.glob("*") if path.is_dir()}
    seeds = {path: range(int(name[1]), int(name[2] or name[1]) + 1) for path, name in names.items() if name}
    return [(path, seeds[path]) for path in sorted(seeds, key=lambda path: (seeds[path][0], path.name))
            if _has_config(path, config)]  # fmt: skip


def path_for(folder: pathlib.Path, first: int, last: int, config: dict) -> pathlib.Path:
    """Return the directory of seeds that were begun, or a new one beside those of other configs.

    Args:
      folder: of all seeds.
      first: the first seed.
      last: the last seed.
      config: see `store.recorded`.
    """
    name = str(first) if first == last else f"{first}_to_{last}"
    paths = (folder / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(path for path in paths if not path.exists() or _has_config(path, config))


def is_complete(directory: pathlib.Path) -> bool:
    """Return whether the run of a directory is complete."""
    return (storage.read_json(directory / rundir.RUN) or {}).get("state") == "complete"


def train_one_by_one(directory: pathlib.Path) -> None:
    """Note that the seeds of a directory are to be trained one by one, as one of them is not finite."""
    (directory / _ALONE).touch()


def are_trained_one_by_one(directory: pathlib.Path) -> bool:
    """Return whether `train_one_by_one` was noted."""
    return (directory / _ALONE).exists()


def _has_config(directory: pathlib.Path, config: dict) -> bool:
    """Return whether a run of this config may go on, or is complete, in a directory."""
    own = storage.read_json(directory / rundir.CONFIG)
    if own is None:  # nothing was begun
        return True
    if store.differences(store.recorded(own), config):
        return False
    without_stages = not any(directory.glob(rundir.stage_folder("*")))
    return not (store.has_later_stage(config) and without_stages and is_complete(directory))
