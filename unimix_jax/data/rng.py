"""Random numbers by purpose, step and view: counter-based, without state to save. numpy only."""

import enum

import numpy as np


class Stream(enum.IntEnum):
    """The streams of random numbers, one for each purpose, so that no purpose disturbs another. Numbers are final."""

    ORDER = 0
    DRAW = 1
    PARTNERS = 2
    CROPS = 3
    SPLIT = 4


def generator(seed: int, stream: Stream, step: int, view: int = 0) -> np.random.Generator:
    """Return the generator of one purpose at one step, or for one view of that step.

    Args:
      seed: of the run.
      stream: the purpose.
      step: from 0.
      view: number of an image in the global batch.

    Returns:
      A generator that depends on nothing but the arguments.
    """
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, view, step]))
