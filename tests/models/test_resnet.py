import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from unimix_jax.errors import UserError
from unimix_jax.models import layers, resnet

from .. import quick
from ..golden import torch_resnets


def parameters(name, classes=10, head="linear"):
    return resnet.initialise(resnet.build(name, classes, head=head), (32, 32, 3), seed=0)["params"]


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("resnet20", 10, 269_722),
        ("resnet32", 10, 464_154),
        ("resnet32", 100, 470_004),
        ("resnet44", 10, 658_586),
        ("resnet56", 10, 853_018),
        ("resnet110", 10, 1_727_962),
    ],
)
def test_parameter_counts_are_the_authors(name, classes, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters(name, classes))) == count


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet10", 5_418_792),  # a basic block a stage: no torchvision network, the count of classifier-balancing's
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("resnext50_32x4d", 25_028_904),
    ],
)
def test_parameter_counts_are_torchvisions(name, count):
    network = resnet.build(name, 1000)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: network.init(key, x, train=False), jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count


def torch_state(variables):
    """The golden file's weights by PyTorch's names, for a network of ours."""
    names = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        *modules, last = (key.key for key in path[1:])
        name = ".".join(m for m in modules if m != "conv").replace("head.linear", "fc")
        name = name.replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
        name = re.sub(r"^(layer\d)_(\d+)", r"\1.\2", name)
        last = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}.get(last, last)
        shape = leaf.shape if leaf.ndim < 2 else leaf.T.shape if leaf.ndim == 2 else leaf.transpose(3, 2, 0, 1).shape
        names[f"{name}.{last}"] = shape
    return torch_resnets.state(names)


@pytest.mark.parametrize("name", list(torch_resnets.NETWORKS))
def test_logits_are_those_of_plain_torch(golden, name):
    network = resnet.build(name, torch_resnets.CLASSES)
    like = resnet.initialise(network, (64, 64, 3), 0)
    variables = resnet.from_pytorch(torch_state(like))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, like)
    images = torch_resnets.IMAGES.transpose(0, 2, 3, 1)
    expected = golden("torch_resnets")[name]
    logits = jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, images)
    # float32 sums in another order, against float64: measured 3e-6 of the largest logit.
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())


def test_training_logits_are_those_of_plain_torch(golden):
    network = resnet.build("resnet10", torch_resnets.CLASSES)
    variables = resnet.from_pytorch(torch_state(resnet.initialise(network, (64, 64, 3), 0)))
    images = torch_resnets.IMAGES.transpose(0, 2, 3, 1)
    apply = jax.jit(lambda v, x: network.apply(v, x, train=True, mutable=["batch_stats"])[0])
    np.testing.assert_allclose(apply(variables, images), golden("torch_resnets")["resnet10_train"], atol=1e-4)


def test_first_values_of_photographs_networks_follow_torchvisions_laws():
    tree = resnet.initialise(resnet.build("resnet10", 1000), (224, 224, 3), seed=0)["params"]
    for path, fan_out in ((("conv1",), 49 * 64), (("layer3_0", "conv1"), 9 * 256)):
        kernel = functools.reduce(dict.get, (*path, "conv", "kernel"), tree)
        assert abs(kernel.std() / np.sqrt(2 / fan_out) - 1) < 4 / np.sqrt(2 * kernel.size)
    linear = tree["head"]["linear"]["kernel"]
    bound = 1 / np.sqrt(512)
    assert 0.99 * bound < np.abs(linear).max() <= bound
    np.testing.assert_allclose(linear.std(), bound / np.sqrt(3), rtol=0.01)


