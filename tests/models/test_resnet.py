import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from unimix_jax.errors import UserError
from unimix_jax.models import layers, resnet


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


def test_other_heads():
    cosine = parameters("resnet32", 100, "cosine")
    assert sum(leaf.size for leaf in jax.tree.leaves(cosine)) == 469_904
    np.testing.assert_allclose(np.linalg.norm(cosine["head"]["cosine"], axis=0), 1, rtol=1e-6)
    scaled = parameters("resnet32", 10, "scaled")
    np.testing.assert_array_equal(scaled["head"]["scale"], np.ones(10))
    np.testing.assert_array_equal(scaled["head"]["linear"]["bias"], parameters("resnet32")["head"]["linear"]["bias"])


def test_heads_are_the_authors(golden):
    file = golden("heads_and_mixers")
    x, weight = jnp.asarray(file["normed_linear_x"]), file["normed_linear_weight"]
    cosines = layers.CosineHead(20, scale=30.0).apply({"params": {"cosine": weight}}, x)
    np.testing.assert_allclose(cosines / 30, file["normed_linear_out"], atol=1e-6)
    assert np.isfinite(
        jax.grad(lambda x: layers.CosineHead(20).apply({"params": {"cosine": weight}}, x).sum())(x)
    ).all()
    linear = {"kernel": np.eye(12, dtype=np.float32), "bias": np.zeros(12, np.float32)}
    params = {"linear": linear, "scale": file["lws_scale"][0]}
    np.testing.assert_allclose(
        layers.ScaledHead(12).apply({"params": params}, file["lws_x"]), file["lws_out"], rtol=1e-6
    )


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
    x = jnp.array([-1.0, -0.0, 0.0, 2.0, jnp.nan])
    np.testing.assert_array_equal(layers.relu(x), [0, 0, 0, 2, np.nan])
    np.testing.assert_array_equal(jax.vmap(jax.grad(layers.relu))(x[:4]), [0, 0, 0, 1])
    text = jax.jit(layers.relu).lower(x).as_text()
    assert "select" in text  # a maximum costs a third of a CPU step
    assert "maximum" not in text


@pytest.mark.parametrize("train", [True, False])
def test_a_damaged_parameter_shows_in_the_logits(train):
    network = resnet.build("resnet8", 3)
    variables = resnet.initialise(network, (8, 8, 1), 0)
    flat, back = ravel_pytree(variables)
    variables = back(flat.at[-100].set(jnp.nan))
    out = network.apply(variables, jnp.ones((2, 8, 8, 1)), train=train, mutable=["batch_stats"])[0]
    assert np.isnan(out).any()


def test_bfloat16_computes_in_it_and_returns_float32():
    network, exact = resnet.build("resnet8", 3, dtype=jnp.bfloat16), resnet.build("resnet8", 3)
    variables = resnet.initialise(network, (8, 8, 1), 0)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 1)), jnp.float32)
    logits = network.apply(variables, images, train=False)
    expected = exact.apply(variables, images, train=False)
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
