import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import betainc
from scipy.stats import beta as beta_law

from unimix_jax import priors
from unimix_jax.data import sampling
from unimix_jax.methods import mixing

DRAWS = 200_000


@functools.lru_cache
def factors(alpha, wrap=True):
    draw = functools.partial(mixing.unimix_factor, alpha=alpha, wrap=wrap)
    return jax.jit(jax.vmap(draw, in_axes=(0, None, None)))


@functools.lru_cache
def keys(seed=0):
    return jax.random.split(jax.random.key(seed), DRAWS)


def prefers_rare(s, alpha, wrap):
    """P(factor > 1/2), exactly: Eq. of the wrapped and the clipped Beta law."""
    cdf = functools.partial(betainc, alpha, alpha)
    if not wrap:
        return cdf(s)
    return cdf(1 - s) - cdf(max(0, 0.5 - s)) + 1 - cdf(min(1, 1.5 - s))


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8, 1.0])
def test_the_beta_law_is_scipys(alpha):
    draws = np.sort(jax.jit(jax.vmap(functools.partial(mixing.beta, alpha=alpha)))(keys()))
    assert law_distance(draws, alpha) < 1.95 / np.sqrt(DRAWS)


def law_distance(draws, alpha):
    """The largest distance between the distribution functions of sorted draws and of Beta(alpha, alpha).

    1.95 / sqrt(n) is its 99.9 % quantile. Next to 1 float32 rounds (1.6 % of the draws of alpha .2 to 1).
    """
    inside = draws < 1 - 1e-6
    return np.abs(beta_law.cdf(draws, alpha, alpha) - np.arange(1, DRAWS + 1) / DRAWS)[inside].max()


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8, 1.0])
def test_the_quantile_table_is_exact(alpha):
    from scipy.special import betaincinv

    table, grid = mixing._beta_quantiles(alpha), (np.arange(4096) + 0.5) / 4096
    between = (table[1:] + table[:-1]) / 2
    np.testing.assert_allclose(between, betaincinv(alpha, alpha, 0.5 * grid**alpha), atol=2e-7)


def test_quantiles_of_the_factor_are_the_authors(golden):
    file = golden("unimix_factor")
    for (count_a, count_b), quantiles, shares in zip(
        file["pairs_n_i_n_j"], file["quantiles"], file["p_greater_half"], strict=True
    ):
        for alpha, expected, share in zip(file["alphas"], quantiles, shares, strict=True):
            draws = np.asarray(factors(float(alpha))(keys(), count_a, count_b))
            name = f"{count_a}:{count_b}, alpha {alpha}"
            assert draws.min() >= 0, name
            assert draws.max() <= 1, name
            # Two samples of this size differ by up to .009.
            found = np.quantile(draws, file["quantile_levels"])
            np.testing.assert_allclose(found, expected, atol=0.012, err_msg=name)
            if (count_a, alpha) != (count_b, 0.2):  # float32 rounds 1.6 % of those draws to exactly 1/2
                assert abs((draws > 0.5).mean() - share) < 0.005, name


@pytest.mark.parametrize(
    ("alpha", "wrap", "expected"), [(0.5, True, 0.5574), (0.5, False, 0.9362), (0.2, True, 0.7066), (1.0, True, 0.5)]
)
def test_how_often_the_rare_image_of_99_to_1_is_preferred(alpha, wrap, expected):
    assert abs(prefers_rare(0.99, alpha, wrap) - expected) < 5e-5
    draws = factors(alpha, wrap)(keys(1), 1, 99)
    assert abs((draws > 0.5).mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / DRAWS)


def test_unwrapped_at_equal_counts_is_mixup():
    draws = np.sort(factors(0.5, False)(keys(2), 7, 7))
    assert law_distance(draws, 0.5) < 1.95 / np.sqrt(DRAWS)


@pytest.mark.parametrize(("classes", "imbalance"), [(10, 100), (100, 100)])
def test_mixed_labels_follow_the_law_of_sampler_and_factor(golden, classes, imbalance):
    """The real sampler and the real factor against the exact law, and against the authors' factor."""
    counts = priors.profile("exp", 50000 // classes, classes, imbalance)
    labels = np.repeat(np.arange(classes), counts)
    first = labels[np.random.default_rng(0).integers(0, len(labels), DRAWS)]
    partners = labels[sampling.partners_by_class(labels, class_exponent=-1.0, seed=0, step=0, size=DRAWS)]
    weights = np.asarray(jax.jit(jax.vmap(functools.partial(mixing.unimix_factor, alpha=0.5)))(
        keys(3), counts[first], counts[partners]
    ))  # fmt: skip
    dominant = np.bincount(np.where(weights >= 0.5, first, partners), minlength=classes) / DRAWS
    soft = np.bincount(first, weights, classes) + np.bincount(partners, 1 - weights, classes)

    natural, inverse = priors.prior(counts), priors.prior(counts, -1)
    s = counts[None, :] / (counts[:, None] + counts[None, :])  # [a, b]
    wins = np.vectorize(lambda x: prefers_rare(x, 0.5, True))(s)
    mean = s - 0.5 + betainc(0.5, 0.5, 1 - s)
    law = [natural * (p @ inverse) + inverse * (natural @ (1 - p)) for p in (wins, mean)]
    np.testing.assert_allclose([law[0].sum(), law[1].sum()], 1)
    # Five standard deviations of a frequency over the draws.
    for found, expected in ((dominant, law[0]), (soft / DRAWS, law[1])):
        np.testing.assert_array_less(np.abs(found - expected), 5 * np.sqrt(expected / DRAWS))
    file = golden("unimix_mixed_labels")
    theirs, draws = file[f"mixed_dominant_c{classes}_paper"], file[f"mixed_draws_c{classes}_paper"]
    np.testing.assert_array_less(np.abs(dominant - theirs), 5 * np.sqrt(law[0] * (1 / DRAWS + 1 / draws)))
    theirs = file[f"mixed_soft_c{classes}_paper"]
    np.testing.assert_array_less(np.abs(soft / DRAWS - theirs), 5 * np.sqrt(law[1] * (1 / DRAWS + 1 / draws)))


def test_a_mixed_image_is_the_weighted_sum_of_its_pair():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 6, 3, 3, 1)).astype(np.float32)
    label_a, label_b = np.array([0, 1, 2, 0, 1, 2]), np.array([2, 2, 2, 1, 0, 0])
    counts = np.array([50, 10, 2])
    mixed = mixing.unimix(keys()[:6], a, b, label_a, label_b, counts=counts, alpha=0.5)
    for i in range(6):
        weight = mixing.unimix_factor(keys()[i], counts[label_a[i]], counts[label_b[i]], alpha=0.5)
        np.testing.assert_allclose(mixed.weight[i], weight, rtol=1e-6)
        np.testing.assert_allclose(mixed.image[i], weight * a[i] + (1 - weight) * b[i], atol=1e-6)
    np.testing.assert_array_equal(mixing.dominant_label(mixed), np.where(mixed.weight >= 0.5, label_a, label_b))


def test_without_mixing_the_objective_is_the_loss():
    loss = lambda logits, labels: logits[:, 0] + labels  # noqa: E731
    logits, labels = jnp.arange(6.0).reshape(3, 2), jnp.array([1, 0, 1])
    np.testing.assert_array_equal(mixing.objective(loss, logits, mixing.Mixed(None, labels)), [1, 2, 5])
    np.testing.assert_array_equal(mixing.dominant_label(mixing.Mixed(None, labels)), labels)
