"""The arrays that travel between the rooms. Plain tuples: numpy on the host, traced in the step.

Predictions come from anyone: the checks below say in one sentence what is wrong with them.
"""

from typing import NamedTuple

import numpy as np

from unimix_jax.errors import UserError


class Picks(NamedTuple):
    """Which examples make a batch: positions in the data set, before any pixel is touched."""

    index: np.ndarray  # int64[B]
    view: np.ndarray  # int32[B], the example's number in the global batch
    partner: np.ndarray | None = None  # int64[B], the second image of each mixed pair
    partner_view: np.ndarray | None = None  # int32[B]


class Batch(NamedTuple):
    """The images and labels of a step, raw, with their partners where images are mixed."""

    image: np.ndarray  # uint8[B, H, W, C]
    label: np.ndarray  # int32[B]
    view: np.ndarray  # int32[B]
    partner_image: np.ndarray | None = None  # uint8[B, H, W, C]
    partner_label: np.ndarray | None = None  # int32[B]
    partner_view: np.ndarray | None = None  # int32[B]


class Predictions(NamedTuple):
    """What a trained model says of a split: all that the measures need, whoever made it."""

    logits: np.ndarray  # float32[N, K]; softmax(logits) are the probabilities
    labels: np.ndarray | None = None  # int32[N]
    counts: np.ndarray | None = None  # int64[K], training images per class
    logits_prior: np.ndarray | None = None  # float64[K], the prior softmax(logits) stands for
    class_names: tuple[str, ...] | None = None  # K names


def checked(predictions: Predictions, name: str = "the predictions") -> Predictions:
    """Return predictions as arrays whose shapes and values agree.

    Args:
      predictions: as a user gave them.
      name: of the predictions, for the sentence of an error; such as a file's path.

    Raises:
      UserError: one sentence about the first array that is wrong.
    """
    logits = checked_logits(predictions.logits, f"logits of {name}")
    classes = logits.shape[1]
    labels, counts, prior, names = predictions.labels, None, None, None
    if labels is not None:
        labels = checked_labels(labels, logits.shape, f"labels of {name}")
    if predictions.counts is not None:
        counts = np.asarray(predictions.counts)
        if counts.dtype.kind not in "iu" or counts.shape != (classes,) or counts.min() < 0 or not counts.any():
            raise UserError(
                f"counts of {name} are {counts.dtype}{list(counts.shape)}; they must be {classes} integers, the "
                "training images of each class, not all 0"
            )
        if counts.max() > 2**53:  # sums of more would be wrong
            raise UserError(f"counts of {name} hold {counts.max()}, which is more images than there are")
        counts = counts.astype(np.int64)
    if predictions.logits_prior is not None:
        prior = np.asarray(predictions.logits_prior)
        if (
            prior.dtype.kind not in "fiu"
            or prior.shape != (classes,)
            or not (prior > 0).all()
            or not abs(prior.sum() - 1) < 1e-5
        ):
            raise UserError(f"logits_prior of {name} must be {classes} positive numbers that sum to 1")
        prior = prior.astype(np.float64)
    if predictions.class_names is not None:
        # Control characters and halves of characters could be written nowhere.
        names = (str(name).encode(errors="replace").decode() for name in predictions.class_names)
        names = tuple("".join(c if c.isprintable() else " " for c in name) for name in names)
        if len(names) != classes:
            raise UserError(f"class_names of {name} are {len(names)}, but its logits have {classes} classes")
    return Predictions(logits, labels, counts, prior, names)


def checked_logits(logits, what: str) -> np.ndarray:
    """Return logits as float32 or float64 [N, K], N > 0, K > 1, finite and of a size whose squares are finite too.

    Raises:
      UserError: another shape, no numbers, nan, infinity, or an entry beyond 1e100.
    """
    logits = checked_scores(logits, what)
    lowest, highest = float(logits.min()), float(logits.max())  # nan comes through both
    if not (lowest >= -1e100 and highest <= 1e100):
        raise UserError(f"{what} hold nan, infinity or numbers beyond 1e100; each must be a finite number")
    return logits


def checked_scores(scores, what: str) -> np.ndarray:
    """Return logits or probabilities as float32 or float64 [N, K], N > 0, K > 1.

    Raises:
      UserError: another shape, or no numbers.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.dtype.kind not in "fiu" or not len(scores) or scores.shape[1] < 2:
        raise UserError(
            f"{what} are {scores.dtype}{list(scores.shape)}; they must be numbers [N, K], a row an example and a "
            "column a class, with N > 0 and K > 1"
        )
    return scores if scores.dtype in (np.float32, np.float64) else scores.astype(np.float64)


def checked_labels(labels, shape: tuple[int, int], what: str) -> np.ndarray:
    """Return labels as int64[N] in 0..K-1, for scores of a shape (N, K).

    Raises:
      UserError: another shape or length, no integers, or a label that is no class.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape != shape[:1]:
        raise UserError(f"{what} are {labels.dtype}{list(labels.shape)}; they must be integers [{shape[0]}]")
    wrong = labels[(labels < 0) | (labels >= shape[1])]
    if len(wrong):
        raise UserError(f"{what} hold {wrong[0]}; with {shape[1]} classes they must lie in 0..{shape[1] - 1}")
    return labels.astype(np.int64)


def check_probabilities(probabilities: np.ndarray, what: str = "probabilities") -> None:
    """Refuse float[N, K] that are no probabilities; rounding is allowed: 1e-6 above 1, row sums within 1e-5.

    Raises:
      UserError: nan, an entry outside of 0..1, or a row that does not sum to 1.
    """
    lowest, highest = probabilities.min(), probabilities.max()
    if np.isnan(lowest) or np.isnan(highest):
        raise UserError(f"{what} hold nan")
    if lowest < 0 or highest > 1 + 1e-6:
        outside = lowest if lowest < 0 else highest
        raise UserError(f"{what} hold {outside:g}; they must lie in 0..1 (logits go through softmax first)")
    off = np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1)
    if off.max() > 1e-5:
        row = int(off.argmax())
        total = probabilities[row].sum(dtype=np.float64)
        raise UserError(
            f"{what} of example {row} sum to {total:.6g}; each row must sum to 1 within 1e-5 (where half precision is "
            "too coarse for that, give the logits)"
        )
