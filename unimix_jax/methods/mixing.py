"""Mixing pairs of images: the factors, the mixers, the objective of a mixed example. No devices, no files."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax.errors import UserError

_TABLE = 4096  # intervals of the quantile table; linear between them it is exact to 1e-7


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


@functools.lru_cache(maxsize=8)
def _beta_quantiles(alpha: float) -> np.ndarray:
    """Quantiles of Beta(alpha, alpha) below 1/2, on a grid of (2u)**(1/alpha), in which they are nearly linear."""
    from scipy.special import betaincinv

    grid = np.linspace(0, 1, _TABLE + 1)
    return betaincinv(alpha, alpha, 0.5 * grid**alpha).astype(np.float32)


def beta(key, alpha: float):
    """Draw from Beta(alpha, alpha) through a table of its quantiles.

    `jax.random.beta` is a loop of rejections that costs 2 s of compilation.

    Args:
      key: a JAX key.
      alpha: > 0, a Python float.

    Returns:
      float32[] in [0, 1]; for small alpha exactly 0 and 1 occur.
    """
    u = jax.random.uniform(key)
    place = (2 * jnp.minimum(u, 1 - u)) ** (1 / alpha) * _TABLE
    left = jnp.clip(place.astype(jnp.int32), 0, _TABLE - 1)
    table = jnp.asarray(_beta_quantiles(float(alpha)))
    quantile = table[left] + (place - left) * (table[left + 1] - table[left])
    return jnp.where(u > 0.5, 1 - quantile, quantile)


def unimix_factor(key, count_a, count_b, *, alpha: float = 0.5, wrap: bool = True):
    """Draw the share of image a in a mixed pair, by a law around s = count_b / (count_a + count_b).

    With b ~ Beta(alpha, alpha):
    wrapped, as the authors define it, (b + s) mod 1: for alpha < 1 the law peaks at s from both
    sides; un-wrapped, clip(b + s - 1/2, 0, 1): the law is centred at s. Wrapped, the rare image of
    99:1 is favoured with probability .557 only (alpha .5), un-wrapped with .936. At alpha 1 the wrapped
    factor is uniform, whatever the counts.

    Args:
      key: a JAX key.
      count_a, count_b: training images of the two classes, > 0.
      alpha: > 0, a Python float; .5 in the paper on CIFAR, that of mixup (1) on ImageNet-LT and iNaturalist, .8 in
        the released code.
      wrap: False for the un-wrapped factor (ours).

    Returns:
      float32[] in [0, 1]; `vmap` it over a batch.

    Source: Xu, Chai, Yuan, NeurIPS 2021, A.2 and E; XuZhengzhuo/Prior-LT, core.py `unimix_factor`.
    """
    count_a, count_b = jnp.asarray(count_a, jnp.float32), jnp.asarray(count_b, jnp.float32)
    place = beta(key, alpha) + count_b / (count_a + count_b)
    if wrap:
        return jnp.where(place > 1, place - 1, place)
    return jnp.clip(place - 0.5, 0, 1)


def unimix(keys: Keys, image_a, image_b, label_a, label_b, *, counts, alpha: float = 0.5, wrap: bool = True) -> Mixed:
    """Mix each pair with a UniMix factor of its own.

    Args:
      keys: of the step.
      image_a, image_b: float32[B, H, W, C], augmented and normalised.
      label_a, label_b: int32[B].
      counts: int[K], training images per class.
      alpha, wrap: see `unimix_factor`.
    """
    counts = jnp.asarray(counts, jnp.float32)
    factor = functools.partial(unimix_factor, alpha=alpha, wrap=wrap)
    weight = jax.vmap(factor)(keys.view, counts[label_a], counts[label_b])
    return Mixed(_blend(weight, image_a, image_b), label_a, label_b, weight)


def mixup(keys: Keys, image_a, image_b, label_a, label_b, *, alpha: float = 1.0, per_example: bool = False) -> Mixed:
    """Mix all pairs of a batch with one share drawn from Beta(alpha, alpha).

    Args:
      keys, image_a, image_b, label_a, label_b: see `unimix`.
      alpha: > 0.
      per_example: draw a share for each pair instead (not in the original).

    Source: facebookresearch/mixup-cifar10, train.py; section C.1 of the paper's supplement (alpha 1).
    """
    weight = _shares(keys, len(label_a), alpha, per_example)
    return Mixed(_blend(weight, image_a, image_b), label_a, label_b, weight)


def manifold_mixup(keys: Keys, image_a, image_b, label_a, label_b, *, alpha: float = 1.0) -> Mixed:
    """Mixup at a level drawn for each step: the input, or the output of the first or the second stage.

    The image is handed on as it is; the network mixes (`mix_hidden`) with partners of the same batch.

    Source: vikasverma1077/manifold_mixup, supervised/models/preresnet.py.
    """
    level = jax.random.randint(jax.random.fold_in(keys.step, 1), (), 0, LEVELS)
    return Mixed(image_a, label_a, label_b, _shares(keys, len(label_a), alpha, False), level)


def remix(
    keys: Keys, image_a, image_b, label_a, label_b, *, counts, alpha: float = 1.0, kappa: float = 3.0,
    threshold: float = 0.5,
) -> Mixed:  # fmt: skip
    """Mixup whose label goes wholly to the rarer class where the other is kappa times as frequent.

    With lambda the share of image a, the weight of label a is 0 if n_a >= kappa n_b and lambda < threshold,
    1 if kappa n_a <= n_b and 1 - lambda < threshold, else lambda.

    Args:
      keys, image_a, image_b, label_a, label_b, counts: see `unimix`.
      alpha: of the Beta law, one share a batch.
      kappa: > 1.
      threshold: tau in its paper.

    Source: Chou et al. 2020; ntucllab/imbalanced-DL, strategy/_remix_drw.py.
    """
    share = _shares(keys, len(label_a), alpha, False)
    return Mixed(
        _blend(share, image_a, image_b),
        label_a,
        label_b,
        remix_weight(jnp.asarray(counts)[label_a], jnp.asarray(counts)[label_b], share, kappa, threshold),
    )


def remix_weight(count_a, count_b, share, kappa: float = 3.0, threshold: float = 0.5):
    """Return Remix's weight of label a for counts int[B] and shares float[B] of image a; see `remix`."""
    to_b = (count_a >= kappa * count_b) & (share < threshold)
    to_a = (kappa * count_a <= count_b) & (1 - share < threshold)
    return jnp.where(to_b, 0, jnp.where(to_a, 1, share))


