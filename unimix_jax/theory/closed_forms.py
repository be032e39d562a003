"""Closed forms of the class distributions of the paper's Corollaries 1 to 3.

They are functions of a continuous class y in [1, K], where 1 is the most frequent one, and the prior falls
exponentially by the factor `imbalance` from 1 to K; `exponential_profile` is this prior at the integers. Some are
densities (integral 1), some only a mass (part of a density, integral below 1). Their values at the integers do not sum
to their integrals: divide by the sum to compare one with a distribution over K classes.

The closed form of mixup is the prior. Those of Corollaries 2 and 3 give every mixed image to its rarer class, which is
right for a constant weight s = count_b / (count_a + count_b). The factor that is used gives it there less often; see
`exact.preference` and `exact.mixed_class_distribution`.
"""

import math

import numpy as np

from unimix_jax.errors import UserError


def exponential_profile(num_classes: int, imbalance: float) -> np.ndarray:
    """Return the sizes of the classes relative to the largest one, for the profile of the closed forms.

    Unlike those of `data.longtail.profile` they are not whole numbers of images, so that the imbalance is exact.

    Args:
      num_classes: K >= 2.
      imbalance: rho, largest class / smallest, at least 1.

    Returns:
      float64[K], imbalance**(-c / (K - 1)) for c = 0..K-1: the first 1, the last 1 / imbalance.

    Raises:
      UserError: K or imbalance out of range.

    Source: Eq. A.2 of the paper's supplement.
    """
    position = _position(np.arange(1.0, num_classes + 1), num_classes, imbalance)
    return np.exp(-_steepness(imbalance, 1.0) * position)


def natural_density(y: np.ndarray, *, num_classes: int, imbalance: float) -> np.ndarray:
    """Return the density of the class of a training image.

    Args:
      y: float[...], each in [1, K].
      num_classes: K >= 2.
      imbalance: rho, largest class / smallest, at least 1; at 1 the density is uniform.

    Returns:
      float64[...], with integral 1 over [1, K].

    Raises:
      UserError: a y, K or imbalance out of range.

    Source: Eq. A.4 of the paper's supplement.
    """
    return sampler_density(y, num_classes=num_classes, imbalance=imbalance, class_exponent=1.0)


def sampler_density(y: np.ndarray, *, num_classes: int, imbalance: float, class_exponent: float = -1.0) -> np.ndarray:
    """Return the density of a partner's class, proportional to the natural density to the power `class_exponent`.

    Args:
      y: see `natural_density`.
      num_classes: see `natural_density`.
      imbalance: see `natural_density`.
      class_exponent: 1 for the natural distribution, 0 for the uniform one, -1 (the paper's) for the inverse one.

    Returns:
      float64[...], with integral 1 over [1, K].

    Raises:
      UserError: a y, K or imbalance out of range, or an exponent that is not finite.

    Source: Eq. A.14 of the paper's supplement, there with tau for the exponent.
    """
    position = _position(y, num_classes, imbalance)
    return _tilted_density(position, _steepness(imbalance, class_exponent)) / (num_classes - 1)


def mixup_density(y: np.ndarray, *, num_classes: int, imbalance: float) -> np.ndarray:
    """Return the density of the dominant class of an image that mixup mixed, which is that of the training images.

    Both images are drawn from the training images, and each has the larger weight in half of the pairs of any classes.

    Args:
      y: see `natural_density`.
      num_classes: see `natural_density`.
      imbalance: see `natural_density`.

    Returns:
      float64[...], with integral 1 over [1, K].

    Raises:
      UserError: a y, K or imbalance out of range.

    Source: Corollary 1, Eq. A.5 of the paper's supplement.
    """
    return natural_density(y, num_classes=num_classes, imbalance=imbalance)


def factor_density(y: np.ndarray, *, num_classes: int, imbalance: float) -> np.ndarray:
    """Return the density of the first image's class over the pairs of training images in which it is the rarer one.

    It describes UniMix's factor without UniMix's sampler.

    Args:
      y: see `natural_density`.
      num_classes: see `natural_density`.
      imbalance: see `natural_density`.

    Returns:
      float64[...], with integral 1/2. The pairs whose partner is the rarer one have the same density, so that
      the density under a constant weight s is twice this.

    Raises:
      UserError: a y, K or imbalance out of range.

    Source: Corollary 2, Eq. A.8 of the paper's supplement.
    """
    return unimix_density(y, num_classes=num_classes, imbalance=imbalance, class_exponent=1.0)


def unimix_density(y: np.ndarray, *, num_classes: int, imbalance: float, class_exponent: float = -1.0) -> np.ndarray:
    """Return the density of the first image's class over its pairs with sampled partners in which it is the rarer one.

    The pairs whose partner is the rarer one, the majority for exponents below 1, are left out. They have the density
    `sampler_density(y)` times the integral of `natural_density` up to y; both together have the integral 1.

    Args:
      y: see `natural_density`.
      num_classes: see `natural_density`.
      imbalance: see `natural_density`.
      class_exponent: see `sampler_density`.

    Returns:
      float64[...]; the integral is `unimix_mass(imbalance)` for exponent -1 and 1/2 for exponent 1.

    Raises:
      UserError: a y, K or imbalance out of range, or an exponent that is not finite.

    Source: Corollary 3, Eq. A.12 of the paper's supplement.
    """
    position = _position(y, num_classes, imbalance)
    below = _tilted_below(position, _steepness(imbalance, class_exponent))
    return _tilted_density(position, _steepness(imbalance, 1.0)) / (num_classes - 1) * below


def unimix_mass(imbalance: float) -> float:
    """Return the integral of `unimix_density` with exponent -1, for any K.

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


def _position(y, num_classes: int, imbalance: float) -> np.ndarray:
    """Return the position of y between the first class, 0, and the last, 1; refuse values out of range."""
    if not num_classes >= 2:
        raise UserError(f"num_classes is {num_classes}; a density over the classes needs at least 2")
    _steepness(imbalance, 1.0)
    y = np.asarray(y, np.float64)
    wrong = y[~((y >= 1) & (y <= num_classes))]
    if wrong.size:
        raise UserError(f"y is {wrong[0]:g}; with {num_classes} classes it must lie in 1..{num_classes}")
    return (y - 1) / (num_classes - 1)


def _steepness(imbalance: float, class_exponent: float) -> float:
    """Return by how many factors of e the density falls from the first class to the last; below 0 it rises."""
    if not (math.isfinite(imbalance) and imbalance >= 1):
        raise UserError(
            f"imbalance is {imbalance:g}; it is the largest class divided by the smallest and must be at least 1"
        )
    if not math.isfinite(class_exponent):
        raise UserError(f"class_exponent is {class_exponent:g}; it must be a finite number")
    return class_exponent * math.log(imbalance)


def _tilted_density(position: np.ndarray, steepness: float) -> np.ndarray:
    """Return the density on [0, 1] that is proportional to exp(-steepness * position)."""
    if steepness < 0:  # turned round, so that nothing overflows
        return _tilted_density(1 - position, -steepness)
    return np.exp(-steepness * position) * (steepness / -math.expm1(-steepness) if steepness else 1.0)


def _tilted_below(position: np.ndarray, steepness: float) -> np.ndarray:
    """Return the integral of `_tilted_density` from 0 to a position."""
    if not steepness:
        return position
    fall = abs(steepness)
    below = np.expm1(-fall * position) / math.expm1(-fall)
    return below if steepness > 0 else np.exp(-fall * (1 - position)) * below
