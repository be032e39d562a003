"""Loss functions: logits and integer labels in, one value per example out. No devices, no averaging.

Every loss computes in float32, in float64 where that comes in, and returns that type.
"""

import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax.errors import one_of

SHAPES = ("concave", "linear", "convex", "exp")  # of label_aware_smoothing
FORMULAS = ("code", "paper")


def cross_entropy(logits, labels):
    """Minus the log of the softmax at the label.

    Args:
      logits: float[B, K].
      labels: int[B], 0 <= label < K.

    Returns:
      float32[B], in nats.

    Example: nothing known of two classes costs log 2.
      >>> cross_entropy(jnp.zeros((1, 2)), jnp.array([1]))
      Array([0.6931472], dtype=float32)
    """
    logits = _centred(logits)
    true = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - true


def focal(logits, labels, *, gamma: float = 1.0, inner_weight=None):
    """Cross entropy times (1 - p)**gamma, p the softmax at the label: easy examples count less.

    Args:
      logits: float[B, K].
      labels: int[B], 0 <= label < K.
      gamma: >= 0; 0 is cross entropy, 1 what LDAM-DRW runs.
      inner_weight: float[K], class weights put inside as LDAM-DRW does, p = softmax**weight: an
        accident there, kept to compare with it. Class weights of a stage multiply from outside.

    Returns:
      float32[B], in nats.

    Source: Eq. B.12 of the paper's supplement; kaidic/LDAM-DRW, losses.py `FocalLoss`.
    """
    loss = cross_entropy(logits, labels)
    if inner_weight is not None:
        loss = loss * jnp.asarray(inner_weight, loss.dtype)[labels]
    if gamma == 0:
        return loss
    # Bounded below, for at p = 1 the slope of a power below 1 is infinite.
    missing = jnp.maximum(-jnp.expm1(-loss), jnp.finfo(loss.dtype).tiny)
    return missing**gamma * loss


def cdt(logits, labels, *, counts, gamma: float = 0.2):
    """Cross entropy of logits divided by (n_max / n_class)**gamma; only in training.

    Args:
      logits: float[B, K].
      labels: int[B], 0 <= label < K.
      counts: int[K], training images per class, none 0.
      gamma: >= 0; 0 is cross entropy.

    Returns:
      float32[B], in nats.

    Source: Eq. B.14 of the paper's supplement; zhangyongshun/BagofTricks-LT,
    class_dependent_temperatures_loss.py.
    """
    counts = np.asarray(counts, np.float64)
    logits = _at_least_float32(logits)
    return cross_entropy(logits / jnp.asarray((counts.max() / counts) ** gamma, logits.dtype), labels)


def ldam(logits, labels, *, counts, max_margin: float = 0.5, scale: float = 30.0):
    """Cross entropy with the true logit lowered by scale * margin, the margin larger for rarer classes.

    The margin of a class is max_margin * (n_min / n_class)**(1/4). The logits carry the scale, as a
    cosine head gives them, so that softmax(logits) needs no other; the originals scale in the loss.

    Args:
      logits: float[B, K]; scale * cosine from a cosine head.
      labels: int[B], 0 <= label < K.
      counts: int[K], training images per class, none 0.
      max_margin: of the rarest class; 0 is cross entropy.
      scale: of the logits; 1 for a linear head.

    Returns:
      float32[B], in nats.

    Source: Eq. B.15 of the paper's supplement; kaidic/LDAM-DRW, losses.py `LDAMLoss`.
    """
    counts = np.asarray(counts, np.float64)
    margins = scale * max_margin * (counts.min() / counts) ** 0.25
    logits = _at_least_float32(logits)
    true = jnp.arange(logits.shape[1]) == labels[:, None]
    return cross_entropy(logits - true * jnp.asarray(margins, logits.dtype), labels)


def logit_adjustment(logits, labels, *, train_prior, strength: float = 1.0):
    """Cross entropy of logits + strength * log(train prior); raw logits at test time.

    At strength 1 it is `bayias` with a uniform test prior, and `balanced_softmax`.

    Args:
      logits: float[B, K].
      labels: int[B], 0 <= label < K.
      train_prior: float[K], sums to 1, no zeros.
      strength: tau in its paper; 0 is cross entropy.

    Returns:
      float32[B], in nats.

    Source: Eq. B.16 of the paper's supplement; google-research, logit_adjustment (there 1e-12 is added
    inside of the logarithm).
    """
    return _shifted_cross_entropy(logits, labels, strength * np.log(np.asarray(train_prior, np.float64)))