def test_activations_computed_again_change_nothing():
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    results = []
    for remat in (False, True):
        network = resnet.build("resnet8", 3, remat=remat)
        variables = resnet.initialise(network, (8, 8, 3), 0)

        def loss(params, network=network, variables=variables):
            out, updates = network.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return (out**2).sum(), updates

        text = str(jax.make_jaxpr(jax.grad(loss, has_aux=True))(variables["params"]))
        assert ("remat" in text or "checkpoint" in text) == remat
        results.append(quick.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    forgetful = resnet.build("resnext50_32x4d", 3, remat=True)
    shapes = [
        jax.tree.map(np.shape, resnet.initialise(network, (64, 64, 3), 0))
        for network in (forgetful, resnet.build("resnext50_32x4d", 3))
    ]
    assert shapes[0] == shapes[1]


def test_other_heads():
    cosine = parameters("resnet32", 100, "cosine")
    assert sum(leaf.size for leaf in jax.tree.leaves(cosine)) == 469_904
    np.testing.assert_allclose(np.linalg.norm(cosine["head"]["cosine"], axis=0), 1, rtol=1e-6)
    scaled = parameters("resnet32", 10, "scaled")
    np.testing.assert_array_equal(scaled["head"]["scale"], np.ones(10))
    np.testing.assert_array_equal(scaled["head"]["linear"]["bias"], parameters("resnet32")["head"]["linear"]["bias"])


def test_heads_are_the_authors(golden):
    file = golden("heads_and_mixers")
    x, weight = file["normed_linear_x"], file["normed_linear_weight"]

    @jax.jit
    def cosine(x):
        cosines = layers.CosineHead(20, scale=30.0).apply({"params": {"cosine": weight}}, x)
        return cosines, jax.grad(lambda x: layers.CosineHead(20).apply({"params": {"cosine": weight}}, x).sum())(x)

    cosines, gradient = jax.device_get(cosine(x))
    np.testing.assert_allclose(cosines / 30, file["normed_linear_out"], atol=1e-6)
    assert np.isfinite(gradient).all()
    linear = {"kernel": np.eye(12, dtype=np.float32), "bias": np.zeros(12, np.float32)}
    params = {"linear": linear, "scale": file["lws_scale"][0]}
    scaled = jax.jit(layers.ScaledHead(12).apply)({"params": params}, file["lws_x"])
    np.testing.assert_allclose(scaled, file["lws_out"], rtol=1e-6)


def test_another_draw_gives_another_classifier():
    network = resnet.build("resnet8", 10)
    first, again = (resnet.initialise(network, (8, 8, 3), 0, draw)["params"]["head"]["linear"] for draw in (0, 1))
    assert (first["kernel"] != again["kernel"]).mean() > 0.99


def test_an_unknown_head_is_refused():
    with pytest.raises(UserError, match="unknown head"):
        resnet.build("resnet32", 10, head="round")


def test_an_unknown_network_is_refused():
    with pytest.raises(UserError, match="did you mean 'resnet32'"):
        resnet.build("resnet-32", 10)


def test_first_values_follow_their_laws():
    tree = parameters("resnet32")
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
    small = resnet.initialise(resnet.build("resnet20", 10), (32, 32, 3), seed=0)["params"]
    large = resnet.initialise(resnet.build("resnet32", 10, axis="batch"), (8, 8, 3), seed=0)["params"]
    np.testing.assert_array_equal(
        small["layer2_1"]["conv1"]["conv"]["kernel"], large["layer2_1"]["conv1"]["conv"]["kernel"]
    )
    other = resnet.initialise(resnet.build("resnet20", 10), (32, 32, 3), seed=1)["params"]
    assert (small["conv1"]["conv"]["kernel"] != other["conv1"]["conv"]["kernel"]).any()


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
        return layers.LinearHead(self.num_classes, name="head")(x)


@pytest.mark.usefixtures("unoptimised")
def test_layers_of_a_user_begin_with_their_own_first_values():
    network = Theirs(10)
    variables = resnet.initialise(network, (8, 8, 3), seed=0)
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
        resnet.initialise(resnet.build("resnet8", 10), (8, 8, 3), seed=0)["params"]["conv1"]["conv"]["kernel"],
    )
    assert 0 < np.abs(params["head"]["linear"]["bias"]).max() <= 1 / np.sqrt(12)
    other, drawn = (resnet.initialise(network, (8, 8, 3), *at)["params"]["position"] for at in ((1,), (0, 1)))
    assert (params["position"] != other).all()
    assert (params["position"] != drawn).all()


@pytest.mark.parametrize("name", ["resnet8", "resnet10", "resnext50_32x4d"])
def test_first_values_of_the_project_s_networks_compile_nothing(compilations, name):
    variables = resnet.initialise(resnet.build(name, 10, axis="batch", remat=True), (8, 8, 3), seed=0)
    assert variables.keys() == {"params", "batch_stats"}
    assert compilations() == 0


def test_logits_and_running_statistics_are_the_authors(golden):
    file, network = golden("resnet32_steps"), resnet.build("resnet32", 10)
    variables = resnet.from_pytorch(golden("resnet32_params"))
    like = resnet.initialise(network, (32, 32, 3), 0)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, like)
    images = jnp.asarray(file["input"].transpose(0, 2, 3, 1))
    logits = jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, images)
    # float32 sums in another order: measured 3e-6 on logits up to 5.6.
    np.testing.assert_allclose(logits, file["eval_logits_float64"], atol=1e-5)
    logits, updates = jax.jit(lambda v, x: network.apply(v, x, train=True, mutable=["batch_stats"]))(variables, images)
    np.testing.assert_allclose(logits, file["train_logits_float64"], atol=1e-5)
    statistics = updates["batch_stats"]
    for name, group in (("bn1", statistics["bn1"]), ("layer3.4.bn2", statistics["layer3_4"]["bn2"])):
        np.testing.assert_allclose(group["mean"], file[f"bn_after/{name}.running_mean"], atol=2e-6)
        np.testing.assert_allclose(group["var"], file[f"bn_after/{name}.running_var"], rtol=1e-5, atol=2e-6)


def test_relu_is_a_relu_and_hands_nan_on():
    x = np.float32([-1.0, -0.0, 0.0, 2.0, np.nan])
    value, slope = jax.jit(lambda x: (layers.relu(x), jax.vmap(jax.grad(layers.relu))(x[:4])))(x)
    np.testing.assert_array_equal(value, [0, 0, 0, 2, np.nan])
    np.testing.assert_array_equal(slope, [0, 0, 0, 1])
    text = jax.jit(layers.relu).lower(x).as_text()
    assert "select" in text  # a maximum costs a third of a CPU step
    assert "maximum" not in text


@pytest.mark.parametrize("train", [True, False])
def test_a_damaged_parameter_shows_in_the_logits(train):
    network = resnet.build("resnet8", 3)
    variables = resnet.initialise(network, (8, 8, 1), 0)

    @quick.jit
    def damaged(variables, images):
        flat, back = ravel_pytree(variables)
        variables = back(flat.at[-100].set(jnp.nan))
        return network.apply(variables, images, train=train, mutable=["batch_stats"])[0]

    assert np.isnan(damaged(variables, np.ones((2, 8, 8, 1), np.float32))).any()


def test_bfloat16_computes_in_it_and_returns_float32():
    network, exact = resnet.build("resnet8", 3, dtype=jnp.bfloat16), resnet.build("resnet8", 3)
    variables = resnet.initialise(network, (8, 8, 1), 0)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    logits, expected = (
        quick.jit(functools.partial(form.apply, train=False))(variables, images) for form in (network, exact)
    )
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
