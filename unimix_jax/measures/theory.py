"""The laws of labels behind UniMix: closed forms of the paper's Corollaries 1 to 3, exact and drawn laws of pairs.

The closed forms are over a continuous class y in [1, K], 1 the most frequent, whose prior falls exponentially by the
factor `imbalance` from 1 to K; `exponential_profile` is the same at the integers. Some are laws (integral 1), some only
a mass (a part of a law; integral below 1). At the integers they do not sum to their integrals, so divide by the sum
before putting one beside a law of K classes.

The closed form of mixup is the prior. Those of Corollaries 2 and 3 give every mixed image to its rarer class, as a
constant weight s = count_b / (count_a + count_b) does. The factor that is used gives it there less often: `preference`
and `mixed_law` say how often, exactly.
"""

import math

import numpy as np

from unimix_jax import priors
from unimix_jax.errors import UserError

MOST_CLASSES = 1000  # of class laws: the exact one looks at every pair of classes


def exponential_profile(num_classes: int, imbalance: float) -> np.ndarray:
    """Sizes of the classes relative to the largest, for the profile that the closed forms are made for.

    Unlike `priors.profile` these are no whole images, so that the imbalance is the one asked for.

    Args:
      num_classes: K >= 2.
      imbalance: rho, largest class / smallest, at least 1.

    Returns:
      float64[K], imbalance**(-c / (K - 1)) for c = 0..K-1: the first 1, the last 1 / imbalance.

    Raises:
      UserError: K or imbalance out of range.

    Source: Eq. A.2 of the paper's supplement.
    """
    place = _place(np.arange(1.0, num_classes + 1), num_classes, imbalance)
    return np.exp(-_steepness(imbalance, 1.0) * place)


# --- Closed forms, over y


def natural_density(y: np.ndarray, *, num_classes: int, imbalance: float) -> np.ndarray:
    """Density of the class of a training image.

    Args:
      y: float[...], each in [1, K].
      num_classes: K >= 2.
      imbalance: rho, largest class / smallest, at least 1; at 1 the density is uniform.

    Returns:
      float64[...], a law: integral 1 over [1, K].

    Raises:
      UserError: a y, K or imbalance out of range.

    Source: Eq. A.4 of the paper's supplement.
    """
    return sampler_density(y, num_classes=num_classes, imbalance=imbalance, class_exponent=1.0)


def sampler_density(y: np.ndarray, *, num_classes: int, imbalance: float, class_exponent: float = -1.0) -> np.ndarray:
    """Density of a partner's class, in proportion to the natural density to the power of `class_exponent`.

    Args:
      y, num_classes, imbalance: see `natural_density`.
      class_exponent: 1 the natural law, 0 uniform, -1 (the paper's) inverse.

    Returns:
      float64[...], a law: integral 1 over [1, K].

    Raises:
      UserError: a y, K or imbalance out of range, or an exponent that is not finite.

    Source: Eq. A.14 of the paper's supplement, there with tau for the exponent.
    """
    place = _place(y, num_classes, imbalance)
    return _tilted_density(place, _steepness(imbalance, class_exponent)) / (num_classes - 1)


def mixup_density(y: np.ndarray, *, num_classes: int, imbalance: float) -> np.ndarray:
    """Density of the dominant class of an image that mixup mixed: that of the training images.

    Both images are natural ones, and either has the larger weight in half of the pairs, whatever their classes.

    Args:
      y, num_classes, imbalance: see `natural_density`.

    Returns:
      float64[...], a law: integral 1 over [1, K].

    Raises:
      UserError: a y, K or imbalance out of range.

    Source: Corollary 1, Eq. A.5 of the paper's supplement.
    """
    return natural_density(y, num_classes=num_classes, imbalance=imbalance)


def factor_density(y: np.ndarray, *, num_classes: int, imbalance: float) -> np.ndarray:
    """Density of the first image's class over the pairs of natural images in which it is the rarer one.

    It belongs to UniMix's factor without UniMix's sampler.

    Args:
      y, num_classes, imbalance: see `natural_density`.

    Returns:
      float64[...], a mass: integral 1/2. The pairs whose partner is the rarer one have the same density, so the law
      under a constant weight s is twice this.

    Raises:
      UserError: a y, K or imbalance out of range.

    Source: Corollary 2, Eq. A.8 of the paper's supplement.
    """
    return unimix_density(y, num_classes=num_classes, imbalance=imbalance, class_exponent=1.0)


