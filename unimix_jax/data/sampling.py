"""Which examples at which step: pure functions of (seed, step). numpy only.

A checkpoint therefore holds no iterator: resuming is starting at step n.
"""

import enum
import functools
from typing import NamedTuple

import numpy as np

from unimix_jax import priors
from unimix_jax.batch import Picks


class Stream(enum.IntEnum):
    """One stream of random numbers a purpose, so that no purpose disturbs another. Numbers are final."""

    ORDER = 0
    DRAW = 1
    PARTNERS = 2
    CROPS = 3
    SPLIT = 4


class ByClass(NamedTuple):
    """The positions of a data set, sorted by class."""

    order: np.ndarray  # int64[N], class 0 first
    first: np.ndarray  # int64[K], where each class begins in `order`
    counts: np.ndarray  # int64[K]


def generator(seed: int, stream: Stream, step: int) -> np.random.Generator:
    """Return the generator of one purpose at one step: counter-based, no state to save."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, step]))


def by_class(labels: np.ndarray) -> ByClass:
    """Sort the positions of int[N] labels by class, once for a run."""
    counts = np.bincount(labels).astype(np.int64)
    return ByClass(np.argsort(labels, kind="stable"), np.cumsum(counts) - counts, counts)


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Return ceil(size / batch_size): the last, partial batch of an epoch counts."""
    return -(-size // batch_size)


@functools.lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed, Stream.ORDER, epoch).permutation(size)


def natural_order(size: int, *, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Choose a step's examples from one permutation an epoch; the last batch is filled from its front.

    Args:
      size: N examples.
      seed, step: what the choice is a function of.
      batch_size: B, of the whole (global) batch; may exceed N.

    Returns:
      int64[B].
    """
    epoch, place = divmod(step, steps_per_epoch(size, batch_size))
    return _permutation(size, seed, epoch)[np.arange(place * batch_size, (place + 1) * batch_size) % size]


def partners_by_class(
    labels: np.ndarray | ByClass, *, class_exponent: float, seed: int, step: int, size: int
) -> np.ndarray:
    """Draw partners over the whole data set: a class by prior**class_exponent, then one of its images.

    Args:
      labels: int[N], or `by_class` of them (saves sorting them at each step).
      class_exponent: tau in the paper, -1 there; 0 is class-balanced, 1 natural.
      seed, step: what the draw is a function of.
      size: number of partners.

    Returns:
      int64[size].

    Source: Xu, Chai, Yuan, NeurIPS 2021, Eq. A.13 and A.14.
    """
    sets = labels if isinstance(labels, ByClass) else by_class(labels)
    random = generator(seed, Stream.PARTNERS, step)
    edges = np.cumsum(priors.prior(sets.counts, class_exponent))
    classes = np.searchsorted(edges / edges[-1], random.random(size), side="right")
    within = (random.random(size) * sets.counts[classes]).astype(np.int64)
    return sets.order[sets.first[classes] + within]


PARTNERS = {"partners_by_class": partners_by_class}  # the rules that a row can name


def picks(sets: ByClass, *, seed: int, step: int, batch_size: int, partners=None) -> Picks:
    """Put a step together: its examples in natural order, and a partner for each where images are mixed.

    Args:
      sets: `by_class` of the training labels.
      seed, step, batch_size: see `natural_order`.
      partners: a partner rule with its options bound, such as
        `functools.partial(partners_by_class, class_exponent=-1)`; None without mixing.
    """
    view = np.arange(batch_size, dtype=np.int32)
    index = natural_order(len(sets.order), seed=seed, step=step, batch_size=batch_size)
    if partners is None:
        return Picks(index, view)
    return Picks(index, view, partners(sets, seed=seed, step=step, size=batch_size), view + np.int32(batch_size))
