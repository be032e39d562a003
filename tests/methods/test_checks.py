"""Losses and the objective refuse what does not fit together: values where they can be read, shapes always."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax.errors import UserError
from unimix_jax.methods import losses, mixing

LOGITS, LABELS, COUNTS = np.zeros((3, 4), np.float32), np.array([0, 1, 2]), np.array([50, 20, 10, 5])
OPTIONS = {
    "cross_entropy": {},
    "focal": {"inner_weight": COUNTS / 5.0},
    "cdt": {"counts": COUNTS},
    "ldam": {"counts": COUNTS, "scale": 1.0},
    "logit_adjustment": {"train_prior": COUNTS / 85},
    "balanced_softmax": {"counts": COUNTS},
    "label_aware_smoothing": {"counts": COUNTS},
    "bayias": {"train_prior": COUNTS / 85, "test_prior": COUNTS / 85},
}
OF_CLASSES = [(name, option) for name, options in OPTIONS.items() for option in options if option != "scale"]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, -1], r"labels hold -1; with 4 classes they must lie in 0\.\.3"),
        (jnp.array([0, 1, 4]), r"labels hold 4; with 4 classes they must lie in 0\.\.3"),
        (np.array([0.0, 1.0, 2.0]), r"labels are float64\[3\]; they must be integers"),
        (np.eye(3, 4, dtype=int), r"labels are int64\[3, 4\]; they must be integers"),
        (np.array([0, 1]), "there are 3 rows of logits, but 2 labels"),
        ("abc", "labels are <U3"),
    ],
)
def test_labels_that_are_none_are_refused(name, labels, words):
    with pytest.raises(UserError, match=words):
        getattr(losses, name)(LOGITS, labels, **OPTIONS[name])


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (np.zeros(4, np.float32), LABELS, r"logits are float32\[4\]; they must be numbers \[B, K\]"),
        (LOGITS, LABELS[:2], "there are 3 rows of logits, but 2 labels"),
        (LOGITS, LABELS * 1.0, "labels are float32"),
        (LOGITS, np.eye(3, 4, dtype=int), "they must be integers"),
    ],
)
def test_shapes_and_types_are_checked_under_jit_too(name, logits, labels, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(functools.partial(getattr(losses, name), **OPTIONS[name]), logits, labels)


@pytest.mark.parametrize(("name", "option"), OF_CLASSES)
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([50, 20, 10], r"has the shape \[3\] .* it must be \[4\], a number for each of the 4 classes"),
        ([50, 20, 10, 5, 1], r"has the shape \[5\]"),
        (50, r"has the shape \[\]"),
        ([50, 20, -1, 5], "is -1 for class 2"),
        ([50, np.nan, 10, 5], "is nan for class 1"),
        ([50, 20, np.inf, 5], "is inf for class 2"),
        (np.zeros(4), "is 0 for"),
    ],
)
def test_class_arrays_that_do_not_fit_are_refused(name, option, values, words):
    with pytest.raises(UserError, match=rf"^{option} {words}"):
        jax.eval_shape(functools.partial(getattr(losses, name), **{**OPTIONS[name], option: values}), LOGITS, LABELS)


@pytest.mark.parametrize(("name", "option"), [pair for pair in OF_CLASSES if pair[1] != "inner_weight"])
def test_class_arrays_are_closed_over_and_not_traced(name, option):
    loss, others = getattr(losses, name), {key: value for key, value in OPTIONS[name].items() if key != option}
    with pytest.raises(UserError, match=f"{option} is traced .* close over it"):
        jax.eval_shape(lambda values: loss(LOGITS, LABELS, **{**others, option: values}), COUNTS)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("focal", {"gamma": -1}, "gamma is -1; it must be at least 0"),
        ("cdt", {"gamma": -1}, "gamma is -1; it must be at least 0"),
        ("ldam", {"scale": -3}, "scale is -3; it must be above 0"),
        ("ldam", {"max_margin": np.nan}, "max_margin is nan; it must be finite"),
        ("logit_adjustment", {"strength": np.inf}, "strength is inf; it must be finite"),
        ("label_aware_smoothing", {"head": 3}, r"head is 3; it must be in 0\.\.1"),
        ("label_aware_smoothing", {"power": 0}, "power is 0; it must be above 0"),
        ("label_aware_smoothing", {"shape": "round"}, "unknown shape of label_aware_smoothing 'round'"),
    ],
)
def test_options_have_the_bounds_of_the_config(name, options, words):
    with pytest.raises(UserError, match=words):
        getattr(losses, name)(LOGITS, LABELS, **{**OPTIONS[name], **options})


def test_a_traced_gamma_is_refused_and_a_traced_scale_is_not():
    with pytest.raises(UserError, match="gamma is traced"):
        jax.eval_shape(lambda gamma: losses.focal(LOGITS, LABELS, gamma=gamma), 1.0)
    learned = jax.eval_shape(lambda scale: losses.ldam(LOGITS, LABELS, counts=COUNTS, scale=scale), 1.0)
    assert learned.shape == (3,)


def test_a_class_without_images_counts_in_smoothing_only():
    counts = np.array([50, 20, 10, 0])
    assert losses.smoothing_amounts(counts, 0.3, 0.0, "linear")[3] == 0
    with pytest.raises(UserError, match="counts is 0 for class 3; it must be above 0"):
        losses.balanced_softmax(LOGITS, LABELS, counts=counts)


MIXED = mixing.Mixed(None, LABELS, LABELS[::-1], np.float32([0.5, 0.5, 1.0]))


@pytest.mark.parametrize(
    ("logits", "mixed", "class_weight", "words"),
    [
        (LOGITS, tuple(MIXED), None, "mixed is of the type tuple; it must be Mixed"),
        (LOGITS[:2], MIXED, None, r"the batch has the shapes logits \[2, 4\], label_a \[3\]"),
        (LOGITS, MIXED._replace(label_b=LABELS[:2]), None, r"label_b \[2\]"),
        (LOGITS, MIXED._replace(weight=np.float32([0.5])), None, r"weight \[1\]"),
        (LOGITS, MIXED, np.ones(3, np.float32), r"class_weight has the shape \[3\]"),
    ],
)
def test_an_objective_of_parts_that_do_not_fit_is_refused(logits, mixed, class_weight, words):
    with pytest.raises(UserError, match=words):
        mixing.objective(losses.cross_entropy, logits, mixed, class_weight)
    if isinstance(mixed, mixing.Mixed):  # the same with everything traced
        with pytest.raises(UserError, match=words):
            jax.eval_shape(functools.partial(mixing.objective, losses.cross_entropy), logits, mixed, class_weight)
