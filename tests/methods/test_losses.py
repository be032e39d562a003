import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax.methods import losses, mixing
from unimix_jax.methods.mixing import Mixed

TEST_PRIORS = {"bayias": None, "bayias_test_train": "prior", "bayias_test_lt10": "test_prior_lt10",
               "bayias_test_reversed": "test_prior_reversed", "la_t1p0": None}  # fmt: skip


def loss_of(name, file):
    if name == "ce":
        return losses.cross_entropy
    key = TEST_PRIORS[name]
    return lambda z, y: losses.bayias(z, y, train_prior=file["prior"], test_prior=None if key is None else file[key])


@pytest.mark.parametrize("classes", ["c10", "c100"])
@pytest.mark.parametrize("inputs", ["moderate", "extreme"])
@pytest.mark.parametrize("name", ["ce", *TEST_PRIORS])
def test_values_and_gradients_are_the_authors(golden, name, inputs, classes):
    file = golden(f"losses_{classes}")
    logits, labels = jnp.asarray(file[f"logits_{inputs}"]), jnp.asarray(file[f"labels_{inputs}"])
    loss = loss_of(name, file)
    # float32 rounds logits of 1e6 to .06: four units in the last place of the largest one of a row.
    rounding = 4 * np.finfo(np.float32).eps * np.abs(file[f"logits_{inputs}"]).max(axis=1)
    difference = np.abs(loss(logits, labels) - file[f"{name}__{inputs}__value"])
    np.testing.assert_array_less(difference, 1e-5 * np.abs(file[f"{name}__{inputs}__value"]) + rounding + 1e-6)
    gradient = jax.grad(lambda z: loss(z, labels).sum())(logits)
    np.testing.assert_allclose(gradient, file[f"{name}__{inputs}__grad"], atol=2e-6)


@pytest.mark.parametrize("classes", ["c10", "c100"])
def test_the_mixed_objective_is_the_authors(golden, classes):
    file = golden(f"losses_{classes}")
    loss = loss_of("bayias", file)
    mixed = Mixed(None, file["labels_moderate"], file["mixed_labels_b"], jnp.float32(file["mixed_lam"]))
    values = mixing.objective(loss, file["logits_moderate"], mixed)
    np.testing.assert_allclose(values, file["mixed_bayias__value"], rtol=1e-5)
    gradient = jax.grad(lambda z: mixing.objective(loss, z, mixed).mean())(file["logits_moderate"])
    np.testing.assert_allclose(gradient, file["mixed_bayias__mean_grad"], atol=1e-7)


@pytest.mark.parametrize(
    ("test_prior", "expected"),
    [
        pytest.param(None, 2.302585, id="uniform: -log 0.1"),
        pytest.param([0.9, 0.1], 0.693147, id="as trained: cross entropy, log 2"),
        pytest.param([0.1, 0.9], 4.406719, id="reversed: log(1 + 81)"),
    ],
)
def test_bayias_by_hand(test_prior, expected):
    value = losses.bayias(jnp.zeros((1, 2)), jnp.array([1]), train_prior=[0.9, 0.1], test_prior=test_prior)
    np.testing.assert_allclose(value, [expected], rtol=1e-6)


def test_bayias_in_its_limits():
    random = np.random.default_rng(0)
    logits, labels = random.normal(0, 3, (16, 5)).astype(np.float32), random.integers(0, 5, 16)
    prior = np.array([0.5, 0.3, 0.1, 0.07, 0.03])
    as_trained = losses.bayias(logits, labels, train_prior=prior, test_prior=prior)
    np.testing.assert_array_equal(as_trained, losses.cross_entropy(logits, labels))
    uniform = losses.bayias(logits, labels, train_prior=prior, test_prior=np.full(5, 0.2))
    adjusted = losses.cross_entropy(logits + np.log(prior).astype(np.float32), labels)  # logit adjustment, strength 1
    np.testing.assert_allclose(uniform, adjusted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(uniform, losses.bayias(logits, labels, train_prior=prior), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [losses.cross_entropy, lambda z, y: losses.bayias(z, y, train_prior=[0.7, 0.2, 0.1])])
def test_types_shapes_and_extremes(loss):
    logits = jnp.array([[1e4, -1e4, 0], [0, 0, 0], [-1e4, 1e4, 1e4]])
    labels = jnp.array([1, 2, 0])
    value, gradient = loss(logits, labels), jax.grad(lambda z: loss(z, labels).sum())(logits)
    assert value.shape == (3,)
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()
    assert loss(logits.astype(jnp.bfloat16), labels).dtype == jnp.float32
    np.testing.assert_allclose(jax.jit(loss)(logits, labels), value, rtol=1e-6)


def test_float64_comes_back_as_float64_and_agrees_with_finite_differences():
    with jax.enable_x64(True):
        logits, labels = jnp.array(np.random.default_rng(1).normal(0, 2, (4, 3))), jnp.array([0, 1, 2, 0])
        total = lambda z: losses.bayias(z, labels, train_prior=[0.7, 0.2, 0.1], test_prior=[0.2, 0.2, 0.6]).sum()  # noqa: E731
        assert total(logits).dtype == jnp.float64
        gradient, step = jax.grad(total)(logits), 1e-6
        for i, j in np.ndindex(4, 3):
            moved = total(logits.at[i, j].add(step)) - total(logits.at[i, j].add(-step))
            np.testing.assert_allclose(moved / (2 * step), gradient[i, j], atol=1e-8)
