"""Mixing pairs of images: the mixers, the objective of a mixed example. No devices, no files.

A mixer takes (keys, image_a, image_b, label_a, label_b) and its options, and returns `Mixed`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax import registry
from unimix_jax.errors import UserError
from unimix_jax.methods.checks import class_array
from unimix_jax.methods.shares import beta, cut_box, remix_weight


class Keys(NamedTuple):
    """Random keys of one step."""

    step: Any  # one key, the same for the whole batch, on every device
    view: Any  # keys [B], one an example


class Mixed(NamedTuple):
    """A batch as the network sees it; without mixing only image and label_a are there."""

    image: Any  # float32[B, H, W, C]
    label_a: Any  # int32[B]
    label_b: Any = None  # int32[B]
    weight: Any = None  # float32[B], of label_a in the objective
    hidden: Any = None  # int32[], at which level of the network to mix; None if the image is mixed


_ALPHA = registry.within(0.01, 100)  # the table of quantiles is exact there


def unimix_factor(
    key: jax.Array, count_a: jax.Array, count_b: jax.Array, *, alpha: float = 0.5, wrap: bool = True
) -> jax.Array:
    """Draw the share of image a in a mixed pair, from a distribution around s = count_b / (count_a + count_b).

    With b ~ Beta(alpha, alpha):
    wrapped, as the authors define it, (b + s) mod 1: for alpha < 1 the density peaks at s from both
    sides; un-wrapped, clip(b + s - 1/2, 0, 1): the distribution is centred at s. Wrapped, the rare image of
    99:1 is favoured with probability .557 only (alpha .5), un-wrapped with .936. At alpha 1 the wrapped
    factor is uniform, whatever the counts.

    Args:
      key: a JAX key.
      count_a: training images of the class of image a, above 0.
      count_b: the same for image b.
      alpha: above 0, a Python float; .5 in the paper on CIFAR, that of mixup (1) on ImageNet-LT and iNaturalist, .8 in
        the released code.
      wrap: False for the un-wrapped factor (ours).

    Returns:
      float32[] in [0, 1]; `vmap` it over a batch.

    Source: Xu, Chai, Yuan, NeurIPS 2021, A.2 and E; XuZhengzhuo/Prior-LT, core.py `unimix_factor`.

    Example: un-wrapped, a rare image a keeps most of the mixed image, and a frequent one little.
      >>> keys = jax.random.split(jax.random.key(0), 1000)
      >>> rare = jax.vmap(lambda key: unimix_factor(key, 1, 99, wrap=False))(keys)
      >>> frequent = jax.vmap(lambda key: unimix_factor(key, 99, 1, wrap=False))(keys)
      >>> bool((rare > 0.5).mean() > 0.9), bool((frequent > 0.5).mean() < 0.1)
      (True, True)
    """
    count_a, count_b = jnp.asarray(count_a, jnp.float32), jnp.asarray(count_b, jnp.float32)
    shifted = beta(key, alpha) + count_b / (count_a + count_b)
    if wrap:
        return jnp.where(shifted > 1, shifted - 1, shifted)
    return jnp.clip(shifted - 0.5, 0, 1)


@registry.Mixer(options={"alpha": _ALPHA, "wrap": registry.FLAG})
def unimix(
    keys: Keys,
    image_a: jax.Array,
    image_b: jax.Array,
    label_a: jax.Array,
    label_b: jax.Array,
    *,
    counts: np.ndarray,
    alpha: float = 0.5,
    wrap: bool = True,
) -> Mixed:
    """Mix each pair with a UniMix factor of its own.

    Args:
      keys: of the step.
      image_a: float32[B, H, W, C], augmented and normalised.
      image_b: the same of the partners.
      label_a: int32[B].
      label_b: int32[B].
      counts: int[K], training images per class.
      alpha: see `unimix_factor`.
      wrap: see `unimix_factor`.

    Returns:
      The mixed images, both labels, and the weights of label_a: the factors.

    Example: the image is mixed by the weight of its label.
      >>> keys = Keys(jax.random.key(0), jax.random.split(jax.random.key(1), 2))
      >>> black, white = jnp.zeros((2, 1, 1, 1)), jnp.ones((2, 1, 1, 1))
      >>> mixed = unimix(keys, white, black, jnp.array([0, 1]), jnp.array([1, 0]), counts=[90, 10])
      >>> bool((mixed.image[:, 0, 0, 0] == mixed.weight).all())
      True
    """
    counts = jnp.asarray(counts, jnp.float32)
    factor = functools.partial(unimix_factor, alpha=alpha, wrap=wrap)
    weight = jax.vmap(factor)(keys.view, counts[label_a], counts[label_b])
    return Mixed(_blend(weight, image_a, image_b), label_a, label_b, weight)


@registry.Mixer(changes_label_shares=False, options={"alpha": _ALPHA, "per_example": registry.FLAG})
def mixup(
    keys: Keys,
    image_a: jax.Array,
    image_b: jax.Array,
    label_a: jax.Array,
    label_b: jax.Array,
    *,
    alpha: float = 1.0,
    per_example: bool = False,
) -> Mixed:
    """Mix all pairs of a batch with one share drawn from Beta(alpha, alpha).

    Args:
      keys: of the step.
      image_a: float32[B, H, W, C], augmented and normalised.
      image_b: the same of the partners.
      label_a: int32[B].
      label_b: int32[B].
      alpha: above 0.
      per_example: whether to draw a share for each pair instead (not in the original).

    Returns:
      The mixed images, both labels, and the weights of label_a: the share.

    Source: facebookresearch/mixup-cifar10, train.py; section C.1 of the paper's supplement (alpha 1).

    Example: all pairs have one share.
      >>> keys = Keys(jax.random.key(0), jax.random.split(jax.random.key(1), 2))
      >>> black, white = jnp.zeros((2, 1, 1, 1)), jnp.ones((2, 1, 1, 1))
      >>> mixed = mixup(keys, white, black, jnp.array([0, 1]), jnp.array([1, 0]))
      >>> bool(mixed.weight[0] == mixed.weight[1])
      True
    """
    weight = _shares(keys, len(label_a), alpha, per_example)
    return Mixed(_blend(weight, image_a, image_b), label_a, label_b, weight)


@registry.Mixer(
    changes_label_shares=False,
    options={"alpha": _ALPHA, "probability": registry.within(0, 1), "per_example": registry.FLAG},
)
def cutmix(
    keys: Keys,
    image_a: jax.Array,
    image_b: jax.Array,
    label_a: jax.Array,
    label_b: jax.Array,
    *,
    alpha: float = 1.0,
    probability: float = 1.0,
    per_example: bool = False,
) -> Mixed:
    """Put a box of image b into image a at the same place; the labels weigh as many pixels as the images have.

    The box has 1 - share of the pixels, with the share from Beta(alpha, alpha), and a centre uniform over the image.
    What reaches over the border is cut off, so that image a has more than the share on average.

    Args:
      keys: of the step.
      image_a: float32[B, H, W, C], augmented and normalised.
      image_b: the same of the partners.
      label_a: int32[B].
      label_b: int32[B].
      alpha: above 0; 1 in the original.
      probability: of mixing at all; in the original's commands 1 on ImageNet and .5 on CIFAR.
      per_example: whether to draw a box for each pair, and whether to mix it, instead of one for the batch (not in the
        original).

    Returns:
      The mixed images, both labels, and the weights of label_a: the fractions of pixels of image a.

    Source: Yun et al., ICCV 2019; clovaai/CutMix-PyTorch, train.py and README.md.

    Example: the weight of the label is the fraction of pixels.
      >>> keys = Keys(jax.random.key(1), jax.random.split(jax.random.key(1), 2))
      >>> black, white = jnp.zeros((2, 8, 8, 1)), jnp.ones((2, 8, 8, 1))
      >>> mixed = cutmix(keys, white, black, jnp.array([0, 1]), jnp.array([1, 0]))
      >>> print(mixed.image.mean(axis=(1, 2, 3)), mixed.weight)
      [0.75 0.75] [0.75 0.75]
    """
    sides = image_a.shape[1:3]

    def draw(key):
        mixes = jax.random.bernoulli(jax.random.fold_in(key, 2), probability)
        centre = jax.random.randint(jax.random.fold_in(key, 1), (2,), 0, jnp.asarray(sides))
        first, end = cut_box(jnp.where(mixes, beta(key, alpha), 1), centre, sides)
        rows, columns = ((first[i] <= jnp.arange(side)) & (jnp.arange(side) < end[i]) for i, side in enumerate(sides))
        weight = 1 - (end - first).prod() / (sides[0] * sides[1])
        return rows[:, None] & columns, weight.astype(jnp.float32)

    inside, weight = jax.vmap(draw)(keys.view if per_example else keys.step[None])
    image = jnp.where(inside[..., None], image_b, image_a)
    return Mixed(image, label_a, label_b, jnp.broadcast_to(weight, len(label_a)))


@registry.Mixer(mixes_inside=True, changes_label_shares=False, options={"alpha": _ALPHA})
def manifold_mixup(
    keys: Keys, image_a: jax.Array, image_b: jax.Array, label_a: jax.Array, label_b: jax.Array, *, alpha: float = 1.0
) -> Mixed:
    """Draw a share and a level for each step, and leave it to the network to mix there: see `mix_hidden`.

    Args:
      keys: of the step.
      image_a: float32[B, H, W, C], augmented and normalised.
      image_b: unused; the network finds the partners' activations in the batch.
      label_a: int32[B].
      label_b: int32[B].
      alpha: above 0, of the Beta distribution of the share.

    Returns:
      image_a as it is, both labels, the weights of label_a, and the level: 0 for the input, 1 and 2 for the outputs of
      the first two stages of the network.

    Source: vikasverma1077/manifold_mixup, supervised/models/preresnet.py.

    Example: the image is not touched.
      >>> keys = Keys(jax.random.key(0), jax.random.split(jax.random.key(1), 2))
      >>> image = jnp.ones((2, 1, 1, 1))
      >>> mixed = manifold_mixup(keys, image, image, jnp.array([0, 1]), jnp.array([1, 0]))
      >>> mixed.image is image, int(mixed.hidden) in range(LEVELS)
      (True, True)
    """
    level = jax.random.randint(jax.random.fold_in(keys.step, 1), (), 0, LEVELS)
    return Mixed(image_a, label_a, label_b, _shares(keys, len(label_a), alpha, False), level)


@registry.Mixer(options={"alpha": _ALPHA, "kappa": registry.above(1), "threshold": registry.within(0, 1)})
def remix(
    keys: Keys,
    image_a: jax.Array,
    image_b: jax.Array,
    label_a: jax.Array,
    label_b: jax.Array,
    *,
    counts: np.ndarray,
    alpha: float = 1.0,
    kappa: float = 3.0,
    threshold: float = 0.5,
) -> Mixed:
    """Mix as `mixup` does, but give the label wholly to the rarer class where the other is kappa times as frequent.

    Args:
      keys: of the step.
      image_a: float32[B, H, W, C], augmented and normalised.
      image_b: the same of the partners.
      label_a: int32[B].
      label_b: int32[B].
      counts: int[K], training images per class.
      alpha: of the Beta distribution, one share a batch.
      kappa: above 1, see `remix_weight`.
      threshold: see `remix_weight`; tau in its paper.

    Returns:
      The images mixed by the share, both labels, and the weights of label_a by `remix_weight`.

    Source: Chou et al. 2020; ntucllab/imbalanced-DL, strategy/_remix_drw.py.

    Example: equal counts leave mixup's weights.
      >>> keys = Keys(jax.random.key(0), jax.random.split(jax.random.key(1), 2))
      >>> pairs = jnp.ones((2, 1, 1, 1)), jnp.zeros((2, 1, 1, 1)), jnp.array([0, 1]), jnp.array([1, 0])
      >>> bool((remix(keys, *pairs, counts=[7, 7]).weight == mixup(keys, *pairs).weight).all())
      True
    """
    share = _shares(keys, len(label_a), alpha, False)
    return Mixed(
        _blend(share, image_a, image_b),
        label_a,
        label_b,
        remix_weight(jnp.asarray(counts)[label_a], jnp.asarray(counts)[label_b], share, kappa, threshold),
    )


@registry.Mixer(keeps_label=True, changes_label_shares=False)
def smote(
    keys: Keys, image_a: jax.Array, image_b: jax.Array, label_a: jax.Array, label_b: jax.Array, *, counts: np.ndarray
) -> Mixed:
    """Put an image at a uniformly drawn point between a and its neighbour b of the same class; the label stays.

    With class-balanced images a, of which n_class / n_max stay as they are, mixed images are distributed as
    if every class were filled up to the largest one.

    Args:
      keys: of the step.
      image_a: float32[B, H, W, C], augmented and normalised.
      image_b: the same of the partners, of the same classes.
      label_a: int32[B].
      label_b: unused, equal to label_a.
      counts: int[K], training images per class.

    Returns:
      The images and label_a.

    Source: Chawla et al. 2002; imbalanced-learn, `SMOTE`.

    Example: images of the largest class stay as they are.
      >>> keys = Keys(jax.random.key(0), jax.random.split(jax.random.key(1), 2))
      >>> black, white, label = jnp.zeros((2, 1, 1, 1)), jnp.ones((2, 1, 1, 1)), jnp.array([0, 1])
      >>> mixed = smote(keys, white, black, label, label, counts=[1000, 1])
      >>> bool(mixed.image[0, 0, 0, 0] == 1), bool(mixed.image[1, 0, 0, 0] == 1)
      (True, False)
    """
    counts = jnp.asarray(counts, jnp.float32)
    position, stays = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys.view).T
    share = jnp.where(stays < counts[label_a] / counts.max(), 1, 1 - position)
    return Mixed(_blend(share, image_a, image_b), label_a)


LEVELS = 3  # of a network at which `manifold_mixup` mixes: the input, the outputs of the first and the second stage


def mix_hidden(level: int, x: jax.Array, mixed: Mixed, slots: jax.Array, axis: str | None) -> jax.Array:
    """Mix activations with those of the partners, if this is the level that was drawn.

    Args:
      level: of the network: 0 for the input, i for the output of stage i; from `LEVELS` on nothing is mixed.
      x: float[b, ...], this device's share of the batch.
      mixed: of `manifold_mixup`.
      slots: int32[b], the positions of the partners in the global batch.
      axis: name of the mesh axis, None on one device.

    Returns:
      As x.

    Example: each image with the other one, .75 to .25, at level 1 only.
      >>> mixed = Mixed(None, None, None, jnp.full(2, 0.75), jnp.int32(1))
      >>> x, others = jnp.array([[0.0], [4.0]]), jnp.array([1, 0])
      >>> print(mix_hidden(1, x, mixed, others, None).ravel(), mix_hidden(2, x, mixed, others, None).ravel())
      [1. 3.] [0. 4.]
    """
    if level >= LEVELS:
        return x
    everyone = x if axis is None else jax.lax.all_gather(x, axis, tiled=True)
    share = jnp.where(mixed.hidden == level, mixed.weight, 1).astype(x.dtype)
    return _blend(share, x, everyone[slots])


def _shares(keys: Keys, size: int, alpha: float, per_example: bool):
    """Return the shares of image a, float32[size]."""
    if per_example:
        return jax.vmap(functools.partial(beta, alpha=alpha))(keys.view)
    return jnp.full(size, beta(keys.step, alpha))


def _blend(share, a, b):
    """Return share * a + (1 - share) * b for share [B] and arrays [B, ...]."""
    share = share.reshape(-1, *[1] * (a.ndim - 1))
    return share * a + (1 - share) * b


def objective(loss: Callable, logits: jax.Array, mixed: Mixed, class_weight: jax.Array | None = None) -> jax.Array:
    """Return weight * loss(label_a) + (1 - weight) * loss(label_b) for each example.

    Args:
      loss: (logits, labels) -> float32[B].
      logits: float[B, K].
      mixed: fields that are not used may be None; without label_b it is loss(label_a).
      class_weight: float32[K], multiplies the loss of each label; None for ones.

    Returns:
      float32[B].

    Raises:
      UserError: the loss returns another shape than that of the labels; the parts of the batch have other lengths; or
        class_weight has another length than the logits have classes.

    Example: a quarter of the cost of label 0, three quarters of that of label 1.
      >>> cost = lambda logits, labels: jnp.array([10.0, 2.0])[labels]
      >>> mixed = Mixed(None, jnp.array([0]), jnp.array([1]), jnp.array([0.25]))
      >>> print(objective(cost, None, mixed))
      [4.]
    """
    if not isinstance(mixed, Mixed):
        raise UserError(
            f"mixed is of the type {type(mixed).__name__}; it must be Mixed: the result of a mixer such as unimix, or "
            "Mixed(images, labels) without mixing"
        )
    parts = {"logits": logits, "label_a": mixed.label_a, "label_b": mixed.label_b, "weight": mixed.weight}
    shapes = {name: list(np.shape(part)) for name, part in parts.items() if part is not None}
    if len({tuple(shape[:1]) for shape in shapes.values() if shape}) > 1:
        described = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UserError(f"the batch has the shapes {described}; each row of logits needs one label of each kind")
    classes = None if logits is None else np.shape(logits)[1]

    def weighted(labels):
        values = loss(logits, labels)
        if values.shape != labels.shape:
            raise UserError(
                f"the loss returns shape {values.shape}; it must return one value per example, {labels.shape}"
            )
        if class_weight is None:
            return values
        return values * class_array(class_weight, "class_weight", classes, values.dtype)[labels]

    return _mean_of_labels(weighted, mixed)


def example_weight(mixed: Mixed, class_weight: jax.Array) -> jax.Array:
    """Return the class weight of each example, mixed as its labels are.

    Args:
      mixed: fields that are not used may be None.
      class_weight: float32[K].

    Returns:
      float32[B].

    Example:
      >>> print(example_weight(Mixed(None, jnp.array([0]), jnp.array([1]), jnp.array([0.25])), jnp.array([10.0, 2.0])))
      [4.]
    """
    return _mean_of_labels(lambda labels: jnp.asarray(class_weight)[labels], mixed)


def _mean_of_labels(of_label, mixed: Mixed):
    if mixed.label_b is None:
        return of_label(mixed.label_a)
    return mixed.weight * of_label(mixed.label_a) + (1 - mixed.weight) * of_label(mixed.label_b)


def dominant_label(mixed: Mixed) -> jax.Array:
    """Return the label with the larger weight; on a tie label_a.

    Args:
      mixed: fields that are not used may be None.

    Returns:
      int32[B].

    Example:
      >>> print(dominant_label(Mixed(None, jnp.array([3, 3]), jnp.array([5, 5]), jnp.array([0.4, 0.5]))))
      [5 3]
    """
    if mixed.label_b is None:
        return mixed.label_a
    return jnp.where(mixed.weight >= 0.5, mixed.label_a, mixed.label_b)
