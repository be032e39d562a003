"""Calibration of logits on validation data: a temperature, and a bias for each class."""

import warnings
from typing import NamedTuple

import numpy as np

from unimix_jax import names
from unimix_jax.errors import UserError
from unimix_jax.metrics import per_example
from unimix_jax.metrics.per_example import mean_shares, normalised
from unimix_jax.metrics.predictions import checked_labels, checked_logits, checked_prior

__all__ = [
    "TEMPERATURES",
    "Calibration",
    "calibrated",
    "end_of_search",
    "fit_bias_corrected",
    "fit_temperature",
    "search_temperature",
]
__getattr__, __dir__ = names.of_module(__name__, __all__)

TEMPERATURES = 0.01, 100.0  # where a temperature is looked for
_BIAS = 1.0  # standard deviation of a bias around its expected value, see the table in docs/measures.md


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Find the temperature T for which softmax(logits / T) has the least NLL, between .01 and 100.

    Fit it on validation data only. A warning of Python is given where T ends at the end of that range, as it does where
    all images are right, or the logits say nothing of the labels.

    Args:
      logits: float[N, K].
      labels: int[N].

    Returns:
      T > 0; never one whose NLL is above that of T = 1.

    Raises:
      UserError: arrays that are not logits and labels.

    Source: Guo et al., ICML 2017.

    >>> logits, labels = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]]), np.array([0, 1, 0, 0])
    >>> round(fit_temperature(logits, labels), 3)  # softmax(2 / T) = 3/4
    1.82
    """
    temperature = search_temperature(logits, labels)
    if sentence := end_of_search(temperature):
        warnings.warn(sentence, stacklevel=2)
    return temperature


def end_of_search(temperature: float) -> str:
    """Return a sentence if a temperature lies at the end of where one is looked for; "" if it does not.

    Args:
      temperature: of `fit_temperature`.

    >>> end_of_search(100.0)
    'the temperature 100 is at the end of where one is looked for'
    """
    lowest, highest = TEMPERATURES
    if 1.1 * lowest < temperature < 0.9 * highest:
        return ""
    return f"the temperature {temperature:.3g} is at the end of where one is looked for"


def search_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Find the temperature of `fit_temperature`, for a caller that warns by itself.

    In 1 / T the NLL is convex: the zero of its slope is bracketed and found by Newton's steps, or by bisection where
    these leave the bracket.

    Args:
      logits: float[N, K].
      labels: int[N].

    Returns:
      T > 0.

    >>> logits, labels = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]]), np.array([0, 1, 0, 0])
    >>> round(search_temperature(logits, labels), 3)  # softmax(2 / T) = 3/4
    1.82
    """
    logits = np.asarray(checked_logits(logits, "logits"), np.float64)
    labels = checked_labels(labels, logits.shape, "labels")
    own = logits[np.arange(len(labels)), labels].mean()

    def slopes(inverse):
        """First and second derivative of the NLL by 1 / T."""
        probabilities = np.exp(normalised(logits * inverse))
        mean = np.einsum("nk,nk->n", probabilities, logits)
        return mean.mean() - own, (np.einsum("nk,nk,nk->n", probabilities, logits, logits) - mean**2).mean()

    low, high = (1 / bound for bound in reversed(TEMPERATURES))
    inverse = 1.0
    for _ in range(200):
        slope, curvature = slopes(inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        newton = inverse - slope / curvature if curvature > 0 else 0.0
        # The bracket's middle is that of its ends' logarithms.
        following = newton if low < newton < high else np.sqrt(low * high)
        if abs(following - inverse) <= 1e-9 * inverse:
            break
        inverse = following

    def value(scale):
        return per_example.surprise_of_logits(logits * scale, labels).mean()

    return float(1 / inverse) if value(inverse) < value(1.0) else 1.0


class Calibration(NamedTuple):
    """A calibration of logits by `calibrated`: division by a temperature, and a bias for each class."""

    temperature: float
    bias: np.ndarray  # float64[K], mean 0
    prior: np.ndarray  # float64[K], which calibrated logits stand for


def fit_bias_corrected(
    logits: np.ndarray,
    labels: np.ndarray,
    logits_prior: np.ndarray | None = None,
    start: Calibration | None = None,
) -> Calibration:
    """Fit a temperature and a bias for each class by NLL, for calibrated probabilities of the labels' own prior.

    Each bias is pulled to its expected value by a Gaussian, because a few images of a class say less about its bias
    than the model itself; so a class without images has a bias, too. If `logits_prior` is known, the expected bias is
    log(share of the labels / logits_prior), otherwise 0.

    Args:
      logits: float[N, K] of validation data.
      labels: int[N].
      logits_prior: float[K], the prior that softmax(logits) stands for, such as `Predictions.logits_prior`; None if it
        is not known.
      start: where to start; None for a fitted temperature and the expected biases.

    Returns:
      The `Calibration`; its NLL with the pull is never above that of `start`.

    Raises:
      UserError: arrays that are not logits, labels and a prior, or a start that is no `Calibration` of K classes.

    Source: Alexandari, Kundaje, Shrikumar, ICML 2020 (bias-corrected temperature scaling); the pull is ours.

    >>> logits, labels = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 1.0], [0.0, 2.0]]), np.array([0, 1, 0, 1])
    >>> fit_bias_corrected(logits, labels, logits_prior=np.array([0.5, 0.5])).prior.tolist()
    [0.5, 0.5]
    """
    from scipy.optimize import minimize

    logits = np.asarray(checked_logits(logits, "logits"), np.float64)
    labels = checked_labels(labels, logits.shape, "labels")
    size, classes = logits.shape
    if start is not None:
        _check_calibration(start, classes, "start")
    rows = np.arange(size)
    # One more image is divided among the classes, so that no share is 0.
    shares = (np.bincount(labels, minlength=classes) + 1 / classes) / (size + 1)
    expected = np.zeros(classes)
    if logits_prior is not None:
        expected = np.log(shares / checked_prior(logits_prior, classes, "logits_prior"))
        expected -= expected.mean()

    def loss(theta):
        inverse, bias = np.exp(theta[0]), theta[1:]
        shifted = normalised(inverse * logits + bias)
        distance = (bias - expected) / _BIAS
        value = (distance**2).sum() / 2 - shifted[rows, labels].sum()
        probabilities = np.exp(shifted)
        probabilities[rows, labels] -= 1
        gradient = np.concatenate([[inverse * (probabilities * logits).sum()], probabilities.sum(axis=0)])
        gradient[1:] += distance / _BIAS
        return value / size, gradient / size

    temperature, bias = (start.temperature, start.bias) if start else (search_temperature(logits, labels), expected)
    first = np.concatenate([[-np.log(temperature)], bias])
    bounds = [(-np.log(TEMPERATURES[1]), -np.log(TEMPERATURES[0]))] + [(None, None)] * classes
    optimum = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500, "ftol": 1e-10})
    theta = optimum.x if optimum.fun < loss(first)[0] else first
    if logits_prior is None:
        # Biases that stay near 0 keep the logits' own prior in part, so that the probabilities say what they stand for.
        shares = mean_shares(np.exp(normalised(np.exp(theta[0]) * logits + theta[1:])))
    return Calibration(float(np.exp(-theta[0])), theta[1:] - theta[1:].mean(), shares)


def calibrated(logits: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Apply a calibration to logits.

    Args:
      logits: float[N, K].
      calibration: of `fit_bias_corrected`.

    Returns:
      float64[N, K].

    Raises:
      UserError: no logits, or no `Calibration` of as many classes.

    >>> calibrated(np.array([[2.0, 0.0]]), Calibration(2.0, np.array([0.5, -0.5]), np.array([0.5, 0.5]))).tolist()
    [[1.5, -0.5]]
    """
    logits = np.asarray(checked_logits(logits, "logits"), np.float64)
    _check_calibration(calibration, logits.shape[1], "calibration")
    return logits / calibration.temperature + calibration.bias


def _check_calibration(calibration: Calibration, classes: int, what: str) -> None:
    if not isinstance(calibration, Calibration):
        raise UserError(
            f"{what} is {calibration!r}; it must be a Calibration, of fit_bias_corrected (a temperature alone divides "
            "the logits: logits / temperature)"
        )
    if np.shape(calibration.bias) != (classes,):
        raise UserError(
            f"{what} has biases {list(np.shape(calibration.bias))}, but the logits have {classes} classes; both must "
            "come from one model"
        )
