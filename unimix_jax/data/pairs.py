"""Which partner each image of a step is mixed with: pure functions of (seed, step). numpy only."""

import numpy as np

from unimix_jax import priors
from unimix_jax.data.rng import Stream, generator
from unimix_jax.data.sampling import ByClass, draw_by_class, sorted_by_class


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
    return draw_by_class(sets, class_exponent, generator(seed, Stream.PARTNERS, step), size)


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


PARTNERS = {"by_class": by_class, "permutation": permutation, "in_batch": in_batch, "nearest": nearest}
SAME_BATCH = (permutation, in_batch)  # partner rules whose partners are images of the batch, in the same view
