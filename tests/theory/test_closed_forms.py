import math

import numpy as np
import pytest

from unimix_jax import priors
from unimix_jax.data import longtail
from unimix_jax.errors import UserError
from unimix_jax.theory import closed_forms, exact

C10 = longtail.profile("exp", 5000, 10, 100)
C100 = longtail.profile("exp", 500, 100, 100)


def integral(function, num_classes):
    """Gauss-Legendre over [1, K] in 20 pieces: exact to rounding for exponentials of the steepness used here."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(1, num_classes, 21)
    half = np.diff(edges) / 2
    y = edges[:-1, None] + half[:, None] * (nodes + 1)
    return float((function(y) * weights * half[:, None]).sum())


# --- Closed forms


@pytest.mark.parametrize(
    ("density", "options", "mass"),
    [
        pytest.param(closed_forms.natural_density, {}, lambda rho: 1, id="A.4"),
        pytest.param(closed_forms.sampler_density, {}, lambda rho: 1, id="A.14, inverse"),
        pytest.param(closed_forms.sampler_density, {"class_exponent": 0}, lambda rho: 1, id="A.14, uniform"),
        pytest.param(closed_forms.sampler_density, {"class_exponent": 0.5}, lambda rho: 1, id="A.14, square root"),
        pytest.param(closed_forms.mixup_density, {}, lambda rho: 1, id="A.5"),
        pytest.param(closed_forms.factor_density, {}, lambda rho: 1 / 2, id="A.8"),
        pytest.param(closed_forms.unimix_density, {}, closed_forms.unimix_mass, id="A.12, inverse"),
        pytest.param(closed_forms.unimix_density, {"class_exponent": 1}, lambda rho: 1 / 2, id="A.12, natural"),
    ],
)
@pytest.mark.parametrize("imbalance", [1, 1 + 1e-12, 1.001, 10, 100, 1e4])
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_integrals_of_the_densities(density, options, mass, imbalance, num_classes):
    found = integral(lambda y: density(y, num_classes=num_classes, imbalance=imbalance, **options), num_classes)
    np.testing.assert_allclose(found, mass(imbalance), rtol=1e-11)  # rounding of sums of 400


@pytest.mark.parametrize("rho", [5.0, 100.0])
@pytest.mark.parametrize("tau", [-1.0, -0.3, 1.0])
def test_densities_are_the_printed_equations(rho, tau):
    """A.4 and A.14 letter by letter; A.8 and A.12 with their inner integral by quadrature."""
    num_classes, lam = 10, math.log(rho) / 9
    given = {"num_classes": num_classes, "imbalance": rho}

    def printed(y, t=1.0):
        return lam * t * np.exp(-lam * t * y) / (math.exp(-lam * t) - math.exp(-lam * t * num_classes))

    y = np.array([1, 1.01, 2, math.pi, 7.5, 10])
    # Both sides are a dozen roundings from the same real numbers.
    np.testing.assert_allclose(closed_forms.natural_density(y, **given), printed(y), rtol=1e-12)
    np.testing.assert_allclose(
        closed_forms.sampler_density(y, **given, class_exponent=tau), printed(y, tau), rtol=1e-12
    )
    for found, t in (
        (closed_forms.factor_density(y, **given), 1),
        (closed_forms.unimix_density(y, **given, class_exponent=tau), tau),
    ):
        expected = [printed(v) * integral(lambda u, t=t: printed(u, t), v) for v in y]
        np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize(("num_classes", "imbalance"), [(10, 100), (100, 10), (1000, 3)])
def test_the_peak_of_the_factor_alone(num_classes, imbalance):
    y = np.linspace(1, num_classes, 100_001)
    found = y[closed_forms.factor_density(y, num_classes=num_classes, imbalance=imbalance).argmax()]
    expected = 1 + math.log(2) * (num_classes - 1) / math.log(imbalance)
    assert abs(found - expected) <= y[1] - y[0]  # the grid's step


@pytest.mark.parametrize(
    ("imbalance", "expected", "digits"), [(1, 0.5, 1e-15), (10, 0.173, 5e-4), (100, 0.0369, 5e-5), (200, 0.0217, 5e-5)]
)
def test_the_mass_of_unimix(imbalance, expected, digits):
    assert abs(closed_forms.unimix_mass(imbalance) - expected) < digits  # half of the last digit written down


@pytest.mark.parametrize("x", [1e-9, 1e-4, 0.01 - 1e-9, 0.01, 0.02, 1.0, 700.0])
def test_the_mass_near_balance_and_far_from_it(x):
    """Against the integral of A.12 written over [0, 1], where nothing cancels; x = ln imbalance."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    u = (np.arange(400)[:, None] + (nodes + 1) / 2) / 400
    integrand = x * np.exp(-x * u) / -math.expm1(-x) * np.expm1(x * u) / math.expm1(x)
    # exp(x) carries up to x roundings; where the series ends, .01, it leaves out 2e-14 and the closed form loses 2e-14.
    np.testing.assert_allclose(closed_forms.unimix_mass(math.exp(x)), (integrand * weights).sum() / 800, rtol=1e-12)


