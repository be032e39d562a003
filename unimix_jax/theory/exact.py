"""Exact distributions of the classes of mixed images, for the factors that are used."""

import math

import numpy as np

from unimix_jax import priors
from unimix_jax.errors import UserError

MOST_CLASSES = 1000  # of class distributions: the exact one looks at every pair of classes


def preference(count_a: np.ndarray, count_b: np.ndarray, *, alpha: float = 0.5, wrap: bool = True) -> np.ndarray:
    """Return the probability that the UniMix factor gives image a more than half of the weight.

    The wrapped factor prefers a rare image a most at counts of 1:3, with 2/3 for alpha .5, and falls back to 1/2 as
    they grow apart; the un-wrapped factor's goes to 1. At alpha 1 the wrapped factor's is 1/2 for all counts.

    Args:
      count_a: training images of the first class, > 0; arrays broadcast, so that counts[:, None] and counts[None, :]
        give every pair of classes.
      count_b: training images of the second class, > 0.
      alpha: > 0, of the factor's Beta(alpha, alpha).
      wrap: (b + s) mod 1, the authors' factor; False: clip(b + s - 1/2, 0, 1), ours.

    Returns:
      float64[...]; the values of (a, b) and (b, a) add up to 1.

    Raises:
      UserError: a count or alpha that is not positive.

    Source: ours, from the factor as the paper's supplement A.2 and E and XuZhengzhuo/Prior-LT, core.py
      `unimix_factor`, define it. Corollaries 2 and 3 have 1 in its place where a is the rarer one, 0 where b is.
    """
    from scipy.special import betainc

    share_a, share_b = _shares(count_a, count_b, alpha)
    if not wrap:
        return betainc(alpha, alpha, share_b)
    # The weight is above 1/2 where b lies between 1/2 - s and 1 - s, or above 3/2 - s.
    plain = betainc(alpha, alpha, share_a) - betainc(alpha, alpha, np.maximum(0.5 - share_b, 0))
    return plain + betainc(alpha, alpha, np.maximum(share_b - 0.5, 0))


def mean_weight(count_a: np.ndarray, count_b: np.ndarray, *, alpha: float = 0.5, wrap: bool = True) -> np.ndarray:
    """Return the mean weight that the UniMix factor gives image a.

    The paper's proof takes s for it. The wrapped factor's is .554 at s = .99 (alpha .5); the un-wrapped factor's is s,
    except for clipping.

    Args:
      count_a: see `preference`.
      count_b: see `preference`.
      alpha: see `preference`.
      wrap: see `preference`.

    Returns:
      float64[...]; the values of (a, b) and (b, a) add up to 1.

    Raises:
      UserError: a count or alpha that is not positive.

    Source: see `preference`.
    """
    from scipy.special import betainc

    share_a, share_b = _shares(count_a, count_b, alpha)
    if wrap:
        return share_b - 0.5 + betainc(alpha, alpha, share_a)
    shift = share_b - 0.5
    low, high = np.maximum(-shift, 0), np.minimum(1 - shift, 1)  # b between them is not clipped
    inside = betainc(alpha, alpha, high) - betainc(alpha, alpha, low)
    mean_inside = 0.5 * (betainc(alpha + 1, alpha, high) - betainc(alpha + 1, alpha, low))
    return mean_inside + shift * inside + betainc(alpha, alpha, 1 - high)


def mixed_class_distribution(prior: np.ndarray, partner_prior: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """Return the distribution of the labels of mixed images whose two classes are drawn independently.

    Args:
      prior: float[K], distribution of the first image's class, a.
      partner_prior: float[K], distribution of its partner's class, b.
      share: float[K, K] by (a, b), or one number: with the probability that a dominates (`preference`; 1/2 for mixup)
        the distribution of the dominant label, with the mean weight of a (`mean_weight`) that of the label mass.

    Returns:
      float64[K], sums to 1.

    Raises:
      UserError: shapes that do not fit, priors that do not sum to 1 (within 1e-5), a share outside of 0..1.

    Source: ours. For the share 1(a is rarer than b) and many classes it tends to Eq. A.12 of the paper's supplement
      plus the pairs which that leaves out (`unimix_density`).
    """
    first, partner = _distribution(prior, "prior"), _distribution(partner_prior, "partner_prior")
    share = np.asarray(share, np.float64)
    if len(partner) != len(first) or share.shape not in ((), (len(first), len(first))):
        raise UserError(
            f"prior has shape {first.shape}, partner_prior {partner.shape} and share {share.shape}; "
            "they must be [K], [K] and [K, K] or a single number"
        )
    if not ((share >= 0) & (share <= 1)).all():
        raise UserError("share holds what is no share; its numbers must lie in 0..1")
    share = np.broadcast_to(share, (len(first), len(first)))
    return first * (share @ partner) + partner * (first @ (1 - share))


def empirical_class_distribution(
    label_a: np.ndarray, label_b: np.ndarray, weight: np.ndarray, num_classes: int, soft: bool = False
) -> np.ndarray:
    """Return the distribution of the labels of a sample of mixed images; its mean is `mixed_class_distribution`.

    Args:
      label_a: int[N], N > 0.
      label_b: int[N].
      weight: float[N] in 0..1, of label_a.
      num_classes: K.
      soft: whether to add up the weights; otherwise the dominant labels are counted, with half a count for each of
        two labels of weight 1/2.

    Returns:
      float64[K], sums to 1. The standard error of an entry p is sqrt(p (1 - p) / N), soft at most that.

    Raises:
      UserError: arrays that do not fit together, no pairs, a label outside of 0..K-1, a weight outside of 0..1.
    """
    label_a, label_b, weight = np.asarray(label_a), np.asarray(label_b), np.asarray(weight, np.float64)
    whole = np.issubdtype(label_a.dtype, np.integer) and np.issubdtype(label_b.dtype, np.integer)
    if not (whole and label_a.ndim == 1 and len(label_a) and label_a.shape == label_b.shape == weight.shape):
        raise UserError(
            f"pairs have labels {label_a.dtype}{list(label_a.shape)} and {label_b.dtype}{list(label_b.shape)} and "
            f"weights {list(weight.shape)}; they must be integers [N], integers [N] and numbers [N], N > 0"
        )
    for labels in (label_a, label_b):
        priors.class_counts(labels, num_classes)  # refuses labels that are none
    if not ((weight >= 0) & (weight <= 1)).all():
        raise UserError("the weights of pairs hold what is no share; they must lie in 0..1")
    of_a = weight if soft else (weight > 0.5) + 0.5 * (weight == 0.5)
    totals = np.bincount(label_a, of_a, num_classes) + np.bincount(label_b, 1 - of_a, num_classes)
    return totals / len(label_a)


def _shares(count_a, count_b, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of both classes in their images, (1 - s, s), float64[...]."""
    if not (math.isfinite(alpha) and alpha > 0):
        raise UserError(f"alpha is {alpha:g}; the factor's Beta(alpha, alpha) needs a positive number")
    count_a, count_b = np.asarray(count_a, np.float64), np.asarray(count_b, np.float64)
    for counts in (count_a, count_b):
        wrong = counts[~(np.isfinite(counts) & (counts > 0))]
        if wrong.size:
            raise UserError(f"a class count is {wrong[0]:g}; a factor needs counts above 0")
    both = count_a + count_b
    return count_a / both, count_b / both


def _distribution(values, name: str) -> np.ndarray:
    """Return one probability per class as float64[K]; refuse anything else."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not (values >= 0).all() or not abs(values.sum() - 1) < 1e-5:
        raise UserError(f"{name} must be one probability per class [K], none below 0, that sum to 1")
    return values
