"""Calibration of logits on validation data: a temperature, and a bias for each class."""

from typing import NamedTuple

import numpy as np

from unimix_jax.metrics import per_example
from unimix_jax.metrics.per_example import normalised
from unimix_jax.metrics.predictions import checked_labels, checked_logits

TEMPERATURES = 0.01, 100.0  # where a temperature is looked for


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Find the temperature T for which softmax(logits / T) has the least NLL, between .01 and 100.

    In 1 / T the NLL is convex: the zero of its slope is bracketed and found by Newton's steps, or by bisection where
    these leave the bracket. Fit it on validation data only.

    Args:
      logits: float[N, K].
      labels: int[N].

    Returns:
      T > 0; never one whose NLL is above that of T = 1.

    Source: Guo et al., ICML 2017.
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
    """What `calibrated` does to logits: divide by a temperature, add a bias a class."""

    temperature: float
    bias: np.ndarray  # float64[K], mean 0


def fit_bias_corrected(logits: np.ndarray, labels: np.ndarray, start: Calibration | None = None) -> Calibration:
    """Fit a temperature and a bias a class by NLL: calibrated probabilities of the labels' own prior.

    The biases are kept small by the pull of one image (of all classes in equal parts), so that a class without
    validation images gets a finite one.

    Args:
      logits: float[N, K] of validation data.
      labels: int[N].
      start: where to begin; None for a fitted temperature and no bias.

    Returns:
      The `Calibration`; its NLL with the pull is never above that of `start`.

    Source: Alexandari, Kundaje, Shrikumar, ICML 2020 (bias-corrected temperature scaling).
    """
    from scipy.optimize import minimize

    logits = np.asarray(checked_logits(logits, "logits"), np.float64)
    labels = checked_labels(labels, logits.shape, "labels")
    size, classes = logits.shape
    rows = np.arange(size)

    def loss(theta):
        inverse, bias = np.exp(theta[0]), theta[1:]
        shifted = normalised(inverse * logits + bias)
        value = -shifted[rows, labels].sum()
        probabilities = np.exp(shifted)
        probabilities[rows, labels] -= 1
        gradient = np.concatenate([[inverse * (probabilities * logits).sum()], probabilities.sum(axis=0)])
        # One image of every class in equal parts, at logits 0: convex, and its least at equal biases.
        prior = normalised(bias[None])[0]
        value -= prior.mean()
        gradient[1:] += np.exp(prior) - 1 / classes
        return value / size, gradient / size

    start = start or Calibration(fit_temperature(logits, labels), np.zeros(classes))
    first = np.concatenate([[-np.log(start.temperature)], start.bias])
    bounds = [(-np.log(TEMPERATURES[1]), -np.log(TEMPERATURES[0]))] + [(None, None)] * classes
    optimum = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500, "ftol": 1e-10})
    theta = optimum.x if optimum.fun < loss(first)[0] else first
    return Calibration(float(np.exp(-theta[0])), theta[1:] - theta[1:].mean())


def calibrated(logits: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Apply a `Calibration` to logits float[N, K]; float64[N, K]."""
    return np.asarray(checked_logits(logits, "logits"), np.float64) / calibration.temperature + calibration.bias
