"""Predictions of anyone's model: the type, the checks that say in one sentence what is wrong, and the .npz file."""

import io
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from unimix_jax import npz, priors, storage
from unimix_jax.errors import UserError

LOG_ZERO = float(np.log(np.finfo(np.float64).tiny))  # -708.4: the log probability that stands for a probability of 0
_ROUNDED = 5e-2  # row sums of probabilities in half precision or of two decimals miss 1 by less
_BELOW_ZERO = -1e-4  # probabilities that were computed as differences can be as low
_ROUNDED_FEW = 5e-3  # the same for few rows, where genuine logits could come nearer by chance
_MANY_ROWS = 20  # genuine logits do not come that near to 1 by chance in so many rows


class Predictions(NamedTuple):
    """The predictions of a model on a split: all that the metrics need, whoever made them."""

    logits: np.ndarray  # float32[N, K]; softmax(logits) are the probabilities
    labels: np.ndarray | None = None  # int32[N]
    counts: np.ndarray | None = None  # int64[K], training images per class
    logits_prior: np.ndarray | None = None  # float64[K], the prior softmax(logits) stands for
    class_names: tuple[str, ...] | None = None  # K names

    @classmethod
    def from_probabilities(
        cls, probabilities: ArrayLike, labels: ArrayLike | None = None, **others: Any
    ) -> "Predictions":
        """Make predictions from probabilities, whose logarithms become the logits.

        Args:
          probabilities: float[N, K], rows that sum to 1 within 1e-5; 0 counts as the smallest positive float64.
          labels: int[N], or None.
          **others: further fields by name.

        Returns:
          The predictions.

        Raises:
          UserError: the array does not hold probabilities.

        >>> Predictions.from_probabilities([[0.5, 0.5]], [1]).logits.round(3).tolist()
        [[-0.693, -0.693]]
        """
        return cls(logits_of_probabilities(probabilities, "probabilities"), labels, **others)


def checked_predictions(predictions: Predictions, name: str = "the predictions") -> Predictions:
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
        prior = priors.checked_counts(predictions.logits_prior, f"logits_prior of {name}", classes=classes)
        checked_prior(prior, classes, f"logits_prior of {name}")
        if not abs(prior.sum() - 1) < 1e-5:
            raise UserError(f"logits_prior of {name} sums to {prior.sum():.6g}; shares must sum to 1")
    if predictions.class_names is not None:
        # Control characters and halves of characters could be written nowhere.
        names = (str(name).encode(errors="replace").decode() for name in predictions.class_names)
        names = tuple("".join(c if c.isprintable() else " " for c in name) for name in names)
        if len(names) != classes:
            raise UserError(f"class_names of {name} are {len(names)}, but its logits have {classes} classes")
    return Predictions(logits, labels, counts, prior, names)


def checked_logits(logits: ArrayLike, what: str) -> np.ndarray:
    """Return logits as float32 or float64 [N, K], N > 0, K > 1, finite and of a size whose squares are finite too.

    An entry of -inf, the logarithm of a probability of 0, becomes the logit of the smallest positive float64: 708.4
    below the logarithm of its row's sum of exponentials.

    Raises:
      UserError: another shape, no numbers, nan, +inf, a row of -inf alone, an entry beyond 1e100, or probabilities
        (see `refuse_probabilities`).
    """
    logits = checked_scores(logits, what)
    lowest, highest = float(logits.min()), float(logits.max())  # nan comes through both
    if lowest == -np.inf and highest <= 1e100:
        logits = _without_infinity(logits, what)
        lowest = float(logits.min())
    if not (lowest >= -1e100 and highest <= 1e100):
        raise UserError(
            f"{what} hold nan, infinity or numbers beyond 1e100; each must be a finite number, or -inf for a "
            "probability of 0"
        )
    refuse_probabilities(logits, what)
    return logits


def refuse_probabilities(logits: np.ndarray, what: str) -> None:
    """Refuse probabilities, or per cent, under the name of logits: softmax would be taken of them once more.

    Refused are numbers [N, K] of which none is below 0 (rounding may leave -1e-4) and every row sums to 1, or every row
    to 100. How near the sums must come depends on what genuine logits do by chance: within 5 % in 20 rows or more, and
    for whole per cent; within .5 % in fewer rows of three classes or more, if none is above 1 (or 100) either; else
    within 1e-5. One-hot rows are such too. Genuine logits are so by chance in no practical case, and with 1 added to
    all of them never.

    Raises:
      UserError: they look like probabilities.
    """
    if not logits.size or logits.min() < _BELOW_ZERO:  # genuine logits go no further, but for a few
        return
    sums, highest = logits.sum(axis=1, dtype=np.float64), logits.max()
    for total, name in ((1, "probabilities"), (100, "per cent")):
        if len(sums) >= _MANY_ROWS or (total == 100 and (logits == np.round(logits)).all()):
            within = _ROUNDED
        else:
            within = _ROUNDED_FEW if logits.shape[1] > 2 and highest <= total else 1e-5
        if np.abs(sums / total - 1).max() <= within:
            raise UserError(
                f"{what} look like {name}: no entry is negative and every row sums to {total}, so softmax would be "
                "taken twice; give probabilities as such (array 'probabilities' of a file, or "
                "Predictions.from_probabilities) or give their logarithms; if these are logits all the same, add 1 to "
                "all, which changes no softmax"
            )


