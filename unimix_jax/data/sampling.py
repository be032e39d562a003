"""The examples of each step: pure functions of (seed, step). numpy only.

A checkpoint therefore holds no iterator: resuming is starting at step n. A sampler takes
(class_index, seed, step, batch_size) and its options, and returns positions int64[batch_size].
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from unimix_jax import priors, registry
from unimix_jax.data.rng import Stream, generator
from unimix_jax.data.types import BatchIndices


class ClassIndex(NamedTuple):
    """The positions of a data set, sorted by class."""

    labels: np.ndarray  # int[N]
    order: np.ndarray  # int64[N], class 0 first
    first: np.ndarray  # int64[K], where each class begins in `order`
    counts: np.ndarray  # int64[K]


def sorted_by_class(labels: np.ndarray) -> ClassIndex:
    """Sort positions by class, once for a run.

    Args:
      labels: int[N], 0 <= label.

    Returns:
      The positions class by class, with K the largest label + 1.

    Raises:
      UserError: labels that are no integers from 0, or none.
    """
    labels = priors.checked_labels(labels)
    counts = np.bincount(labels).astype(np.int64)
    return ClassIndex(labels, np.argsort(labels, kind="stable"), np.cumsum(counts) - counts, counts)


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Return the number of steps of an epoch: the last, partial batch counts.

    Args:
      size: N examples.
      batch_size: B, of the whole (global) batch.
    """
    return -(-size // batch_size)


@functools.lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed, Stream.ORDER, epoch).permutation(size)


def natural_order(size: int, *, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Choose a step's examples from one permutation an epoch; the last batch is filled from its front.

    Args:
      size: N examples.
      seed: of the run.
      step: from 0.
      batch_size: B, of the whole (global) batch; may exceed N.

    Returns:
      int64[B].
    """
    epoch, batch = divmod(step, steps_per_epoch(size, batch_size))
    return _permutation(size, seed, epoch)[np.arange(batch * batch_size, (batch + 1) * batch_size) % size]


@registry.Sampler(class_frequencies="natural")
def instance_balanced(class_index: ClassIndex, *, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Choose every example once an epoch, so that classes come as often as they have images; see `natural_order`.

    Args:
      class_index: `sorted_by_class` of the training labels.
      seed: of the run.
      step: from 0.
      batch_size: B, of the whole (global) batch.

    Returns:
      int64[B].
    """
    return natural_order(len(class_index.order), seed=seed, step=step, batch_size=batch_size)


@registry.Sampler(class_frequencies="balanced")
def class_balanced(class_index: ClassIndex, *, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Draw a class uniformly, then one of its images, with replacement.

    The class-aware samplers that cycle through the classes draw them equally often, too.

    Args:
      class_index: `sorted_by_class` of the training labels.
      seed: of the run.
      step: from 0.
      batch_size: B, of the whole (global) batch.

    Returns:
      int64[B].

    Source: dvlab-research/MiSLAS, datasets/sampler.py; facebookresearch/classifier-balancing.
    """
    return draw_by_class(class_index, 0.0, generator(seed, Stream.DRAW, step), batch_size)


def draw_by_class(class_index: ClassIndex, exponent: float, random: np.random.Generator, size: int) -> np.ndarray:
    """Draw images with replacement: a class by prior**exponent, then one of its images.

    Args:
      class_index: `sorted_by_class` of the labels.
      exponent: 1 natural, 0 class-balanced, -1 inverse.
      random: the generator; two numbers are drawn for each image.
      size: number of images.

    Returns:
      int64[size].
    """
    edges = np.cumsum(priors.prior(class_index.counts, exponent))
    classes = np.searchsorted(edges / edges[-1], random.random(size), side="right")
    within = (random.random(size) * class_index.counts[classes]).astype(np.int64)
    return class_index.order[class_index.first[classes] + within]


def indices(
    class_index: ClassIndex,
    *,
    seed: int,
    step: int,
    batch_size: int,
    sampler: Callable = instance_balanced,
    pair_sampler: Callable | None = None,
) -> BatchIndices:
    """Choose the examples of a step, and a partner for each of them if images are mixed.

    Args:
      class_index: `sorted_by_class` of the training labels.
      seed: of the run.
      step: from 0.
      batch_size: B, of the whole (global) batch.
      sampler: with its options bound.
      pair_sampler: with its options bound, such as `functools.partial(pairs.by_class, class_exponent=-1)`; None
        without mixing.

    Returns:
      The positions and views of the step's images, and of their partners.
    """
    index = sampler(class_index, seed=seed, step=step, batch_size=batch_size)
    examples = BatchIndices(index, np.arange(batch_size, dtype=np.int32))
    if pair_sampler is None:
        return examples
    partner, view = pair_sampler(class_index, index, seed=seed, step=step)
    return examples._replace(partner=partner, partner_view=view)
