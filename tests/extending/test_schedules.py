"""Schedules of the run and of a stage, the project's and a user's."""

import functools
import pathlib

import numpy as np
import pytest

from unimix_jax import registry
from unimix_jax.config import parse
from unimix_jax.methods import build
from unimix_jax.training import schedules
from unimix_jax.training.setup import prepare


@pytest.mark.usefixtures("mine")
def test_a_stage_may_have_a_schedule_of_the_user_s():
    argv = ["--config.method.stages.retrained.schedule.name=my_schedules:one_cycle"]
    argv += ["--config.method.stages.retrained.schedule.learning_rate=0.5", "--config.epochs=2"]
    config = parse(["main", "--config=digits_lt.py:method=crt", *argv]).config
    stage = prepare(config, pathlib.Path("unwritten")).method.stages[1]
    rates = [stage.schedule(step) for step in range(stage.last - stage.first)]
    assert max(rates) == pytest.approx(0.5, rel=0.05)
    assert rates[-1] == 0


def test_a_stage_may_fall_in_steps_with_their_defaults_or_its_own():
    argv = [f"--config.method.stages.retrained.schedule.{x}" for x in ("name=steps", "learning_rate=.5")]
    for more, expected in (
        ([], (0.8, 0.9)),
        (["--config.method.stages.retrained.schedule.decay_at=(.5,.6)"], (0.5, 0.6)),
    ):
        config = parse(["main", "--config=digits_lt.py:method=crt", *argv, *more]).config
        assert registry.option(methods_schedule(config), "decay_at") == expected


def methods_schedule(config):
    """The schedule of the last stage."""
    recipe = config.method.to_dict()
    built = build.build(recipe, np.array([3, 2]), name="crt", epochs=1, steps_per_epoch=5, test_prior=np.full(2, 0.5))
    return built.stages[-1].schedule


def test_restarts_are_those_of_sgdr():
    """Against torch's CosineAnnealingWarmRestarts written out: T_0 = 2 epochs, doubled at each restart."""
    rate = functools.partial(schedules.cosine_restarts, learning_rate=0.1, steps_per_epoch=5, first_epochs=2, growth=2)
    expected, length = [], 10
    for _ in range(3):
        expected += [0.05 * (1 + np.cos(np.pi * t / length)) for t in range(length)]
        length *= 2
    np.testing.assert_allclose([rate(step) for step in range(len(expected))], expected, rtol=1e-12)
