"""Logits for another prior, and estimates of a prior: `unimix_jax.metrics.label_shift` by its short name."""

import sys

from unimix_jax.metrics import label_shift
from unimix_jax.metrics.label_shift import *  # noqa: F403  for editors and type checkers

sys.modules[__name__] = label_shift  # one module under both names
