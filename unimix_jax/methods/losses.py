"""Loss functions: from logits and integer labels to one value per example. No devices, no averaging.

A loss computes in float32, or in float64 for float64 logits, and returns that type. Everything that depends on the
classes alone is computed in float64 by numpy, once, while the program is traced: counts, priors and options are closed
over (`functools.partial`) and no arguments of `jit`.

Shapes and types are checked always, labels where their values can be read: under `jit` they are traced, and a label
that is no class gives a wrong number or nan.
"""

import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax import names, priors, registry
from unimix_jax.errors import one_of
from unimix_jax.methods.checks import check_options, checked_batch, class_array, class_numbers, is_known, static

__all__ = [
    "FORMULAS",
    "SHAPES",
    "balanced_softmax",
    "bayias",
    "cdt",
    "cross_entropy",
    "focal",
    "label_aware_smoothing",
    "ldam",
    "logit_adjustment",
    "smoothing_amounts",
]
__getattr__, __dir__ = names.of_module(__name__, __all__)

SHAPES = ("concave", "linear", "convex", "exp")  # of label_aware_smoothing
FORMULAS = ("code", "paper")


@registry.Loss(natural_prior="train", balanced_prior="uniform")
def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return minus the log of the softmax at the label.

    Args:
      logits: float[B, K].
      labels: int[B], 0 <= label < K.

    Returns:
      float32[B], in nats.

    Raises:
      UserError: arrays that do not fit together, a label that is no class (of labels that are not traced), a count or
        share that is not above 0, or an option out of its bounds.

    Example: two classes of equal logits cost log 2.
      >>> cross_entropy(jnp.zeros((1, 2)), jnp.array([1]))
      Array([0.6931472], dtype=float32)
    """
    logits, labels = checked_batch(logits, labels)
    logits = _centred(logits)
    true = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - true


@registry.Loss(options={"gamma": registry.at_least(0), "inner_weight": registry.ANYTHING})
def focal(
    logits: jax.Array, labels: jax.Array, *, gamma: float = 1.0, inner_weight: jax.Array | None = None
) -> jax.Array:
    """Return cross entropy times (1 - p)**gamma, where p is the softmax at the label: easy examples count less.

    Args:
      logits: float[B, K].
      labels: int[B], 0 <= label < K.
      gamma: at least 0; 0 is cross entropy, LDAM-DRW runs 1.
      inner_weight: float[K], class weights inside of the power, p = softmax**weight, as LDAM-DRW has them by accident;
        only for comparison with it. The class weights of a stage multiply the loss from outside.

    Returns:
      float32[B], in nats.

    Raises:
      UserError: arrays that do not fit together, a label that is no class (of labels that are not traced), a count or
        share that is not above 0, or an option out of its bounds.

    Source: Eq. B.12 of the paper's supplement; kaidic/LDAM-DRW, losses.py `FocalLoss`.

    Example: an example of p = 1/2 keeps a quarter of its cost at gamma 2.
      >>> print(np.asarray(focal(jnp.zeros((1, 2)), jnp.array([1]), gamma=2.0)).round(4))
      [0.1733]
    """
    logits, labels = checked_batch(logits, labels)
    check_options(focal, gamma=static(gamma, "gamma"))
    loss = cross_entropy(logits, labels)
    if inner_weight is not None:
        loss = loss * class_array(inner_weight, "inner_weight", logits.shape[1], loss.dtype)[labels]
    if gamma == 0:
        return loss
    # Bounded below, because at p = 1 the slope of a power below 1 is infinite.
    missing = jnp.maximum(-jnp.expm1(-loss), jnp.finfo(loss.dtype).tiny)
    return missing**gamma * loss


@registry.Loss(options={"gamma": registry.at_least(0)})
def cdt(logits: jax.Array, labels: jax.Array, *, counts: np.ndarray, gamma: float = 0.2) -> jax.Array:
    """Return cross entropy of logits divided by (n_max / n_class)**gamma; predictions use the logits as they are.

    Args:
      logits: float[B, K].
      labels: int[B], 0 <= label < K.
      counts: int[K], training images per class, none 0.
      gamma: at least 0; 0 is cross entropy.

    Returns:
      float32[B], in nats.

    Raises:
      UserError: arrays that do not fit together, a label that is no class (of labels that are not traced), a count or
        share that is not above 0, or an option out of its bounds.

    Source: Eq. B.14 of the paper's supplement; zhangyongshun/BagofTricks-LT,
    class_dependent_temperatures_loss.py.

    Example: the logit 3 of a class with a 100th of the images counts as 3 / sqrt(100).
      >>> logits, rare = jnp.array([[0.0, 3.0]]), jnp.array([1])
      >>> print(np.asarray(cdt(logits, rare, counts=[100, 1], gamma=0.5)).round(4))
      [0.5544]
      >>> print(np.asarray(cross_entropy(logits / 10, rare)).round(4))
      [0.5544]
    """
    logits, labels = checked_batch(logits, labels)
    check_options(cdt, gamma=gamma)
    counts = class_numbers(counts, "counts", logits.shape[1])
    logits = _at_least_float32(logits)
    return cross_entropy(logits / jnp.asarray((counts.max() / counts) ** gamma, logits.dtype), labels)


@registry.Loss(head_scale=True, options={"max_margin": registry.at_least(0)})
def ldam(
    logits: jax.Array, labels: jax.Array, *, counts: np.ndarray, scale: float, max_margin: float = 0.5
) -> jax.Array:
    """Return cross entropy with the true logit lowered by scale * margin, where rarer classes have larger margins.

    The margin of a class is max_margin * (n_min / n_class)**(1/4). The logits carry the scale, as those of a cosine
    head do, so that softmax(logits) needs no other; the authors' code multiplies by it in the loss.

    Args:
      logits: float[B, K]; scale * cosine from a cosine head.
      labels: int[B], 0 <= label < K.
      counts: int[K], training images per class, none 0.
      scale: of the head's logits; 1 for a linear head, 30 in LDAM-DRW.
      max_margin: margin of the rarest class; 0 is cross entropy.

    Returns:
      float32[B], in nats.

    Raises:
      UserError: arrays that do not fit together, a label that is no class (of labels that are not traced), a count or
        share that is not above 0, or an option out of its bounds.

    Source: Eq. B.15 of the paper's supplement; kaidic/LDAM-DRW, losses.py `LDAMLoss`.

    Example: a 16th of the images is twice the margin.
      >>> costs = ldam(jnp.zeros((2, 2)), jnp.array([0, 1]), counts=[16, 1], scale=1.0, max_margin=0.5)
      >>> print(np.asarray(costs).round(4))
      [0.8259 0.9741]
      >>> print(np.log1p(np.exp([0.25, 0.5])).round(4))
      [0.8259 0.9741]
    """
    logits, labels = checked_batch(logits, labels)
    check_options(ldam, max_margin=max_margin)
    if is_known(scale):
        registry.check_value("scale", scale, registry.above(0))
    counts = class_numbers(counts, "counts", logits.shape[1])
    margins = scale * max_margin * (counts.min() / counts) ** 0.25
    logits = _at_least_float32(logits)
    true = jnp.arange(logits.shape[1]) == labels[:, None]
    return cross_entropy(logits - true * jnp.asarray(margins, logits.dtype), labels)


@registry.Loss(natural_prior="uniform", prior_holds_at={"strength": 1.0}, options={"strength": registry.NUMBER})
def logit_adjustment(
    logits: jax.Array, labels: jax.Array, *, train_prior: np.ndarray, strength: float = 1.0
) -> jax.Array:
    """Return cross entropy of logits + strength * log(train prior); predictions use the logits as they are.

    At strength 1 it is `balanced_softmax`, and `bayias` for a uniform test prior.

    Args:
      logits: float[B, K].
      labels: int[B], 0 <= label < K.
      train_prior: float[K], sums to 1, no zeros.
      strength: tau in its paper; 0 is cross entropy.

    Returns:
      float32[B], in nats.

    Raises:
      UserError: arrays that do not fit together, a label that is no class (of labels that are not traced), a count or
        share that is not above 0, or an option out of its bounds.

    Source: Eq. B.16 of the paper's supplement; google-research, logit_adjustment (there 1e-12 is added
    inside of the logarithm).

    Example: with equal logits, the adjusted softmax is the prior, and the cost of the rare class -log(.1).
      >>> print(np.asarray(logit_adjustment(jnp.zeros((1, 2)), jnp.array([1]), train_prior=[0.9, 0.1])).round(4))
      [2.3026]
    """
    logits, labels = checked_batch(logits, labels)
    check_options(logit_adjustment, strength=strength)
    train_prior = class_numbers(train_prior, "train_prior", logits.shape[1])
    return _shifted_cross_entropy(logits, labels, strength * np.log(train_prior))


@registry.Loss(natural_prior="uniform")
def balanced_softmax(logits: jax.Array, labels: jax.Array, *, counts: np.ndarray) -> jax.Array:
    """Return cross entropy of logits + log(counts): logit adjustment at strength 1 by its other name.

    Args:
      logits: float[B, K].
      labels: int[B], 0 <= label < K.
      counts: int[K], training images per class, none 0.

    Returns:
      float32[B], in nats.

    Raises:
      UserError: arrays that do not fit together, a label that is no class (of labels that are not traced), a count or
        share that is not above 0, or an option out of its bounds.

    Source: jiawei-ren/BalancedMetaSoftmax-Classification, loss/BalancedSoftmaxLoss.py.

    Example: equal to logit adjustment, because softmax does not see a constant in all logits.
      >>> print(np.asarray(balanced_softmax(jnp.zeros((1, 2)), jnp.array([1]), counts=[90, 10])).round(4))
      [2.3026]
    """
    logits, labels = checked_batch(logits, labels)
    return _shifted_cross_entropy(logits, labels, np.log(class_numbers(counts, "counts", logits.shape[1])))


# It has no prior of its own on images as they come; its published use is on balanced classes, whose prior it keeps.
@registry.Loss(
    balanced_prior="uniform",
    options={
        "head": registry.within(0, 1),
        "tail": registry.within(0, 1),
        "shape": registry.choice(*SHAPES),
        "power": registry.above(0),
        "formula": registry.choice(*FORMULAS),
    },
)
def label_aware_smoothing(
    logits: jax.Array,
    labels: jax.Array,
    *,
    counts: np.ndarray,
    head: float = 0.3,
    tail: float = 0.0,
    shape: str = "concave",
    power: float = 2.0,
    formula: str = "code",
) -> jax.Array:
    """Return cross entropy with labels smoothed by an amount that goes from `tail` to `head` with the class's count.

    Args:
      logits: float[B, K].
      labels: int[B], 0 <= label < K.
      counts: int[K], training images per class.
      head: amount of the most frequent class, in 0..1.
      tail: amount of the rarest class, in 0..1; both 0 is cross entropy.
      shape: "concave", "linear", "convex" or "exp", see `smoothing_amounts`.
      power: of the shape "exp" only.
      formula: "code" spreads the amount over all classes, the label among them, as the authors' code
        and all its published figures do; "paper" over the other classes.

    Returns:
      float32[B], in nats.

    Raises:
      UserError: arrays that do not fit together, a label that is no class (of labels that are not traced), a count or
        share that is not above 0, an unknown shape or formula, or an option out of its bounds.

    Source: dvlab-research/MiSLAS, methods.py `LabelAwareSmoothing`.

    Example: a certain answer costs nothing for the rare class, and something for the frequent one.
      >>> certain = jnp.array([[20.0, 0.0], [0.0, 20.0]])
      >>> print(np.asarray(label_aware_smoothing(certain, jnp.array([0, 1]), counts=[100, 1], head=0.3)).round(4))
      [3. 0.]
    """
    logits, labels = checked_batch(logits, labels)
    classes = logits.shape[1]
    amounts = smoothing_amounts(class_numbers(counts, "counts", classes, zeros=True), head, tail, shape, power)
    if one_of("formula of label_aware_smoothing", formula, FORMULAS) == "paper":
        # The same target as an amount that is spread over all classes, the label among them.
        amounts = amounts * classes / (classes - 1)
    logits = _centred(logits)
    amount = jnp.asarray(amounts, logits.dtype)[labels]
    log_softmax = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
    true = jnp.take_along_axis(log_softmax, labels[:, None], axis=1)[:, 0]
    return -(1 - amount) * true - amount * log_softmax.mean(axis=1)


def smoothing_amounts(counts: np.ndarray, head: float, tail: float, shape: str, power: float = 2.0) -> np.ndarray:
    """Return how much the label of each class is smoothed by `label_aware_smoothing`.

    With u = (n - n_min) / (n_max - n_min), 1 where all counts are equal, the amount is
    concave: tail + (head - tail) sin(pi u / 2); linear: tail + (head - tail) u;
    convex: head + (head - tail) sin(3 pi / 2 + pi u / 2); exp: tail + (head - tail) u**power.

    Args:
      counts: int[K], training images per class.
      head: amount of the most frequent class.
      tail: amount of the rarest class.
      shape: one of `SHAPES`.
      power: of the shape "exp".

    Returns:
      float64[K].

    Raises:
      UserError: an unknown shape, an amount out of its bounds, or counts of another shape, negative, or all 0.

    Source: dvlab-research/MiSLAS, methods.py `LabelAwareSmoothing`.

    Example:
      >>> smoothing_amounts([101, 51, 1], head=0.4, tail=0.0, shape="linear")
      array([0.4, 0.2, 0. ])
    """
    one_of("shape of label_aware_smoothing", shape, SHAPES)
    check_options(label_aware_smoothing, head=head, tail=tail, shape=shape, power=power)
    counts = priors.checked_counts(counts)
    spread = counts.max() - counts.min()
    u = (counts - counts.min()) / spread if spread else np.ones_like(counts)
    shapes = {
        "concave": tail + (head - tail) * np.sin(np.pi * u / 2),
        "linear": tail + (head - tail) * u,
        "convex": head + (head - tail) * np.sin(1.5 * np.pi + np.pi * u / 2),
        "exp": tail + (head - tail) * u**power,
    }
    return shapes[shape]


@registry.Loss(natural_prior="test")
def bayias(
    logits: jax.Array, labels: jax.Array, *, train_prior: np.ndarray, test_prior: np.ndarray | None = None
) -> jax.Array:
    """Return cross entropy of logits shifted by log(train prior / test prior).

    Only training shifts: at test time the logits as they are stand for `test_prior`. With the train prior as
    `test_prior` this is cross entropy; with a uniform one it is logit adjustment at strength 1 and balanced softmax,
    because softmax does not see the constant log K.

    Args:
      logits: float[B, K].
      labels: int[B], 0 <= label < K.
      train_prior: float[K], sums to 1, no zeros: the share of each class in training.
      test_prior: float[K], the same for the data to predict; None means uniform.

    Returns:
      float32[B], in nats.

    Raises:
      UserError: arrays that do not fit together, a label that is no class (of labels that are not traced), a count or
        share that is not above 0, or an option out of its bounds.

    Source: Xu, Chai, Yuan, NeurIPS 2021, Eq. B.8 and B.17.

    Example: 90 and 10 images, equal logits: the shifted softmax is the prior.
      >>> bayias(jnp.zeros((1, 2)), jnp.array([1]), train_prior=[0.9, 0.1])
      Array([2.3025851], dtype=float32)
    """
    logits, labels = checked_batch(logits, labels)
    shift = np.log(class_numbers(train_prior, "train_prior", logits.shape[1]))
    if test_prior is not None:
        shift = shift - np.log(class_numbers(test_prior, "test_prior", logits.shape[1]))
    return _shifted_cross_entropy(logits, labels, shift)


def _shifted_cross_entropy(logits, labels, shift):
    """Return cross entropy of logits + shift; shift float64[K] of numpy, known before the program is made."""
    # Centred first: float32 holds 1e4 + log prior to 1e-3 only.
    logits = _centred(logits)
    return cross_entropy(logits + shift.astype(logits.dtype), labels)


def _centred(logits):
    """Return logits in the type of the computation, the largest one 0: the same softmax, with less rounding."""
    logits = _at_least_float32(logits)
    return logits - jax.lax.stop_gradient(logits.max(axis=1, keepdims=True))


def _at_least_float32(logits):
    logits = jnp.asarray(logits)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
