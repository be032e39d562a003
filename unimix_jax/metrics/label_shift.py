"""Label shift: logits for another prior of the labels, and estimates of a prior that is not known.

"Prior" means the prior of the labels in the data to predict. The estimates assume *label shift*: only the shares of the
classes differ between the data on which the model was calibrated and the data to predict, not the images of a class.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from unimix_jax import names, priors
from unimix_jax.errors import UserError, one_of
from unimix_jax.metrics import per_example
from unimix_jax.metrics.calibration import Calibration, calibrated, fit_bias_corrected
from unimix_jax.metrics.per_example import LEAST_SHARE, softmax
from unimix_jax.metrics.predictions import (
    Predictions,
    check_probabilities,
    checked_labels,
    checked_logits,
    checked_prior,
    labelled_predictions,
)

__all__ = [
    "IMBALANCES",
    "METHODS",
    "Estimate",
    "bbse",
    "em",
    "em_covariance",
    "estimate_prior",
    "few_images",
    "shift_prior",
]
__getattr__, __dir__ = names.of_module(__name__, __all__)

METHODS = ("em", "bbse")
IMBALANCES = (100.0, 10.0, 1.0, 0.1, 0.01)  # of the test sets of Table D2
_PULL = 3.0  # standard deviation of a share around that of the validation images in BBSE, times 1/K
_STEPS = 3000  # of EM
_ROUNDS = 3  # of BBSE, whose errors depend on the shares
_SPREAD = 0.1  # total variation between an estimate and those of other samples, above which that is said
_MISFIT = 4.0  # standard errors of the mean confidence, beyond which label shift is in doubt
_MISFIT_LEAST = 0.03  # and by this much at least: the calibration is not exact either
_FEW = 10  # validation images of a class, below which an estimate from them is not to be trusted


def shift_prior(logits: np.ndarray, from_prior: np.ndarray, to_prior: np.ndarray) -> np.ndarray:
    """Return logits for another prior of the labels.

    Args:
      logits: float[N, K]; softmax(logits) estimates the posterior under `from_prior`.
      from_prior: float[K], positive; such as `Predictions.logits_prior`.
      to_prior: float[K]; 0 for a class that does not occur, whose logits become -inf and whose probability 0. Both
        priors are normalised here.

    Returns:
      float64[N, K]: logits + log(to) - log(from).

    Raises:
      UserError: a prior has another length or a negative number, or `from_prior` a 0.

    Source: Bayes' rule; Eq. B.17 of the paper's supplement.

    >>> shift_prior(np.array([[0.0, 2.0]]), [0.5, 0.5], [0.2, 0.8]).round(3).tolist()
    [[-0.916, 2.47]]
    """
    logits = checked_logits(logits, "logits")
    with np.errstate(divide="ignore"):  # log 0 = -inf is meant
        shift = np.log(checked_prior(to_prior, logits.shape[1], "to_prior", zeros=True))
    return logits + (shift - np.log(checked_prior(from_prior, logits.shape[1], "from_prior")))


class Estimate(NamedTuple):
    """A prior that was estimated from predictions without labels."""

    prior: np.ndarray  # float64[K], positive, sums to 1
    low: np.ndarray  # float64[K], of a bootstrap interval
    high: np.ndarray  # float64[K]
    method: str  # "em" or "bbse"
    warnings: tuple[str, ...]  # reasons not to trust the estimate


def em(
    probabilities: np.ndarray,
    source_prior: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    start: np.ndarray | None = None,
    steps: int = _STEPS,
    tolerance: float = 1e-6,
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the prior of unlabelled data by expectation-maximisation, which finds its maximum likelihood.

    The likelihood sum_n log sum_c q_c p_nc / source_c is concave in q and never falls from step to step. After each
    two steps their common direction is followed further (SQUAREM) if this raises the likelihood: for classes that
    look alike, plain steps become so short that they would seem to have converged.

    Args:
      probabilities: float64[N, K], calibrated for `source_prior`.
      source_prior: float64[K], positive.
      weights: float64[N, S], how often each example counts in each of S samples; None for one sample of all.
      start: float64[K], the first guess; None for `source_prior`.
      steps: at most; it ends sooner when no share moves by `tolerance` times itself and 1/K any more.
      tolerance: see `steps`.

    Returns:
      float64[K], or [K, S] with weights; and the mean log-likelihood of each step, float64[steps taken (, S)], without
      the constant of the shares of `source_prior`.

    Raises:
      UserError: an array does not hold probabilities, or not a prior.

    Source: Saerens, Latinne, Decaestecker, Neural Computation 2002; steps as Varadhan, Roland, Scandinavian Journal of
    Statistics 2008.

    >>> em(np.array([[0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [0.1, 0.9]]), np.array([0.5, 0.5]))[0].round(2).tolist()
    [0.8, 0.2]
    """
    check_probabilities(probabilities)
    source = checked_prior(source_prior, probabilities.shape[1], "source_prior")[:, None]
    ratios = probabilities / source.T
    # Only the direction of a row matters: the largest ratio of each is 1, so that none overflows.
    largest = ratios.max(axis=1, keepdims=True)
    ratios /= largest
    shares = np.full((len(ratios), 1), 1.0) if weights is None else np.asarray(weights, np.float64)
    totals = shares.sum(axis=0)
    constant = (np.log(largest) * shares).sum(axis=0) / totals
    prior = source if start is None else checked_prior(start, len(source), "start")[:, None]
    prior = np.repeat(prior, shares.shape[1], axis=1)

    def step(prior):
        """The prior one step on, and the likelihood before it."""
        mixture = ratios @ prior  # [N, S]
        likelihood = (np.log(mixture) * shares).sum(axis=0) / totals + constant
        return prior * (ratios.T @ (shares / mixture)) / totals, likelihood

    likelihoods = []
    new, likelihood = step(prior)
    likelihoods.append(likelihood)
    while len(likelihoods) < steps and (np.abs(new - prior) / (prior + 1 / len(source))).max() >= tolerance:
        newer, likelihood = step(new)
        likelihoods.append(likelihood)
        first, change = new - prior, newer - 2 * new + prior
        tiny = np.finfo(np.float64).tiny
        length = np.sqrt((first**2).sum(axis=0) / np.maximum((change**2).sum(axis=0), tiny))
        far = prior + length * (2 * first + length * change)
        # No share may become 0 in a leap, for it would stay there.
        far = np.where(length > 1, np.maximum(far, 0.1 * newer), newer)
        far /= far.sum(axis=0)
        new, reached = step(far)
        if (worse := reached < likelihood).any():
            far = np.where(worse, newer, far)
            new, reached = step(far)
        prior = far
        likelihoods.append(np.maximum(reached, likelihood))  # they differ by rounding at the end
    reached_by_step = np.array(likelihoods)
    return (new[:, 0], reached_by_step[:, 0]) if weights is None else (new, reached_by_step)