def test_a_balanced_set_has_uniform_and_triangular_densities():
    y = np.linspace(1, 5, 9)
    given = {"num_classes": 5, "imbalance": 1}
    np.testing.assert_array_equal(closed_forms.natural_density(y, **given), np.full(9, 0.25))
    np.testing.assert_array_equal(closed_forms.sampler_density(y, **given), np.full(9, 0.25))
    np.testing.assert_array_equal(closed_forms.mixup_density(y, **given), np.full(9, 0.25))
    np.testing.assert_array_equal(closed_forms.factor_density(y, **given), (y - 1) / 16)
    np.testing.assert_array_equal(closed_forms.unimix_density(y, **given), (y - 1) / 16)
    # At imbalance 1 + d the densities differ by at most d of their largest value.
    near = closed_forms.unimix_density(y, num_classes=5, imbalance=1 + 1e-9)
    np.testing.assert_allclose(near, (y - 1) / 16, atol=1e-9)


@pytest.mark.parametrize("imbalance", [1e300, 1.7e308])
def test_no_imbalance_overflows(imbalance):
    y = np.linspace(1, 10, 7)
    for exponent in (-3, -1, 0, 1, 3):
        for density in (closed_forms.sampler_density, closed_forms.unimix_density):
            values = density(y, num_classes=10, imbalance=imbalance, class_exponent=exponent)
            assert np.isfinite(values).all()
            assert (values >= 0).all()
    assert closed_forms.unimix_mass(imbalance) > 0


@pytest.mark.parametrize(("num_classes", "imbalance"), [(2, 1), (10, 100), (100, 200), (1000, 1e6)])
def test_mixup_s_closed_form_is_the_exact_law_of_an_exponential_profile(num_classes, imbalance):
    profile = closed_forms.exponential_profile(num_classes, imbalance)
    assert profile[0] == 1
    assert profile[0] / profile[-1] == pytest.approx(imbalance, rel=1e-12)
    np.testing.assert_allclose(profile[1:] / profile[:-1], imbalance ** (-1 / (num_classes - 1)), rtol=1e-12)
    density = closed_forms.mixup_density(np.arange(1.0, num_classes + 1), num_classes=num_classes, imbalance=imbalance)
    prior = priors.prior(profile)
    np.testing.assert_allclose(density / density.sum(), exact.mixed_class_distribution(prior, prior, 0.5), rtol=1e-10)


def test_profiles_of_theory_are_not_cut_to_whole_images():
    # 500 images cut to 2 at imbalance 200 are an imbalance of 250.
    assert longtail.profile("exp", 500, 100, 200)[-1] == 2
    np.testing.assert_allclose(500 * closed_forms.exponential_profile(100, 200)[-1], 2.5, rtol=1e-12)


# Per unit of y at the classes 1..10, imbalance 100.
MIRRORED = [0, 0.006, 0.013, 0.023, 0.040, 0.067, 0.112, 0.187, 0.313, 0.522]
FIGURE_A1 = [0, 0.053, 0.085, 0.104, 0.116, 0.123, 0.127, 0.129, 0.131, 0.132]  # normalised to sum 1


