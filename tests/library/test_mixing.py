"""`unimix_jax.mixing`: the friendly forms give what the exact ones give, and refuse what is no batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax import losses, mixing, priors
from unimix_jax.errors import UserError
from unimix_jax.methods import mixing as exact

from .. import quick

COUNTS = np.array([90, 27, 9, 3])


def batch(size, seed=0):
    """Images that name themselves by a number, and labels by the natural distribution of COUNTS."""
    random = np.random.default_rng(seed)
    labels = random.choice(len(COUNTS), size, p=COUNTS / COUNTS.sum())
    return random.normal(size=(size, 2, 2, 1)).astype(np.float32), labels


FORMS = {
    "unimix": ({"counts": COUNTS, "alpha": 0.8, "wrap": False}, exact.unimix),
    "mixup": ({"alpha": 0.7, "per_example": True}, exact.mixup),
    "remix": ({"counts": COUNTS, "alpha": 0.7, "kappa": 2.0, "threshold": 0.6}, exact.remix),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_a_friendly_form_equals_the_exact_one_of_its_partners(name):
    options, mixer = FORMS[name]
    images, labels = batch(16)
    others, other_labels = batch(16, seed=1)
    friendly = functools.partial(getattr(mixing, name), **options)

    @quick.jit
    def both(key):
        keys, _ = mixing.split_key(key, 16)
        args = jnp.asarray(images), jnp.asarray(others), jnp.asarray(labels), jnp.asarray(other_labels)
        return (
            friendly(key, images, labels, partners=(others, other_labels)),
            mixer(keys, *args, **options),
            friendly(key, images, labels),
        )

    ours, theirs, drawn = both(jax.random.key(5))
    for one, other in zip(ours[:4], theirs[:4], strict=True):
        np.testing.assert_array_equal(one, other)
    # Partners from the batch: the mixed image says which image it was, for its weight is known (but for Remix).
    assert drawn.image.shape == images.shape
    if name != "remix":
        share = np.asarray(drawn.weight)[:, None, None, None]
        partner = (np.asarray(drawn.image) - share * images) / np.maximum(1 - share, 1e-9)
        distance = np.abs(partner[:, None] - images[None]).max(axis=(2, 3, 4))
        clear = np.asarray(drawn.weight) < 0.9
        assert clear.sum() > 3
        np.testing.assert_array_equal(labels[distance.argmin(axis=1)][clear], np.asarray(drawn.label_b)[clear])
        assert distance.min(axis=1)[clear].max() < 1e-4


@pytest.mark.slow
def test_mixing_works_with_other_types_and_under_vmap():
    images, labels = batch(8)

    @quick.jit
    def views(images):
        keys = jax.random.split(jax.random.key(0), len(images))
        return jax.vmap(lambda key, view: mixing.unimix(key, view, labels, counts=COUNTS))(keys, images)

    mixed = jax.device_get(views(np.stack([images.astype(jnp.bfloat16)] * 3)))
    assert (mixed.image.shape, mixed.image.dtype) == ((3, 8, 2, 2, 1), jnp.bfloat16)
    first = jax.tree.map(lambda leaf: leaf[0], mixed)
    loss = quick.jit(functools.partial(mixing.objective, losses.cross_entropy))(np.zeros((8, 4), np.float32), first)
    np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)
    raw = quick.jit(lambda: mixing.mixup(jax.random.PRNGKey(0), images.reshape(8, 4), labels))()
    assert raw.image.shape == (8, 4)


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5])
def test_partner_indices_follow_the_exact_distribution(exponent):
    labels = np.repeat(np.arange(4), COUNTS)
    size = 40_000
    drawn = mixing.partner_indices(labels, size=size, seed=1, step=2, class_exponent=exponent)
    expected = COUNTS**exponent / (COUNTS**exponent).sum()
    share = np.bincount(labels[drawn], minlength=4) / size
    assert (np.abs(share - expected) < 4.5 * np.sqrt(expected * (1 - expected) / size)).all()
    # Each image of a class as often as the others.
    each = np.bincount(drawn, minlength=len(labels)) / size
    wanted = expected[labels] / COUNTS[labels]
    assert (np.abs(each - wanted) < 5 * np.sqrt(wanted / size)).all()
    by_class = mixing.sorted_by_class(labels)
    again = mixing.partner_indices(by_class, size=size, seed=1, step=2, class_exponent=exponent)
    np.testing.assert_array_equal(again, drawn)
    assert (mixing.partner_indices(by_class, size=size, seed=1, step=3) != drawn).any()


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [-1.0, 0.5, -10.0])
def test_partners_in_a_batch_follow_the_law_among_the_classes_that_are_there(exponent):
    labels = np.array([0, 0, 0, 0, 0, 2, 2, 3])  # no image of class 1
    counts = COUNTS * 1000  # whose power -10 no float32 holds
    draws = 20_000
    draw = functools.partial(mixing.partner_slots, labels=labels, counts=counts, class_exponent=exponent)
    keys = jax.random.split(jax.random.key(0), draws // len(labels))
    slots = np.asarray(quick.jit(jax.vmap(draw))(keys)).ravel()
    shares = np.where(np.bincount(labels, minlength=4) > 0, priors.prior(counts, exponent), 0)
    expected = (shares / shares.sum())[labels] / np.bincount(labels, minlength=4)[labels]
    share = np.bincount(slots, minlength=len(labels)) / draws
    assert (np.abs(share - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / draws) + 1e-9).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": np.zeros((4, 2, 2, 1), np.uint8)}, r"images are uint8\[4, 2, 2, 1\]; they must be floating-point"),
        ({"images": np.zeros((2, 2, 1), np.float32)}, r"with 4 labels they must be \[4, \.\.\.\]"),
        ({"labels": np.eye(4)}, "labels are float64.4, 4.; they must be integers"),
        ({"counts": 3}, r"counts has the shape \[\] and the type int64; it must be \[K\]"),
        ({"counts": [90, 27, 9]}, r"labels hold 3; with 3 classes they must lie in 0\.\.2"),
        ({"counts": [90, 27, 9, -1]}, "counts is -1 for class 3; it must be 0 or above"),
        ({"counts": [90, np.nan, 9, 1]}, "counts is nan for class 1"),
        ({"counts": [90, 0, 9, 1]}, "labels hold class 1, which has no training image"),
        ({"labels": [0, 1, 2, -1]}, r"labels hold -1; with 4 classes they must lie in 0\.\.3"),
        ({"labels": jnp.array([0, 1, 2, 4])}, r"labels hold 4; with 4 classes they must lie in 0\.\.3"),
        ({"partners": (np.zeros((4, 2, 2, 1), np.float32), np.arange(4) + 1)}, "labels of the partners hold 4"),
        ({"key": jax.random.split(jax.random.key(0), 2)}, r"the key has the shape \[2\]: these are several keys"),
        ({"key": np.zeros((2, 2), np.uint32)}, r"the key has the shape \[2, 2\]: these are several keys"),
        ({"alpha": -1}, r"alpha is -1; it must be in \.01\.\.100"),
        ({"alpha": 0}, r"alpha is 0; it must be in \.01\.\.100"),
        ({"alpha": "half"}, r"alpha is 'half'; it must be in \.01\.\.100"),
        ({"alpha": np.array([1.0, 2.0])}, r"it must be in \.01\.\.100"),
        ({"class_exponent": np.nan}, "class_exponent is nan; it must be finite"),
        ({"class_exponent": -11}, r"class_exponent is -11; it must be in -10\.\.10"),
        ({"wrap": 3}, "wrap is 3; it must be True or False"),
        ({"key": 0}, "the key is 0; it must be a JAX key"),
        ({"partners": np.zeros((4, 2, 2, 1))}, "partners must be a pair"),
        ({"partners": (np.zeros((4, 3, 2, 1), np.float32), np.arange(4))}, "images of the partners have the shape"),
        ({"partners": (np.zeros((4, 2, 2, 1), np.float32), np.zeros(4))}, "labels of the partners are float64"),
    ],
)
def test_arrays_that_are_no_batch_are_refused_in_one_sentence(changes, words):
    arguments = {"key": jax.random.key(0), "images": np.zeros((4, 2, 2, 1), np.float32), "labels": np.arange(4)}
    with pytest.raises(UserError, match=words):
        mixing.unimix(**{**arguments, "counts": COUNTS, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": np.array([0, -1])}, "labels hold -1; they must be classes from 0"),
        ({"labels": np.array([0.5])}, "labels are float64"),
        ({"labels": []}, r"labels are float64\[0\]"),
        ({"step": -1}, "step is -1; it must be at least 0"),
        ({"step": 1.5}, "step is 1.5; it must be a whole number"),
        ({"size": "two"}, "size is 'two'; it must be a whole number"),
        ({"class_exponent": np.nan}, "class_exponent is nan"),
    ],
)
def test_labels_and_numbers_that_draw_no_partners_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        mixing.partner_indices(**{"labels": np.array([0, 1]), "size": 2, "seed": 0, "step": 0, **changes})


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mixup", {"alpha": 0}, r"alpha is 0; it must be in"),
        ("mixup", {"labels": np.arange(4) - 1}, "labels hold -1; they must be classes from 0"),
        ("cutmix", {"probability": 1.5}, r"probability is 1\.5; it must be in 0\.\.1"),
        ("cutmix", {"images": np.zeros((4, 4), np.float32)}, r"a box is cut out of \[B, height, width, channels\]"),
        ("remix", {"counts": COUNTS, "kappa": 0}, "kappa is 0; it must be above 1"),
        ("remix", {"counts": COUNTS, "threshold": 3}, r"threshold is 3; it must be in 0\.\.1"),
        ("remix", {"counts": [90, 27]}, r"labels hold 2; with 2 classes"),
        ("partner_slots", {"counts": [90, 27]}, r"labels hold 2; with 2 classes"),
        ("partner_slots", {"counts": COUNTS, "class_exponent": np.inf}, "class_exponent is inf"),
    ],
)
def test_options_and_labels_out_of_bounds_are_refused(name, options, words):
    arguments = {"key": jax.random.key(0), "labels": np.arange(4)}
    if name != "partner_slots":
        arguments["images"] = np.zeros((4, 2, 2, 1), np.float32)
    with pytest.raises(UserError, match=words):
        getattr(mixing, name)(**{**arguments, **options})


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            lambda x: mixing.mixup(jax.random.key(0), np.zeros((4, 4), np.float32), np.arange(4), alpha=x),
            "alpha is traced",
        ),
        (lambda x: mixing.unimix(jax.random.key(0), x, np.arange(3), counts=COUNTS), "images are float32"),
        (lambda x: mixing.partner_slots(jax.random.key(0), x, COUNTS), "labels are float32"),
    ],
)
def test_what_is_known_under_jit_is_checked_there(function, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(function, jnp.float32(0.5))


@pytest.mark.slow
@pytest.mark.parametrize("per_example", [False, True])
def test_cutmix_weighs_labels_by_the_pixels_that_come_from_each_image(per_example):
    random = np.random.default_rng(0)
    images, others = random.uniform(size=(2, 8, 6, 6, 1)).astype(np.float32)
    labels, other_labels = np.arange(8) % 4, np.arange(8)[::-1] % 4
    cut = functools.partial(mixing.cutmix, per_example=per_example)
    mixed = quick.jit(lambda key: cut(key, images, labels, partners=(others, other_labels)))(jax.random.key(3))
    for n, image in enumerate(np.asarray(mixed.image)[..., 0]):
        own = 0
        rows, columns = [], []
        for row in range(6):
            for column in range(6):
                if image[row, column] == images[n, row, column, 0]:
                    own += 1
                else:
                    assert image[row, column] == others[n, row, column, 0]
                    rows.append(row)
                    columns.append(column)
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1) if rows else own == 36  # one box
        assert mixed.weight[n] == pytest.approx(own / 36, abs=1e-6)
    assert len(set(np.asarray(mixed.weight).tolist())) == 1 or per_example
    np.testing.assert_array_equal(mixed.label_b, other_labels)
