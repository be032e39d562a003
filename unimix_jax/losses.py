"""Losses of logits and labels: `unimix_jax.methods.losses` by its short name."""

import sys

from unimix_jax.methods import losses
from unimix_jax.methods.losses import *  # noqa: F403  for editors and type checkers

sys.modules[__name__] = losses  # one module under both names