def balanced_softmax(logits, labels, *, counts):
    """Cross entropy of logits + log(counts): logit adjustment at strength 1 by its other name.

    Args:
      logits: float[B, K].
      labels: int[B], 0 <= label < K.
      counts: int[K], training images per class, none 0.

    Returns:
      float32[B], in nats.

    Source: jiawei-ren/BalancedMetaSoftmax-Classification, loss/BalancedSoftmaxLoss.py.
    """
    return _shifted_cross_entropy(logits, labels, np.log(np.asarray(counts, np.float64)))


def label_aware_smoothing(
    logits,
    labels,
    *,
    counts,
    head: float = 0.3,
    tail: float = 0.0,
    shape: str = "concave",
    power: float = 2.0,
    formula: str = "code",
):
    """Cross entropy with labels smoothed by an amount that goes from `head` to `tail` with the class's count.

    With u = (n - n_min) / (n_max - n_min), 1 where all counts are equal, the amount is
    concave: tail + (head - tail) sin(pi u / 2); linear: tail + (head - tail) u;
    convex: head + (head - tail) sin(3 pi / 2 + pi u / 2); exp: tail + (head - tail) u**power.

    Args:
      logits: float[B, K].
      labels: int[B], 0 <= label < K.
      counts: int[K], training images per class.
      head, tail: in 0..1; both 0 is cross entropy.
      shape: "concave", "linear", "convex" or "exp".
      power: of "exp" only.
      formula: "code" spreads the amount over all classes, the label among them, as the authors' code
        and all its published figures do; "paper" over the other classes.

    Returns:
      float32[B], in nats.

    Source: dvlab-research/MiSLAS, methods.py `LabelAwareSmoothing`.
    """
    amounts = smoothing_amounts(counts, head, tail, shape, power)
    classes = len(amounts)
    if one_of("formula of label_aware_smoothing", formula, FORMULAS) == "paper":
        # Spread over all classes, that much on the label too, is the same target.
        amounts = amounts * classes / (classes - 1)
    logits = _centred(logits)
    amount = jnp.asarray(amounts, logits.dtype)[labels]
    log_softmax = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
    true = jnp.take_along_axis(log_softmax, labels[:, None], axis=1)[:, 0]
    return -(1 - amount) * true - amount * log_softmax.mean(axis=1)


def smoothing_amounts(counts, head: float, tail: float, shape: str, power: float = 2.0) -> np.ndarray:
    """Return how much the label of each class is smoothed, float64[K]; see `label_aware_smoothing`."""
    counts = np.asarray(counts, np.float64)
    spread = counts.max() - counts.min()
    u = (counts - counts.min()) / spread if spread else np.ones_like(counts)
    shapes = {
        "concave": tail + (head - tail) * np.sin(np.pi * u / 2),
        "linear": tail + (head - tail) * u,
        "convex": head + (head - tail) * np.sin(1.5 * np.pi + np.pi * u / 2),
        "exp": tail + (head - tail) * u**power,
    }
    return shapes[one_of("shape of label_aware_smoothing", shape, shapes)]


def bayias(logits, labels, *, train_prior, test_prior=None):
    """Cross entropy of logits shifted by log(train prior / test prior).

    Only training shifts: at test time the raw logits already stand for `test_prior`. With the train
    prior as `test_prior` this is cross entropy; with a uniform one it is logit adjustment at strength
    1 and balanced softmax, for softmax does not see the constant log K.

    Args:
      logits: float[B, K].
      labels: int[B], 0 <= label < K.
      train_prior: float[K], sums to 1, no zeros: the share of each class in training.
      test_prior: float[K], the same for the data to predict; None means uniform.

    Returns:
      float32[B], in nats.

    Example: 90 and 10 images, undecided logits; the shifted softmax is the prior.
      >>> bayias(jnp.zeros((1, 2)), jnp.array([1]), train_prior=[0.9, 0.1])
      Array([2.3025851], dtype=float32)

    Source: Xu, Chai, Yuan, NeurIPS 2021, Eq. B.8 and B.17.
    """
    shift = np.log(np.asarray(train_prior, np.float64))
    if test_prior is not None:
        shift = shift - np.log(np.asarray(test_prior, np.float64))
    return _shifted_cross_entropy(logits, labels, shift)


def _shifted_cross_entropy(logits, labels, shift):
    """Cross entropy of logits + shift; shift float64[K] of numpy, known before the program is made."""
    # Centred first: float32 holds 1e4 + log prior to 1e-3 only.
    logits = _centred(logits)
    return cross_entropy(logits + shift.astype(logits.dtype), labels)


def _centred(logits):
    """Logits in the type of the computation, their largest 0: softmax is the same, rounding is not."""
    logits = _at_least_float32(logits)
    return logits - jax.lax.stop_gradient(logits.max(axis=1, keepdims=True))


def _at_least_float32(logits):
    logits = jnp.asarray(logits)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
