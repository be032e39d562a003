"""Random keys inside the step: functions of (seed, step, view, use), never of a device or a host."""

import enum

import jax


class Use(enum.IntEnum):
    """One number for each purpose, so that a new purpose changes no earlier random number. Never renumber them."""

    CROP = 0
    FLIP = 1
    MIX = 2
    JITTER = 3
    AUGMENT = 4  # folded with the place of the augmentation in its list
    DROPOUT = 5


_NO_VIEW = 2**32 - 1  # stands for the whole batch; no image has this view


def of_views(seed: jax.Array, step: jax.Array, views: jax.Array) -> jax.Array:
    """Return the keys of a step's views, [B]; seed and step uint32[], views int32[B] in the global batch."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda view: jax.random.fold_in(key, view))(views)


def of_batch(seed: jax.Array, step: jax.Array) -> jax.Array:
    """Return the key of what a step draws once for the whole batch."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), _NO_VIEW)


def use(key: jax.Array, purpose: Use) -> jax.Array:
    """Return a view's, or a batch's, key for one purpose."""
    return jax.random.fold_in(key, purpose)
