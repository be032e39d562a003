import functools
import logging
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unimix_jax import registry
from unimix_jax.config import default
from unimix_jax.errors import UserError
from unimix_jax.training import optim, schedules

from .. import quick

PARAMS = {
    "head": {"kernel": np.float32([[1.0, -2.0], [0.5, 3.0]]), "bias": np.float32([1.0, 2.0])},
    "attention": {"bias": np.float32([[1.0, 2.0]])},
    "position": np.ones((2, 2, 3), np.float32),
}


@pytest.fixture
def told(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("unimix_jax"), "propagate", True)
    return caplog


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


def trained(optimiser, direction_of, rates):
    """The parameters after steps of an optimiser on slopes that change from step to step."""

    def stepped(params):
        state = optimiser.init(params)
        for step, rate in enumerate(rates):
            slopes = jax.tree.map(lambda p, at=step: jnp.cos(at + p) + 0.1 * p, params)
            update, state = optimiser.update(slopes, state, params)
            params = jax.tree.map(lambda p, u, r=rate: p + direction_of(r) * u, params, update)
        return params

    return quick.jit(stepped)(PARAMS)


MASK = {"head": {"kernel": True, "bias": False}, "attention": {"bias": False}, "position": False}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "decayed", "options"),
    [
        ("adamw", True, {"b2": 0.95}),
        ("lamb", True, {}),
        ("lion", True, {"b1": 0.8}),
        ("rmsprop", False, {"decay": 0.8}),
    ],
)
def test_an_optimiser_of_optax_is_that_of_optax_at_the_rate(name, decayed, options):
    config = optim_config(name=name, learning_rate=0.01, weight_decay=0.1, decay_biases_and_norms=not decayed)
    for key, value in options.items():
        config.options[key] = value
    keywords = options | ({"weight_decay": 0.1, "mask": MASK} if decayed else {"momentum": 0.9})
    ours = trained(optim.build(config, PARAMS), lambda rate: -rate, [0.01] * 3)
    theirs = trained(getattr(optax, name)(0.01, **keywords), lambda rate: 1, [0.01] * 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)


def test_sgd_decays_and_remembers_as_written_out():
    """Against v <- m v + slope + d p, p <- p - r v in double precision; the mask leaves the decay out."""
    config, rates = optim_config(weight_decay=0.1, decay_biases_and_norms=False), (0.1, 0.1, 0.01, 0.001)
    ours = trained(optim.build(config, PARAMS), lambda rate: -rate, rates)

    def expected(parameter, decays):
        value, velocity = np.float64(parameter), 0.0
        for step, rate in enumerate(rates):
            slope = np.cos(step + value) + 0.1 * value
            velocity = 0.9 * velocity + slope + 0.1 * decays * value
            value = value - rate * velocity
        return value

    jax.tree.map(
        lambda p, decays, our: np.testing.assert_allclose(our, expected(p, decays), rtol=1e-5), PARAMS, MASK, ours
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fromage", "rprop"])
def test_an_optimiser_that_is_no_multiple_of_its_rate_is_refused(name):
    with pytest.raises(UserError, match=f"the update of the optimiser {name} is not in proportion to the learning"):
        optim.build(optim_config(name=name, learning_rate=0.01), PARAMS)


def test_parts_of_optimisers_and_private_ones_are_no_optimisers():
    for name in ("scale_by_rprop", "scale_by_learning_rate", "_deprecated_dpsgd"):
        with pytest.raises(UserError, match=f"unknown optimiser '{name}'"):
            registry.resolve("optimiser", name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "adagrad", "momentum": 0.5}, "adagrad takes no momentum: config.optim.momentum 0.5 is not used"),
        ({"name": "adagrad", "weight_decay": 0.1}, "adagrad takes no weight_decay: config.optim.weight_decay 0.1"),
    ],
)
def test_a_field_that_the_optimiser_does_not_take_is_told(told, changes, said):
    optim.build(optim_config(**changes), PARAMS)
    assert said in told.text
    assert told.text.count("momentum") == 2 * ("momentum" in changes)


def test_a_field_that_the_schedule_does_not_take_is_told(told):
    schedules.of_run(optim_config(schedule="cosine"), 10, 10)
    assert not told.text
    schedules.of_run(optim_config(schedule="cosine", decay_at=(0.1, 0.2)), 10, 10)
    assert "the schedule cosine takes no decay_at: config.optim.decay_at (0.1, 0.2) is not used" in told.text
    assert "decay_factor" not in told.text


@pytest.mark.parametrize("schedule", ["steps", "cosine"])
def test_stages_after_the_run_have_the_rate_of_its_last_step(schedule):
    rate = schedules.of_run(optim_config(schedule=schedule), 10, 10)
    assert {rate(step) for step in range(99, 250)} == {rate(99)}


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf])
def test_every_step_of_a_schedule_is_checked(wrong):
    schedules.check(lambda step: 0.1, 0, 100, "it")
    with pytest.raises(UserError, match=f"it is {wrong} at step 7; a learning rate is 0 or above"):
        schedules.check(lambda step: wrong if step == 7 else 0.1, 0, 100, "it")


def test_steps_of_a_stage_fall_where_those_of_a_run_do():
    stage = registry.bind("schedule", {"name": "steps", "learning_rate": 0.1}, {"total_steps": 10})
    run = schedules.of_run(optim_config(warmup_epochs=0), 10, 1)
    assert [stage(step) for step in range(10)] == [run(step) for step in range(10)]


def _of_arrays(step, *, learning_rate):
    return np.asarray(learning_rate / (step + 1), np.float32)


def test_a_schedule_may_return_an_array_of_one_number(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(of_arrays=_of_arrays))
    config = default().optim
    config.schedule, config.warmup_epochs = "mine:of_arrays", 0.0
    rate = schedules.of_run(config, 2, 3)(1)
    assert type(rate) is float
    assert rate == pytest.approx(0.05)
