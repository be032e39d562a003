import functools

import numpy as np
import pytest

from unimix_jax.data import pairs, sampling

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


def test_sorting_by_class():
    class_index = sampling.sorted_by_class(LABELS)
    for c in range(3):
        members = class_index.order[class_index.first[c] : class_index.first[c] + class_index.counts[c]]
        np.testing.assert_array_equal(members, np.flatnonzero(LABELS == c))


def test_picks_number_the_views_of_the_global_batch():
    rule = functools.partial(pairs.by_class, class_exponent=-1.0)
    class_index = sampling.sorted_by_class(LABELS)
    mixed = sampling.indices(class_index, seed=0, step=2, batch_size=8, pair_sampler=rule)
    plain = sampling.indices(class_index, seed=0, step=2, batch_size=8)
    np.testing.assert_array_equal(mixed.view, np.arange(8))
    np.testing.assert_array_equal(mixed.partner_view, np.arange(8, 16))
    np.testing.assert_array_equal(mixed.index, plain.index)
    assert plain.partner is None


def test_the_class_balanced_sampler_draws_every_class_alike():
    class_index = sampling.sorted_by_class(LABELS)
    index = sampling.class_balanced(class_index, seed=0, step=0, batch_size=30_000)
    np.testing.assert_allclose(np.bincount(LABELS[index]) / 30_000, 1 / 3, atol=5 * np.sqrt(2 / 9 / 30_000))
    assert (index != sampling.class_balanced(class_index, seed=0, step=1, batch_size=30_000)).any()