def em_covariance(probabilities: np.ndarray, source_prior: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Return the covariance of the shares that `em` estimates, from the curvature of the likelihood.

    It is large in directions that the predictions do not distinguish, where a bootstrap of `em` stays at its start.

    Args:
      probabilities: see `em`.
      source_prior: see `em`.
      prior: float64[K], the estimate of `em`.

    Returns:
      float64[K, K].

    >>> probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [0.1, 0.9]])
    >>> em_covariance(probabilities, np.array([0.5, 0.5]), np.array([0.8, 0.2])).round(2).tolist()
    [[0.07, -0.07], [-0.07, 0.07]]
    """
    check_probabilities(probabilities)
    source = checked_prior(source_prior, probabilities.shape[1], "source_prior")
    scores = probabilities / source
    scores /= (scores @ prior)[:, None]
    # A share is known to 1 at worst; shares sum to 1.
    inverse = np.linalg.inv(scores.T @ scores + np.eye(len(prior)))
    row = inverse.sum(axis=0)
    return inverse - np.outer(row, row) / row.sum()


def bbse(
    probabilities: np.ndarray, validation: np.ndarray, validation_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the prior of unlabelled data from the mean probabilities of each class's validation images.

    Column j of M holds the mean probabilities of the validation images of class j (the soft confusion matrix), and
    m the mean probabilities of the test images. Label shift implies M q = m for the shares q. The estimate is the
    non-negative q of highest posterior: the error of m - M q is Gaussian, with the covariance of the mean of the
    test images plus q_j^2 times that of the mean of the validation images of each class j; each q_j is Gaussian
    around its share of the validation images, with the larger of that share and 3/K as standard deviation. A class
    with few validation images is pulled the most.

    Args:
      probabilities: float64[N, K] of the test images.
      validation: float64[V, K] of the validation images.
      validation_labels: int[V].

    Returns:
      The prior float64[K], sums to 1, and the posterior's standard deviation of each share, float64[K].

    Raises:
      UserError: an array does not hold probabilities.

    Source: Lipton, Wang, Smola, ICML 2018, with the soft confusion matrix of Alexandari et al., ICML 2020;
    regularised as Azizzadenesheli et al., ICLR 2019, in spirit.

    >>> probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [0.1, 0.9]])
    >>> validation = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9]])
    >>> bbse(probabilities, validation, np.array([0, 0, 1, 1]))[0].round(2).tolist()
    [0.73, 0.27]
    """
    check_probabilities(probabilities)
    check_probabilities(validation)
    size, classes = probabilities.shape
    counts = np.bincount(validation_labels, minlength=classes)
    # A class without validation images looks like all of them together.
    means = np.stack([per_example.class_means(column, validation_labels, classes) for column in validation.T])
    means = np.where(counts > 0, means, validation.mean(axis=0)[:, None])
    target = probabilities.mean(axis=0)
    apart = validation - means.T[validation_labels]
    pooled = apart.T @ apart / len(validation)
    centred = probabilities - target
    # Half an image where a class gets no probability at all: it is uncertain too.
    of_test = centred.T @ centred / size**2 + np.eye(classes) * (0.5 / size**2 + 0.5 / len(validation) ** 2)
    centre = (counts + 1 / classes) / (len(validation) + 1)
    pull = 1 / np.maximum(centre, _PULL / classes) ** 2
    shares = centre
    for _ in range(_ROUNDS):
        # The covariance of each class's images is its own and that of two images of the pooled one.
        each = shares**2 / np.maximum(counts, 0.5) / (counts + 2)
        spread = of_test + (each[validation_labels, None] * apart).T @ apart + 2 * each.sum() * pooled
        weighted = np.linalg.solve(spread, means)
        system, right = means.T @ weighted + np.diag(pull), weighted.T @ target + pull * centre
        shares = _not_negative(system, right)
    return priors.prior(np.maximum(shares, LEAST_SHARE / classes)), np.sqrt(np.diag(np.linalg.inv(system)))


