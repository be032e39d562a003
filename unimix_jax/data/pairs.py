"""The partner with which each image of a step is mixed: pure functions of (seed, step). numpy only.

A pair sampler takes (class_index, index int64[B], seed, step) and its options, and returns the positions int64[B] and
the views int32[B] of the partners. A partner from the same batch has the view of the slot where it stands, and so the
same augmentation.
"""

import numpy as np

from unimix_jax import priors, registry
from unimix_jax.data.rng import Stream, generator
from unimix_jax.data.sampling import ClassIndex, draw_by_class, sorted_by_class

_EXPONENT = registry.within(-10, 10)


def partners_by_class(
    labels: np.ndarray | ClassIndex, *, class_exponent: float, seed: int, step: int, size: int
) -> np.ndarray:
    """Draw partners over the whole data set: a class by prior**class_exponent, then one of its images.

    Args:
      labels: int[N], or `sorted_by_class` of them (saves sorting them at each step).
      class_exponent: tau in the paper, -1 there; 0 is class-balanced, 1 natural.
      seed: of the run.
      step: from 0.
      size: number of partners.

    Returns:
      int64[size].

    Source: Xu, Chai, Yuan, NeurIPS 2021, Eq. A.13 and A.14.

    Example: with the exponent -1, a class with a ninth of the images is drawn nine times as often.
      >>> labels = np.repeat([0, 1], [90, 10])
      >>> partners = partners_by_class(labels, class_exponent=-1.0, seed=0, step=0, size=10_000)
      >>> (labels[partners] == 1).mean().round(2)
      np.float64(0.9)
    """
    class_index = labels if isinstance(labels, ClassIndex) else sorted_by_class(labels)
    return draw_by_class(class_index, class_exponent, generator(seed, Stream.PARTNERS, step), size)


@registry.PairSampler(in_batch=False, options={"class_exponent": _EXPONENT})
def by_class(
    class_index: ClassIndex, index: np.ndarray, *, class_exponent: float = -1.0, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the partners of UniMix: `partners_by_class`, with views, and so augmentations, of their own.

    Args:
      class_index: `sorted_by_class` of the training labels.
      index: int64[B], the step's examples.
      class_exponent: see `partners_by_class`.
      seed: of the run.
      step: from 0.

    Returns:
      Positions int64[B] and views int32[B], which follow those of the examples.
    """
    size = len(index)
    partner = partners_by_class(class_index, class_exponent=class_exponent, seed=seed, step=step, size=size)
    return partner, np.arange(size, 2 * size, dtype=np.int32)


@registry.PairSampler(in_batch=True, changes_label_shares=False)
def permutation(class_index: ClassIndex, index: np.ndarray, *, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose the partners of mixup: a permutation of the batch; an image may meet itself.

    Args:
      class_index: unused.
      index: int64[B], the step's examples.
      seed: of the run.
      step: from 0.

    Returns:
      Positions int64[B] and views int32[B].
    """
    slots = generator(seed, Stream.PARTNERS, step).permutation(len(index))
    return index[slots], slots.astype(np.int32)


@registry.PairSampler(in_batch=True, options={"image_exponent": _EXPONENT})
def in_batch(
    class_index: ClassIndex, index: np.ndarray, *, image_exponent: float = -0.5, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the partners of UniMix's released code: from the batch, with replacement.

    An image weighs count**image_exponent of its class. Over many batches a class is drawn as
    count**(1 + image_exponent), rare ones less often in small batches.

    Args:
      class_index: `sorted_by_class` of the training labels.
      index: int64[B], the step's examples.
      image_exponent: tau in the code.
      seed: of the run.
      step: from 0.

    Returns:
      Positions int64[B] and views int32[B].

    Source: XuZhengzhuo/Prior-LT, core.py `unimix_sampler`.
    """
    weights = priors.prior(class_index.counts[class_index.labels[index]], image_exponent)
    edges = np.cumsum(weights)
    draws = generator(seed, Stream.PARTNERS, step).random(len(index))
    slots = np.searchsorted(edges / edges[-1], draws, side="right")
    return index[slots], slots.astype(np.int32)


@registry.PairSampler(
    in_batch=False,
    same_class=True,
    needs_neighbours=True,
    changes_label_shares=False,
    options={"neighbours": registry.at_least(1)},
)
def nearest(
    class_index: ClassIndex, index: np.ndarray, *, table: np.ndarray, neighbours: int = 5, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the partners of SMOTE: one of the nearest images of the same class, cropped and flipped alike.

    A class of fewer images has fewer neighbours; an image alone in its class is its own.

    Args:
      class_index: `sorted_by_class` of the training labels.
      index: int64[B], the step's examples.
      table: of `neighbour_table`, with that many neighbours.
      neighbours: number of nearest images to draw from.
      seed: of the run.
      step: from 0.

    Returns:
      Positions int64[B], and the views of the examples themselves, int32[B].
    """
    available = np.minimum(neighbours, class_index.counts[class_index.labels[index]] - 1)
    column = (generator(seed, Stream.PARTNERS, step).random(len(index)) * available).astype(np.int64)
    partner = np.where(available > 0, table[index, column], index)
    return partner, np.arange(len(index), dtype=np.int32)


def neighbour_table(images: np.ndarray, class_index: ClassIndex, neighbours: int, block: int = 1000) -> np.ndarray:
    """Find each image's nearest ones in its class, by Euclidean distance of raw pixels, itself excluded.

    Args:
      images: uint8[N, H, W, C].
      class_index: `sorted_by_class` of their labels.
      neighbours: k.
      block: images compared at once with all of their class.

    Returns:
      int32[N, k], the nearest first; a class of n <= k images has n - 1, filled up with the image itself.
    """
    table = np.repeat(np.arange(len(images), dtype=np.int32)[:, None], neighbours, axis=1)
    for first, count in zip(class_index.first, class_index.counts, strict=True):
        members = class_index.order[first : first + count]
        pixels = images[members].reshape(count, -1).astype(np.float32)
        pixels -= pixels.mean(axis=0)  # smaller numbers, smaller rounding
        squares = (pixels * pixels).sum(axis=1)
        available = min(neighbours, count - 1)
        for start in range(0, count if available else 0, block):
            rows = slice(start, start + block)
            distances = squares[rows, None] - 2 * pixels[rows] @ pixels.T + squares
            distances[np.arange(len(distances)), np.arange(start, start + len(distances))] = np.inf
            closest = np.argsort(distances, axis=1, kind="stable")[:, :available]
            table[members[rows], :available] = members[closest]
    return table
