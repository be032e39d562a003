"""Mixing pairs of images: the factors, the mixers, the objective of a mixed example. No devices, no files."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_TABLE = 4096  # intervals of the quantile table; linear between them it is exact to 1e-7


class Mixed(NamedTuple):
    """A batch as the network sees it; without mixing only image and label_a are there."""

    image: Any  # float32[B, H, W, C]
    label_a: Any  # int32[B]
    label_b: Any = None  # int32[B]
    weight: Any = None  # float32[B], the share of label_a in the objective
    hidden: Any = None  # what a mixer inside the network needs


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
    """Draw the share of image a in a mixed pair: large if a's class is the rarer one.

    With s = count_b / (count_a + count_b) and b ~ Beta(alpha, alpha):
    wrapped, as the authors define it, (b + s) mod 1: for alpha < 1 the law peaks at s from both
    sides; un-wrapped, clip(b + s - 1/2, 0, 1): the law is centred at s. Wrapped, the rare image of
    99:1 is favoured with probability .557 only (alpha .5), un-wrapped with .936. At alpha 1 the wrapped
    factor is uniform, whatever the counts.

    Args:
      key: a JAX key.
      count_a, count_b: training images of the two classes, > 0.
      alpha: > 0, a Python float; .5 in the paper on CIFAR, .8 in the released code.
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


def unimix(keys, image_a, image_b, label_a, label_b, *, counts, alpha: float = 0.5, wrap: bool = True) -> Mixed:
    """Mix each pair with a UniMix factor of its own.

    Args:
      keys: JAX keys [B], one an example.
      image_a, image_b: float32[B, H, W, C], augmented and normalised.
      label_a, label_b: int32[B].
      counts: int[K], training images per class.
      alpha, wrap: see `unimix_factor`.
    """
    counts = jnp.asarray(counts, jnp.float32)
    factor = functools.partial(unimix_factor, alpha=alpha, wrap=wrap)
    weight = jax.vmap(factor)(keys, counts[label_a], counts[label_b])
    share = weight[:, None, None, None]
    return Mixed(share * image_a + (1 - share) * image_b, label_a, label_b, weight)


def objective(loss, logits, mixed: Mixed):
    """Return weight * loss(label_a) + (1 - weight) * loss(label_b) for each example, float32[B].

    Args:
      loss: (logits, labels) -> float32[B].
      logits: float[B, K].
      mixed: fields that are not used may be None; without label_b it is loss(label_a).
    """
    if mixed.label_b is None:
        return loss(logits, mixed.label_a)
    return mixed.weight * loss(logits, mixed.label_a) + (1 - mixed.weight) * loss(logits, mixed.label_b)


def dominant_label(mixed: Mixed):
    """Return the label with the larger weight, int32[B]; on a tie label_a."""
    if mixed.label_b is None:
        return mixed.label_a
    return jnp.where(mixed.weight >= 0.5, mixed.label_a, mixed.label_b)
