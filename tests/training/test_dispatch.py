"""Many steps in one program: how many, and that they are the steps that are taken one by one."""

import dataclasses
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax.config import parse
from unimix_jax.errors import UserError
from unimix_jax.training import dispatch, loop
from unimix_jax.training import input as training_input
from unimix_jax.training.devices import replicate
from unimix_jax.training.setup import prepare
from unimix_jax.training.step import StepInputs, first_state

CPU = [types.SimpleNamespace(platform="cpu", memory_stats=lambda: None)]
GPU = [types.SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 4000})]


@pytest.mark.parametrize(
    ("setting", "steps_per_epoch", "image_bytes", "devices", "steps"),
    [
        (0, 97, 1000, GPU, 97),
        (0, 512, 1000, GPU, 512),
        (0, 513, 1000, GPU, 256),
        (0, 1537, 1000, GPU, 384),
        (0, 97, 1001, GPU, 1),  # more than a quarter of the memory
        (0, 97, None, GPU, 1),
        (0, 97, 1000, CPU, 1),
        (10, 97, 10**9, CPU, 10),
        (1, 97, None, CPU, 1),
    ],
)
def test_a_dispatch_is_an_equal_part_of_an_epoch_where_that_is_fast(
    setting, steps_per_epoch, image_bytes, devices, steps
):
    assert dispatch.steps_per_dispatch(setting, steps_per_epoch, image_bytes, devices) == steps


@pytest.mark.parametrize(
    ("setting", "image_bytes", "message"),
    [
        (34, 1000, "is 34; it must be at most 33, the steps of an epoch"),
        (11, None, "is 11; it must be 0 or 1 for images that are read from files"),
    ],
)
def test_a_number_of_steps_that_cannot_be_is_refused(setting, image_bytes, message):
    with pytest.raises(UserError, match=message):
        dispatch.steps_per_dispatch(setting, 33, image_bytes, CPU)


def test_every_step_is_in_one_dispatch_which_ends_with_its_epoch_and_stage():
    whole = list(dispatch.ranges(0, 40, 11, 5))
    assert {len(part) for part in whole} == {1, 5}
    assert [step for part in whole for step in part] == list(range(40))
    assert all(any(part.stop == end for part in whole) for end in (11, 22, 33, 40))
    for i, part in enumerate(whole):  # a run that goes on after any of them
        assert list(dispatch.ranges(part.start, 40, 11, 5)) == whole[i:]
    assert max(len(part) for part in dispatch.ranges(0, 4, 11, 5)) == 1  # a stage that ends before


def trained(overrides):
    """The state after 11 steps in float64, over a change of the stage, and the losses of all steps."""
    argv = ["main", "--config=digits_lt.py:method=unimix_bayias", "--config.network=stem", "--config.epochs=1"]
    argv += ["--config.parallel.ops=xla", "--config.data.on_device=true", *overrides]
    experiment = prepare(parse(argv).config, pathlib.Path("unwritten"))
    experiment = dataclasses.replace(experiment, network=experiment.network.clone(dtype=jnp.float64))
    variables = jax.tree.map(lambda x: np.asarray(x, np.float64), experiment.variables)
    state = replicate(first_state(variables, experiment.step_config.optimiser), experiment.devices)
    resident, programs, losses = training_input.resident(experiment), {}, []
    for stage, steps, batch in training_input.dispatches(experiment, 0):
        if stage.program not in programs:
            programs[stage.program] = loop.compiled_step(experiment, stage)
        rates = np.array([0.01 * (1 + step) for step in steps])
        rates = rates if experiment.steps_per_dispatch > 1 else rates[0]
        inputs = StepInputs(np.uint32(0), rates, stage.class_weight)
        state, sums = programs[stage.program](state, batch, inputs, *resident)
        losses += np.atleast_1d(np.divide(*jax.device_get(sums["loss"]))).tolist()
    assert len(programs) == 2
    return jax.tree.map(np.asarray, state), losses


@pytest.mark.slow
@pytest.mark.usefixtures("stem", "quick_compilation")
def test_steps_in_one_program_are_those_one_by_one():
    with jax.enable_x64(True):
        one_by_one, losses = trained(["--config.parallel.devices=1"])
        assert {leaf.dtype for leaf in jax.tree.leaves(one_by_one.params)} == {np.dtype("float64")}
        many, many_losses = trained(["--config.parallel.devices=1", "--config.steps_per_dispatch=4"])
        assert many_losses == losses
        jax.tree.map(np.testing.assert_array_equal, many, one_by_one)
        # On several devices sums are in another order.
        devices = ["--config.parallel.devices=2", "--config.parallel.spmd=pmap"]
        many, many_losses = trained([*devices, "--config.steps_per_dispatch=4"])
        np.testing.assert_allclose(many_losses, losses, rtol=1e-10)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12), many, one_by_one)
