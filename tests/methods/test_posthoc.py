import numpy as np
import pytest

from unimix_jax.methods import posthoc


def test_weights_are_normalised_as_the_authors_do(golden):
    file = golden("heads_and_mixers")
    weight, features = file["tau_norm_weight"], np.random.default_rng(0).normal(size=(20, 64))
    bias = np.arange(12.0)
    head = {"linear": {"kernel": weight.T, "bias": bias}}
    logits = features @ weight.T + bias
    for exponent, normalised in zip(file["tau_norm_p"], file["tau_norm_out"], strict=True):
        found, chosen = posthoc.tau_norm(logits, head, norm_exponent=float(exponent), scan=False)
        np.testing.assert_allclose(found, features @ normalised.T, rtol=1e-5, atol=1e-5)
        assert chosen == {"norm_exponent": exponent}


def test_the_exponent_is_chosen_on_the_validation_split():
    """Two classes; the second one's weights are a tenth as long, and only dividing by all of it is right."""
    head = {"linear": {"kernel": np.diag([10.0, 1.0]), "bias": np.zeros(2)}}
    features = np.array([[1.0, 0.5], [0.5, 1.0], [0.55, 0.6], [0.6, 0.55]])
    labels = np.array([0, 1, 1, 0])
    logits = features @ head["linear"]["kernel"]
    values, chosen = posthoc.tau_norm(logits, head, validation=(logits, labels))
    assert (values.argmax(axis=1) == labels).all()
    assert chosen["norm_exponent"] == pytest.approx(1.0)
    assert posthoc.tau_norm(logits, head)[1] == {"norm_exponent": 0.7}


def test_adjusting_the_logits_is_dividing_the_odds():
    prior, logits = np.array([0.9, 0.1]), np.log([[0.9, 0.1], [0.5, 0.5]])
    adjusted, chosen = posthoc.logit_adjustment(logits, None, train_prior=prior)
    odds = np.exp(adjusted[:, 1] - adjusted[:, 0])
    np.testing.assert_allclose(odds, [1, 9], rtol=1e-6)
    assert chosen == {}
