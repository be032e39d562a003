"""The last layers of networks."""

import jax
import numpy as np
import pytest

from unimix_jax.models import heads, init, networks


def parameters(classes, head="linear"):
    return init.initialise(networks.build("resnet32", classes, head=head), (32, 32, 3), seed=0)["params"]


@pytest.mark.slow
def test_other_heads():
    cosine = parameters(100, "cosine")
    assert sum(leaf.size for leaf in jax.tree.leaves(cosine)) == 469_904
    np.testing.assert_allclose(np.linalg.norm(cosine["head"]["cosine"], axis=0), 1, rtol=1e-6)
    scaled = parameters(10, "scaled")
    np.testing.assert_array_equal(scaled["head"]["scale"], np.ones(10))
    np.testing.assert_array_equal(scaled["head"]["linear"]["bias"], parameters(10)["head"]["linear"]["bias"])


def test_heads_are_the_authors(golden):
    file = golden("heads_and_mixers")
    x, weight = file["normed_linear_x"], file["normed_linear_weight"]

    @jax.jit
    def cosine(x):
        cosines = heads.CosineHead(20, logit_scale=30.0).apply({"params": {"cosine": weight}}, x)
        return cosines, jax.grad(lambda x: heads.CosineHead(20).apply({"params": {"cosine": weight}}, x).sum())(x)

    cosines, gradient = jax.device_get(cosine(x))
    np.testing.assert_allclose(cosines / 30, file["normed_linear_out"], atol=1e-6)
    assert np.isfinite(gradient).all()
    linear = {"kernel": np.eye(12, dtype=np.float32), "bias": np.zeros(12, np.float32)}
    params = {"linear": linear, "scale": file["lws_scale"][0]}
    scaled = jax.jit(heads.ScaledHead(12).apply)({"params": params}, file["lws_x"])
    np.testing.assert_allclose(scaled, file["lws_out"], rtol=1e-6)


@pytest.mark.parametrize("head", list(heads.HEADS))
def test_a_head_states_its_scale_and_the_groups_of_its_parameters(head):
    kind = heads.HEADS[head]
    x = np.random.default_rng(0).standard_normal((4, 12), np.float32)
    params = jax.eval_shape(kind(5).init, jax.random.key(0), x)["params"]
    assert kind.parameter_groups.keys() == params.keys()
    assert set(kind.parameter_groups.values()) <= {"classifier", "scale"}
    assert kind(5).logit_scale == kind.logit_scale == {"cosine": 30}.get(head, 1)