def test_corollary_3_is_the_gentle_part_of_a_steep_law():
    y, given = np.arange(1.0, 11), {"num_classes": 10, "imbalance": 100}
    part = closed_forms.unimix_density(y, **given)
    np.testing.assert_allclose(part / part.sum(), FIGURE_A1, atol=5.1e-4)  # three digits
    below = np.array([integral(lambda u: closed_forms.natural_density(u, **given), v) for v in y])
    np.testing.assert_allclose(part + closed_forms.sampler_density(y, **given) * below, MIRRORED, atol=5.1e-4)


@pytest.mark.parametrize("tau", [-1.0, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("imbalance", [10, 100])
def test_the_discrete_law_tends_to_the_closed_forms(tau, imbalance):
    """Many classes, the rarer one dominating: Eq. A.12 and its mirror image are the whole distribution."""
    classes, rank = 1000, np.arange(1000)
    natural = priors.prior(imbalance ** (-rank / (classes - 1)))
    found = exact.mixed_class_distribution(natural, priors.prior(natural, tau), rarer_dominates(natural))
    y, given = rank + 1.0, {"num_classes": classes, "imbalance": imbalance}
    below = (1 - imbalance ** (-rank / (classes - 1))) / (1 - 1 / imbalance)
    mirror = closed_forms.sampler_density(y, **given, class_exponent=tau) * below
    expected = closed_forms.unimix_density(y, **given, class_exponent=tau) + mirror
    # A sum at steps of 1 for an integral: wrong by half a step of either distribution, at most ln(imbalance) / 2K each.
    np.testing.assert_allclose(found, expected, atol=2 * math.log(imbalance) / classes * expected.max())
    if tau == 1:
        np.testing.assert_allclose(expected, 2 * closed_forms.factor_density(y, **given), rtol=1e-9, atol=1e-15)


# --- The factor

# Rare : frequent -> (P, mean) of the rare image's weight, for alpha .2, .5, .8, 1.
WRAPPED = {
    (1, 1): [(0.5, 0.5), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5)],
    (1, 4): [(0.8259, 0.6927), (0.6642, 0.5952), (0.5558, 0.5318), (0.5, 0.5)],
    (1, 10): [(0.8006, 0.7390), (0.6368, 0.6041), (0.5428, 0.5311), (0.5, 0.5)],
    (1, 99): [(0.7066, 0.6998), (0.5574, 0.5538), (0.5120, 0.5107), (0.5, 0.5)],
    (1, 100): [(0.7062, 0.6995), (0.5571, 0.5536), (0.5119, 0.5107), (0.5, 0.5)],
    (1, 1000): [(0.6319, 0.6312), (0.5195, 0.5191), (0.5024, 0.5023), (0.5, 0.5)],
}
UNWRAPPED = {
    (1, 1): [(0.5, 0.5), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5)],
    (1, 10): [(0.6701, 0.7538), (0.8050, 0.7928), (0.8780, 0.8150), (0.9091, 0.8254)],
    (1, 99): [(0.7902, 0.7956), (0.9362, 0.8358), (0.9793, 0.8590), (0.9900, 0.8700)],
    (1, 100): [(0.7906, 0.7956), (0.9365, 0.8359), (0.9794, 0.8591), (0.9901, 0.8700)],
}


