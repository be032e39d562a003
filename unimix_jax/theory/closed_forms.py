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

from unimix_jax.errors import UserError


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

    It is the share of the pairs in which the natural image is rarer than its inversely sampled partner: .173 for an
    imbalance of 10, .037 for 100.

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


# --- Laws of mixed labels


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
