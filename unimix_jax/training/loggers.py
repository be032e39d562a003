"""Loggers, which take the records of a run: the project's own, those of other tools, and a user's "module:object".

A logger is an object with log(record) and finish(). An entry makes one; it asks by the names of keyword-only arguments
for `directory`, `config` (nested dicts), `first_step` (how many steps were taken before) and `num_steps` (of the run).
"""

import contextlib
import copy
import datetime
import importlib.util
import logging
import os
import pathlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from unimix_jax import cli, registry, storage
from unimix_jax.config.compare import flat
from unimix_jax.errors import UserError
from unimix_jax.training import rundir

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_log = logging.getLogger(__name__)

_LINES_APART = 5.0  # seconds between plain lines of steps
_PROJECT = "unimix_jax"  # under which other tools list a run
_NO_RECIPE = "a method does not say who takes its records"
# Files of the run directory that keep the name of a run at other tools.
_WANDB_RUN, _MLFLOW_RUN = "wandb.json", "mlflow.json"


def check(names: tuple[str, ...]) -> None:
    """Refuse loggers that cannot be made; none is made here, and no package is imported but that of a user's logger.

    Args:
      names: config.loggers.

    Raises:
      UserError: a name that is not known, a package that is not installed, an option that nobody gives, or no jsonl.
    """
    for name in names:
        try:
            factory = registry.bind("logger", {"name": name}, {})
        except UserError as error:
            raise UserError(f"config.loggers: {error}") from None
        package = registry.traits("logger", factory).package
        if package and not _is_installed(package):
            raise UserError(f"config.loggers names {name}, which needs {package}: pip install 'unimix_jax[{name}]'")
    for name, entry in registry.entries("logger").items():
        if registry.traits("logger", entry).required and name not in names:
            raise UserError(
                f"config.loggers is {','.join(names) or 'empty'}; it must name {name} too, for a run goes on from what "
                f"{name} wrote"
            )