@pytest.mark.parametrize(
    ("wrap", "counts", "alpha", "expected"),
    [
        pytest.param(wrap, counts, alpha, expected, id=f"{'wrapped' if wrap else 'un-wrapped'} {counts} {alpha}")
        for wrap, table in ((True, WRAPPED), (False, UNWRAPPED))
        for counts, row in table.items()
        for alpha, expected in zip((0.2, 0.5, 0.8, 1.0), row, strict=True)
    ],
)
def test_how_the_rare_image_is_weighed(wrap, counts, alpha, expected):
    for function, value in zip((exact.preference, exact.mean_weight), expected, strict=True):
        assert abs(function(*counts, alpha=alpha, wrap=wrap) - value) < 5.1e-5  # four digits
        assert abs(function(*counts[::-1], alpha=alpha, wrap=wrap) - (1 - value)) < 5.1e-5


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8, 1.0, 2.5])
@pytest.mark.parametrize("counts", [(1, 1), (1, 2), (1, 3), (3, 1), (1, 50), (70, 1)])
def test_the_factor_is_its_definition(wrap, alpha, counts):
    """Over a grid of quantiles of b, the definition put in."""
    from scipy.special import betaincinv

    cells = 20_000
    b = betaincinv(alpha, alpha, (np.arange(cells) + 0.5) / cells)
    s = counts[1] / sum(counts)
    weight = (b + s) % 1 if wrap else np.clip(b + s - 0.5, 0, 1)
    above = (weight > 0.5) + 0.5 * (weight == 0.5)  # at equal counts b of 1e-17 and 1 - 1e-17 both round to 1/2
    # One cell at each end of an interval, of which there are two.
    assert abs(exact.preference(*counts, alpha=alpha, wrap=wrap) - above.mean()) < 4 / cells
    assert abs(exact.mean_weight(*counts, alpha=alpha, wrap=wrap) - weight.mean()) < 4 / cells


def test_the_wrapped_factor_is_the_authors(golden):
    file = golden("unimix_factor")
    a, b = file["pairs_n_i_n_j"].T
    for j, alpha in enumerate(file["alphas"]):
        found, mean = exact.preference(a, b, alpha=alpha), exact.mean_weight(a, b, alpha=alpha)
        np.testing.assert_allclose(found, file["p_greater_half_exact"][:, j], atol=1e-12)  # the same integral
        # .005 is 4.5 standard deviations of a frequency over 200,000 draws. float32 rounds 1.6 % of the draws at counts
        # 1:1 and alpha .2 to exactly 1/2, which theirs counts as not above it.
        allowed = np.where((a == b) & (alpha == 0.2), 0.017, 0.005)
        np.testing.assert_array_less(np.abs(found - file["p_greater_half"][:, j]), allowed)
        deviations = np.abs(mean - file["mean"][:, j]) / (file["std"][:, j] / np.sqrt(file["draws"]))
        np.testing.assert_array_less(deviations, 5)


def test_the_wrapped_factor_prefers_most_at_one_to_three():
    rare = exact.preference(1, [1, 2, 3, 4, 10, 1000, 1e9])
    np.testing.assert_allclose(rare[2], 2 / 3, rtol=1e-12)  # 2 I_{1/4}(1/2, 1/2) = (4/pi) arcsin(1/2)
    assert rare.argmax() == 2
    assert abs(rare[-1] - 0.5) < 1e-4  # the square root of 1e-9 is 3e-5


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(exact.preference(7, 7, alpha=0.3), 0.5, id="equal counts"),
        pytest.param(exact.preference(7, 7, alpha=0.3, wrap=False), 0.5, id="equal counts, un-wrapped"),
        pytest.param(exact.mean_weight(7, 7, alpha=0.3), 0.5, id="equal counts, mean"),
        pytest.param(exact.mean_weight(7, 7, alpha=0.3, wrap=False), 0.5, id="equal counts, mean, un-wrapped"),
        pytest.param(exact.preference(C10, 9, alpha=1), np.full(10, 0.5), id="alpha 1"),
        pytest.param(exact.mean_weight(C10, 9, alpha=1), np.full(10, 0.5), id="alpha 1, mean"),
        pytest.param(exact.preference(C10, 9, alpha=1, wrap=False), 9 / (C10 + 9), id="alpha 1, un-wrapped"),
        pytest.param(exact.preference(1, 3, wrap=False), 2 / 3, id="arcsine distribution: (2/pi) arcsin sqrt(3/4)"),
        pytest.param(exact.mean_weight(1, 1e15, alpha=2, wrap=False), 29 / 32, id="E min(b + 1/2, 1), b ~ 6b(1-b)"),
    ],
)
def test_limits_of_the_factor(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12)  # rounding


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("function", [exact.preference, exact.mean_weight])
def test_the_two_images_share_the_weight(function, wrap):
    table = function(C100[:, None], C100, alpha=0.4, wrap=wrap)
    assert table.shape == (100, 100)
    assert table.dtype == np.float64
    np.testing.assert_allclose(table + table.T, 1, rtol=1e-12)  # rounding
    assert table[3, 90] == function(int(C100[3]), int(C100[90]), alpha=0.4, wrap=wrap)


