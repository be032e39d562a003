"""Set up a run: load the data, resolve every name of the config, and check that all of it goes together."""

import dataclasses
import functools
import logging
import pathlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import numpy as np

from unimix_jax import metrics, priors, registry
from unimix_jax.data import sampling, sources
from unimix_jax.data.types import BatchIndices, Splits
from unimix_jax.data.views import Reading
from unimix_jax.errors import UserError
from unimix_jax.methods import build as methods
from unimix_jax.models import heads
from unimix_jax.training import (
    augment,
    dispatch,
    network,
    optim,
    processes,
    runtime,
    schedules,
    stages,
    step,
    timings,
    unreadable,
)
from unimix_jax.training.devices import batch_devices, check_batch, is_cpu, ops_backend, run_devices

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that is resolved before the first step and stays the same until the last one."""

    config: "ConfigDict"
    directory: pathlib.Path
    splits: Splits
    class_index: sampling.ClassIndex
    method: methods.Method
    network: nn.Module
    step_config: step.StepConfig
    learning_rate: Callable[[int], float]  # of the run, by the step from 0; stages may have their own
    image_shape: tuple[int, int, int]
    variables: dict  # of the network before the first step; of several replicates with a leading axis of them
    reading: Reading | None  # how photographs are read; None for images in memory
    devices: list
    steps_per_epoch: int
    steps_per_dispatch: int  # that one program takes
    clock: timings.Clock
    run_id: str = ""  # which the checkpoints of this run name; "" accepts those of any run

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the replicates."""
        return tuple(range(self.config.seed, self.config.seed + self.config.replicates))

    @property
    def steps(self) -> int:
        """The number of steps of all stages."""
        return self.method.stages[-1].last

    @property
    def on_device(self) -> bool:
        """Whether the training images are on the devices, and a step gathers its batch there."""
        return self.config.data.on_device or self.steps_per_dispatch > 1


def prepare(
    config: "ConfigDict",
    directory: pathlib.Path,
    clock: timings.Clock | None = None,
    stop_requested: threading.Event | None = None,
) -> Experiment:
    """Resolve a config to an experiment; every mistake of the user is found here, before anything is compiled.

    Args:
      config: of `config.default()`, checked by `config.check`.
      directory: the run directory, which need not exist yet.
      clock: counts the time of loading.
      stop_requested: set from outside to leave while images are checked.

    Returns:
      The experiment.

    Raises:
      UserError: a mistake in the config or in the data.
      Interrupted: `stop_requested` was set.
    """
    clock = clock or timings.Clock()
    with clock.part("data"):
        splits = sources.load(config.data)
        reading = None if splits.train.images is not None else _reading(config.data)
        if reading is not None and reading.skip_unreadable:
            splits = unreadable.without_unreadable(splits, reading, directory, stop_requested)
    _check_measures(tuple(config.measures), len(splits.counts))
    class_index = sampling.sorted_by_class(splits.train.labels)
    steps_per_epoch = sampling.steps_per_epoch(len(splits.train.labels), config.batch_size)
    method = _method(config, splits.counts, steps_per_epoch)
    devices = run_devices(config.parallel.devices)
    _check_parallel(config, reading)
    sharing = batch_devices(devices, config.replicates)
    check_batch(config.batch_size, sharing, config.grad_accum_steps)
    image_shape = splits.train.images.shape[1:] if reading is None else (reading.size, reading.size, 3)
    model = network.build(config, len(splits.counts), method.head)
    variables = network.first_variables(config, model, image_shape, directory)
    dropout = network.draws_random_numbers(config, model, variables, image_shape)
    network.check(config, model, variables, image_shape, method, random=dropout, devices=sharing)
    augmentations = augment.build(config.data, splits.train.mean)
    augment.check(augmentations, image_shape)
    learning_rate = schedules.of_run(config.optim, config.epochs, steps_per_epoch)
    _check_schedules(learning_rate, method)
    for stage in method.stages:
        stages.check_samplers(stage, class_index, config.batch_size)
    stages.check_posthoc(method, variables["params"].get("head"), splits.validation is not None)
    return Experiment(
        config=config,
        directory=directory,
        splits=splits,
        class_index=class_index,
        method=_with_inner_mixing(method, class_index, image_shape, config, model, sharing),
        network=model,
        step_config=step.StepConfig(
            optim.build(config.optim, variables["params"]),
            splits.train.mean,
            splits.train.std,
            augmentations,
            config.grad_accum_steps,
            unroll=is_cpu(devices),
            # Programs of the CPU kernels take whole batches only.
            ops="xla" if dropout else ops_backend(devices, config.parallel.ops),
            head_groups=heads.parameter_groups(method.head),
            dropout=dropout,
        ),
        learning_rate=learning_rate,
        image_shape=image_shape,
        variables=_of_replicates(variables, config, model, image_shape, directory),
        reading=reading,
        devices=devices,
        steps_per_epoch=steps_per_epoch,
        steps_per_dispatch=dispatch.steps_per_dispatch(
            config.steps_per_dispatch,
            steps_per_epoch,
            _image_bytes(splits),
            devices,
        ),
        clock=clock,
    )


