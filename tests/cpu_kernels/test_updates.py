"""Whole updates of networks by CPU kernels: those of XLA."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from unimix_jax import cpu_kernels
from unimix_jax.data.types import Batch
from unimix_jax.methods import losses, mixing
from unimix_jax.methods.build import Stage
from unimix_jax.models import init, layers, networks, ops, resnet
from unimix_jax.training import optim
from unimix_jax.training.step import StepConfig, StepInputs, first_state, train_step

from .. import quick
from .comparison import THREADS, needs_kernels

pytestmark = needs_kernels


@pytest.fixture(autouse=True, scope="module")
def _registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ops._BACKENDS, "cpu_kernels", cpu_kernels.implementations(THREADS))
        yield


class TwoStages(resnet.CifarResNet):
    """The network of small images without its third stage, whose layers are those of the second."""

    blocks: int = 1

    @nn.compact
    def __call__(self, x, train, mix=None):
        x = layers.Convolution(16, 1, self.dtype, name="conv1")(x)
        x = layers.BatchNorm(self.axis, name="bn1")(x, train, relu=True)
        block = functools.partial(resnet.BasicBlock, shortcut=resnet.subsampled)
        return resnet._logits(self, x, train, resnet._unmixed, block, (1, 1), 16)


NETWORKS = {
    "cifar": TwoStages,
    "photographs": functools.partial(resnet.ImageNetResNet, blocks=(1,), block=resnet.Bottleneck),
}


@functools.cache
def update(network, backend, dtype):
    """The change of every parameter after one step by Bayias of 8 mixed images of 16 x 16, as float64."""
    counts, random = np.array([50, 20, 5]), np.random.default_rng(0)
    images = random.integers(0, 256, (2, 8, 16, 16, 3), np.uint8)
    labels = random.integers(0, 3, (2, 8)).astype(np.int32)
    view = np.arange(8, dtype=np.int32)
    share = random.uniform(0.1, 0.9, 8)

    def mixer(keys, image_a, image_b, label_a, label_b):
        """Mix by constant factors: to draw them takes long to compile, and no layer takes part in it."""
        weight = share.astype(dtype)
        by_image = weight[:, None, None, None]
        return mixing.Mixed(by_image * image_a + (1 - by_image) * image_b, label_a, label_b, weight)

    loss = functools.partial(losses.bayias, train_prior=counts / counts.sum())
    stage = Stage("test", 0, 1, loss, mixer, "given", "given", np.ones(3, np.float32))
    # Images come in as what they are after normalisation: it is in float32 whatever the rest is in.
    step_config = StepConfig(
        optim.sgd(momentum=0.9, weight_decay=2e-4),
        np.zeros(3, np.float32),
        np.full(3, 1 / 128, np.float32),
        ops=backend,
    )
    network = NETWORKS[network](3, dtype=dtype)
    with jax.enable_x64(dtype == "float64"):
        variables = init.initialise(network, (16, 16, 3), 0)
        variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
        batch = Batch(images[0], labels[0], view, images[1], labels[1], view + 8)
        numbers = StepInputs(np.uint32(3), np.asarray(0.1, dtype), np.ones(3, dtype))

        def step(variables, batch, numbers):
            state = first_state(variables, step_config.optimiser)
            return state, train_step(state, batch, numbers, stage=stage, network=network, config=step_config)[0]

        before, after = jax.device_get(quick.jit(step)(variables, batch, numbers))
    leaves = zip(*map(jax.tree.leaves, (before[1:3], after[1:3])), strict=True)
    return np.concatenate([np.ravel(b - a) for a, b in leaves]).astype(np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("network", list(NETWORKS))
def test_a_whole_update_in_float64_is_that_of_xla(network):
    expected, kernels = update(network, "xla", "float64"), update(network, "cpu_kernels", "float64")
    assert np.linalg.norm(expected) > 0.01
    difference = np.linalg.norm(kernels - expected)
    assert 0 < difference < 1e-10 * np.linalg.norm(expected)  # above 0: the kernels took part


@pytest.mark.slow
def test_a_whole_update_in_float32_is_as_near_to_float64_as_that_of_xla():
    """Two float32 programs cannot agree better: an input of ReLU within rounding of 0 falls on either side."""
    exact = update("cifar", "xla", "float64")
    backends = [backend for backend in ops.backends() if backend != "pallas"]  # whose kernels are for GPUs
    error = {backend: np.linalg.norm(update("cifar", backend, "float32") - exact) for backend in backends}
    assert error["cpu_kernels"] < 2 * error["xla"]


def test_first_values_need_no_program(monkeypatch):
    monkeypatch.setattr(cpu_kernels.convolution.executable, "registered", None)
    with ops.use("cpu_kernels"):
        init.initialise(networks.build("resnet8", 3), (8, 8, 3), 0)
