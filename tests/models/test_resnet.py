import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from unimix_jax.models import init, networks, resnet

from .. import quick
from ..golden import torch_resnets


def parameters(name, classes=10, head="linear"):
    return init.initialise(networks.build(name, classes, head=head), (32, 32, 3), seed=0)["params"]


@pytest.mark.slow
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


@pytest.mark.slow
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
    network = networks.build(name, 1000)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", list(torch_resnets.NETWORKS))
def test_logits_are_those_of_plain_torch(golden, name):
    network = networks.build(name, torch_resnets.CLASSES)
    like = init.initialise(network, (64, 64, 3), 0)
    variables = resnet.from_torch(torch_state(like))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, like)
    images = torch_resnets.IMAGES.transpose(0, 2, 3, 1)
    expected = golden("torch_resnets")[name]
    logits = jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, images)
    # float32 sums in another order, against float64: measured 3e-6 of the largest logit.
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_training_logits_are_those_of_plain_torch(golden):
    network = networks.build("resnet10", torch_resnets.CLASSES)
    variables = resnet.from_torch(torch_state(init.initialise(network, (64, 64, 3), 0)))
    images = torch_resnets.IMAGES.transpose(0, 2, 3, 1)
    apply = jax.jit(lambda v, x: network.apply(v, x, train=True, mutable=["batch_stats"])[0])
    np.testing.assert_allclose(apply(variables, images), golden("torch_resnets")["resnet10_train"], atol=1e-4)


@pytest.mark.slow
def test_activations_computed_again_change_nothing():
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    results = []
    for remat in (False, True):
        network = networks.build("resnet8", 3, remat=remat)
        variables = init.initialise(network, (8, 8, 3), 0)

        def loss(params, network=network, variables=variables):
            out, updates = network.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return (out**2).sum(), updates

        text = str(jax.make_jaxpr(jax.grad(loss, has_aux=True))(variables["params"]))
        assert ("remat" in text or "checkpoint" in text) == remat
        results.append(quick.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    forgetful = networks.build("resnext50_32x4d", 3, remat=True)
    shapes = [
        jax.tree.map(np.shape, init.initialise(network, (64, 64, 3), 0))
        for network in (forgetful, networks.build("resnext50_32x4d", 3))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_logits_and_running_statistics_are_the_authors(golden):
    file, network = golden("resnet32_steps"), networks.build("resnet32", 10)
    variables = resnet.from_torch(golden("resnet32_params"))
    like = init.initialise(network, (32, 32, 3), 0)
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


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False])
def test_a_damaged_parameter_shows_in_the_logits(train):
    network = networks.build("resnet8", 3)
    variables = init.initialise(network, (8, 8, 1), 0)

    @quick.jit
    def damaged(variables, images):
        flat, back = ravel_pytree(variables)
        variables = back(flat.at[-100].set(jnp.nan))
        return network.apply(variables, images, train=train, mutable=["batch_stats"])[0]

    assert np.isnan(damaged(variables, np.ones((2, 8, 8, 1), np.float32))).any()


def test_bfloat16_computes_in_it_and_returns_float32():
    network, exact = networks.build("resnet8", 3, dtype=jnp.bfloat16), networks.build("resnet8", 3)
    variables = init.initialise(network, (8, 8, 1), 0)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    logits, expected = (
        quick.jit(functools.partial(form.apply, train=False))(variables, images) for form in (network, exact)
    )
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
