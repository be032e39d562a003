"""Logits for another prior: shifting to a known one, temperature, and estimating one that nobody knows. numpy.

"Prior" is that of the labels in the data to predict. All that is estimated here rests on *label shift*: between
the data the model was calibrated on and the data to predict only the shares of the classes differ, not what the
images of a class look like.
"""

from typing import NamedTuple

import numpy as np

from unimix_jax import batch, priors
from unimix_jax.errors import UserError, one_of
from unimix_jax.measures import parts
from unimix_jax.measures.parts import normalised, softmax

METHODS = ("em", "bbse")
IMBALANCES = (100.0, 10.0, 1.0, 0.1, 0.01)  # of the test sets of Table D2
TEMPERATURES = 0.01, 100.0  # where a temperature is looked for
_LEAST = 1e-6  # what an estimated share is at least, times 1/K: a prior must be positive to be shifted to
_PULL = 3.0  # standard deviation of a share around that of the validation images in BBSE, times 1/K
_BIAS = 1.0  # standard deviation of a bias around what is expected of it, see the table in docs/measures.md
_STEPS = 3000  # of EM
_ROUNDS = 3  # of BBSE, whose errors depend on the shares
_SPREAD = 0.1  # total variation between an estimate and those of other samples, above which that is said
_MISFIT = 4.0  # standard errors of the mean confidence, beyond which label shift is in doubt
_MISFIT_LEAST = 0.03  # and by this much at least: the calibration is not exact either
_FEW = 10  # validation images of a class, below which an estimate from them is not to be trusted


def shift_prior(logits: np.ndarray, from_prior: np.ndarray, to_prior: np.ndarray) -> np.ndarray:
    """Turn logits that stand for one prior of the labels into logits that stand for another.

    Args:
      logits: float[N, K]; softmax(logits) estimates the posterior under `from_prior`.
      from_prior: float[K], positive; such as `Predictions.logits_prior`.
      to_prior: float[K], positive; both are normalised here.

    Returns:
      float64[N, K]: logits + log(to) - log(from).

    Raises:
      UserError: a prior of another length, or one that is not positive.

    Source: Bayes' rule; Eq. B.17 of the paper's supplement.
    """
    logits = batch.checked_logits(logits, "logits")
    shift = np.log(_prior(to_prior, logits.shape[1], "to_prior"))
    return logits + (shift - np.log(_prior(from_prior, logits.shape[1], "from_prior")))


def cut(labels: np.ndarray, counts: np.ndarray, imbalance: float, seed: int = 0) -> np.ndarray:
    """Choose a test set of another imbalance: an exponential profile, of which images are discarded to fit.

    The largest class keeps as many images as the smallest class has.

    Args:
      labels: int[N] of a test set.
      counts: int[K], training images: the class with the most is the first of the profile.
      imbalance: > 0, largest class / smallest; below 1 the order is turned round, so that the rarest class in
        training has the most images. A profile can leave a class without images.
      seed: of which images stay.

    Returns:
      int64[M], positions, rising.

    Raises:
      UserError: an imbalance that is not positive, or a class without test images.

    Source: D.2 of the paper's supplement; which images stay is not said there.
    """
    if not (np.isfinite(imbalance) and imbalance > 0):
        raise UserError(f"imbalance is {imbalance:g}; that of a test set must be a positive number")
    sizes = priors.class_counts(labels, len(counts))
    if not sizes.all():
        raise UserError(f"class {np.flatnonzero(sizes == 0)[0]} has no test image, so no test set of all can be cut")
    profile = priors.profile("exp", int(sizes.min()), len(counts), max(imbalance, 1 / imbalance))
    kept = np.empty_like(sizes)
    kept[np.argsort(-np.asarray(counts), kind="stable")] = profile if imbalance >= 1 else profile[::-1]
    return np.sort(priors.long_tailed_subset(np.asarray(labels), kept, seed))


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
    logits = np.asarray(batch.checked_logits(logits, "logits"), np.float64)
    labels = batch.checked_labels(labels, logits.shape, "labels")
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
        return parts.surprise_of_logits(logits * scale, labels).mean()

    return float(1 / inverse) if value(inverse) < value(1.0) else 1.0


