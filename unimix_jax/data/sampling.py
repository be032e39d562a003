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

    labels: np.ndarray  # int[N]
    order: np.ndarray  # int64[N], class 0 first
    first: np.ndarray  # int64[K], where each class begins in `order`
    counts: np.ndarray  # int64[K]


def generator(seed: int, stream: Stream, step: int, view: int = 0) -> np.random.Generator:
    """Return the generator of one purpose at one step, or for one view of it: counter-based, no state to save."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, view, step]))


def sorted_by_class(labels: np.ndarray) -> ByClass:
    """Sort the positions of int[N] labels by class, once for a run."""
    counts = np.bincount(labels).astype(np.int64)
    return ByClass(labels, np.argsort(labels, kind="stable"), np.cumsum(counts) - counts, counts)


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


def natural(sets: ByClass, *, seed: int, step: int, batch_size: int) -> np.ndarray:
    """The order rule of most rows: `natural_order` over the whole set."""
    return natural_order(len(sets.order), seed=seed, step=step, batch_size=batch_size)


def balanced(sets: ByClass, *, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Draw a class uniformly, then one of its images, with replacement; int64[batch_size].

    In law what class-aware samplers give that cycle through the classes.

    Source: dvlab-research/MiSLAS, datasets/sampler.py; facebookresearch/classifier-balancing.
    """
    return _draw_by_class(sets, 0.0, generator(seed, Stream.DRAW, step), batch_size)


def partners_by_class(
    labels: np.ndarray | ByClass, *, class_exponent: float, seed: int, step: int, size: int
) -> np.ndarray:
    """Draw partners over the whole data set: a class by prior**class_exponent, then one of its images.

    Args:
      labels: int[N], or `sorted_by_class` of them (saves sorting them at each step).
      class_exponent: tau in the paper, -1 there; 0 is class-balanced, 1 natural.
      seed, step: what the draw is a function of.
      size: number of partners.

    Returns:
      int64[size].

    Source: Xu, Chai, Yuan, NeurIPS 2021, Eq. A.13 and A.14.
    """
    sets = labels if isinstance(labels, ByClass) else sorted_by_class(labels)
    return _draw_by_class(sets, class_exponent, generator(seed, Stream.PARTNERS, step), size)


def _draw_by_class(sets: ByClass, exponent: float, random: np.random.Generator, size: int) -> np.ndarray:
    edges = np.cumsum(priors.prior(sets.counts, exponent))
    classes = np.searchsorted(edges / edges[-1], random.random(size), side="right")
    within = (random.random(size) * sets.counts[classes]).astype(np.int64)
    return sets.order[sets.first[classes] + within]


# Partner rules: (sets, index int64[B], seed, step, options) -> the partners' positions int64[B] and views int32[B].
# A partner from the same batch has the view of the slot it stands in, and so the same augmentation.


def by_class(sets: ByClass, index: np.ndarray, *, class_exponent: float = -1.0, seed: int, step: int):
    """The partner rule of UniMix: `partners_by_class`, augmented on their own."""
    size = len(index)
    partner = partners_by_class(sets, class_exponent=class_exponent, seed=seed, step=step, size=size)
    return partner, np.arange(size, 2 * size, dtype=np.int32)


def permutation(sets: ByClass, index: np.ndarray, *, seed: int, step: int):
    """The partner rule of mixup: a permutation of the batch; an image may meet itself."""
    slots = generator(seed, Stream.PARTNERS, step).permutation(len(index))
    return index[slots], slots.astype(np.int32)


def in_batch(sets: ByClass, index: np.ndarray, *, image_exponent: float = -0.5, seed: int, step: int):
    """The partner rule of UniMix's released code: from the batch, with replacement.

    An image weighs count**image_exponent of its class. Over many batches a class is drawn as
    count**(1 + image_exponent), rare ones less often in small batches.

    Source: XuZhengzhuo/Prior-LT, core.py `unimix_sampler` (tau there).
    """
    weights = priors.prior(sets.counts[sets.labels[index]], image_exponent)
    edges = np.cumsum(weights)
    draws = generator(seed, Stream.PARTNERS, step).random(len(index))
    slots = np.searchsorted(edges / edges[-1], draws, side="right")
    return index[slots], slots.astype(np.int32)


NEIGHBOURS = 5  # of SMOTE


def nearest(sets: ByClass, index: np.ndarray, *, table, neighbours: int = NEIGHBOURS, seed: int, step: int):
    """The partner rule of SMOTE: one of the nearest images of the same class, cropped and flipped alike.

    A class of fewer images has fewer neighbours; of one image, itself.

    Args:
      table: of `neighbour_table`, with that many neighbours.
    """
    found = np.minimum(neighbours, sets.counts[sets.labels[index]] - 1)
    place = (generator(seed, Stream.PARTNERS, step).random(len(index)) * found).astype(np.int64)
    partner = np.where(found > 0, table[index, place], index)
    return partner, np.arange(len(index), dtype=np.int32)


def neighbour_table(images: np.ndarray, sets: ByClass, neighbours: int, block: int = 1000) -> np.ndarray:
    """Find each image's nearest ones in its class, by Euclidean distance of raw pixels, itself excluded.

    Args:
      images: uint8[N, H, W, C].
      sets: of their labels.
      neighbours: k.
      block: images compared at once with all of their class.

    Returns:
      int32[N, k], the nearest first; a class of n <= k images has n - 1, filled up with the image itself.
    """
    table = np.repeat(np.arange(len(images), dtype=np.int32)[:, None], neighbours, axis=1)
    for first, count in zip(sets.first, sets.counts, strict=True):
        members = sets.order[first : first + count]
        pixels = images[members].reshape(count, -1).astype(np.float32)
        pixels -= pixels.mean(axis=0)  # smaller numbers, smaller rounding
        squares = (pixels * pixels).sum(axis=1)
        found = min(neighbours, count - 1)
        for start in range(0, count if found else 0, block):
            rows = slice(start, start + block)
            distances = squares[rows, None] - 2 * pixels[rows] @ pixels.T + squares
            distances[np.arange(len(distances)), np.arange(start, start + len(distances))] = np.inf
            closest = np.argsort(distances, axis=1, kind="stable")[:, :found]
            table[members[rows], :found] = members[closest]
    return table


ORDERS = {"natural": natural, "balanced": balanced}  # the rules that a row can name
PARTNERS = {"by_class": by_class, "permutation": permutation, "in_batch": in_batch, "nearest": nearest}
SAME_BATCH = (permutation, in_batch)  # partner rules whose partners are images of the batch, in the same view


def picks(sets: ByClass, *, seed: int, step: int, batch_size: int, order=natural, partners=None) -> Picks:
    """Put a step together: its examples, and a partner for each where images are mixed.

    Args:
      sets: `sorted_by_class` of the training labels.
      seed, step, batch_size: see `natural_order`.
      order: an order rule.
      partners: a partner rule with its options bound, such as
        `functools.partial(by_class, class_exponent=-1)`; None without mixing.
    """
    index = order(sets, seed=seed, step=step, batch_size=batch_size)
    chosen = Picks(index, np.arange(batch_size, dtype=np.int32))
    if partners is None:
        return chosen
    partner, view = partners(sets, index, seed=seed, step=step)
    return chosen._replace(partner=partner, partner_view=view)
