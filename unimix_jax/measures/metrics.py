"""Measures of probabilities against labels: numpy, float64, whoever made the predictions.

Every measure is `(probabilities, labels, ...) -> float`, in fractions of 1 or in nats.
Probabilities are float[N, K] whose rows sum to 1 within 1e-5; labels int[N].
"""

import numpy as np

from unimix_jax import priors
from unimix_jax.batch import Predictions
from unimix_jax.errors import UserError

BINS = 15


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits float[N, K] into probabilities float64[N, K]."""
    return np.exp(log_softmax(logits))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits float[N, K] into log probabilities float64[N, K]."""
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples whose most probable class is the label (the first one of ties)."""
    probabilities, labels = _checked(probabilities, labels)
    return float((probabilities.argmax(axis=1) == labels).mean())


def class_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Accuracy on the examples of each class, float64[K]; nan for a class without examples."""
    probabilities, labels = _checked(probabilities, labels)
    hits = probabilities.argmax(axis=1) == labels
    num_classes = probabilities.shape[1]
    sizes = np.bincount(labels, minlength=num_classes).astype(np.float64)
    sizes[sizes == 0] = np.nan
    return np.bincount(labels, weights=hits, minlength=num_classes) / sizes


def group_accuracy(probabilities: np.ndarray, labels: np.ndarray, members: np.ndarray) -> float:
    """Mean of the accuracies of the classes in a group, bool[K]; nan for a group without examples."""
    values = class_accuracy(probabilities, labels)[members]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: |accuracy - confidence| of each bin, weighted by its examples.

    Confidence is the largest probability. Bins are (a, b], equally wide; a confidence of exactly 0
    counts in the first, one above 1 by rounding in the last.

    Source: Eq. D.2 of the paper's supplement; Naeini et al., AAAI 2015.
    """
    gaps, sizes = _bins(probabilities, labels, bins)
    return float((gaps * sizes).sum() / sizes.sum())


def mce(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Maximum calibration error: the largest |accuracy - confidence| over the bins of `ece`.

    Source: Eq. D.3 of the paper's supplement.
    """
    gaps, _ = _bins(probabilities, labels, bins)
    return float(gaps.max())


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood in nats; a probability of 0 counts as the smallest positive float."""
    probabilities, labels = _checked(probabilities, labels)
    true = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(true, np.finfo(np.float64).tiny)).mean())


MEASURES = {"accuracy": accuracy, "ece": ece, "mce": mce, "nll": nll}


def summary(predictions: Predictions) -> dict:
    """Measure predictions: what `metrics.json` holds of one split.

    Args:
      predictions: logits and labels; with counts that differ, of three classes or more, also the groups of
        classes, by shots, or by thirds where the shot rule leaves one empty.

    Returns:
      images, accuracy, ece, mce, nll, bins, class_accuracy (a list), and with counts many, medium,
      few, groups ("shots" or "thirds"). What cannot be had (a class without images) is None.
    """
    if predictions.labels is None:
        raise UserError("these predictions have no labels, so they cannot be measured")
    probabilities, labels = softmax(predictions.logits), np.asarray(predictions.labels)
    values = {name: measure(probabilities, labels) for name, measure in MEASURES.items()}
    values |= {"images": len(labels), "bins": BINS}
    values["class_accuracy"] = [_none_if_nan(v) for v in class_accuracy(probabilities, labels)]
    counts = predictions.counts
    if counts is not None and len(counts) > 2 and np.min(counts) < np.max(counts):
        by, groups = choose_groups(counts)
        values["groups"] = by
        values |= {g: _none_if_nan(group_accuracy(probabilities, labels, m)) for g, m in groups.items()}
    return values


def choose_groups(counts: np.ndarray) -> tuple[str, dict[str, np.ndarray]]:
    """Return ("shots", groups), or ("thirds", groups) where the shot rule leaves a group empty."""
    by_shots = priors.groups(counts, "shots")
    if all(members.any() for members in by_shots.values()):
        return "shots", by_shots
    return "thirds", priors.groups(counts, "thirds")


def _bins(probabilities, labels, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Return |accuracy - confidence| (0 where empty) and the number of examples of each bin, float64[bins]."""
    probabilities, labels = _checked(probabilities, labels)
    if bins < 1:
        raise UserError(f"bins is {bins}; there must be at least 1")
    confidence = probabilities.max(axis=1)
    hits = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    sizes = np.bincount(place, minlength=bins).astype(np.float64)
    sums = [np.bincount(place, weights=values, minlength=bins) for values in (hits, confidence)]
    return np.abs(sums[0] - sums[1]) / np.maximum(sizes, 1), sizes


def _checked(probabilities, labels) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise UserError(f"probabilities {probabilities.shape} and labels {labels.shape} must be [N, K] and [N], N > 0")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise UserError(f"labels must be integers in 0..{probabilities.shape[1] - 1}")
    # Written such that nan fails too.
    if not (probabilities.min() >= 0 and probabilities.max() <= 1 + 1e-6):
        raise UserError("probabilities must lie in 0..1; give logits to softmax() first")
    if not np.abs(probabilities.sum(axis=1) - 1).max() <= 1e-5:
        raise UserError("each row of probabilities must sum to 1")
    return probabilities, labels


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