# --- Distributions of mixed labels


def rarer_dominates(counts):
    """The share of Corollaries 2 and 3."""
    return (counts[:, None] < counts) + 0.5 * (counts[:, None] == counts)


SHARES = {
    "mixup": lambda counts: np.full((len(counts), len(counts)), 0.5),
    "wrapped .5": lambda counts: exact.preference(counts[:, None], counts),
    "wrapped .8": lambda counts: exact.preference(counts[:, None], counts, alpha=0.8),
    "un-wrapped .5": lambda counts: exact.preference(counts[:, None], counts, wrap=False),
    "constant s": rarer_dominates,
    "soft": lambda counts: exact.mean_weight(counts[:, None], counts),
}


@pytest.mark.parametrize(
    ("counts", "partner", "factor", "thirds", "rarer"),
    [
        (C10, 1, "mixup", (0.789, 0.189, 0.022), 0.500),
        (C10, 1, "wrapped .5", (0.741, 0.233, 0.026), 0.650),
        (C10, 1, "wrapped .8", (0.774, 0.203, 0.023), 0.549),
        (C10, 1, "un-wrapped .5", (0.707, 0.255, 0.038), 0.670),
        (C10, 1, "constant s", (0.623, 0.334, 0.043), 1),
        (C10, 0.5, "mixup", (0.685, 0.255, 0.059), 0.500),
        (C10, 0.5, "wrapped .5", (0.623, 0.306, 0.071), 0.645),
        (C10, 0.5, "wrapped .8", (0.665, 0.272, 0.063), 0.547),
        (C10, 0.5, "un-wrapped .5", (0.564, 0.335, 0.101), 0.702),
        (C10, 0.5, "constant s", (0.459, 0.425, 0.117), 1),
        (C10, 0, "mixup", (0.545, 0.294, 0.161), 0.500),
        (C10, 0, "wrapped .5", (0.470, 0.339, 0.191), 0.631),
        (C10, 0, "wrapped .8", (0.522, 0.309, 0.169), 0.541),
        (C10, 0, "un-wrapped .5", (0.353, 0.371, 0.276), 0.760),
        (C10, 0, "constant s", (0.237, 0.448, 0.315), 1),
        (C10, -1, "mixup", (0.406, 0.189, 0.406), 0.500),
        (C10, -1, "wrapped .5", (0.336, 0.189, 0.475), 0.600),
        (C10, -1, "wrapped .8", (0.387, 0.189, 0.424), 0.528),
        (C10, -1, "un-wrapped .5", (0.107, 0.189, 0.704), 0.856),
        (C10, -1, "constant s", (0.017, 0.189, 0.794), 1),
        (C10, -1, "soft", (0.347, 0.189, 0.464), None),
        (C100, -1, "wrapped .5", (0.336, 0.162, 0.501), 0.610),
        (C100, 0.9, "wrapped .8", (0.762, 0.193, 0.044), 0.544),
        (C100, -1, "un-wrapped .5", (None, None, 0.710), 0.830),
        (C100, -1, "constant s", (None, None, 0.816), 1),
    ],
    ids=lambda value: "" if value is None else f"{len(value)} classes" if isinstance(value, np.ndarray) else None,
)
def test_thirds_of_the_mixed_labels(counts, partner, factor, thirds, rarer):
    natural, sampled, share = priors.prior(counts), priors.prior(counts, partner), SHARES[factor](counts)
    distribution = exact.mixed_class_distribution(natural, sampled, share)
    cuts = {10: [3, 7], 100: [33, 66]}[len(counts)]  # the authors', for 100 classes not those of priors.groups
    for part, expected in zip(np.split(distribution, cuts), thirds, strict=True):
        assert expected is None or abs(part.sum() - expected) < 5.1e-4  # three digits
    if rarer is not None:
        pairs = natural[:, None] * sampled * (counts[:, None] != counts)
        wins = np.where(counts[:, None] < counts, share, 1 - share)
        assert abs((pairs * wins).sum() / pairs.sum() - rarer) < 5.1e-4