def _not_negative(system: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve a linear system; set solutions below 0 to 0 and solve for the others again, until none is below 0."""
    free = np.full(len(right), True)
    while True:
        solution = np.zeros(len(right))
        solution[free] = np.linalg.solve(system[np.ix_(free, free)], right[free])
        if solution.min() >= 0:
            return solution
        free &= solution > 0


def estimate_prior(
    logits: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray] | Predictions | str | os.PathLike | None = None,
    logits_prior: np.ndarray | None = None,
    method: str = "em",
    calibration: Calibration | None = None,
    samples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Estimate the prior of unlabelled data from a model's logits on it.

    Args:
      logits: float[N, K] of the data to predict.
      validation: logits float[V, K] and labels int[V] of the same model, as a pair, `Predictions`, or the path of
        their .npz file, for the calibration and BBSE; its prior may be any.
      logits_prior: float[K], the prior that softmax(logits) stands for; EM uses it if there is no validation data.
      method: "em" or "bbse".
      calibration: of `fit_bias_corrected` on the validation data, if it was fitted before.
      samples: of the bootstrap; 0 for no interval (nan). Both test and validation images are resampled; the
        calibration is fitted again for every tenth sample. An interval is at least as wide as the standard errors of
        the method, which include directions that resampling does not move. BBSE uses these alone.
      level: of the interval.
      seed: of the draws.

    Returns:
      The `Estimate` and its warnings.

    Raises:
      UserError: neither validation data nor a prior that the logits stand for; BBSE without validation data.

    >>> probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [0.1, 0.9]])
    >>> estimate_prior(np.log(probabilities), logits_prior=np.array([0.5, 0.5]), samples=0).prior.round(2).tolist()
    [0.8, 0.2]
    """
    one_of("method", method, METHODS)
    samples = priors.whole_number(samples, "samples", least=0)
    if not 0 < level < 1:
        raise UserError(f"level is {level:g}; it must lie between 0 and 1")
    logits = checked_logits(logits, "logits")
    classes = logits.shape[1]
    warnings = []
    if validation is None:
        if method == "bbse":
            raise UserError("BBSE needs labelled validation predictions: its confusion matrix is theirs")
        if logits_prior is None:
            raise UserError(
                "to estimate the test prior, give labelled validation predictions, or the prior that the logits "
                "stand for (logits_prior)"
            )
        source, probabilities = checked_prior(logits_prior, classes, "logits_prior"), softmax(logits)
        warnings.append("the probabilities were not calibrated first, for there are no validation predictions")
    else:
        validation = _checked_validation(validation, classes)
        calibration = calibration or fit_bias_corrected(*validation, logits_prior)
        source, probabilities = calibration.prior, softmax(calibrated(logits, calibration))
        validation_probabilities = softmax(calibrated(validation[0], calibration))
        if few := few_images(validation[1], classes):
            warnings.append(f"{few}, so that what is learnt from them is uncertain")
    if method == "em":
        prior, likelihoods = em(probabilities, source)
        if len(likelihoods) >= _STEPS:
            warnings.append(f"EM had not settled after {_STEPS} steps: some shares may be others")
        covariance = em_covariance(probabilities, source, prior)
        errors = np.sqrt(np.maximum(np.diag(covariance), 0))

        def resampled(random):
            """The probabilities and their prior, calibrated on validation images that are drawn again."""
            if validation is None:
                return probabilities, source
            index = random.integers(len(validation[1]), size=len(validation[1]))
            again = fit_bias_corrected(validation[0][index], validation[1][index], logits_prior, calibration)
            return softmax(calibrated(logits, again)), again.prior

        drawn = _em_bootstrap(resampled, np.maximum(prior, LEAST_SHARE / classes), len(logits), samples, seed)
        if validation is not None:
            warnings += _misfit(prior, covariance, validation_probabilities, validation[1], probabilities)
    else:
        prior, errors = bbse(probabilities, validation_probabilities, validation[1])
        drawn = prior[None]  # its errors hold the chance of both sets of images
    prior = priors.prior(np.maximum(prior, LEAST_SHARE / classes))
    if not samples:
        unknown = np.full(classes, np.nan)
        return Estimate(prior, unknown, unknown, method, tuple(warnings))
    low, high = _interval(prior, errors, drawn, level)
    # Half the sum of the shares' mean deviations, that of a Gaussian being .8 of its standard deviation.
    spread = min(max(np.abs(drawn - prior).sum(axis=1).mean() / 2, 0.4 * errors.sum()), 1.0)
    if spread > _SPREAD:
        warnings.append(
            f"the shares are uncertain: other images of the same kind would move {100 * spread:.0f} % of them"
        )
    return Estimate(prior, low, high, method, tuple(warnings))


def _checked_validation(validation: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return validation logits and labels after a check that they fit to logits of so many classes."""
    validation = labelled_predictions(validation, "validation")
    logits = checked_logits(validation.logits, "logits of the validation predictions")
    labels = checked_labels(validation.labels, logits.shape, "labels of the validation predictions")
    if logits.shape[1] != classes:
        raise UserError(
            f"the validation predictions have {logits.shape[1]} classes, those to predict {classes}; both must come "
            "from one model"
        )
    return logits, labels


def _em_bootstrap(resampled: Callable, start: np.ndarray, size: int, samples: int, seed: int) -> np.ndarray:
    """Return the priors that EM finds for resampled images, float64[samples, K].

    Args:
      resampled: called with a random generator for every tenth sample; returns probabilities and their prior.
      start: float64[K], the first guess.
      size: number of images.
      samples: of the bootstrap.
      seed: of the draws.
    """
    random = np.random.Generator(np.random.Philox(key=seed))
    drawn = [np.empty((0, len(start)))]
    for first in range(0, samples, 10):
        probabilities, source = resampled(random)
        weights = random.multinomial(size, np.full(size, 1 / size), size=min(10, samples - first)).T
        drawn.append(em(probabilities, source, weights=weights, start=start, steps=100, tolerance=1e-4)[0].T)
    return np.concatenate(drawn)


def _interval(prior: np.ndarray, errors: np.ndarray, drawn: np.ndarray, level: float) -> np.ndarray:
    """Return the ends of each share's interval, float64[2, K]: percentiles, and at least the standard errors."""
    from scipy.stats import norm

    tail = 50 * (1 - level)
    low, high = np.percentile(drawn, [tail, 100 - tail], axis=0)
    half = norm.ppf((1 + level) / 2) * errors
    return np.clip([np.minimum(low, prior - half), np.maximum(high, prior + half)], 0, 1)


def _misfit(
    prior: np.ndarray,
    covariance: np.ndarray,
    validation: np.ndarray,
    validation_labels: np.ndarray,
    probabilities: np.ndarray,
) -> list[str]:
    """Return a warning if test images are less or more certain than label shift explains, otherwise [].

    Under label shift the mean of any function of an image equals its mean over the validation images of each class,
    weighted by the new prior. The function here is the confidence.
    """
    confidence, validation_confidence = probabilities.max(axis=1), validation.max(axis=1)
    sizes = np.bincount(validation_labels, minlength=len(prior))
    # A class with few validation images takes the mean and variance of all of them in part.
    weight = sizes / (sizes + 2)
    known = sizes > 0
    means = np.full(len(prior), validation_confidence.mean())
    means[known] = per_example.class_means(validation_confidence, validation_labels, len(prior))[known]
    means = weight * means + (1 - weight) * validation_confidence.mean()
    variances = validation_confidence.var() / (sizes + 2)
    expected = prior @ means
    variance = confidence.var() / len(confidence) + prior**2 @ variances + means @ covariance @ means
    if abs(confidence.mean() - expected) <= max(_MISFIT * np.sqrt(max(variance, 0)), _MISFIT_LEAST):
        return []
    return [
        f"the model is {100 * confidence.mean():.1f} % confident of these images, where other shares of the validation "
        f"images' classes would make it {100 * expected:.1f} %: the images themselves seem to differ"
    ]


def few_images(labels: np.ndarray, classes: int) -> str:
    """Return how many classes have too few validation images to learn much from, in words; "" if none has.

    Args:
      labels: int[V], of the validation images.
      classes: K.

    Returns:
      A clause such as "3 of 10 classes have fewer than 10 validation images".

    >>> few_images(np.repeat([0, 1], [20, 3]), 2)
    '1 of 2 classes have fewer than 10 validation images'
    """
    few = int((np.bincount(labels, minlength=classes) < _FEW).sum())
    return f"{few} of {classes} classes have fewer than {_FEW} validation images" if few else ""