def _method(config, counts: np.ndarray, steps_per_epoch: int) -> methods.Method:
    """Build the config's method for these counts."""
    method = methods.build(
        config.method.to_dict(),
        counts,
        name=config.method.name,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        test_prior=priors.test_prior(config.test_prior, counts),
        logit_scale=heads.logit_scale(config.method.head),
    )
    if config.test_prior != "uniform" and not any("test_prior" in stage.loss.keywords for stage in method.stages):
        _log.warning(
            "no loss of %s takes a test prior: training is as without; evaluate --test_prior=%s corrects predictions",
            method.name,
            config.test_prior,
        )
    return method


def _check_parallel(config, reading: Reading | None) -> None:
    """Refuse replicates where they cannot be trained together, and options that pmap does not pass on."""
    if config.parallel.deterministic and config.parallel.spmd == "pmap":
        raise UserError("config.parallel.deterministic is True; it needs config.parallel.spmd shard_map, not pmap")
    if processes.count() > 1 and config.parallel.spmd == "pmap":
        raise UserError(
            "config.parallel.spmd is pmap; a run of several processes needs shard_map, which is the same step"
        )
    if config.replicates == 1:
        return
    if processes.count() > 1:
        raise UserError(f"config.replicates is {config.replicates}; it must be 1 in a run of several processes")
    if config.seed + config.replicates > 2**32:
        last = config.seed + config.replicates - 1
        raise UserError(f"the last of the config.replicates has the seed {last}; it must be below 4294967296")
    reason = ""
    if reading is not None:
        reason = "images that are read from files, which the host would read for each of them"
    elif config.parallel.spmd == "pmap":
        reason = "config.parallel.spmd pmap; set it to shard_map"
    if reason:
        raise UserError(f"config.replicates is {config.replicates}; it must be 1 for {reason}")


def _image_bytes(splits: Splits) -> int | None:
    """Return the bytes of all images that a run uses; None where they are read from files."""
    sources = (splits.train, *splits.evaluated.values())
    return None if splits.train.images is None else sum(source.images.nbytes for source in sources)


def _of_replicates(variables: dict, config, model: nn.Module, image_shape: tuple, directory: pathlib.Path) -> dict:
    """Return the variables of all replicates, stacked, from those of the first; of one alone as they are."""
    if config.replicates == 1:
        return variables
    others = [
        network.first_variables(config, model, image_shape, directory, seed)
        for seed in range(config.seed + 1, config.seed + config.replicates)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), variables, *others)


def _check_measures(names: tuple[str, ...], classes: int) -> None:
    """Refuse a user's measures that fail on probabilities of so many classes."""
    if names:
        labels = np.arange(2 * classes) % classes
        metrics.measured(names, np.full((2 * classes, classes), 1 / classes), labels)


def _check_schedules(rate: Callable[[int], float], method: methods.Method) -> None:
    """Refuse learning rates that are no numbers, at every step of all stages."""
    schedules.check(rate, 0, method.stages[-1].last, "the schedule of config.optim")
    for stage in method.stages:
        if stage.schedule is not None:
            schedules.check(stage.schedule, 0, stage.last - stage.first, f"the schedule of stage {stage.name!r}")


def _reading(data) -> Reading:
    fields = ("image_size", "resize", "min_area", "skip_unreadable", "threads", "workers", "max_megapixels")
    return Reading(*(data[field] for field in fields))