@pytest.mark.parametrize("counts", [C10, C100], ids=["10 classes", "100 classes"])
@pytest.mark.parametrize(("array", "function"), [("dominant", exact.preference), ("soft", exact.mean_weight)])
def test_mixed_labels_of_the_authors_factor(golden, counts, array, function):
    file = golden("unimix_sampler")
    found = exact.mixed_class_distribution(
        priors.prior(counts), priors.prior(counts, -1), function(counts[:, None], counts)
    )
    expected = file[f"mixed_{array}_c{len(counts)}_paper"]
    # Five standard deviations of a frequency over their draws; soft masses vary less.
    allowed = 5 * np.sqrt(found / file[f"mixed_draws_c{len(counts)}_paper"])
    np.testing.assert_array_less(np.abs(found - expected), allowed)


@pytest.mark.parametrize("seed", range(5))
def test_a_mixed_law_is_its_definition_and_a_law(seed):
    random = np.random.default_rng(seed)
    classes = int(random.integers(1, 9))
    first, partner = random.dirichlet(np.full(classes, 0.5), 2)
    share = random.random((classes, classes))
    found, expected = exact.mixed_class_distribution(first, partner, share), np.zeros(classes)
    for a in range(classes):
        for b in range(classes):
            expected[a] += first[a] * partner[b] * share[a, b]
            expected[b] += first[a] * partner[b] * (1 - share[a, b])
    np.testing.assert_allclose(found, expected, rtol=1e-12)  # rounding
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        pytest.param(1, [0.8, 0.2], id="first images"),
        pytest.param(0, [0.3, 0.7], id="partners"),
        pytest.param(0.5, [0.55, 0.45], id="mixup"),
        pytest.param([[0.5, 0.25], [1, 0.5]], [0.38, 0.62], id="class 0: .8 * .3 + .8 * .7 / 4"),
    ],
)
def test_mixed_laws_by_hand(share, expected):
    # Rounding.
    np.testing.assert_allclose(exact.mixed_class_distribution([0.8, 0.2], [0.3, 0.7], share), expected, rtol=1e-12)


@pytest.mark.parametrize("wrap", [True, False])
def test_drawn_pairs_follow_the_exact_law(wrap):
    random, draws = np.random.default_rng(0), 200_000
    natural, inverse = priors.prior(C10), priors.prior(C10, -1)
    label_a, label_b = random.choice(10, draws, p=natural), random.choice(10, draws, p=inverse)
    s = C10[label_b] / (C10[label_a] + C10[label_b])
    b = random.beta(0.5, 0.5, draws)
    weight = (b + s) % 1 if wrap else np.clip(b + s - 0.5, 0, 1)
    for soft, function in ((False, exact.preference), (True, exact.mean_weight)):
        found = exact.empirical_class_distribution(label_a, label_b, weight, 10, soft)
        expected = exact.mixed_class_distribution(natural, inverse, function(C10[:, None], C10, wrap=wrap))
        # Five standard deviations of a frequency; soft masses vary less.
        np.testing.assert_array_less(np.abs(found - expected), 5 * np.sqrt(expected / draws))
        np.testing.assert_allclose(found.sum(), 1, rtol=1e-12)


@pytest.mark.parametrize(("soft", "expected"), [(False, [1.5, 1.5, 1, 0]), (True, [1.4, 1.4, 1.2, 0])])
@pytest.mark.parametrize("kind", [np.int32, np.uint8])
def test_drawn_pairs_by_hand(soft, expected, kind):
    # Dominant: class 0, class 2, half each of 0 and 1, class 1.
    label_a, label_b = np.array([0, 1, 0, 1], kind), np.array([1, 2, 1, 2], kind)
    weight = np.array([0.9, 0.2, 0.5, 0.6])
    found = exact.empirical_class_distribution(label_a, label_b, weight, 4, soft)
    np.testing.assert_allclose(found, np.array(expected) / 4, rtol=1e-12)  # rounding


