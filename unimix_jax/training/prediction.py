"""What the state of a run says of its evaluated splits."""

import contextlib
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from unimix_jax.data import loading
from unimix_jax.errors import UserError
from unimix_jax.training import parallel, record, steps

_log = logging.getLogger(__name__)


class Scores(NamedTuple):
    """What a model says of a split."""

    logits: np.ndarray  # float32[M, K]
    labels: np.ndarray  # int32[M]
    rows: np.ndarray  # int64[M], positions in the split: all, but for images that cannot be read


def predictor(this) -> Callable[[steps.TrainState, tuple[str, ...]], tuple[dict[str, Scores], dict]]:
    """Return predict(state, names of splits) -> ({name: Scores}, what was chosen post hoc).

    Args:
      this: of `loop.prepare`.
    """
    devices, how = this.devices, this.config.parallel.how
    wanted, size = this.config.eval_batch_size, parallel.rounded_up(this.config.eval_batch_size, len(devices))
    if size != wanted:
        _log.info("eval_batch_size %d is rounded up to %d, a multiple of the %d devices", wanted, size, len(devices))

    def step(variables, images, *, axis):
        return steps.predict_step(variables, images, network=this.network, recipe=this.recipe)

    compiled = parallel.distribute(step, devices, how, split=(False, True), split_result=True)
    fresh = True

    def scores_of(state, name):
        nonlocal fresh
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        source, logits, present = this.splits.evaluated[name], [], []
        # The last block is filled up, so that one program serves all; what fills it is left out here.
        with contextlib.closing(loading.prefetch(loading.blocks(source, size, this.reading))) as blocks:
            for images, here, unreadable in blocks:
                record.unreadable(this.directory, unreadable)
                with this.clock.part("compile" if fresh else "evaluation"):
                    found = compiled(variables, parallel.place(images, devices, how))
                fresh = False
                logits.append(np.asarray(found)[here])
                present.append(here)
        rows = np.flatnonzero(np.concatenate(present))
        if not len(rows):
            raise UserError(f"none of the {len(source.labels)} {name} images can be read")
        return Scores(np.concatenate(logits), source.labels[rows], rows)

    @this.clock.part("evaluation")
    def predict(state, names):
        scores = {name: scores_of(state, name) for name in names}
        if this.method.posthoc is None:
            return scores, {}
        validation = None
        if "validation" in scores:
            validation = scores["validation"].logits, scores["validation"].labels
        head, chosen = jax.device_get(state.params["head"]), {}
        for name, score in scores.items():
            logits, chosen[name] = this.method.posthoc(score.logits, head, validation=validation)
            scores[name] = score._replace(logits=logits)
        return scores, chosen[names[0]]

    return predict
