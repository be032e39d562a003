"""Many steps in one program: how many, and that they are the steps that are taken one by one."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax.data.types import Batch
from unimix_jax.errors import UserError
from unimix_jax.methods import build
from unimix_jax.methods.recipes import RECIPES
from unimix_jax.models import init, resnet
from unimix_jax.training import dispatch, optim, predict
from unimix_jax.training.step import (
    StepConfig,
    StepInputs,
    cast_kernels,
    first_state,
    kernel_dtype,
    many_steps,
    train_step,
)

from .. import quick

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


@pytest.mark.parametrize(
    ("devices", "on_device", "shape", "size"),
    [
        (GPU, True, (32, 32, 3), 5461),
        (GPU, True, (8, 8, 1), 9000),  # all of them
        (GPU, True, (224, 224, 3), 500),
        (GPU, False, (32, 32, 3), 500),
        (CPU, True, (32, 32, 3), 500),
    ],
)
def test_blocks_of_an_evaluation_are_large_where_images_stay_on_an_accelerator(devices, on_device, shape, size):
    splits = types.SimpleNamespace(evaluated={"test": types.SimpleNamespace(labels=np.zeros(9000))})
    config = types.SimpleNamespace(eval_batch_size=500)
    experiment = types.SimpleNamespace(
        devices=devices, on_device=on_device, image_shape=shape, splits=splits, config=config
    )
    assert predict._block_size(experiment) == size


@pytest.mark.slow
@pytest.mark.parametrize("join", [False, True])
def test_steps_in_one_program_are_those_one_by_one(join):
    counts = np.array([50, 20, 5])
    method = build.build(
        RECIPES["unimix_bayias"], counts, name="", epochs=9, steps_per_epoch=1, test_prior=np.full(3, 1 / 3)
    )
    with jax.enable_x64(True):
        network = resnet.CifarResNet(3, blocks=0, dtype=jnp.float64)
        config = StepConfig(optim.sgd(momentum=0.9, weight_decay=2e-4), np.zeros(1), np.ones(1))
        step = functools.partial(train_step, stage=method.stages[0], network=network, config=config)
        variables = init.initialise(resnet.CifarResNet(3, blocks=0), (8, 8, 1), seed=0)
        state = first_state(jax.tree.map(lambda x: np.asarray(x, np.float64), variables), config.optimiser)
        random, view = np.random.default_rng(0), np.tile(np.arange(6, dtype=np.int32), (5, 1))
        images, labels = random.integers(0, 256, (2, 5, 6, 8, 8, 1), np.uint8), random.integers(0, 3, (2, 5, 6))
        batches = Batch(images[0], labels[0], view, images[1], labels[1], view + 6)
        inputs = StepInputs(np.uint32(3), np.linspace(0.1, 0.5, 5), np.ones(3))

        many, sums = quick.jit(functools.partial(many_steps, step, join=join))(state, batches, inputs)
        single, losses = quick.jit(step), []
        for i in range(5):
            rate = inputs._replace(learning_rate=inputs.learning_rate[i])
            state, of_step = single(state, jax.tree.map(lambda x, i=i: x[i], batches), rate)
            losses.append(of_step["loss"])
        assert many.step == 5
        assert many.params["head"]["linear"]["kernel"].dtype == np.float64
        np.testing.assert_array_equal(np.transpose(sums["loss"]), losses)
        jax.tree.map(np.testing.assert_array_equal, many, state)


@pytest.mark.slow
def test_kernels_are_cast_one_step_ahead_for_a_network_of_the_project_in_fewer_bits():
    method = build.build(
        RECIPES["erm"], np.array([50, 20]), name="", epochs=9, steps_per_epoch=1, test_prior=np.full(2, 1 / 2)
    )
    network = resnet.CifarResNet(2, blocks=0, dtype=jnp.bfloat16)
    assert (kernel_dtype(network), kernel_dtype(nn.Dense(2, dtype=jnp.bfloat16))) == (jnp.bfloat16, jnp.float32)
    config = StepConfig(optim.sgd(momentum=0.9, weight_decay=2e-4), np.zeros(1), np.ones(1))
    step = functools.partial(train_step, stage=method.stages[0], network=network, config=config)
    state = first_state(init.initialise(network, (8, 8, 1), seed=0), config.optimiser)
    assert [kernel.dtype for kernel in cast_kernels(state.params, jnp.bfloat16)] == [jnp.bfloat16]
    assert cast_kernels(state.params, jnp.float32) == cast_kernels(state.params, np.float64) == []
    random, view = np.random.default_rng(0), np.tile(np.arange(6, dtype=np.int32), (3, 1))
    batches = Batch(random.integers(0, 256, (3, 6, 8, 8, 1), np.uint8), random.integers(0, 2, (3, 6)), view)
    inputs = StepInputs(np.uint32(3), np.float32([0.1, 0.2, 0.3]), np.ones(2, np.float32))
    ahead, where_used = (
        quick.jit(functools.partial(many_steps, step, dtype=dtype))(state, batches, inputs)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((ahead[0].params, ahead[0].opt_state))} == {np.dtype("float32")}
    # Two programs: sums of bfloat16 may be rounded at other places.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3), ahead, where_used)
    assert not np.array_equal(ahead[0].params["conv1"]["conv"]["kernel"], state.params["conv1"]["conv"]["kernel"])
