import functools

import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax.config import default
from unimix_jax.training import optim, schedules


def optim_config(**changes):
    config = default().optim
    config.update(changes)
    return config


def test_the_learning_rate_is_the_authors_in_every_epoch(golden):
    rate = schedules.of_run(optim_config(), epochs=200, steps_per_epoch=97)
    for first_or_last in (0, 96):
        rates = [rate(epoch * 97 + first_or_last) for epoch in range(200)]
        np.testing.assert_allclose(rates, golden("schedules")["prior_lt_lr"], rtol=1e-12)


@pytest.mark.parametrize(
    ("epochs", "steps", "step", "expected"),
    [
        pytest.param(100, 10, 0, 0.02, id="five warm-up epochs whatever the length"),
        pytest.param(100, 10, 799, 0.1, id="epoch 80 of 100 is before the fall"),
        pytest.param(100, 10, 800, 1e-3, id="epoch 81 is behind it"),
        pytest.param(100, 10, 900, 1e-5, id="epoch 91"),
        pytest.param(10, 10, 0, 0.01, id="a short run warms up by step"),
        pytest.param(10, 10, 8, 0.09, id="over its first tenth"),
        pytest.param(10, 10, 10, 0.1, id="then the peak"),
        pytest.param(1, 5, 0, 0.1, id="at least one step of warm-up"),
        pytest.param(1, 10, 8, 1e-3, id="and falls within an epoch where it must"),
        pytest.param(1, 10, 9, 1e-5, id="twice"),
    ],
)
def test_the_learning_rate_of_other_lengths(epochs, steps, step, expected):
    assert schedules.of_run(optim_config(), epochs, steps)(step) == pytest.approx(expected, rel=1e-12)


def test_without_warm_up_the_rate_begins_at_its_peak():
    assert schedules.of_run(optim_config(warmup_epochs=0), 10, 10)(0) == 0.1


@pytest.mark.parametrize("epochs", [8, 20, 200])
@pytest.mark.parametrize(
    ("warmup", "expected"),  # of the rate .1, at the first step of each epoch of ten steps
    [
        (5, [0.02, 0.04, 0.06, 0.08, 0.1, 0.1]),
        (2, [0.05, 0.1, 0.1, 0.1, 0.1, 0.1]),
        (1, [0.01, 0.1, 0.1, 0.1, 0.1, 0.1]),
        (0.5, [0.02, 0.1, 0.1, 0.1, 0.1, 0.1]),
        (2.5, [0.004, 0.044, 0.084, 0.1, 0.1, 0.1]),
        (0, [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]),
    ],
)
def test_a_warm_up_that_is_set_is_taken_in_a_run_of_any_length(epochs, warmup, expected):
    rate = schedules.of_run(optim_config(warmup_epochs=warmup), epochs, 10)
    assert [rate(10 * epoch) for epoch in range(6)] == pytest.approx(expected, rel=1e-12)


def test_configs_are_compared_by_the_warm_up_that_the_run_has():
    def warmup(value, epochs):
        return schedules.with_warmup_as_it_is({"epochs": epochs, "optim": {"warmup_epochs": value}})["optim"]

    # A run begun when the value was a whole number, which a run under 50 epochs did not look at unless it was 0.
    for value, epochs in ((5, 200), (5, 50), (5, 49), (3, 10), (0, 10)):
        rate = {"warmup_epochs": 0.0 if value == 0 else -1.0}
        assert warmup(value, epochs) == warmup(rate["warmup_epochs"], epochs)
    assert warmup(3, 200) == warmup(3.0, 200) != warmup(-1.0, 200)
    # A staircase of one epoch was no warm-up.
    for epochs in (50, 200):
        assert warmup(1, epochs) == warmup(0.0, epochs) != warmup(1.0, epochs)
    assert warmup(1, 49) == warmup(-1.0, 49)
    assert warmup(5, 20) != warmup(5.0, 20)
    assert warmup(5.0, 20) != warmup(-1.0, 20)
    for foreign in ({}, {"optim": 5}, {"epochs": "x", "optim": {"warmup_epochs": 5}}):
        assert schedules.with_warmup_as_it_is(foreign) == foreign


def test_sgd_is_pytorchs_also_when_the_rate_falls():
    """Against PyTorch's rule written out: v <- m v + (g + d p), v first the gradient; p <- p - r v."""
    tx, parameter, velocity = optim.sgd(momentum=0.9, weight_decay=0.01), np.float64(2.0), None
    ours = jnp.float32(2.0)
    state = tx.init(ours)
    for step in range(12):
        rate, slope = (0.1, 0.01, 0.001)[step // 4], np.cos(step)
        decayed = slope + 0.01 * parameter
        velocity = decayed if velocity is None else 0.9 * velocity + decayed
        parameter -= rate * velocity
        direction, state = tx.update(jnp.float32(slope), state, ours)
        ours = ours - rate * direction
        np.testing.assert_allclose(ours, parameter, rtol=1e-6)


def test_the_second_stage_of_mislas_falls_as_the_authors(golden):
    """Their rates of the classifier (times the factor .2) and of the scale, over ten epochs."""
    rate = functools.partial(schedules.cosine, learning_rate=0.1, total_steps=10 * 97, steps_per_epoch=97)
    rates = [rate(epoch * 97) for epoch in range(10)]
    assert rate(96) == rates[0]
    classifier, scale = golden("schedules")["mislas_stage2_lr_classifier_scale"].T
    np.testing.assert_allclose(rates, scale, rtol=1e-9)  # they carry a pi of twelve digits
    factor = float(golden("schedules")["mislas_stage2_lr_factor"])
    np.testing.assert_allclose(factor * np.array(rates), classifier, rtol=1e-9)


def test_the_first_stage_of_mislas_falls_as_the_authors(golden):
    rate = schedules.of_run(optim_config(decay_factor=0.1), epochs=200, steps_per_epoch=3)
    np.testing.assert_allclose([rate(3 * e) for e in range(200)], golden("schedules")["mislas_stage1_lr"], rtol=1e-12)


def test_the_rate_of_a_run_can_fall_by_the_cosine():
    config = optim_config(schedule="cosine", warmup_epochs=0)
    rate = schedules.of_run(config, epochs=90, steps_per_epoch=7)
    expected = 0.1 * (1 + np.cos(np.pi * np.arange(90) / 90)) / 2
    np.testing.assert_allclose([rate(7 * e + 3) for e in range(90)], expected)
    config.warmup_epochs = 5
    warm = schedules.of_run(config, epochs=90, steps_per_epoch=7)
    np.testing.assert_allclose([warm(7 * e) for e in range(5)], expected[:5] * np.arange(1, 6) / 5)
