"""Predictions of a training state on the evaluated splits."""

import contextlib
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from unimix_jax.data import loading
from unimix_jax.errors import UserError
from unimix_jax.metrics.predictions import Predictions
from unimix_jax.training import processes, unreadable
from unimix_jax.training.devices import (
    AXIS,
    REPLICATE,
    batch_devices,
    distribute,
    gathered,
    is_cpu,
    own_part,
    own_rows,
    rounded_up,
    shard,
)
from unimix_jax.training.setup import Experiment
from unimix_jax.training.step import TrainState, predict_step

_log = logging.getLogger(__name__)


_BLOCK_BYTES = 2**24  # of a block of images on an accelerator: 5,461 of CIFAR's


class Scores(NamedTuple):
    """The logits of a split's images that can be read."""

    logits: np.ndarray  # float32[M, K]; of replicates [R, M, K]
    labels: np.ndarray  # int32[M]
    rows: np.ndarray  # int64[M], positions in the split: all, but for images that cannot be read

    def predictions(self, **about: Any) -> list[Predictions]:
        """Return the predictions of each replicate.

        Args:
          **about: other fields of them.
        """
        logits = self.logits if self.logits.ndim == 3 else [self.logits]
        return [Predictions(of, self.labels, **about) for of in logits]


def predictor(experiment: Experiment) -> Callable[[TrainState, tuple[str, ...]], tuple[dict[str, Scores], list]]:
    """Return predict(state, names of splits) -> ({name: Scores}, what was chosen post hoc, a dict a replicate).

    Args:
      experiment: of `setup.prepare`.
    """
    replicates = experiment.config.replicates
    devices, parallel = experiment.devices, experiment.config.parallel
    wanted = _block_size(experiment)
    sharing = batch_devices(devices, replicates)
    size = rounded_up(wanted, sharing)
    if size != wanted:
        _log.info("eval_batch_size %d is rounded up to %d, a multiple of the %d devices", wanted, size, sharing)

    def step(variables, images, *, axis):
        return predict_step(variables, images, network=experiment.network, config=experiment.step_config)

    def step_of_replicates(variables, images, *, axis):
        return jax.vmap(lambda variables: step(variables, images, axis=axis))(variables)

    several = replicates > 1
    compiled = distribute(
        step_of_replicates if several else step,
        devices,
        parallel.spmd,
        split=(P(REPLICATE) if several else None, 0),
        result=P(REPLICATE, AXIS) if several else 0,
        replicates=replicates,
        deterministic=parallel.deterministic,
    )
    compiles, resident = True, {}

    def placed(images):
        return shard(images, devices, parallel.spmd, replicates=replicates, of_each=False)

    def blocks_of(name):
        """Yield the blocks of a split, with the images on the devices, where they stay if the training images do."""
        source = experiment.splits.evaluated[name]
        if name in resident:
            yield from resident[name]
            return
        rows = own_rows(devices, size) if processes.count() > 1 else None
        with contextlib.closing(loading.prefetch(loading.blocks(source, size, experiment.reading, rows))) as blocks:
            blocks = ((placed(images), present, names) for images, present, names in blocks)
            if experiment.on_device:
                blocks = resident[name] = list(blocks)
            yield from blocks

    def scores_of(state, name):
        nonlocal compiles
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        source, logits, present = experiment.splits.evaluated[name], [], []
        # The last block is filled up, so that one program serves all; what fills it is left out here.
        for images, here, names in blocks_of(name):
            unreadable.record(experiment.directory, names)
            with experiment.clock.part("compile" if compiles else "evaluation"):
                logits.append(compiled(variables, images))
            compiles = False
            present.append(here)
            if not experiment.on_device:  # a block of the host's is used before the next one comes
                logits[-1] = own_part(logits[-1])
        present = np.concatenate(gathered(np.stack(present)))
        rows = np.flatnonzero(present)
        if not len(rows):
            raise UserError(f"none of the {len(source.labels)} {name} images can be read")
        if processes.count() > 1:
            logits = gathered(np.stack([own_part(block) for block in logits]))
        logits = np.concatenate([np.asarray(block) for block in logits], axis=-2)
        return Scores(logits[..., present, :], source.labels[rows], rows)

    @experiment.clock.part("evaluation")
    def predict(state, names):
        scores = {name: scores_of(state, name) for name in names}
        if experiment.method.posthoc is None:
            return scores, [{} for _ in range(replicates)]
        heads = jax.device_get(state.params["head"])
        each = {name: score.predictions() for name, score in scores.items()}
        changed = [
            _changed(
                experiment.method.posthoc,
                {name: predictions[r] for name, predictions in each.items()},
                heads if replicates == 1 else jax.tree.map(lambda leaf, r=r: leaf[r], heads),
            )
            for r in range(replicates)
        ]
        for name, score in scores.items():
            logits = np.stack([logits[name] for logits, _ in changed])
            scores[name] = score._replace(logits=logits.reshape(score.logits.shape))
        return scores, [chosen for _, chosen in changed]

    return predict


def _block_size(experiment: Experiment) -> int:
    """Return the images of a block: those that the config names; more of small images that stay on an accelerator."""
    size = experiment.config.eval_batch_size
    if not experiment.on_device or is_cpu(experiment.devices):
        return size
    largest = max(len(source.labels) for source in experiment.splits.evaluated.values())
    return max(size, min(largest, _BLOCK_BYTES // math.prod(experiment.image_shape)))


def _changed(posthoc: Callable, predictions: dict[str, Predictions], head: Any) -> tuple[dict[str, np.ndarray], dict]:
    """Return the logits of each split after a change of trained logits, and what it chose on the first one."""
    validation = None
    if "validation" in predictions:
        validation = predictions["validation"].logits, predictions["validation"].labels
    logits, chosen = {}, {}
    for name, one in predictions.items():
        logits[name], chosen[name] = posthoc(one.logits, head, validation=validation)
    return logits, chosen[next(iter(predictions))]