def _is_installed(package: str) -> bool:
    """Return whether a package is installed; a folder of its name, such as wandb/ of runs, is no package."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


@contextlib.contextmanager
def opened(
    names: tuple[str, ...], *, directory: pathlib.Path, config: "ConfigDict", first_step: int, num_steps: int
) -> Iterator["Loggers"]:
    """Make the loggers of a run, and finish them however the run ends.

    Args:
      names: config.loggers, checked by `check`.
      directory: of the run.
      config: of the run; each logger gets a copy.
      first_step: the number of steps that were taken before.
      num_steps: the number of all steps.

    Yields:
      All of them as one.
    """
    run = {"directory": directory, "first_step": first_step, "num_steps": num_steps}
    loggers = Loggers()
    try:
        for name in names:
            loggers.add(name, run | {"config": copy.deepcopy(config.to_dict())})
        yield loggers
    finally:
        loggers.finish()


class Loggers:
    """Several loggers as one. One that raises an error is reported and left out, unless a run cannot do without it."""

    def __init__(self) -> None:
        self._active: dict[str, tuple[Any, registry.Logger]] = {}

    def add(self, name: str, context: dict) -> None:
        """Make a logger.

        Args:
          name: of the logger, as in the config.
          context: what it may ask for, by name.
        """
        factory = registry.bind("logger", {"name": name}, context)
        traits = registry.traits("logger", factory)
        with self._left_out_if_it_fails(name, traits):
            self._active[name] = factory(), traits

    def log(self, record: dict) -> None:
        """Give a record to each logger.

        Args:
          record: of a step or of an evaluation; each logger gets a copy.
        """
        for name, (logger, traits) in list(self._active.items()):
            with self._left_out_if_it_fails(name, traits):
                logger.log(dict(record))

    def update(self, steps: int = 1) -> None:
        """Tell the loggers that ask for it that steps were taken.

        Args:
          steps: how many since the last call.
        """
        for name, (logger, traits) in list(self._active.items()):
            if traits.every_step:
                with self._left_out_if_it_fails(name, traits):
                    logger.update(steps)

    def finish(self) -> None:
        """Finish each logger."""
        for name, (logger, traits) in list(self._active.items()):
            with self._left_out_if_it_fails(name, traits):
                logger.finish()

    @contextlib.contextmanager
    def _left_out_if_it_fails(self, name: str, traits: registry.Logger) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:  # other tools and the user's program may raise anything
            if traits.required:
                raise
            self._active.pop(name, None)
            text = " ".join(str(error).split())
            _log.warning(
                "the logger %s is left out for the rest of the run: %s%s",
                name,
                type(error).__name__,
                f": {text}" if text else "",
            )


@registry.Logger(name="jsonl", required=True, no_recipe=_NO_RECIPE)
class Jsonl:
    """Write the records to metrics.jsonl.

    Args:
      directory: of the run.
    """

    def __init__(self, *, directory: pathlib.Path):
        self._path = directory / rundir.METRICS_LINES

    def log(self, record: dict) -> None:
        """Append a record to the file.

        Args:
          record: of a step or of an evaluation.
        """
        rundir.append_metrics(self._path, record)

    def finish(self) -> None:
        """Do nothing: each line is written at once."""


@registry.Logger(name="progress", every_step=True, no_recipe=_NO_RECIPE)
class Progress:
    """Show the steps of a run: a bar in a terminal, otherwise a line every few seconds.

    Args:
      first_step: the number of steps that were taken before.
      num_steps: the number of all steps.
    """

    def __init__(self, *, first_step: int, num_steps: int):
        from tqdm import tqdm

        look = {"unit": "step", "dynamic_ncols": True, "mininterval": 0.5, "disable": None}
        self._bar = tqdm(total=num_steps, initial=first_step, file=cli.terminal(), **look)
        self._num_steps, self._shown, self._since = num_steps, -_LINES_APART, None

    def update(self, steps: int = 1) -> None:
        """Move the bar.

        Args:
          steps: that were taken since the last call.
        """
        self._bar.update(steps)

    def log(self, record: dict) -> None:
        """Show a record.

        Args:
          record: of a step or of an evaluation.
        """
        accuracy = f"accuracy {100 * record['accuracy']:.1f} %"
        if "split" in record:
            ece = 100 * record["ece"]
            _log.info("epoch %g: %s %s, ECE %.1f %%", record["epoch"], record["split"], accuracy, ece)
            return
        text = f"loss {record['loss']:.3f}, {accuracy}"
        if record["images_per_second"] is not None:
            text += f", {record['images_per_second']:.0f} images/s"
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)
        else:
            self._log_line(record["step"], record["epoch"], text)

    def _log_line(self, step: int, epoch: float, text: str) -> None:
        """Log a line of a step, unless another one was logged some seconds before."""
        now, total = time.monotonic(), self._num_steps
        if now - self._shown < _LINES_APART and step != total:
            return
        self._shown = now
        # Compilation lies before the first line: it says nothing of what is left.
        self._since = self._since or (now, step)
        pace = (now - self._since[0]) / max(step - self._since[1], 1)
        left = f", {datetime.timedelta(seconds=round(pace * (total - step)))} left" if step > self._since[1] else ""
        _log.info("step %d/%d, epoch %.2f: %s%s", step, total, epoch, text, left)

    def finish(self) -> None:
        """Close the bar."""
        self._bar.close()


@registry.Logger(name="tensorboard", package="tensorboardX", no_recipe=_NO_RECIPE)
class TensorBoard:
    """Write the numbers of the records as scalars for TensorBoard, to RUN/tensorboard.

    Args:
      directory: of the run.
      first_step: the number of steps that were taken before; what was written of later ones is not shown any more.
    """

    def __init__(self, *, directory: pathlib.Path, first_step: int):
        from tensorboardX import SummaryWriter

        # A file is named after the second in which it begins: two starts in one second need a suffix.
        suffix = f".{first_step:09d}"
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1, filename_suffix=suffix)

    def log(self, record: dict) -> None:
        """Write the numbers of a record.

        Args:
          record: of a step or of an evaluation.
        """
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()  # a checkpoint may follow, after which no run writes these again

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()


@registry.Logger(name="wandb", package="wandb", no_recipe=_NO_RECIPE)
class Wandb:
    """Send the numbers of the records to Weights & Biases; without credentials, keep them for `wandb sync`.

    Args:
      directory: of the run, which keeps the name that the run has there.
      config: of the run.
    """

    def __init__(self, *, directory: pathlib.Path, config: dict):
        import wandb

        usual = {"project": _PROJECT, "name": directory.absolute().name, "dir": str(directory), "mode": "online"}
        if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False):
            usual["mode"] = "offline"  # otherwise it asks in the terminal, and waits
            _log.info("wandb has no credentials here: its files stay in %s, and `wandb sync` sends them", directory)
        # It reads the environment once a process; what is passed holds for this run.
        chosen = {name: os.environ.get(f"WANDB_{name.upper()}", value) for name, value in usual.items()}
        known = (storage.read_json(directory / _WANDB_RUN) or {}).get("id")
        again = {"id": known, "resume": "allow"} if known else {}
        self._run = wandb.init(
            config=config, reinit="create_new", settings=wandb.Settings(console="off"), **chosen, **again
        )
        storage.write_json(directory / _WANDB_RUN, {"id": self._run.id})
        # Its own steps only rise; a run that was killed goes on at an earlier one, and writes the same numbers there.
        self._run.define_metric("*", step_metric="step")

    def log(self, record: dict) -> None:
        """Send the numbers of a record.

        Args:
          record: of a step or of an evaluation.
        """
        self._run.log({"step": record["step"], "epoch": record["epoch"], **_numbers(record)})

    def finish(self) -> None:
        """Send what is left, and end the run there."""
        self._run.finish()


@registry.Logger(name="mlflow", package="mlflow", no_recipe=_NO_RECIPE)
class Mlflow:
    """Write the numbers of the records to MLflow: to RUN/mlflow.db, or where $MLFLOW_TRACKING_URI says.

    Args:
      directory: of the run, which keeps the name that the run has there.
      config: of the run.
    """

    def __init__(self, *, directory: pathlib.Path, config: dict):
        import mlflow
        from mlflow.entities import Param

        server = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = mlflow.MlflowClient(server or f"sqlite:///{(directory / 'mlflow.db').absolute().as_posix()}")
        store, known = "server" if server else "local", storage.read_json(directory / _MLFLOW_RUN) or {}
        if store in known:
            self._run_id = known[store]
            self._client.update_run(self._run_id, status="RUNNING")
            return
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = self._client.get_experiment_by_name(title)
        # Nothing is stored there, but by itself it would name a folder of the current one.
        artifacts = None if server else (directory / "mlflow_artifacts").absolute().as_uri()
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(title, artifacts)
        self._run_id = self._client.create_run(experiment_id, run_name=directory.absolute().name).info.run_id
        storage.write_json(directory / _MLFLOW_RUN, {**known, store: self._run_id})
        parameters = [Param(name, str(value)) for name, value in flat(config).items()]
        for begin in range(0, len(parameters), 100):  # the most that it takes at once
            self._client.log_batch(self._run_id, params=parameters[begin : begin + 100])

    def log(self, record: dict) -> None:
        """Write the numbers of a record.

        Args:
          record: of a step or of an evaluation.
        """
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, float(value), now, record["step"]) for name, value in _numbers(record).items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def finish(self) -> None:
        """End the run there."""
        self._client.set_terminated(self._run_id)


def _numbers(record: dict) -> dict[str, float]:
    """Return the numbers of a record by names such as "train/loss" and "validation/ece", which other tools group."""
    split = record.get("split", "train")
    numbers = {key: value for key, value in record.items() if isinstance(value, int | float)}
    return {f"{split}/{key}": value for key, value in numbers.items() if key not in ("step", "epoch")}
