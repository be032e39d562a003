"""Predictions of a training state on the evaluated splits."""

import contextlib
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from unimix_jax.data import loading
from unimix_jax.errors import UserError
from unimix_jax.training import unreadable
from unimix_jax.training.devices import distribute, rounded_up, shard
from unimix_jax.training.setup import Experiment
from unimix_jax.training.step import TrainState, predict_step

_log = logging.getLogger(__name__)


class Scores(NamedTuple):
    """The logits of a split's images that can be read."""

    logits: np.ndarray  # float32[M, K]
    labels: np.ndarray  # int32[M]
    rows: np.ndarray  # int64[M], positions in the split: all, but for images that cannot be read


def predictor(experiment: Experiment) -> Callable[[TrainState, tuple[str, ...]], tuple[dict[str, Scores], dict]]:
    """Return predict(state, names of splits) -> ({name: Scores}, what was chosen post hoc).

    Args:
      experiment: of `setup.prepare`.
    """
    devices, parallel = experiment.devices, experiment.config.parallel
    wanted, size = experiment.config.eval_batch_size, rounded_up(experiment.config.eval_batch_size, len(devices))
    if size != wanted:
        _log.info("eval_batch_size %d is rounded up to %d, a multiple of the %d devices", wanted, size, len(devices))

    def step(variables, images, *, axis):
        return predict_step(variables, images, network=experiment.network, config=experiment.step_config)

    compiled = distribute(
        step, devices, parallel.spmd, split=(None, 0), split_result=True, deterministic=parallel.deterministic
    )
    compiles, resident = True, {}

    def placed(images):
        return shard(images, devices, parallel.spmd)

    def blocks_of(name):
        """Yield the blocks of a split, with the images on the devices, where they stay if the training images do."""
        source = experiment.splits.evaluated[name]
        if name in resident:
            yield from resident[name]
            return
        with contextlib.closing(loading.prefetch(loading.blocks(source, size, experiment.reading))) as blocks:
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
                logits[-1] = np.asarray(logits[-1])
        rows = np.flatnonzero(np.concatenate(present))
        if not len(rows):
            raise UserError(f"none of the {len(source.labels)} {name} images can be read")
        logits = [np.asarray(block)[here] for block, here in zip(logits, present, strict=True)]
        return Scores(np.concatenate(logits), source.labels[rows], rows)

    @experiment.clock.part("evaluation")
    def predict(state, names):
        scores = {name: scores_of(state, name) for name in names}
        if experiment.method.posthoc is None:
            return scores, {}
        validation = None
        if "validation" in scores:
            validation = scores["validation"].logits, scores["validation"].labels
        head, chosen = jax.device_get(state.params["head"]), {}
        for name, score in scores.items():
            logits, chosen[name] = experiment.method.posthoc(score.logits, head, validation=validation)
            scores[name] = score._replace(logits=logits)
        return scores, chosen[names[0]]

    return predict
