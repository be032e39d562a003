"""Plots from arrays: `unimix_jax.report.plots` by its short name."""

import sys

from unimix_jax.report import plots
from unimix_jax.report.plots import *  # noqa: F403  for editors and type checkers

sys.modules[__name__] = plots  # one module under both names