class Calibration(NamedTuple):
    """What `calibrated` does to logits: divide by a temperature, add a bias a class."""

    temperature: float
    bias: np.ndarray  # float64[K], mean 0
    prior: np.ndarray  # float64[K], what calibrated logits stand for


def fit_bias_corrected(
    logits: np.ndarray,
    labels: np.ndarray,
    logits_prior: np.ndarray | None = None,
    start: Calibration | None = None,
) -> Calibration:
    """Fit a temperature and a bias a class by NLL: calibrated probabilities of the labels' own prior.

    Each bias is pulled to what is expected of it, as by a Gaussian around that: a few images of a class say less of its
    bias than the model itself does, and a class without images has one too. Where `logits_prior` is known,
    log(share of the labels / logits_prior) is expected; else 0.

    Args:
      logits: float[N, K] of validation data.
      labels: int[N].
      logits_prior: float[K], what softmax(logits) stands for, such as `Predictions.logits_prior`; None if unknown.
      start: where to begin; None for a fitted temperature and the biases that are expected.

    Returns:
      The `Calibration`; its NLL with the pull is never above that of `start`.

    Source: Alexandari, Kundaje, Shrikumar, ICML 2020 (bias-corrected temperature scaling); the pull is ours.
    """
    from scipy.optimize import minimize

    logits = np.asarray(batch.checked_logits(logits, "logits"), np.float64)
    labels = batch.checked_labels(labels, logits.shape, "labels")
    size, classes = logits.shape
    rows = np.arange(size)
    # One image in all is shared out, so that no share is 0.
    shares = (np.bincount(labels, minlength=classes) + 1 / classes) / (size + 1)
    expected = np.zeros(classes)
    if logits_prior is not None:
        expected = np.log(shares / _prior(logits_prior, classes, "logits_prior"))
        expected -= expected.mean()

    def loss(theta):
        inverse, bias = np.exp(theta[0]), theta[1:]
        shifted = normalised(inverse * logits + bias)
        away = (bias - expected) / _BIAS
        value = (away**2).sum() / 2 - shifted[rows, labels].sum()
        probabilities = np.exp(shifted)
        probabilities[rows, labels] -= 1
        gradient = np.concatenate([[inverse * (probabilities * logits).sum()], probabilities.sum(axis=0)])
        gradient[1:] += away / _BIAS
        return value / size, gradient / size

    temperature, bias = (start.temperature, start.bias) if start else (fit_temperature(logits, labels), expected)
    first = np.concatenate([[-np.log(temperature)], bias])
    bounds = [(-np.log(TEMPERATURES[1]), -np.log(TEMPERATURES[0]))] + [(None, None)] * classes
    found = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500, "ftol": 1e-10})
    theta = found.x if found.fun < loss(first)[0] else first
    if logits_prior is None:
        # Biases that stay near 0 leave the logits' own prior in part: what they stand for now is what they say.
        shares = mean_shares(np.exp(normalised(np.exp(theta[0]) * logits + theta[1:])))
    return Calibration(float(np.exp(-theta[0])), theta[1:] - theta[1:].mean(), shares)