# --- What is refused

DENSITIES = ("natural_density", "sampler_density", "mixup_density", "factor_density", "unimix_density")
TEN = {"num_classes": 10, "imbalance": 100}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"imbalance": 0.99}, "imbalance is 0.99"),
        ({"imbalance": math.inf}, "imbalance is inf"),
        ({"imbalance": math.nan}, "imbalance is nan"),
        ({"num_classes": 1}, "num_classes is 1;"),
        ({"y": 0.5}, r"y is 0.5; with 10 classes it must lie in 1\.\.10"),
        ({"y": [1, 10.5]}, "y is 10.5"),
        ({"y": [[math.nan]]}, "y is nan"),
    ],
)
@pytest.mark.parametrize("name", DENSITIES)
def test_densities_refuse_what_is_out_of_range(name, changed, message):
    given = {"y": 1} | TEN | changed
    with pytest.raises(UserError, match=message):
        getattr(closed_forms, name)(given.pop("y"), **given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: closed_forms.unimix_mass(0.5), "imbalance is 0.5"),
        (lambda: closed_forms.sampler_density(1, **TEN, class_exponent=math.inf), "class_exponent is inf"),
        (lambda: closed_forms.unimix_density(1, **TEN, class_exponent=math.nan), "class_exponent is nan"),
        (lambda: exact.preference(1, 2, alpha=0), "alpha is 0"),
        (lambda: exact.preference([1, 0], 2), "count is 0"),
        (lambda: exact.mean_weight(1, -2), "count is -2"),
        (lambda: exact.mean_weight(1, math.nan), "count is nan"),
        (lambda: exact.mean_weight(1, 2, alpha=math.nan), "alpha is nan"),
        (lambda: exact.mixed_class_distribution([0.5, 0.4], [0.5, 0.5], 0.5), "^prior must be"),
        (lambda: exact.mixed_class_distribution([0.5, 0.5], [1.5, -0.5], 0.5), "partner_prior must be"),
        (lambda: exact.mixed_class_distribution(0.5, [0.5, 0.5], 0.5), "^prior must be"),
        (lambda: exact.mixed_class_distribution([0.5, 0.5], [1.0], 0.5), r"partner_prior \(1,\)"),
        (lambda: exact.mixed_class_distribution([0.5, 0.5], [0.5, 0.5], [0.5, 0.5]), r"share \(2,\)"),
        (lambda: exact.mixed_class_distribution([0.5, 0.5], [0.5, 0.5], 1.1), r"lie in 0\.\.1"),
        (lambda: exact.mixed_class_distribution([0.5, 0.5], [0.5, 0.5], math.nan), r"lie in 0\.\.1"),
        (lambda: exact.empirical_class_distribution([0], [2], [0.5], 2), "labels hold 2; with 2 classes"),
        (lambda: exact.empirical_class_distribution([-1], [1], [0.5], 2), "labels hold -1; with 2 classes"),
        (lambda: exact.empirical_class_distribution([0], [1], [1.5], 2), r"lie in 0\.\.1"),
        (lambda: exact.empirical_class_distribution([0], [1], [math.nan], 2), r"lie in 0\.\.1"),
        (lambda: exact.empirical_class_distribution([0, 1], [1], [0.5], 2), r"int64\[2\] and int64\[1\]"),
        (lambda: exact.empirical_class_distribution([0, 1], [1, 1], 0.5, 2), r"weights \[\]"),
        (lambda: exact.empirical_class_distribution([0.0], [1], [0.5], 2), r"float64\[1\]"),
        (lambda: exact.empirical_class_distribution(np.zeros(0, int), np.zeros(0, int), [], 2), "N > 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_rest_refuses_what_does_not_fit(call, message):
    with pytest.raises(UserError, match=message):
        call()