def unimix_density(y: np.ndarray, *, num_classes: int, imbalance: float, class_exponent: float = -1.0) -> np.ndarray:
    """Density of the first image's class over the pairs of it and a sampled partner in which it is the rarer one.

    The pairs whose partner is the rarer one, for exponents below 1 the most, are left out. They have the density
    `sampler_density(y)` times the integral of `natural_density` up to y, and with them it is a law.

    Args:
      y, num_classes, imbalance: see `natural_density`.
      class_exponent: see `sampler_density`.

    Returns:
      float64[...], a mass: the integral is `unimix_mass(imbalance)` for exponent -1 and 1/2 for exponent 1.

    Raises:
      UserError: a y, K or imbalance out of range, or an exponent that is not finite.

    Source: Corollary 3, Eq. A.12 of the paper's supplement.
    """
    place = _place(y, num_classes, imbalance)
    below = _tilted_below(place, _steepness(imbalance, class_exponent))
    return _tilted_density(place, _steepness(imbalance, 1.0)) / (num_classes - 1) * below


def unimix_mass(imbalance: float) -> float:
    """Integral of `unimix_density` with exponent -1, whatever K.

    It is the share of the pairs in which the natural image is rarer than its inversely sampled partner, of endlessly
    many classes: .173 for an imbalance of 10, .037 for 100. Of few classes it is less, for many pairs are of one class.

    Args:
      imbalance: rho, largest class / smallest, at least 1.

    Returns:
      [ln rho - (1 - 1/rho)] / [(1 - 1/rho)(rho - 1)]; 1/2 at 1.

    Raises:
      UserError: an imbalance below 1.

    Source: ours, the integral of Eq. A.12 of the paper's supplement.
    """
    x = _steepness(imbalance, 1.0)
    if x < 1e-2:  # both differences cancel there; what the series leaves out is below 1e-13
        above = 1 / 2 - x / 6 + x**2 / 24 - x**3 / 120 + x**4 / 720
        return above / (1 + x**2 / 12 + x**4 / 360)
    return (x + math.expm1(-x)) / (-math.expm1(-x) * math.expm1(x))


# --- The UniMix factor


def preference(count_a: np.ndarray, count_b: np.ndarray, *, alpha: float = 0.5, wrap: bool = True) -> np.ndarray:
    """Probability that the UniMix factor gives image a more than half of the weight.

    The wrapped factor prefers a rare image a most at counts of 1:3, with 2/3 for alpha .5, and falls back to 1/2 as
    they grow apart; the un-wrapped one goes to 1. At alpha 1 the wrapped one is 1/2 whatever the counts.

    Args:
      count_a, count_b: training images of the two classes, > 0; arrays broadcast, so counts[:, None] and
        counts[None, :] give every pair of classes.
      alpha: > 0, of the factor's Beta(alpha, alpha).
      wrap: (b + s) mod 1, the authors' factor; False: clip(b + s - 1/2, 0, 1), ours.

    Returns:
      float64[...]; those of (a, b) and (b, a) add up to 1.

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
    """Mean of the weight that the UniMix factor gives image a.

    The paper's proof takes s for it. The wrapped factor's is .554 at s = .99 (alpha .5); the un-wrapped one's is s but
    for what is clipped.

    Args:
      count_a, count_b, alpha, wrap: see `preference`.

    Returns:
      float64[...]; those of (a, b) and (b, a) add up to 1.

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


# --- Laws of mixed labels