def smote(keys: Keys, image_a, image_b, label_a, label_b, *, counts) -> Mixed:
    """Put an image at a uniform place between a and its neighbour b of the same class; the label stays.

    With class-balanced anchors, of which n_class / n_max stay as they are, the law is that of filling every
    class up to the largest one.

    Args:
      keys, image_a, image_b, label_a, counts: see `unimix`; image_b of the rule `nearest`.

    Source: Chawla et al. 2002; imbalanced-learn, `SMOTE`.
    """
    counts = jnp.asarray(counts, jnp.float32)
    place, stays = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys.view).T
    share = jnp.where(stays < counts[label_a] / counts.max(), 1, 1 - place)
    return Mixed(_blend(share, image_a, image_b), label_a)


LEVELS = 3  # of a network at which `manifold_mixup` mixes: input, first stage, second stage


def mix_hidden(level: int, x, mixed: Mixed, slots, axis: str | None):
    """Mix activations with those of the partners, if this is the level that was drawn.

    Args:
      level: of the network, 0 the input.
      x: float[b, ...], this device's share of the batch.
      mixed: of `manifold_mixup`.
      slots: int32[b], the partners' places in the global batch.
      axis: name of the mesh axis, None on one device.
    """
    everyone = x if axis is None else jax.lax.all_gather(x, axis, tiled=True)
    share = jnp.where(mixed.hidden == level, mixed.weight, 1).astype(x.dtype)
    return _blend(share, x, everyone[slots])


def _shares(keys: Keys, size: int, alpha: float, per_example: bool):
    """Shares of image a, float32[size]."""
    if per_example:
        return jax.vmap(functools.partial(beta, alpha=alpha))(keys.view)
    return jnp.full(size, beta(keys.step, alpha))


def _blend(share, a, b):
    """share * a + (1 - share) * b, share [B] over arrays [B, ...]."""
    share = share.reshape(-1, *[1] * (a.ndim - 1))
    return share * a + (1 - share) * b


def objective(loss, logits, mixed: Mixed, class_weight=None):
    """Return weight * loss(label_a) + (1 - weight) * loss(label_b) for each example, float32[B].

    Args:
      loss: (logits, labels) -> float32[B].
      logits: float[B, K].
      mixed: fields that are not used may be None; without label_b it is loss(label_a).
      class_weight: float32[K], multiplies the loss of each label; None for ones.
    """

    def weighted(labels):
        values = loss(logits, labels)
        if values.shape != labels.shape:
            raise UserError(
                f"the loss returns shape {values.shape}; it must return one value per example, {labels.shape}"
            )
        return values if class_weight is None else values * jnp.asarray(class_weight, values.dtype)[labels]

    return _mean_of_labels(weighted, mixed)


def example_weight(mixed: Mixed, class_weight):
    """Return the class weight of each example, float32[B], mixed as its labels are."""
    return _mean_of_labels(lambda labels: jnp.asarray(class_weight)[labels], mixed)


def _mean_of_labels(of_label, mixed: Mixed):
    if mixed.label_b is None:
        return of_label(mixed.label_a)
    return mixed.weight * of_label(mixed.label_a) + (1 - mixed.weight) * of_label(mixed.label_b)


def dominant_label(mixed: Mixed):
    """Return the label with the larger weight, int32[B]; on a tie label_a."""
    if mixed.label_b is None:
        return mixed.label_a
    return jnp.where(mixed.weight >= 0.5, mixed.label_a, mixed.label_b)