def _with_inner_mixing(
    method: methods.Method,
    class_index: sampling.ClassIndex,
    image_shape: tuple[int, int, int],
    config,
    model: nn.Module,
    devices: int,
) -> methods.Method:
    """Mark the stages that mix inside of the network, which is seen from what their mixers return.

    Returns:
      The method.

    Raises:
      UserError: such a stage has partners from outside of the batch, or the batch goes through the network in parts.
    """
    marked = []
    for stage in method.stages:
        if stages.mixes_inside(stage, image_shape, config.batch_size // devices, getattr(model, "levels", 1)):
            where = f"stage {stage.name!r} of method {method.name!r}"
            if config.grad_accum_steps > 1:
                raise UserError(
                    f"{where} mixes inside of the network, where a part of the batch does not see its partners: set "
                    "config.grad_accum_steps to 1"
                )
            if registry.traits("pair_sampler", stage.pair_sampler).in_batch is False:
                raise UserError(methods.outside_of_batch(where))
            indices_of = functools.partial(
                sampling.indices,
                class_index,
                seed=config.seed,
                batch_size=config.batch_size,
                sampler=stage.sampler,
                pair_sampler=stage.pair_sampler,
            )
            indices_within_batch(indices_of, where, step=stage.first)
            stage = stage._replace(mixes_inside=True)
        marked.append(stage)
    return method._replace(stages=tuple(marked))


def indices_within_batch(indices_of: Callable, where: str, *, step: int) -> BatchIndices:
    """Return the indices of a step after a check that each partner is in the batch, at the place of its view.

    Args:
      indices_of: called as indices_of(step=step).
      where: the stage and method, for the sentence of an error.
      step: the number of the step.

    Returns:
      The indices.

    Raises:
      UserError: a partner is not in the batch.
    """
    indices = indices_of(step=step)
    slots, size = np.asarray(indices.partner_view), len(indices.index)
    if not ((slots >= 0) & (slots < size)).all() or (indices.index[slots] != indices.partner).any():
        raise UserError(methods.outside_of_batch(where))
    return indices


def largest_and_smallest(counts: np.ndarray, names: tuple[str, ...], shown: int = 3) -> str:
    """Name the classes with the most and with the fewest images, with their counts.

    Args:
      counts: int[K].
      names: K.
      shown: the largest number of classes on each side.

    Returns:
      A text such as "most cat (99), dog (70); fewest fox (9), owl (4)".
    """
    order = np.argsort(-counts, kind="stable").tolist()
    shown = min(shown, len(order) // 2)
    most, fewest = (", ".join(f"{names[c]} ({counts[c]})" for c in some) for some in (order[:shown], order[-shown:]))
    return f"most {most}; fewest {fewest}"


def log_description(experiment: Experiment) -> None:
    """Log what is trained on what: images, classes, held-out splits, network, method, steps and devices."""
    splits, config, devices = experiment.splits, experiment.config, len(experiment.devices)
    seeds = "seeds" if config.replicates > 1 else "seed"
    height, width, channels = experiment.image_shape
    _log.info(
        "images: %s; %d x %d pixels, %d channel%s; %d classes",
        ", ".join(
            f"{len(source.labels)} {name}" for name, source in {"training": splits.train, **splits.evaluated}.items()
        ),
        height,
        width,
        channels,
        "s" if channels > 1 else "",
        len(splits.counts),
    )
    _log.info("training images of a class: %s", largest_and_smallest(splits.counts, splits.train.class_names))
    for name, source in splits.evaluated.items():
        missing = np.setdiff1d(np.arange(len(splits.counts)), source.labels)
        if len(missing):
            some = ", ".join(source.class_names[c] for c in missing[:3]) + (", ..." if len(missing) > 3 else "")
            _log.info("%d classes have no %s image: %s", len(missing), name, some)
    _log.info("held out: %s", splits.held_out or "nothing, the data has its own splits")
    _log.info(
        "%s by %s and %s: %d parameters, from %s; %d steps of %d images on %d device%s, %s layers",
        config.network,
        experiment.method.name,
        config.optim.name,
        _num_parameters(experiment.variables) // config.replicates,
        config.pretrained or f"random weights ({seeds} {', '.join(map(str, experiment.seeds))})",
        experiment.steps,
        config.batch_size,
        devices,
        "s" if devices > 1 else "",
        experiment.step_config.ops,
    )
    if config.parallel.cpu_threads not in (0, runtime.threads()):
        _log.info(
            "config.parallel.cpu_threads is %d, but XLA has %d threads here: the command sets them when it starts, and "
            "$PJRT_NPROC or $NPROC go before it",
            config.parallel.cpu_threads,
            runtime.threads(),
        )
    if splits.validation is None and config.eval_every:
        _log.info("there is no validation split: evaluations on the way are on the test split")


def _num_parameters(variables: dict) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