def calibrated(logits: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Apply a `Calibration` to logits float[N, K]; float64[N, K]."""
    return np.asarray(batch.checked_logits(logits, "logits"), np.float64) / calibration.temperature + calibration.bias


class Estimate(NamedTuple):
    """A prior estimated from unlabelled predictions."""

    prior: np.ndarray  # float64[K], positive, sums to 1
    low: np.ndarray  # float64[K], of a bootstrap interval
    high: np.ndarray  # float64[K]
    method: str  # "em" or "bbse"
    warnings: tuple[str, ...]  # why the estimate should not be trusted; () if nothing speaks against it


def em(
    probabilities: np.ndarray,
    source_prior: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    start: np.ndarray | None = None,
    steps: int = _STEPS,
    tolerance: float = 1e-6,
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the prior of unlabelled data by expectation-maximisation: its maximum likelihood.

    The likelihood sum_n log sum_c q_c p_nc / source_c is concave in q and never falls from step to step. Of each two
    steps the common direction is followed farther (SQUAREM), where that raises the likelihood: where classes are alike,
    plain steps are so short that they would seem to have settled.

    Args:
      probabilities: float64[N, K], calibrated for `source_prior`.
      source_prior: float64[K], positive.
      weights: float64[N, S], how often each example counts in each of S samples; None for one sample of all.
      start: float64[K], the first guess; None for `source_prior`.
      steps: at most; it ends sooner when no share moves by `tolerance` times itself and 1/K any more.
      tolerance: see `steps`.

    Returns:
      float64[K], or [K, S] with weights; and the mean log-likelihood of each step, float64[steps taken (, S)],
      each less the constant of the shares of `source_prior`.

    Raises:
      UserError: no probabilities, or a prior that is none.

    Source: Saerens, Latinne, Decaestecker, Neural Computation 2002; steps as Varadhan, Roland, Scandinavian Journal of
    Statistics 2008.
    """
    batch.check_probabilities(probabilities)
    source = _prior(source_prior, probabilities.shape[1], "source_prior")[:, None]
    ratios = probabilities / source.T
    # Only the direction of a row matters: the largest ratio of each is 1, so that none overflows.
    largest = ratios.max(axis=1, keepdims=True)
    ratios /= largest
    shares = np.full((len(ratios), 1), 1.0) if weights is None else np.asarray(weights, np.float64)
    totals = shares.sum(axis=0)
    constant = (np.log(largest) * shares).sum(axis=0) / totals
    prior = source if start is None else _prior(start, len(source), "start")[:, None]
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
    likelihoods = np.array(likelihoods)
    return (new[:, 0], likelihoods[:, 0]) if weights is None else (new, likelihoods)


def em_covariance(probabilities: np.ndarray, source_prior: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Covariance of the shares that `em` finds, from the curvature of the likelihood: float64[K, K].

    It is large in directions that the predictions do not tell apart, where a bootstrap of `em` stays at its start.

    Args:
      probabilities, source_prior: as for `em`.
      prior: float64[K] that it found.
    """
    batch.check_probabilities(probabilities)
    source = _prior(source_prior, probabilities.shape[1], "source_prior")
    scores = probabilities / source
    scores /= (scores @ prior)[:, None]
    # A share is known to 1 at worst; shares sum to 1.
    inverse = np.linalg.inv(scores.T @ scores + np.eye(len(prior)))
    row = inverse.sum(axis=0)
    return inverse - np.outer(row, row) / row.sum()


def bbse(probabilities: np.ndarray, held: np.ndarray, held_labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the prior of unlabelled data from the mean probabilities of each class's validation images.

    With column j of M the mean probabilities of the validation images of class j (the soft confusion matrix) and m
    those of the test images, label shift says M q = m for the shares q. The shares are the non-negative ones of highest
    posterior: the error of m - M q is Gaussian with the covariance that so many test images, and the q_j^2 of so many
    validation images of each class j, leave; each q_j is Gaussian around its share of the validation images, with a
    standard deviation of that or of 3/K, whichever is more. What has few validation images is pulled the most.

    Args:
      probabilities: float64[N, K] of the test images.
      held: float64[V, K] of the validation images.
      held_labels: int[V].

    Returns:
      The prior float64[K], sums to 1, and the posterior's standard deviation of each share, float64[K].

    Raises:
      UserError: no probabilities.

    Source: Lipton, Wang, Smola, ICML 2018, with the soft confusion matrix of Alexandari et al., ICML 2020;
    regularised as Azizzadenesheli et al., ICLR 2019, in spirit.
    """
    for given in (probabilities, held):
        batch.check_probabilities(given)
    size, classes = probabilities.shape
    counts = np.bincount(held_labels, minlength=classes)
    # A class without validation images looks like all of them together.
    means = np.stack([parts.class_means(column, held_labels, classes) for column in held.T])
    means = np.where(counts > 0, means, held.mean(axis=0)[:, None])
    target = probabilities.mean(axis=0)
    apart = held - means.T[held_labels]
    pooled = apart.T @ apart / len(held)
    centred = probabilities - target
    # Half an image where a class gets no probability at all: it is uncertain too.
    of_test = centred.T @ centred / size**2 + np.eye(classes) * (0.5 / size**2 + 0.5 / len(held) ** 2)
    centre = (counts + 1 / classes) / (len(held) + 1)
    pull = 1 / np.maximum(centre, _PULL / classes) ** 2
    shares = centre
    for _ in range(_ROUNDS):
        # The covariance of each class's images is its own and that of two images of the pooled one.
        each = shares**2 / np.maximum(counts, 0.5) / (counts + 2)
        spread = of_test + (each[held_labels, None] * apart).T @ apart + 2 * each.sum() * pooled
        weighted = np.linalg.solve(spread, means)
        system, right = means.T @ weighted + np.diag(pull), weighted.T @ target + pull * centre
        shares = _not_negative(system, right)
    return priors.prior(np.maximum(shares, _LEAST / classes)), np.sqrt(np.diag(np.linalg.inv(system)))


def _not_negative(system: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve a linear system; solutions below 0 are set to 0 and the others solved for again, until none is."""
    free = np.full(len(right), True)
    while True:
        found = np.zeros(len(right))
        found[free] = np.linalg.solve(system[np.ix_(free, free)], right[free])
        if found.min() >= 0:
            return found
        free &= found > 0


def estimate_prior(
    logits: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
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
      validation: logits float[V, K] and labels int[V] of the same model, for the calibration and BBSE; its prior
        may be any.
      logits_prior: float[K], what softmax(logits) stands for: the calibration begins with it, and EM falls back to it
        without validation data.
      method: "em" or "bbse".
      calibration: of `fit_bias_corrected` on the validation data, if it is already there.
      samples: of the bootstrap; 0 for no interval (nan). Both test and validation images are drawn again; the
        calibration is fitted anew for every tenth sample. An interval reaches at least as far as the standard errors
        of the method itself do, which see what no resampling moves. BBSE's are these alone.
      level: of the interval.
      seed: of the draws.

    Returns:
      An `Estimate`, with warnings in plain words.

    Raises:
      UserError: neither validation data nor a prior that the logits stand for; BBSE without validation data.
    """
    from scipy.stats import norm

    one_of("method", method, METHODS)
    if samples < 0 or not 0 < level < 1:
        raise UserError(f"{samples} samples at level {level:g}: give 0 samples or more, and a level in 0..1")
    logits = batch.checked_logits(logits, "logits")
    size, classes = logits.shape
    warnings = []
    if validation is None:
        if method == "bbse":
            raise UserError("BBSE needs labelled validation predictions: its confusion matrix is theirs")
        if logits_prior is None:
            raise UserError(
                "to estimate the test prior, give labelled validation predictions, or the prior that the logits "
                "stand for (logits_prior)"
            )
        source, probabilities = _prior(logits_prior, classes, "logits_prior"), softmax(logits)
        warnings.append("the probabilities were not calibrated first, for there are no validation predictions")
    else:
        held_logits, held_labels = validation
        held_logits = batch.checked_logits(held_logits, "logits of the validation predictions")
        held_labels = batch.checked_labels(held_labels, held_logits.shape, "labels of the validation predictions")
        if held_logits.shape[1] != classes:
            raise UserError(
                f"the validation predictions have {held_logits.shape[1]} classes, those to predict {classes}; both "
                "must come from one model"
            )
        calibration = calibration or fit_bias_corrected(held_logits, held_labels, logits_prior)
        held = softmax(calibrated(held_logits, calibration))
        source = calibration.prior
        probabilities = softmax(calibrated(logits, calibration))
        if words := few_images(held_labels, classes):
            warnings.append(f"{words}, so that what is learnt from them is uncertain")
    random = np.random.Generator(np.random.Philox(key=seed))

    def by_em():
        prior, likelihoods = em(probabilities, source)
        if len(likelihoods) >= _STEPS:
            warnings.append(f"EM had not settled after {_STEPS} steps: some shares may be others")
        covariance = em_covariance(probabilities, source, prior)
        start, drawn = np.maximum(prior, _LEAST / classes), [np.empty((0, classes))]
        for first in range(0, samples, 10):
            resampled = probabilities, source
            if validation is not None:
                index = random.integers(len(held_labels), size=len(held_labels))
                again = fit_bias_corrected(held_logits[index], held_labels[index], logits_prior, calibration)
                resampled = softmax(calibrated(logits, again)), again.prior
            many = min(10, samples - first)
            weights = random.multinomial(size, np.full(size, 1 / size), size=many).T
            drawn.append(em(*resampled, weights=weights, start=start, steps=100, tolerance=1e-4)[0].T)
        if validation is not None:
            warnings.extend(_misfit(prior, covariance, held, held_labels, probabilities))
        return prior, np.sqrt(np.maximum(np.diag(covariance), 0)), np.concatenate(drawn)

    if method == "em":
        prior, errors, drawn = by_em()
    else:
        prior, errors = bbse(probabilities, held, held_labels)
        drawn = prior[None]  # its errors hold the chance of both sets of images
    prior = priors.prior(np.maximum(prior, _LEAST / classes))
    if not samples:
        return Estimate(prior, *np.full((2, classes), np.nan), method, tuple(warnings))
    tail = 50 * (1 - level)
    low, high = np.percentile(drawn, [tail, 100 - tail], axis=0)
    half = norm.ppf((1 + level) / 2) * errors
    low, high = np.clip([np.minimum(low, prior - half), np.maximum(high, prior + half)], 0, 1)
    # Half the sum of the shares' mean deviations, that of a Gaussian being .8 of its standard deviation.
    spread = min(max(np.abs(drawn - prior).sum(axis=1).mean() / 2, 0.4 * errors.sum()), 1.0)
    if spread > _SPREAD:
        warnings.append(
            f"the shares are uncertain: other images of the same kind would move {100 * spread:.0f} % of them"
        )
    return Estimate(prior, low, high, method, tuple(warnings))


def _misfit(
    prior: np.ndarray, covariance: np.ndarray, held: np.ndarray, held_labels: np.ndarray, probabilities: np.ndarray
) -> list[str]:
    """Say if test images are less or more certain than label shift explains.

    Under label shift the mean of anything that is computed of an image is that of the validation images, class by
    class, weighted by the new prior. Here it is the confidence.
    """
    confidence, held_confidence = probabilities.max(axis=1), held.max(axis=1)
    sizes = np.bincount(held_labels, minlength=len(prior))
    # A class with few validation images takes the mean and variance of all of them in part.
    weight = sizes / (sizes + 2)
    known = sizes > 0
    means = np.full(len(prior), held_confidence.mean())
    means[known] = parts.class_means(held_confidence, held_labels, len(prior))[known]
    means = weight * means + (1 - weight) * held_confidence.mean()
    variances = held_confidence.var() / (sizes + 2)
    expected = prior @ means
    variance = confidence.var() / len(confidence) + prior**2 @ variances + means @ covariance @ means
    if abs(confidence.mean() - expected) <= max(_MISFIT * np.sqrt(max(variance, 0)), _MISFIT_LEAST):
        return []
    return [
        f"the model is {100 * confidence.mean():.1f} % confident of these images, where other shares of the validation "
        f"images' classes would make it {100 * expected:.1f} %: the images themselves seem to differ"
    ]


def few_images(labels: np.ndarray, classes: int) -> str:
    """Say how many classes have too few validation images to learn much from; "" where none has."""
    few = int((np.bincount(labels, minlength=classes) < _FEW).sum())
    return f"{few} of {classes} classes have fewer than {_FEW} validation images" if few else ""


def mean_shares(probabilities: np.ndarray) -> np.ndarray:
    """Return the mean of float64[N, K] probabilities, float64[K], with a floor for a class that has none at all."""
    return np.maximum(probabilities.mean(axis=0), _LEAST / probabilities.shape[1])


def _prior(prior: np.ndarray, classes: int, name: str) -> np.ndarray:
    prior = np.asarray(prior, np.float64)
    if prior.shape != (classes,) or not np.isfinite(prior).all() or not (prior > 0).all():
        raise UserError(f"{name} has shape {list(prior.shape)}; it must hold {classes} positive numbers, one a class")
    return prior / prior.sum()
