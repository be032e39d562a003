import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import betainc
from scipy.stats import beta as beta_law

from unimix_jax import priors
from unimix_jax.data import longtail, pairs
from unimix_jax.methods import mixing, shares

from .. import quick

DRAWS = 200_000


@functools.lru_cache
def factors(alpha, wrap=True):
    draw = functools.partial(mixing.unimix_factor, alpha=alpha, wrap=wrap)
    return quick.jit(jax.vmap(draw, in_axes=(0, None, None)))


@functools.lru_cache
def keys(seed=0):
    return quick.jit(lambda: jax.random.split(jax.random.key(seed), DRAWS))()


def prefers_rare(s, alpha, wrap):
    """P(factor > 1/2), exactly: Eq. of the wrapped and the clipped Beta distribution."""
    cdf = functools.partial(betainc, alpha, alpha)
    if not wrap:
        return cdf(s)
    return cdf(1 - s) - cdf(max(0, 0.5 - s)) + 1 - cdf(min(1, 1.5 - s))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8, 1.0])
def test_the_beta_law_is_scipys(alpha):
    draws = np.sort(quick.jit(jax.vmap(functools.partial(shares.beta, alpha=alpha)))(keys()))
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

    table, grid = shares._beta_quantiles(alpha), (np.arange(4096) + 0.5) / 4096
    between = (table[1:] + table[:-1]) / 2
    np.testing.assert_allclose(between, betaincinv(alpha, alpha, 0.5 * grid**alpha), atol=2e-7)


@pytest.mark.slow
def test_quantiles_of_the_factor_are_the_authors(golden):
    file = golden("unimix_factor")
    for (count_a, count_b), quantiles, above_half in zip(
        file["pairs_n_i_n_j"], file["quantiles"], file["p_greater_half"], strict=True
    ):
        for alpha, expected, share in zip(file["alphas"], quantiles, above_half, strict=True):
            draws = np.asarray(factors(float(alpha))(keys(), count_a, count_b))
            name = f"{count_a}:{count_b}, alpha {alpha}"
            assert draws.min() >= 0, name
            assert draws.max() <= 1, name
            # Two samples of this size differ by up to .009.
            found = np.quantile(draws, file["quantile_levels"])
            np.testing.assert_allclose(found, expected, atol=0.012, err_msg=name)
            if (count_a, alpha) != (count_b, 0.2):  # float32 rounds 1.6 % of those draws to exactly 1/2
                assert abs((draws > 0.5).mean() - share) < 0.005, name


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "imbalance"), [(10, 100), (100, 100)])
def test_mixed_labels_follow_the_law_of_sampler_and_factor(golden, classes, imbalance):
    """The real sampler and the real factor against the exact distribution, and against the authors' factor."""
    counts = longtail.profile("exp", 50000 // classes, classes, imbalance)
    labels = np.repeat(np.arange(classes), counts)
    first = labels[np.random.default_rng(0).integers(0, len(labels), DRAWS)]
    partners = labels[pairs.partners_by_class(labels, class_exponent=-1.0, seed=0, step=0, size=DRAWS)]
    weights = np.asarray(quick.jit(jax.vmap(functools.partial(mixing.unimix_factor, alpha=0.5)))(
        keys(3), counts[first], counts[partners]
    ))  # fmt: skip
    dominant = np.bincount(np.where(weights >= 0.5, first, partners), minlength=classes) / DRAWS
    soft = np.bincount(first, weights, classes) + np.bincount(partners, 1 - weights, classes)

    natural, inverse = priors.prior(counts), priors.prior(counts, -1)
    s = counts[None, :] / (counts[:, None] + counts[None, :])  # [a, b]
    wins = np.vectorize(lambda x: prefers_rare(x, 0.5, True))(s)
    mean = s - 0.5 + betainc(0.5, 0.5, 1 - s)
    distribution = [natural * (p @ inverse) + inverse * (natural @ (1 - p)) for p in (wins, mean)]
    np.testing.assert_allclose([distribution[0].sum(), distribution[1].sum()], 1)
    # Five standard deviations of a frequency over the draws.
    for found, expected in ((dominant, distribution[0]), (soft / DRAWS, distribution[1])):
        np.testing.assert_array_less(np.abs(found - expected), 5 * np.sqrt(expected / DRAWS))
    file = golden("unimix_sampler")
    theirs, draws = file[f"mixed_dominant_c{classes}_paper"], file[f"mixed_draws_c{classes}_paper"]
    np.testing.assert_array_less(np.abs(dominant - theirs), 5 * np.sqrt(distribution[0] * (1 / DRAWS + 1 / draws)))
    theirs = file[f"mixed_soft_c{classes}_paper"]
    np.testing.assert_array_less(np.abs(soft / DRAWS - theirs), 5 * np.sqrt(distribution[1] * (1 / DRAWS + 1 / draws)))


def image_pairs(size=6):
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, size, 3, 3, 1)).astype(np.float32)
    return a, b, np.resize([0, 1, 2, 0, 1, 2], size), np.resize([2, 2, 2, 1, 0, 0], size)


