"""Mixing for a training loop of your own: UniMix, mixup, Remix and CutMix of a batch in one call, also under `jit`.

A call takes a JAX key, images and labels, and returns `Mixed`: the mixed images, both labels and their weights. Its
loss is `objective(loss, logits, mixed)`, one value per example. The partners come from the same batch, unless
`partners` gives others, such as images at the positions of `partner_indices`.

Shapes, types and options are checked always, and so are labels and counts whose values can be read. Under `jit` or
`vmap` labels are traced and cannot be checked: one that is no class is then mixed by the count of another class.

These are thin forms of `methods.mixing` and `data.pairs`, where the exact functions are. A mixer of `methods.mixing`
that has no form here yet gets one by a function that calls `_mix`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from unimix_jax import names, priors
from unimix_jax.data import pairs
from unimix_jax.data.sampling import ClassIndex, sorted_by_class
from unimix_jax.errors import UserError
from unimix_jax.methods import mixing as exact
from unimix_jax.methods.checks import check_options, checked_labels, class_array, is_known
from unimix_jax.methods.mixing import Keys, Mixed, dominant_label, example_weight, objective, unimix_factor
from unimix_jax.methods.shares import remix_weight

__all__ = [
    "ClassIndex",
    "Keys",
    "Mixed",
    "cutmix",
    "dominant_label",
    "example_weight",
    "mixup",
    "objective",
    "partner_indices",
    "partner_slots",
    "remix",
    "remix_weight",
    "sorted_by_class",
    "split_key",
    "unimix",
    "unimix_factor",
]
__getattr__, __dir__ = names.of_module(__name__, __all__)


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
      UserError: an array has another shape or type, an option is out of its bounds, or a label or count that is not
        traced is none.

    Source: Xu, Chai, Yuan, NeurIPS 2021; the draw from the batch alone is ours, see `partner_slots`.

    Example: the one image of the rare class is the partner of five in six images.
      >>> mix = jax.jit(functools.partial(unimix, counts=[50, 10]))
      >>> mixed = mix(jax.random.key(0), np.zeros((1000, 2, 2, 1), np.float32), np.arange(1000) // 999)
      >>> mixed.image.shape, round(float(mixed.label_b.mean()), 1)
      ((1000, 2, 2, 1), 0.8)
    """
    check_options(exact.unimix, alpha=alpha, wrap=wrap)
    check_options(pairs.by_class, class_exponent=class_exponent)
    mixer = functools.partial(exact.unimix, counts=_counts(counts), alpha=alpha, wrap=wrap)
    draw = functools.partial(partner_slots, counts=counts, class_exponent=class_exponent)
    return _mix(mixer, draw, key, images, labels, partners, counts)


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
      UserError: an array has another shape or type, an option is out of its bounds, or a label or count that is not
        traced is none.

    Source: facebookresearch/mixup-cifar10, train.py.

    Example: every label is a partner's once.
      >>> mixed = jax.jit(mixup)(jax.random.key(0), np.zeros((4, 2, 2, 1), np.float32), np.arange(4))
      >>> sorted(mixed.label_b.tolist()), len(set(mixed.weight.tolist())) == 1
      ([0, 1, 2, 3], True)
    """
    check_options(exact.mixup, alpha=alpha, per_example=per_example)
    mixer = functools.partial(exact.mixup, alpha=alpha, per_example=per_example)
    return _mix(mixer, _permuted, key, images, labels, partners)


def cutmix(
    key: jax.Array,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: float = 1.0,
    probability: float = 1.0,
    per_example: bool = False,
    partners: tuple[ArrayLike, ArrayLike] | None = None,
) -> Mixed:
    """Mix a batch by CutMix: put a box of a partner into each image; labels weigh by the pixels that each one has.

    Args:
      key: a JAX key, another one for each step.
      images: float[B, H, W, C], normalised.
      labels: int[B].
      alpha: of the Beta distribution of the share that the box leaves, above 0, a Python float.
      probability: of mixing at all, in 0..1.
      per_example: whether to draw a box for each pair, instead of one for the batch (not in the original).
      partners: images and labels of the partners, shaped as those of the batch; None for a permutation of the batch.

    Returns:
      The mixed images in the type of `images`, both labels, and the weights of the batch's own labels, float32[B].

    Raises:
      UserError: an array has another shape or type, or an option is out of its bounds.

    Source: Yun et al., ICCV 2019; clovaai/CutMix-PyTorch, train.py.

    Example: the weight of a label is the share of its image's pixels.
      >>> black, white = np.zeros((2, 8, 8, 1), np.float32), np.ones((2, 8, 8, 1), np.float32)
      >>> cut = jax.jit(lambda key: cutmix(key, white, np.array([0, 1]), partners=(black, np.array([1, 0]))))
      >>> mixed = cut(jax.random.key(0))
      >>> bool((mixed.image.mean(axis=(1, 2, 3)) == mixed.weight).all())
      True
    """
    check_options(exact.cutmix, alpha=alpha, probability=probability, per_example=per_example)
    if np.ndim(images) != 4:
        raise UserError(
            f"images have the shape {list(np.shape(images))}; a box is cut out of [B, height, width, channels]"
        )
    mixer = functools.partial(exact.cutmix, alpha=alpha, probability=probability, per_example=per_example)
    return _mix(mixer, _permuted, key, images, labels, partners)


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
      kappa: above 1, see `remix_weight`.
      threshold: in 0..1, see `remix_weight`.
      partners: images and labels of the partners, shaped as those of the batch; None for a permutation of the batch.

    Returns:
      The mixed images in the type of `images`, both labels, and the weights of the batch's own labels, float32[B].

    Raises:
      UserError: an array has another shape or type, an option is out of its bounds, or a label or count that is not
        traced is none.

    Source: Chou et al. 2020; ntucllab/imbalanced-DL, strategy/_remix_drw.py.

    Example: equal counts leave mixup's weights.
      >>> batch = jax.random.key(0), np.zeros((4, 2, 2, 1), np.float32), np.array([0, 1, 0, 1])
      >>> mixed = jax.jit(functools.partial(remix, counts=[7, 7]))(*batch)
      >>> mixed.weight.tolist() == jax.jit(mixup)(*batch).weight.tolist()
      True
    """
    check_options(exact.remix, alpha=alpha, kappa=kappa, threshold=threshold)
    mixer = functools.partial(exact.remix, counts=_counts(counts), alpha=alpha, kappa=kappa, threshold=threshold)
    return _mix(mixer, _permuted, key, images, labels, partners, counts)