def mixed_law(prior: np.ndarray, partner_prior: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """Law of the labels of mixed images whose two classes are drawn independently.

    Args:
      prior: float[K], law of the first image's class, a.
      partner_prior: float[K], law of its partner's class, b.
      share: float[K, K] by (a, b), or one number: with the probability that a dominates (`preference`; 1/2 for mixup)
        the law of the dominant label, with the mean weight of a (`mean_weight`) the law of the label mass.

    Returns:
      float64[K], a law: sums to 1.

    Raises:
      UserError: shapes that do not fit, laws that do not sum to 1 (within 1e-5), a share outside of 0..1.

    Source: ours. For the share 1(a is rarer than b) and many classes it tends to Eq. A.12 of the paper's supplement
      plus the pairs which that leaves out (`unimix_density`).
    """
    first, partner = _law(prior, "prior"), _law(partner_prior, "partner_prior")
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


def empirical_law(
    label_a: np.ndarray, label_b: np.ndarray, weight: np.ndarray, num_classes: int, soft: bool = False
) -> np.ndarray:
    """Law of the labels of mixed images that were drawn: what `mixed_law` is the expectation of.

    Args:
      label_a, label_b: int[N], N > 0.
      weight: float[N] in 0..1, of label_a.
      num_classes: K.
      soft: count the weights themselves; False: the dominant label, half a count each where the weight is 1/2.

    Returns:
      float64[K], a law: sums to 1. The standard error of an entry p is sqrt(p (1 - p) / N), soft at most that.

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
    law = np.bincount(label_a, of_a, num_classes) + np.bincount(label_b, 1 - of_a, num_classes)
    return law / len(label_a)


# --- Parts


def _place(y, num_classes: int, imbalance: float) -> np.ndarray:
    """Where y lies between the first class, 0, and the last, 1; refuses what is out of range."""
    if not num_classes >= 2:
        raise UserError(f"num_classes is {num_classes}; a density over the classes needs at least 2")
    _steepness(imbalance, 1.0)
    y = np.asarray(y, np.float64)
    wrong = y[~((y >= 1) & (y <= num_classes))]
    if wrong.size:
        raise UserError(f"y is {wrong[0]:g}; with {num_classes} classes it must lie in 1..{num_classes}")
    return (y - 1) / (num_classes - 1)


def _steepness(imbalance: float, class_exponent: float) -> float:
    """By how many factors of e the density falls from the first class to the last; below 0 it rises."""
    if not (math.isfinite(imbalance) and imbalance >= 1):
        raise UserError(
            f"imbalance is {imbalance:g}; it is the largest class divided by the smallest and must be at least 1"
        )
    if not math.isfinite(class_exponent):
        raise UserError(f"class_exponent is {class_exponent:g}; it must be a finite number")
    return class_exponent * math.log(imbalance)


def _tilted_density(place: np.ndarray, steepness: float) -> np.ndarray:
    """Density on [0, 1] in proportion to exp(-steepness * place)."""
    if steepness < 0:  # turned round, so that nothing overflows
        return _tilted_density(1 - place, -steepness)
    return np.exp(-steepness * place) * (steepness / -math.expm1(-steepness) if steepness else 1.0)


def _tilted_below(place: np.ndarray, steepness: float) -> np.ndarray:
    """Integral of `_tilted_density` from 0 to `place`."""
    if not steepness:
        return place
    fall = abs(steepness)
    below = np.expm1(-fall * place) / math.expm1(-fall)
    return below if steepness > 0 else np.exp(-fall * (1 - place)) * below


def _shares(count_a, count_b, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Shares of each class in the images of both, (1 - s, s), float64[...]."""
    if not (math.isfinite(alpha) and alpha > 0):
        raise UserError(f"alpha is {alpha:g}; the factor's Beta(alpha, alpha) needs a positive number")
    count_a, count_b = np.asarray(count_a, np.float64), np.asarray(count_b, np.float64)
    for counts in (count_a, count_b):
        wrong = counts[~(np.isfinite(counts) & (counts > 0))]
        if wrong.size:
            raise UserError(f"a class count is {wrong[0]:g}; a factor needs counts above 0")
    both = count_a + count_b
    return count_a / both, count_b / both


def _law(values, name: str) -> np.ndarray:
    """A probability per class as float64[K]; refuses what is none."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not (values >= 0).all() or not abs(values.sum() - 1) < 1e-5:
        raise UserError(f"{name} must be one probability per class [K], none below 0, that sum to 1")
    return values
