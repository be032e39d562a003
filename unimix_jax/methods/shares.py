"""Shares of the two images of a pair, in the mixed image and in its label: Beta draws, Remix's weight, CutMix's box."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax.methods.checks import static

_TABLE = 4096  # intervals of the quantile table; linear between them it is exact to 1e-7


@functools.lru_cache(maxsize=8)
def _beta_quantiles(alpha: float) -> np.ndarray:
    """Quantiles of Beta(alpha, alpha) below 1/2, on a grid of (2u)**(1/alpha), in which they are nearly linear."""
    from scipy.special import betaincinv

    grid = np.linspace(0, 1, _TABLE + 1)
    return betaincinv(alpha, alpha, 0.5 * grid**alpha).astype(np.float32)


def beta(key: jax.Array, alpha: float) -> jax.Array:
    """Draw from Beta(alpha, alpha) through a table of its quantiles.

    `jax.random.beta` is a loop of rejections that costs 2 s of compilation.

    Args:
      key: a JAX key.
      alpha: above 0, a Python float.

    Returns:
      float32[] in [0, 1]; for small alpha exactly 0 and 1 occur.

    Raises:
      UserError: alpha is traced.

    Example: for a small alpha most draws are near 0 or near 1.
      >>> draws = jax.vmap(lambda key: beta(key, 0.1))(jax.random.split(jax.random.key(0), 1000))
      >>> bool(((draws < 0.1) | (draws > 0.9)).mean() > 0.8)
      True
    """
    alpha = static(alpha, "alpha")
    u = jax.random.uniform(key)
    position = (2 * jnp.minimum(u, 1 - u)) ** (1 / alpha) * _TABLE
    left = jnp.clip(position.astype(jnp.int32), 0, _TABLE - 1)
    table = jnp.asarray(_beta_quantiles(float(alpha)))
    quantile = table[left] + (position - left) * (table[left + 1] - table[left])
    return jnp.where(u > 0.5, 1 - quantile, quantile)


def remix_weight(
    count_a: jax.Array, count_b: jax.Array, share: jax.Array, kappa: float = 3.0, threshold: float = 0.5
) -> jax.Array:
    """Return Remix's weight of label a.

    With lambda the share of image a, it is 0 if n_a >= kappa n_b and lambda < threshold, 1 if kappa n_a <= n_b and
    1 - lambda < threshold, else lambda.

    Args:
      count_a: int[B], training images of the classes of the images a.
      count_b: int[B], the same for the images b.
      share: float[B], of image a.
      kappa: above 1.
      threshold: in 0..1, tau in its paper.

    Returns:
      float[B].

    Source: Chou et al. 2020, Eq. 8; ntucllab/imbalanced-DL, strategy/_remix_drw.py.

    Example: a rare image with .6 of the pixels has the whole label; next to an equal one it has .6.
      >>> print(remix_weight(jnp.array([10, 10]), jnp.array([90, 10]), jnp.array([0.6, 0.6])))
      [1.  0.6]
    """
    to_b = (count_a >= kappa * count_b) & (share < threshold)
    to_a = (kappa * count_a <= count_b) & (1 - share < threshold)
    return jnp.where(to_b, 0, jnp.where(to_a, 1, share))


def cut_box(share: jax.Array, centre: jax.Array, sides: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Return the box that CutMix cuts out of image a, clipped at the border.

    Its sides are floor(side * sqrt(1 - share)), less one if that is odd: the authors halve them to whole pixels.

    Args:
      share: float32[], that image a would keep if nothing were clipped.
      centre: int32[2], row and column.
      sides: of the image, height and width.

    Returns:
      The first row and column inside, and the first ones behind it, int32[2] each; an empty box at share 1.

    Source: Yun et al., ICCV 2019; clovaai/CutMix-PyTorch, train.py `rand_bbox`.

    Example: a quarter of an image, at its upper border.
      >>> first, end = cut_box(0.75, jnp.array([1, 4]), (8, 8))
      >>> print(first, end)
      [0 2] [3 6]
    """
    sides = jnp.asarray(sides)
    half = jnp.int32(sides * jnp.sqrt(1 - jnp.float32(share))) // 2
    return jnp.clip(centre - half, 0, sides), jnp.clip(centre + half, 0, sides)
