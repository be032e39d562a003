"""The input of the training steps: which images make a batch, read or gathered, and placed on the devices."""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from unimix_jax import registry
from unimix_jax.data import loading, pairs, sampling, thumbnails
from unimix_jax.data.types import Batch
from unimix_jax.methods.build import Stage
from unimix_jax.training import dispatch, processes, unreadable
from unimix_jax.training.devices import own_rows, replicate, shard
from unimix_jax.training.setup import Experiment, indices_within_batch

_log = logging.getLogger(__name__)


class Dispatch(NamedTuple):
    """The input of one program: of one step, or of several."""

    stage: Stage
    steps: range  # their numbers, from 0
    batch: Any  # on the devices: a Batch; with images on the devices BatchIndices, of several steps stacked [steps, B]


def dispatches(experiment: Experiment, first: int) -> Iterator[Dispatch]:
    """Yield the input of each dispatch after step `first`; runs in the prefetching thread.

    With the training images on the devices, the indices of a batch are placed, and the step gathers the images.

    Args:
      experiment: of `setup.prepare`.
      first: steps that were taken before.
    """
    config, train = experiment.config, experiment.splits.train
    table = functools.cache(functools.partial(_neighbour_table, experiment))
    for stage in experiment.method.stages:
        pair_sampler = stage.pair_sampler
        if stage.neighbours:
            pair_sampler = functools.partial(pair_sampler, table=table(stage.neighbours))
        indices_of_seeds = [
            functools.partial(
                sampling.indices,
                experiment.class_index,
                seed=seed,
                batch_size=config.batch_size,
                sampler=stage.sampler,
                pair_sampler=pair_sampler,
            )
            for seed in experiment.seeds
        ]
        if stage.mixes_inside:
            where = f"stage {stage.name!r} of {experiment.method.name!r}"
            indices_of_seeds = [functools.partial(indices_within_batch, of, where) for of in indices_of_seeds]
        steps = range(max(first, stage.first), stage.last)
        rows = own_rows(experiment.devices, config.batch_size) if processes.count() > 1 else range(config.batch_size)
        place = functools.partial(
            shard, devices=experiment.devices, spmd=config.parallel.spmd, replicates=config.replicates
        )
        if experiment.steps_per_dispatch > 1:
            cut = experiment.steps_per_epoch, experiment.steps_per_dispatch
            for part in dispatch.ranges(steps.start, steps.stop, *cut):
                of_rows = [[loading.rows_of(of(step=step), rows) for step in part] for of in indices_of_seeds]
                stacked = _stacked([_stacked(of_steps) for of_steps in of_rows])
                yield Dispatch(stage, part, place(stacked if config.replicates > 1 else _first(stacked), axis=1))
            continue
        if train.images is None:
            (indices_of,) = indices_of_seeds
            stage_batches = _read(experiment, pair_sampler, indices_of, steps, rows)
        else:
            of_seeds = ([loading.rows_of(of(step=step), rows) for of in indices_of_seeds] for step in steps)
            if not experiment.on_device:
                of_seeds = ([loading.gather(train.images, train.labels, i) for i in of_step] for of_step in of_seeds)
            stage_batches = (_stacked(of_step) if config.replicates > 1 else of_step[0] for of_step in of_seeds)
        for step, batch in zip(steps, stage_batches, strict=True):
            yield Dispatch(stage, range(step, step + 1), place(batch))


def _stacked(trees: list) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def resident(experiment: Experiment) -> tuple:
    """Return the training images and labels on the devices if the run wants them there, otherwise ()."""
    if not experiment.on_device:
        return ()
    train = experiment.splits.train
    return replicate((train.images, train.labels), experiment.devices)


def _read(
    experiment: Experiment, pair_sampler: Callable | None, indices_of: Callable, steps: range, rows: range
) -> Iterator[Batch]:
    """Read rows of the batches of some steps of a stage from files, and record the images that could not be read."""
    in_batch = pair_sampler is None or registry.traits("pair_sampler", pair_sampler).in_batch
    alone = len(rows) == experiment.config.batch_size
    batches = loading.batches(
        experiment.splits.train,
        experiment.class_index,
        indices_of,
        steps,
        rows=rows,
        partners=not in_batch or (pair_sampler is not None and not alone),
        seed=experiment.config.seed,
        reading=experiment.reading,
    )
    for batch, names in batches:
        unreadable.record(experiment.directory, names)
        yield batch


def _neighbour_table(experiment: Experiment, count: int) -> np.ndarray:
    """Find the nearest images of each image's class, for SMOTE; photographs are compared at 32 x 32 pixels."""
    images = experiment.splits.train.images
    if images is None:
        _log.info("comparing the %d training images with those of their class", len(experiment.splits.train.labels))
        images = thumbnails.thumbnails(experiment.splits.train, experiment.reading)
    return pairs.neighbour_table(images, experiment.class_index, count)
