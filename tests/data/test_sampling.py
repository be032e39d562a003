import functools

import numpy as np
import pytest

from unimix_jax import priors
from unimix_jax.data import sampling

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [60, 30, 10]))


@pytest.mark.parametrize(
    ("size", "batch", "steps"), [(10, 5, 2), (11, 5, 3), (12406, 128, 97), (10847, 128, 85), (3, 8, 1)]
)
def test_steps_of_an_epoch(size, batch, steps):
    assert sampling.steps_per_epoch(size, batch) == steps


@pytest.mark.parametrize(("size", "batch"), [(100, 20), (103, 20), (7, 16)])
def test_an_epoch_sees_every_example_and_fills_up_from_its_front(size, batch):
    steps = sampling.steps_per_epoch(size, batch)
    for epoch in (0, 1):
        rows = [sampling.natural_order(size, seed=3, step=epoch * steps + s, batch_size=batch) for s in range(steps)]
        seen = np.concatenate(rows)
        assert [len(row) for row in rows] == [batch] * steps
        np.testing.assert_array_equal(np.sort(seen[:size]), np.arange(size))
        np.testing.assert_array_equal(seen[size:], np.resize(seen[:size], len(seen) - size))


def test_the_order_is_a_function_of_seed_and_step():
    draw = functools.partial(sampling.natural_order, 1000, batch_size=100)
    np.testing.assert_array_equal(draw(seed=1, step=13), draw(seed=1, step=13))
    assert (draw(seed=1, step=13) != draw(seed=2, step=13)).any()
    assert (np.sort(draw(seed=1, step=3)) != np.sort(draw(seed=1, step=13))).any()


def test_by_class_is_a_sort():
    sets = sampling.by_class(LABELS)
    for c in range(3):
        members = sets.order[sets.first[c] : sets.first[c] + sets.counts[c]]
        np.testing.assert_array_equal(members, np.flatnonzero(LABELS == c))


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5, 1.0])
def test_partners_follow_the_power_of_the_prior_and_are_uniform_within_a_class(exponent):
    draws = 200_000
    partners = sampling.partners_by_class(LABELS, class_exponent=exponent, seed=0, step=0, size=draws)
    expected = priors.prior(np.bincount(LABELS), exponent)
    frequency = np.bincount(LABELS[partners], minlength=3) / draws
    # Five standard deviations of a binomial frequency.
    np.testing.assert_array_less(np.abs(frequency - expected), 5 * np.sqrt(expected * (1 - expected) / draws))
    share = expected[LABELS] / np.bincount(LABELS)[LABELS]
    of_each = np.bincount(partners, minlength=len(LABELS)) / draws
    np.testing.assert_array_less(np.abs(of_each - share), 5 * np.sqrt(share / draws))


def test_partners_are_a_function_of_seed_and_step_and_do_not_need_the_labels_sorted_anew():
    draw = functools.partial(sampling.partners_by_class, class_exponent=-1.0, size=50)
    first = draw(LABELS, seed=1, step=5)
    np.testing.assert_array_equal(first, draw(sampling.by_class(LABELS), seed=1, step=5))
    assert (first != draw(LABELS, seed=1, step=6)).any()
    assert (first != draw(LABELS, seed=2, step=5)).any()


def test_a_class_without_images_is_never_a_partner():
    labels = np.array([0, 0, 2])
    partners = sampling.partners_by_class(labels, class_exponent=-1.0, seed=0, step=0, size=1000)
    assert set(labels[partners]) == {0, 2}


def test_picks_number_the_views_of_the_global_batch():
    rule = functools.partial(sampling.partners_by_class, class_exponent=-1.0)
    sets = sampling.by_class(LABELS)
    mixed = sampling.picks(sets, seed=0, step=2, batch_size=8, partners=rule)
    plain = sampling.picks(sets, seed=0, step=2, batch_size=8)
    np.testing.assert_array_equal(mixed.view, np.arange(8))
    np.testing.assert_array_equal(mixed.partner_view, np.arange(8, 16))
    np.testing.assert_array_equal(mixed.index, plain.index)
    assert plain.partner is None