def partner_slots(key: jax.Array, labels: ArrayLike, counts: ArrayLike, class_exponent: float = -1.0) -> jax.Array:
    """Draw a partner for each image of a batch from the batch itself: a class, then one of its images there.

    A class that the batch holds is drawn by counts**class_exponent, in proportion to the other classes that it holds;
    each of its images in the batch is then as probable as the others. That is the distribution of UniMix's own sampler
    (`partner_indices`), under the condition that the class is one of the batch. So a class comes less often than by
    that sampler, the rarest most of all, for a batch that does not hold it cannot offer it: for the distribution itself
    take `partner_indices`. An image may meet itself.

    Args:
      key: a JAX key.
      labels: int[B], 0 <= label < K.
      counts: [K], training images per class; above 0 for each class that occurs.
      class_exponent: tau in the paper, -1 there; 0 is class-balanced, 1 natural.

    Returns:
      int32[B], positions in the batch.

    Raises:
      UserError: an array has another shape or type, an option is out of its bounds, or a label or count that is not
        traced is none.

    Example: both classes are there, so a tenth of the images comes nine times as often.
      >>> labels = np.arange(10_000) % 2
      >>> slots = jax.jit(functools.partial(partner_slots, counts=[90, 10]))(jax.random.key(0), labels)
      >>> print(labels[slots].mean().round(2))
      0.9
    """
    check_options(pairs.by_class, class_exponent=class_exponent)
    labels, counts = _checked_classes(labels, "labels", counts), _counts(counts)
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
      UserError: labels that are no classes, a number that is not whole or below 0, or an exponent out of its bounds.

    Source: Xu, Chai, Yuan, NeurIPS 2021, Eq. A.13 and A.14.

    Example: a class with a ninth of the images is drawn nine times as often.
      >>> labels = np.repeat([0, 1], [90, 10])
      >>> partners = partner_indices(labels, size=10_000, seed=0, step=0)
      >>> (labels[partners] == 1).mean().round(2)
      np.float64(0.9)
    """
    check_options(pairs.by_class, class_exponent=class_exponent)
    if not isinstance(labels, ClassIndex):
        labels = sorted_by_class(labels)
    size, seed, step = (
        priors.whole_number(number, name, least=0) for name, number in (("size", size), ("seed", seed), ("step", step))
    )
    return pairs.partners_by_class(labels, class_exponent=class_exponent, seed=seed, step=step, size=size)


def split_key(key: jax.Array, size: int) -> tuple[Keys, jax.Array]:
    """Return the keys with which `unimix`, `mixup` and `remix` call the exact mixer, and the key of their partners.

    Args:
      key: a JAX key, of `jax.random.key` or `jax.random.PRNGKey`.
      size: of the batch.

    Returns:
      The keys of the mixer, and the key of the draw of partners.

    Raises:
      UserError: it is no key, or several ones.

    Example:
      >>> keys, _ = split_key(jax.random.key(0), 4)
      >>> keys.view.shape
      (4,)
    """
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and not (hasattr(key, "dtype") and key.dtype == jnp.uint32 and key.ndim):
        raise UserError(f"the key is {key!r}; it must be a JAX key, such as jax.random.key(0)")
    if key.ndim != (0 if typed else 1):
        raise UserError(
            f"the key has the shape {list(key.shape)}: these are several keys, as of jax.random.split; give one of "
            "them, and another one at the next step"
        )
    step, view, partners = jax.random.split(key, 3)
    return Keys(step, jax.random.split(view, size)), partners


def _mix(
    mixer: Callable[..., Mixed],
    draw: Callable[..., jax.Array],
    key: jax.Array,
    images: ArrayLike,
    labels: ArrayLike,
    partners: tuple[ArrayLike, ArrayLike] | None,
    counts: ArrayLike | None = None,
) -> Mixed:
    """Check a batch, choose its partners by draw(key, labels) if none are given, and mix by the exact mixer."""
    images, labels = _checked_batch(images, labels, "images", "labels", counts)
    keys, of_partners = split_key(key, len(labels))
    if partners is None:
        slots = draw(of_partners, labels)
        others = images[slots], labels[slots]
    else:
        if not isinstance(partners, tuple | list) or len(partners) != 2:
            raise UserError("partners must be a pair: images and labels, shaped as those of the batch")
        others = _checked_batch(*partners, "images of the partners", "labels of the partners", counts)
        if others[0].shape != images.shape:
            raise UserError(
                f"images of the partners have the shape {list(others[0].shape)}; it must be that of the images, "
                f"{list(images.shape)}"
            )
    mixed = mixer(keys, images, others[0], labels, others[1])
    return mixed._replace(image=mixed.image.astype(images.dtype))


def _permuted(key: jax.Array, labels: jax.Array) -> jax.Array:
    return jax.random.permutation(key, len(labels))


def _checked_batch(
    images: ArrayLike, labels: ArrayLike, of_images: str, of_labels: str, counts: ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    images, labels = jnp.asarray(images), _checked_classes(labels, of_labels, counts)
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


def _checked_classes(labels: ArrayLike, name: str, counts: ArrayLike | None) -> jax.Array:
    """Return labels after a check that they are classes, of which each has training images."""
    if counts is None:
        return checked_labels(labels, name)
    checked = checked_labels(labels, name, classes=len(_counts(counts)))
    if is_known(labels) and is_known(counts):
        images = np.asarray(counts)[np.asarray(labels)]
        if not images.all():
            raise UserError(
                f"{name} hold class {np.asarray(labels)[images.argmin()]}, which has no training image by counts; "
                "counts are those of the training labels"
            )
    return checked


def _counts(counts: ArrayLike) -> jax.Array:
    return class_array(counts, "counts")