COUNTS = np.array([50, 10, 2])


def step_keys(size=6):
    return mixing.Keys(jax.random.key(9), few_keys(size))


@functools.cache
def few_keys(size):
    """The first of `keys()`."""
    return quick.jit(lambda many: many[:size])(keys())


@pytest.mark.slow
def test_unimix_mixes_each_pair_with_a_factor_of_its_own():
    a, b, label_a, label_b = image_pairs()

    @quick.jit
    def mix(keys):
        mixed = mixing.unimix(keys, a, b, label_a, label_b, counts=COUNTS, alpha=0.5)
        return mixed, mixing.dominant_label(mixed)

    factor = quick.jit(functools.partial(mixing.unimix_factor, alpha=0.5))
    mixed, dominant = jax.device_get(mix(step_keys()))
    for i in range(6):
        weight = np.asarray(factor(few_keys(6)[i], COUNTS[label_a[i]], COUNTS[label_b[i]]))
        np.testing.assert_allclose(mixed.weight[i], weight, rtol=1e-6)
        np.testing.assert_allclose(mixed.image[i], weight * a[i] + (1 - weight) * b[i], atol=1e-6)
    np.testing.assert_array_equal(dominant, np.where(mixed.weight >= 0.5, label_a, label_b))


def test_mixup_is_the_authors(golden, monkeypatch):
    file = golden("heads_and_mixers")
    monkeypatch.setattr(mixing, "beta", lambda key, alpha: jnp.float32(file["mixup_lam"]))
    images, index = file["mixup_images"], file["mixup_index"]
    labels = file["mixup_labels"]
    mixed = jax.jit(lambda keys: mixing.mixup(keys, images, images[index], labels, labels[index]))(step_keys(8))
    np.testing.assert_allclose(mixed.image, file["mixup_mixed"], atol=1e-6)
    np.testing.assert_array_equal(mixed.label_a, file["mixup_labels_a"])
    np.testing.assert_array_equal(mixed.label_b, file["mixup_labels_b"])
    np.testing.assert_allclose(mixed.weight, np.full(8, file["mixup_lam"]), rtol=1e-6)


def test_mixup_draws_one_share_a_batch_or_one_an_example():
    both = quick.jit(
        lambda keys: [mixing.mixup(keys, *image_pairs(), alpha=0.5, per_example=e).weight for e in (False, True)]
    )
    one, each = both(step_keys())
    assert len(set(np.asarray(one).tolist())) == 1
    assert len(set(np.asarray(each).tolist())) == 6


