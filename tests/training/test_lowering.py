"""The programs of real networks are lowered for GPUs and TPUs, without one: what fails to lower is seen here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice

from unimix_jax.data.types import Batch
from unimix_jax.methods import build
from unimix_jax.methods.recipes import RECIPES
from unimix_jax.models import accelerator, networks, ops, pallas
from unimix_jax.training import augmentations, optim
from unimix_jax.training.step import (
    StepConfig,
    StepInputs,
    TrainState,
    many_steps,
    over_replicates,
    predict_step,
    train_step,
)

PLATFORMS = ("cuda", "tpu")
CLASSES, SIZE = 10, 4
SHAPE = jax.ShapeDtypeStruct


def config(backend):
    ops.register("accelerator", accelerator.IMPLEMENTATIONS)
    crop = functools.partial(augmentations.crop, pad=4)
    return StepConfig(
        optim.sgd(momentum=0.9, weight_decay=2e-4), np.zeros(3, np.float32), np.ones(3, np.float32), (crop,),
        unroll=False, ops=backend,
    )  # fmt: skip


def shapes_of_state(network, image_shape, optimiser):
    variables = jax.eval_shape(
        functools.partial(network.init, train=False), jax.random.key(0), SHAPE((1, *image_shape), jnp.float32)
    )
    params = variables["params"]
    return TrainState(SHAPE((), np.int32), params, variables["batch_stats"], jax.eval_shape(optimiser.init, params))


def step_and_arguments(name, dtype, image_shape, backend, steps, replicates):
    """The step of UniMix and Bayias, and shapes of its arguments.

    Several steps in one program for steps above 0, of several replicates for replicates above 1.
    """
    network = networks.build(name, CLASSES, dtype=jnp.dtype(dtype))
    counts = np.arange(CLASSES, 0, -1) * 10
    prior = np.full(CLASSES, 1 / CLASSES)
    method = build.build(RECIPES["unimix_bayias"], counts, name="", epochs=9, steps_per_epoch=1, test_prior=prior)
    step_config = config(backend)
    step = functools.partial(train_step, stage=method.stages[0], network=network, config=step_config)
    lead = (steps,) if steps else ()
    images, labels = SHAPE((*lead, SIZE, *image_shape), np.uint8), SHAPE((*lead, SIZE), np.int32)
    batch = Batch(images, labels, labels, images, labels, labels)
    inputs = StepInputs(SHAPE((), np.uint32), SHAPE(lead, np.float32), SHAPE((CLASSES,), np.float32))
    state = shapes_of_state(network, image_shape, step_config.optimiser)
    step = functools.partial(many_steps, step) if steps else step
    if replicates == 1:
        return step, (state, batch, inputs)
    state, batch, seed = jax.tree.map(
        lambda leaf: SHAPE((replicates, *leaf.shape), leaf.dtype), (state, batch, inputs.seed)
    )
    return over_replicates(step), (state, batch, inputs._replace(seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "image_shape", "backend", "steps", "replicates"),
    [
        ("resnet32", "bfloat16", (32, 32, 3), "accelerator", 5, 1),
        ("resnet32", "float32", (32, 32, 3), "accelerator", 5, 2),
        ("resnet50", "bfloat16", (64, 64, 3), "xla", 0, 1),
    ],
)
def test_a_step_is_lowered_for_gpus_and_tpus(name, dtype, image_shape, backend, steps, replicates):
    step, arguments = step_and_arguments(name, dtype, image_shape, backend, steps, replicates)
    exported = jax.export.export(jax.jit(step), platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    text = exported.mlir_module()
    assert ("bf16" in text) == (dtype == "bfloat16")
    if steps:
        assert "stablehlo.while" in text
    assert not {line for line in text.splitlines() if "custom_call" in line and "cpu" in line}


@pytest.mark.slow
def test_kernels_of_pallas_are_lowered_for_gpus():
    ops.register("pallas", pallas.implementations())

    def loss(x, scale, bias):
        y = ops.batch_norm(x, scale, bias, None, True)[0]
        return ops.batch_norm(y, scale, bias, x, True)[0].sum()

    of_replicates = jax.jit(ops.using("pallas", jax.vmap(jax.grad(loss))))
    arguments = SHAPE((2, SIZE, 8, 8, 16), jnp.bfloat16), *[SHAPE((2, 16), np.float32)] * 2
    gpu = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")  # newer versions of JAX ask for it
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=gpu)):
        text = of_replicates.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    # A pass forwards and backwards of each; the first one's gradients have a kernel for their sums, too.
    assert text.count("stablehlo.custom_call @__gpu$xla.gpu.triton") == 2 * 2 + 1


@pytest.mark.slow
def test_prediction_is_lowered_for_gpus_and_tpus():
    network, step_config = networks.build("resnet32", CLASSES), config("accelerator")
    state = shapes_of_state(network, (32, 32, 3), step_config.optimiser)
    predict = jax.jit(functools.partial(predict_step, network=network, config=step_config))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    exported = jax.export.export(predict, platforms=PLATFORMS)(variables, SHAPE((500, 32, 32, 3), np.uint8))
    assert exported.out_avals[0].shape == (500, CLASSES)
