"""Random numbers by purpose, step and view: counter-based, no state to save. numpy only."""

import enum

import numpy as np


class Stream(enum.IntEnum):
    """One stream of random numbers a purpose, so that no purpose disturbs another. Numbers are final."""

    ORDER = 0
    DRAW = 1
    PARTNERS = 2
    CROPS = 3
    SPLIT = 4


def generator(seed: int, stream: Stream, step: int, view: int = 0) -> np.random.Generator:
    """Return the generator of one purpose at one step, or for one view of it: counter-based, no state to save."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, view, step]))