def logits_of_probabilities(probabilities: ArrayLike, what: str) -> np.ndarray:
    """Return the logarithm of probabilities [N, K], float64; 0 counts as the smallest positive float64.

    Raises:
      UserError: they are no probabilities, see `check_probabilities`.
    """
    probabilities = checked_scores(probabilities, what)
    check_probabilities(probabilities, what)
    logits = np.maximum(probabilities, np.finfo(np.float64).tiny, dtype=np.float64)
    return np.log(logits, out=logits)


def _without_infinity(logits: np.ndarray, what: str) -> np.ndarray:
    """Put the logit of the smallest positive float64 in the place of -inf: float64[N, K]."""
    logits = logits.astype(np.float64)
    largest = logits.max(axis=1, keepdims=True)
    if largest.min() == -np.inf:
        raise UserError(f"{what} hold -inf in all of row {int(largest.argmin())}; one class must have a probability")
    total = largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
    return np.where(logits == -np.inf, total + LOG_ZERO, logits)


def checked_scores(scores: ArrayLike, what: str) -> np.ndarray:
    """Return logits or probabilities as float32 or float64 [N, K], N > 0, K > 1.

    Raises:
      UserError: another shape, or no numbers.
    """
    scores = priors.array_of(scores, what)
    if scores.ndim != 2 or scores.dtype.kind not in "fiu" or not len(scores) or scores.shape[1] < 2:
        raise UserError(
            f"{what} are {scores.dtype}{list(scores.shape)}; they must be numbers [N, K], a row an example and a "
            "column a class, with N > 0 and K > 1"
        )
    return scores if scores.dtype in (np.float32, np.float64) else scores.astype(np.float64)


def checked_labels(labels: ArrayLike, shape: tuple[int, int], what: str) -> np.ndarray:
    """Return labels as int64[N] in 0..K-1, for scores of a shape (N, K).

    Raises:
      UserError: another shape or length, no integers, or a label that is no class.
    """
    labels = priors.array_of(labels, what)
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
            f"{what} of example {row} sum to {total:.6g}; each row must sum to 1 within 1e-5: divide each row by its "
            "sum, or give their logarithms as 'logits'"
        )


def write_predictions(path: pathlib.Path, predictions: Predictions) -> None:
    """Write predictions as an .npz file without pickles, by `write_whole`; leave out fields that are None."""
    arrays = {k: np.asarray(v) for k, v in predictions._asdict().items() if v is not None}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    storage.write_whole(path, buffer.getvalue())


def read_predictions(path: str | os.PathLike) -> Predictions:
    """Read and check predictions that `write_predictions` or another program wrote.

    The file may hold `probabilities` float[N, K] instead of `logits`: their logarithms are taken, and 0 counts as the
    smallest positive float.

    Args:
      path: of an .npz file with arrays named like the fields of `Predictions`.

    Returns:
      The predictions.

    Raises:
      UserError: the file does not exist, is not an .npz file, holds pickled objects, neither logits nor probabilities,
        or arrays that are not predictions.
    """
    arrays = npz.read_arrays(path, (*Predictions._fields, "probabilities"))
    if ("logits" in arrays) == ("probabilities" in arrays):
        problem = (
            "both 'logits' and 'probabilities'; one of them must go" if "logits" in arrays else "no array 'logits'"
        )
        raise UserError(f"{path} holds {problem}" + ("" if "logits" in arrays else " and no 'probabilities'"))
    if "probabilities" in arrays:
        arrays["logits"] = logits_of_probabilities(arrays.pop("probabilities"), f"probabilities of {path}")
    if "class_names" in arrays:
        arrays["class_names"] = npz.names_of(arrays["class_names"], f"class_names of {path}")
    return checked_predictions(Predictions(**arrays), str(path))


def labelled_predictions(predictions: Any, what: str) -> Predictions:
    """Return labelled predictions, such as those of validation images, in whichever form they are.

    Args:
      predictions: `Predictions` with labels, the pair (logits, labels), or the path of an .npz file of them.
      what: their name in the sentence of an error, such as "validation".

    Raises:
      UserError: something else, or no labels.

    >>> labelled_predictions((np.zeros((1, 2)), [1]), "validation").labels
    [1]
    """
    if isinstance(predictions, str | os.PathLike):
        predictions = read_predictions(predictions)
    elif not isinstance(predictions, Predictions):
        if not isinstance(predictions, tuple | list) or len(predictions) != 2:
            raise UserError(
                f"{what} is of the type {type(predictions).__name__}; it must be metrics.Predictions(logits, labels), "
                "the pair (logits, labels), or the path of an .npz file"
            )
        predictions = Predictions(*predictions)
    if predictions.labels is None:
        raise UserError(f"the {what} predictions have no labels")
    return predictions


def checked_prior(prior: ArrayLike, classes: int, name: str, *, zeros: bool = False) -> np.ndarray:
    """Return a prior as float64[K] that sums to 1.

    Args:
      prior: K numbers above 0.
      classes: K.
      name: of the prior, for the sentence of an error.
      zeros: whether some of them, but not all, may be 0.

    Returns:
      float64[K].

    Raises:
      UserError: another length, a number that is negative or not finite, or a 0.
    """
    shares = priors.checked_counts(prior, name, classes=classes)
    if not zeros and not shares.all():
        raise UserError(
            f"{name} is 0 for class {int(shares.argmin())}, and logits that stand for a share of 0 say nothing of that "
            "class; give it a share above 0, such as that of half an image, or leave the class out of all arrays"
        )
    return shares / shares.sum()
