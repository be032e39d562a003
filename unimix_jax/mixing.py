"""Mixing for a training loop of your own: UniMix, mixup and Remix of a batch in one call, inside of `jit` or `vmap`.

A call takes a JAX key, images and labels, and returns `Mixed`: the mixed images, both labels and their weights. Its
loss is `objective(loss, logits, mixed)`, one value per example. The partners come from the same batch, unless
`partners` gives others, such as images at the positions of `partner_indices`.

These are thin forms of `methods.mixing` and `data.pairs`, where the exact functions are. A mixer of `methods.mixing`
that has no form here yet gets one by a function that calls `_mix`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from unimix_jax.data import pairs
from unimix_jax.data.sampling import ClassIndex, sorted_by_class
from unimix_jax.errors import UserError
from unimix_jax.methods import mixing as exact
from unimix_jax.methods.mixing import Keys, Mixed, dominant_label, example_weight, objective, unimix_factor

__all__ = [
    "ClassIndex",
    "Keys",
    "Mixed",
    "dominant_label",
    "example_weight",
    "mixup",
    "objective",
    "partner_indices",
    "partner_slots",
    "remix",
    "sorted_by_class",
    "split_key",
    "unimix",
    "unimix_factor",
]


def unimix(
    key: jax.Array,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    counts: ArrayLike,
    alpha: float = 0.5,
    wrap: bool = True,
    class_exponent: float = -1.0,
    partners: tuple[ArrayLike, ArrayLike] | None = None,
) -> Mixed:
    """Mix a batch by UniMix: a rare partner for each image, and a factor that favours the rarer one of each pair.

    Args:
      key: a JAX key, another one for each step.
      images: float[B, ...], such as [B, H, W, C], normalised.
      labels: int[B], 0 <= label < K.
      counts: [K], training images per class; above 0 for each class that occurs.
      alpha: above 0, a Python float; see `unimix_factor`.
      wrap: see `unimix_factor`.
      class_exponent: of the draw of partners, see `partner_slots`; without effect where `partners` are given.
      partners: images and labels of the partners, shaped as those of the batch; None to draw them from the batch.

    Returns:
      The mixed images in the type of `images`, both labels, and the weights of the batch's own labels, float32[B].

    Raises:
      UserError: an array has another shape or type.

    Source: Xu, Chai, Yuan, NeurIPS 2021; the draw from the batch alone is ours, see `partner_slots`.

    Example: the one image of the rare class is the partner of five in six images.
      >>> mix = jax.jit(functools.partial(unimix, counts=[50, 10]))
      >>> mixed = mix(jax.random.key(0), np.zeros((1000, 2, 2, 1), np.float32), np.arange(1000) // 999)
      >>> mixed.image.shape, round(float(mixed.label_b.mean()), 1)
      ((1000, 2, 2, 1), 0.8)
    """
    counts = _checked_counts(counts)
    mixer = functools.partial(exact.unimix, counts=counts, alpha=alpha, wrap=wrap)
    draw = functools.partial(partner_slots, counts=counts, class_exponent=class_exponent)
    return _mix(mixer, draw, key, images, labels, partners)


def mixup(
    key: jax.Array,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: float = 1.0,
    per_example: bool = False,
    partners: tuple[ArrayLike, ArrayLike] | None = None,
) -> Mixed:
    """Mix a batch by mixup: with a permutation of itself, all pairs by one share.

    Args:
      key: a JAX key, another one for each step.
      images: float[B, ...], such as [B, H, W, C], normalised.
      labels: int[B].
      alpha: of the Beta distribution of the share, above 0, a Python float.
      per_example: whether to draw a share for each pair instead (not in the original).
      partners: images and labels of the partners, shaped as those of the batch; None for a permutation of the batch.

    Returns:
      The mixed images in the type of `images`, both labels, and the weights of the batch's own labels, float32[B].

    Raises:
      UserError: an array has another shape or type.

    Source: see `methods.mixing.mixup`.

    Example: every label is a partner's once.
      >>> mixed = jax.jit(mixup)(jax.random.key(0), np.zeros((4, 2, 2, 1), np.float32), np.arange(4))
      >>> sorted(mixed.label_b.tolist()), len(set(mixed.weight.tolist())) == 1
      ([0, 1, 2, 3], True)
    """
    return _mix(
        functools.partial(exact.mixup, alpha=alpha, per_example=per_example), _permuted, key, images, labels, partners
    )


def remix(
    key: jax.Array,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    counts: ArrayLike,
    alpha: float = 1.0,
    kappa: float = 3.0,
    threshold: float = 0.5,
    partners: tuple[ArrayLike, ArrayLike] | None = None,
) -> Mixed:
    """Mix a batch by Remix: as `mixup`, but a label goes wholly to a class that is much rarer than the other.

    Args:
      key: a JAX key, another one for each step.
      images: float[B, ...], such as [B, H, W, C], normalised.
      labels: int[B], 0 <= label < K.
      counts: [K], training images per class.
      alpha: of the Beta distribution of the share, above 0, a Python float.
      kappa: above 1, see `methods.mixing.remix_weight`.
      threshold: in 0..1, see `methods.mixing.remix_weight`.
      partners: images and labels of the partners, shaped as those of the batch; None for a permutation of the batch.

    Returns:
      The mixed images in the type of `images`, both labels, and the weights of the batch's own labels, float32[B].

    Raises:
      UserError: an array has another shape or type.

    Source: see `methods.mixing.remix`.

    Example: equal counts leave mixup's weights.
      >>> batch = jax.random.key(0), np.zeros((4, 2, 2, 1), np.float32), np.array([0, 1, 0, 1])
      >>> mixed = jax.jit(functools.partial(remix, counts=[7, 7]))(*batch)
      >>> mixed.weight.tolist() == jax.jit(mixup)(*batch).weight.tolist()
      True
    """
    counts = _checked_counts(counts)
    mixer = functools.partial(exact.remix, counts=counts, alpha=alpha, kappa=kappa, threshold=threshold)
    return _mix(mixer, _permuted, key, images, labels, partners)


def partner_slots(key: jax.Array, labels: ArrayLike, counts: ArrayLike, class_exponent: float = -1.0) -> jax.Array:
    """Draw a partner for each image of a batch from the batch itself: a class, then one of its images there.

    A class that the batch holds is drawn by counts**class_exponent, in proportion to the other classes that it holds;
    each of its images in the batch is then as probable as the others. That is the law of UniMix's own sampler
    (`partner_indices`), under the condition that the class is one of the batch. So a class comes less often than by
    that sampler, the rarest most of all, for a batch that does not hold it cannot offer it: for the law itself take
    `partner_indices`. An image may meet itself.

    Args:
      key: a JAX key.
      labels: int[B], 0 <= label < K.
      counts: [K], training images per class; above 0 for each class that occurs.
      class_exponent: tau in the paper, -1 there; 0 is class-balanced, 1 natural.

    Returns:
      int32[B], positions in the batch.

    Raises:
      UserError: an array has another shape or type.

    Example: both classes are there, so a tenth of the images comes nine times as often.
      >>> labels = np.arange(10_000) % 2
      >>> slots = jax.jit(functools.partial(partner_slots, counts=[90, 10]))(jax.random.key(0), labels)
      >>> print(labels[slots].mean().round(2))
      0.9
    """
    labels, counts = _checked_labels(labels, "labels"), _checked_counts(counts)
    in_batch = jnp.zeros(counts.shape, jnp.float32).at[labels].add(1)
    # In logarithms, because 1e6**-10 is no float32; a class that is not there has the weight 0.
    logs = jnp.where(in_batch > 0, class_exponent * jnp.log(counts.astype(jnp.float32)), -jnp.inf)
    weights = jnp.exp(logs - logs.max())[labels] / in_batch[labels]
    return jax.random.choice(key, len(labels), labels.shape, p=weights / weights.sum()).astype(jnp.int32)


def partner_indices(
    labels: np.ndarray | ClassIndex, *, size: int, seed: int, step: int, class_exponent: float = -1.0
) -> np.ndarray:
    """Draw partners over the whole data set, as UniMix does: a class by prior**class_exponent, then one of its images.

    A pure function of (seed, step), in numpy.

    Args:
      labels: int[N] of the training images, or `sorted_by_class` of them, which saves sorting them at each step.
      size: number of partners, such as the size of the batch.
      seed: of the run, at least 0.
      step: from 0.
      class_exponent: tau in the paper, -1 there; 0 is class-balanced, 1 natural.

    Returns:
      int64[size], positions in the data set.

    Raises:
      UserError: labels that are no classes, or a number below 0.

    Source: Xu, Chai, Yuan, NeurIPS 2021, Eq. A.13 and A.14.

    Example: a class with a ninth of the images is drawn nine times as often.
      >>> labels = np.repeat([0, 1], [90, 10])
      >>> partners = partner_indices(labels, size=10_000, seed=0, step=0)
      >>> (labels[partners] == 1).mean().round(2)
      np.float64(0.9)
    """
    if not isinstance(labels, ClassIndex):
        labels = np.asarray(labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or labels.min() < 0:
            raise UserError(
                f"labels are {labels.dtype}{list(labels.shape)}; they must be integers [N], a class from 0 for each "
                "training image"
            )
    for name, number in (("size", size), ("seed", seed), ("step", step)):
        if number < 0:
            raise UserError(f"{name} is {number}; it must be at least 0")
    return pairs.partners_by_class(labels, class_exponent=class_exponent, seed=seed, step=step, size=size)


def split_key(key: jax.Array, size: int) -> tuple[Keys, jax.Array]:
    """Return the keys with which `unimix`, `mixup` and `remix` call the exact mixer, and the key of their partners.

    Args:
      key: a JAX key, of `jax.random.key` or `jax.random.PRNGKey`.
      size: of the batch.

    Returns:
      The keys of the mixer, and the key of the draw of partners.

    Raises:
      UserError: it is no key.

    Example:
      >>> keys, _ = split_key(jax.random.key(0), 4)
      >>> keys.view.shape
      (4,)
    """
    if not hasattr(key, "dtype"):
        raise UserError(f"the key is {key!r}; it must be a JAX key, such as jax.random.key(0)")
    step, view, partners = jax.random.split(key, 3)
    return Keys(step, jax.random.split(view, size)), partners


def _mix(
    mixer: Callable[..., Mixed],
    draw: Callable[..., jax.Array],
    key: jax.Array,
    images: ArrayLike,
    labels: ArrayLike,
    partners: tuple[ArrayLike, ArrayLike] | None,
) -> Mixed:
    """Check a batch, choose its partners by draw(key, labels) if none are given, and mix by the exact mixer."""
    images, labels = _checked_batch(images, labels, "images", "labels")
    keys, of_partners = split_key(key, len(labels))
    if partners is None:
        slots = draw(of_partners, labels)
        others = images[slots], labels[slots]
    else:
        if not isinstance(partners, tuple | list) or len(partners) != 2:
            raise UserError("partners must be a pair: images and labels, shaped as those of the batch")
        others = _checked_batch(*partners, "images of the partners", "labels of the partners")
        if others[0].shape != images.shape:
            raise UserError(
                f"images of the partners have the shape {list(others[0].shape)}; it must be that of the images, "
                f"{list(images.shape)}"
            )
    mixed = mixer(keys, images, others[0], labels, others[1])
    return mixed._replace(image=mixed.image.astype(images.dtype))


def _permuted(key: jax.Array, labels: jax.Array) -> jax.Array:
    return jax.random.permutation(key, len(labels))


def _checked_batch(images: ArrayLike, labels: ArrayLike, of_images: str, of_labels: str) -> tuple[jax.Array, jax.Array]:
    images, labels = jnp.asarray(images), _checked_labels(labels, of_labels)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"{of_images} are {images.dtype}{list(images.shape)}; they must be floating-point numbers, mixed after "
            "they are normalised"
        )
    if images.ndim < 2 or len(images) != len(labels):
        raise UserError(
            f"{of_images} are {images.dtype}{list(images.shape)}; with {len(labels)} labels they must be "
            f"[{len(labels)}, ...], such as [{len(labels)}, height, width, channels]"
        )
    return images, labels


def _checked_labels(labels: ArrayLike, name: str) -> jax.Array:
    labels = jnp.asarray(labels)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer) or not len(labels):
        raise UserError(
            f"{name} are {labels.dtype}{list(labels.shape)}; they must be integers [B], a class for each image"
        )
    return labels


def _checked_counts(counts: ArrayLike) -> jax.Array:
    counts = jnp.asarray(counts)
    if counts.ndim != 1 or len(counts) < 2:
        raise UserError(
            f"counts are {counts.dtype}{list(counts.shape)}; they must be [K], the training images of each class"
        )
    return counts
