"""Calibration of logits on validation data: `unimix_jax.metrics.calibration` by its short name."""

import sys

from unimix_jax.metrics import calibration
from unimix_jax.metrics.calibration import *  # noqa: F403  for editors and type checkers

sys.modules[__name__] = calibration  # one module under both names
