"""The first parameters of networks."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax.models import heads, init, layers, networks, resnet


def test_first_values_of_photographs_networks_follow_torchvisions_laws():
    tree = init.initialise(networks.build("resnet10", 1000), (224, 224, 3), seed=0)["params"]
    for path, fan_out in ((("conv1",), 49 * 64), (("layer3_0", "conv1"), 9 * 256)):
        kernel = functools.reduce(dict.get, (*path, "conv", "kernel"), tree)
        assert abs(kernel.std() / np.sqrt(2 / fan_out) - 1) < 4 / np.sqrt(2 * kernel.size)
    linear = tree["head"]["linear"]["kernel"]
    bound = 1 / np.sqrt(512)
    assert 0.99 * bound < np.abs(linear).max() <= bound
    np.testing.assert_allclose(linear.std(), bound / np.sqrt(3), rtol=0.01)


def test_another_draw_gives_another_classifier():
    network = networks.build("resnet8", 10)
    first, again = (init.initialise(network, (8, 8, 3), 0, draw)["params"]["head"]["linear"] for draw in (0, 1))
    assert (first["kernel"] != again["kernel"]).mean() > 0.99


def test_first_values_follow_their_laws():
    tree = init.initialise(networks.build("resnet32", 10), (32, 32, 3), seed=0)["params"]
    for path, fan_in in ((("conv1",), 27), (("layer1_0", "conv1"), 144), (("layer3_4", "conv2"), 576)):
        kernel = tree
        for name in (*path, "conv", "kernel"):
            kernel = kernel[name]
        std = np.sqrt(2 / fan_in)
        assert abs(kernel.std() / std - 1) < 4 / np.sqrt(2 * kernel.size)
        assert abs(kernel.mean()) < 4 * std / np.sqrt(kernel.size)
    linear = tree["head"]["linear"]
    assert 0.05 < np.abs(linear["bias"]).max() <= 1 / 8
    assert abs(linear["kernel"].std() / np.sqrt(2 / 64) - 1) < 0.1
    np.testing.assert_array_equal(tree["bn1"]["scale"], np.ones(16))
    np.testing.assert_array_equal(tree["bn1"]["bias"], np.zeros(16))


def test_first_values_depend_on_the_seed_and_the_name_only():
    small = init.initialise(networks.build("resnet20", 10), (32, 32, 3), seed=0)["params"]
    large = init.initialise(networks.build("resnet32", 10, axis="batch"), (8, 8, 3), seed=0)["params"]
    np.testing.assert_array_equal(
        small["layer2_1"]["conv1"]["conv"]["kernel"], large["layer2_1"]["conv1"]["conv"]["kernel"]
    )
    other = init.initialise(networks.build("resnet20", 10), (32, 32, 3), seed=1)["params"]
    assert (small["conv1"]["conv"]["kernel"] != other["conv1"]["conv"]["kernel"]).any()


class OfPhotographs(resnet.CifarResNet):
    """A network of another class that wants to be drawn as those of photographs."""

    drawn_as_torchvision = True


def test_a_network_says_by_an_attribute_that_it_is_drawn_as_by_torchvision():
    kernels = [
        init.initialise(network(3, blocks=0), (8, 8, 3), 0)["params"]["conv1"]["conv"]["kernel"]
        for network in (OfPhotographs, resnet.CifarResNet)
    ]
    ratio = np.sqrt((9 * 3) / (9 * 16))  # the square root of fan-in over fan-out
    np.testing.assert_allclose(kernels[0], kernels[1] * ratio, rtol=1e-6)


class Theirs(nn.Module):
    """A user's network: two layers of the project's, others of their own with names of all kinds."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train, mix=None):
        x = layers.Convolution(16, 1, name="conv1")(x)
        x = layers.BatchNorm(name="bn1")(x, train)
        x = x + self.param("position", nn.initializers.truncated_normal(0.02), x.shape[1:])
        x = x * self.param("gamma", nn.initializers.constant(0.1), x.shape[-1:])
        x = nn.LayerNorm(name="norm", scale_init=nn.initializers.constant(0.5))(x)
        x = nn.Conv(16, (3, 3), name="residual", kernel_init=nn.initializers.zeros)(x)
        average = self.variable("batch_stats", "average", lambda: jnp.full(x.shape[-1:], 7.0))
        self.variable("ema", "decay", lambda: jnp.float32(0.9))
        x = nn.Dense(12, name="mixer", bias_init=nn.initializers.constant(3.0))((x + average.value).mean((1, 2)))
        return heads.LinearHead(self.num_classes, name="head")(x)


@pytest.mark.slow
@pytest.mark.usefixtures("unoptimised")
def test_layers_of_a_user_begin_with_their_own_first_values():
    network = Theirs(10)
    variables = init.initialise(network, (8, 8, 3), seed=0)
    params, statistics = variables["params"], variables["batch_stats"]
    own = jax.eval_shape(lambda key: network.init(key, jnp.zeros((1, 8, 8, 3)), train=False), jax.random.key(1))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, own)
    for found, expected in (
        (params["gamma"], 0.1),
        (params["norm"]["scale"], 0.5),
        (params["residual"]["kernel"], 0),
        (params["mixer"]["bias"], 3),
        (statistics["average"], 7),
        (statistics["bn1"]["var"], 1),
        (variables["ema"]["decay"], np.float32(0.9)),
    ):
        np.testing.assert_array_equal(found, np.full(np.shape(found), expected, np.float32))
    assert abs(params["position"].std() / 0.02 - 1) < 0.1
    assert abs(params["mixer"]["kernel"].std() * np.sqrt(16) - 1) < 0.2  # lecun_normal
    # The project's layers keep theirs, whatever stands around them.
    np.testing.assert_array_equal(
        params["conv1"]["conv"]["kernel"],
        init.initialise(networks.build("resnet8", 10), (8, 8, 3), seed=0)["params"]["conv1"]["conv"]["kernel"],
    )
    assert 0 < np.abs(params["head"]["linear"]["bias"]).max() <= 1 / np.sqrt(12)
    other, drawn = (init.initialise(network, (8, 8, 3), *at)["params"]["position"] for at in ((1,), (0, 1)))
    assert (params["position"] != other).all()
    assert (params["position"] != drawn).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "resnet10", "resnext50_32x4d"])
def test_first_values_of_the_project_s_networks_compile_nothing(compilations, name):
    variables = init.initialise(networks.build(name, 10, axis="batch", remat=True), (8, 8, 3), seed=0)
    assert variables.keys() == {"params", "batch_stats"}
    assert compilations() == 0