def box_of_the_authors(share, row, column, height, width):
    """The authors' `rand_bbox` for a share and a centre, one pixel after the other; float32 as the mixer's."""
    ratio = np.sqrt(np.float32(1) - np.float32(share))
    halves = [int(np.float32(side) * ratio) // 2 for side in (height, width)]
    inside = np.zeros((height, width), bool)
    for y, x in np.ndindex(height, width):
        inside[y, x] = row - halves[0] <= y < row + halves[0] and column - halves[1] <= x < column + halves[1]
    return inside


def test_the_box_is_the_authors_clipped_at_the_border():
    sides, random = (7, 12), np.random.default_rng(0)
    drawn = np.concatenate([random.beta(0.5, 0.5, 40), [0, 1, 0.75]]).astype(np.float32)
    centres = np.stack([random.integers(0, side, len(drawn)) for side in sides], axis=1)
    first, end = quick.jit(jax.vmap(lambda share, centre: shares.cut_box(share, centre, sides)))(drawn, centres)
    for share, centre, low, high in zip(drawn, centres, np.asarray(first), np.asarray(end), strict=True):
        inside = np.zeros(sides, bool)
        inside[low[0] : high[0], low[1] : high[1]] = True
        np.testing.assert_array_equal(inside, box_of_the_authors(share, *centre, *sides))


def cut(size=400, **options):
    """CutMix of `size` pairs: where image b is, the weights, and the shares and centres by each key."""
    a, b = np.zeros((2, size, 6, 9, 2), np.float32)
    a += 1
    labels = np.arange(size)

    @quick.jit
    def mix(keys):
        one = lambda key: (  # noqa: E731
            shares.beta(key, 1.0), jax.random.randint(jax.random.fold_in(key, 1), (2,), 0, jnp.array([6, 9]))
        )  # fmt: skip
        return mixing.cutmix(keys, a, b, labels, labels + 1, **options), jax.vmap(one)(keys.view), one(keys.step)

    mixed, *drawn = jax.device_get(mix(step_keys(size)))
    np.testing.assert_array_equal(mixed.image[..., 0], mixed.image[..., 1])
    np.testing.assert_array_equal(mixed.label_b - mixed.label_a, 1)
    assert mixed.weight.dtype == np.float32
    assert set(np.unique(mixed.image)) <= {0, 1}
    return mixed.image[..., 0] == 0, mixed.weight, *drawn


@pytest.mark.slow
@pytest.mark.parametrize("per_example", [False, True])
def test_cutmix_pastes_the_box_and_weighs_labels_by_pixels(per_example):
    inside, weight, each, one = cut(40, per_example=per_example)
    drawn = zip(*each, strict=True) if per_example else [one] * 40
    for box, (share, centre) in zip(inside, drawn, strict=True):
        np.testing.assert_array_equal(box, box_of_the_authors(share, *centre, 6, 9))
    np.testing.assert_allclose(weight, 1 - inside.mean(axis=(1, 2)), atol=1e-6)
    assert len({box.tobytes() for box in inside}) > 20 if per_example else len(np.unique(weight)) == 1


@pytest.mark.slow
def test_areas_of_cutmix_are_distributed_as_those_of_the_authors_code():
    """Against numpy's Beta distribution and integers in the authors' order; 6 by 9 pixels leave few different areas."""
    _, weight, *_ = cut(20_000, per_example=True)
    random, areas = np.random.default_rng(1), np.zeros(20_000)
    for i in range(len(areas)):
        cut_ratio = np.sqrt(1 - random.beta(1, 1))
        extents = []
        for side in (6, 9):
            half, centre = int(side * cut_ratio) // 2, random.integers(side)
            extents.append(min(centre + half, side) - max(centre - half, 0))
        areas[i] = np.prod(extents)
    drawn, expected = (np.bincount(np.int64(np.rint(x)), minlength=55) for x in (54 * (1 - weight), areas))
    np.testing.assert_array_less(np.abs(drawn - expected), 5 * np.sqrt(drawn + expected + 1))
    assert (drawn > 0).sum() > 10
    # P(no box) = P(floor(6 r) < 2 or floor(9 r) < 2), r^2 uniform: below r = 1/3 the rows have none.
    assert abs(drawn[0] / 20_000 - 1 / 9) < 5 * np.sqrt(1 / 9 / 20_000)


@pytest.mark.slow
def test_cutmix_leaves_batches_or_pairs_alone_by_its_probability():
    inside, weight, *_ = cut(20_000, per_example=True, probability=0.3)
    always, *_ = cut(20_000, per_example=True)
    np.testing.assert_array_equal(weight == 1, ~inside.any(axis=(1, 2)))
    mixed = inside.any(axis=(1, 2))
    np.testing.assert_array_equal(inside[mixed], always[mixed])  # the same boxes, where there are any
    expected = 0.3 * 8 / 9
    assert abs(mixed.mean() - expected) < 5 * np.sqrt(expected / 20_000)
    inside, weight, *_ = cut(4, probability=0.0)
    assert not inside.any()
    np.testing.assert_array_equal(weight, 1)


def test_remix_weights_are_the_authors(golden):
    file = golden("remix")
    weight = jax.jit(shares.remix_weight)(file["n_i"], file["n_j"], np.float32(file["lam_x"]))
    np.testing.assert_allclose(weight, file["lam_y"], atol=1e-6)


def test_remix_mixes_images_by_the_share_and_labels_by_the_weight():
    a, b, label_a, label_b = image_pairs()

    @quick.jit
    def mix(keys):
        share = shares.beta(keys.step, 1.0)
        weight = shares.remix_weight(COUNTS[label_a], COUNTS[label_b], jnp.full(6, share))
        return mixing.remix(keys, a, b, label_a, label_b, counts=COUNTS), share, weight

    mixed, share, weight = jax.device_get(mix(step_keys()))
    np.testing.assert_allclose(mixed.image, share * a + (1 - share) * b, atol=1e-6)
    np.testing.assert_allclose(mixed.weight, weight)


@pytest.mark.slow
def test_manifold_mixup_draws_its_level_uniformly_and_mixes_there_only():
    draw = lambda key: mixing.manifold_mixup(mixing.Keys(key, None), *image_pairs()).hidden  # noqa: E731
    levels = np.asarray(quick.jit(jax.vmap(draw))(few_keys(600)))
    np.testing.assert_array_less(np.abs(np.bincount(levels, minlength=3) - 200), 5 * np.sqrt(200))
    a, _, label_a, label_b = image_pairs()
    mixed = mixing.Mixed(a, label_a, label_b, np.full(6, 0.3, np.float32), np.int32(1))
    slots = np.array([5, 4, 3, 2, 1, 0])
    at_0, at_1 = quick.jit(lambda mixed: [mixing.mix_hidden(level, a, mixed, slots, None) for level in (0, 1)])(mixed)
    np.testing.assert_array_equal(at_0, a)
    np.testing.assert_allclose(at_1, 0.3 * a + 0.7 * a[::-1], atol=1e-6)


def test_smote_puts_images_between_a_pair_and_leaves_the_frequent_class_alone():
    a, b, label_a, _ = image_pairs(3000)
    mix = quick.jit(lambda keys: mixing.smote(mixing.Keys(None, keys), a, b, label_a, label_a, counts=COUNTS))
    mixed = jax.device_get(mix(few_keys(3000)))
    assert mixed.label_b is None
    np.testing.assert_array_equal(mixed.label_a, label_a)
    place = np.asarray((mixed.image - a)[:, 0, 0, 0] / (b - a)[:, 0, 0, 0])
    np.testing.assert_allclose(mixed.image, a + place[:, None, None, None] * (b - a), atol=2e-4)
    stays = np.abs(place) < 1e-6
    for c, share in enumerate(COUNTS / 50):
        np.testing.assert_allclose(stays[label_a == c].mean(), share, atol=5 * np.sqrt(0.25 / 1000))
    moved = place[~stays]
    assert np.abs(np.quantile(moved, [0.25, 0.5, 0.75]) - [0.25, 0.5, 0.75]).max() < 0.06
    assert moved.min() > 0
    assert moved.max() < 1


def test_without_mixing_the_objective_is_the_loss():
    loss = lambda logits, labels: logits[:, 0] + labels  # noqa: E731
    logits, labels = np.arange(6.0, dtype=np.float32).reshape(3, 2), np.array([1, 0, 1])
    objective, dominant = quick.jit(
        lambda logits, mixed: (mixing.objective(loss, logits, mixed), mixing.dominant_label(mixed))
    )(logits, mixing.Mixed(None, labels))
    np.testing.assert_array_equal(objective, [1, 2, 5])
    np.testing.assert_array_equal(dominant, labels)


def test_class_weights_multiply_the_loss_of_each_label():
    loss = lambda logits, labels: logits[:, 0] + labels  # noqa: E731
    logits, weights = np.float32([[1.0, 0.0], [2.0, 0.0]]), np.float32([10.0, 1.0])
    mixed = mixing.Mixed(None, np.array([0, 1]), np.array([1, 1]), np.float32([0.25, 0.5]))
    objective, mixed_weight, weight = quick.jit(
        lambda logits, mixed, weights: (
            mixing.objective(loss, logits, mixed, weights),
            mixing.example_weight(mixed, weights),
            mixing.example_weight(mixing.Mixed(None, mixed.label_a), weights),
        )
    )(logits, mixed, weights)
    np.testing.assert_allclose(objective, [0.25 * 10 * 1 + 0.75 * 2, 3])
    np.testing.assert_allclose(mixed_weight, [0.25 * 10 + 0.75, 1])
    np.testing.assert_allclose(weight, [10, 1])
