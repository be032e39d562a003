"""Shifting, temperature and estimates on a world whose posteriors are known: Gaussian classes of equal spread."""

import numpy as np
import pytest

from unimix_jax import priors
from unimix_jax.errors import UserError
from unimix_jax.measures import adapt, metrics, parts

CLASSES = 8
TRAIN = priors.prior(priors.profile("exp", 1000, CLASSES, 50))
UNIFORM = np.full(CLASSES, 1 / CLASSES)
CENTRES = np.random.default_rng(0).normal(0, 0.7, (CLASSES, 12))


def drawn(prior, size, seed, posterior_of=TRAIN):
    """Labels by a prior, and the exact logits of the posterior under another."""
    random = np.random.default_rng(seed)
    labels = random.choice(CLASSES, size, p=prior)
    points = CENTRES[labels] + random.normal(0, 1, (size, 12))
    return points @ CENTRES.T - 0.5 * (CENTRES**2).sum(axis=1) + np.log(posterior_of), labels


def test_a_shift_by_hand():
    # .5 : .5 under (1/2, 1/2) is .9 : .1 under (.9, .1).
    shifted = adapt.shift_prior(np.zeros((1, 2)), np.array([0.5, 0.5]), np.array([0.9, 0.1]))
    np.testing.assert_allclose(parts.softmax(shifted), [[0.9, 0.1]])


def test_shifting_there_and_back_is_the_identity():
    logits, _ = drawn(UNIFORM, 50, 1)
    there = adapt.shift_prior(logits, TRAIN, UNIFORM)
    np.testing.assert_allclose(adapt.shift_prior(there, UNIFORM, TRAIN), logits, atol=1e-12)
    np.testing.assert_allclose(adapt.shift_prior(logits, 3 * TRAIN, TRAIN), logits, atol=1e-12)


def test_shifted_logits_are_those_of_a_model_of_the_other_prior():
    logits, labels = drawn(TRAIN[::-1], 2000, 2)
    right, _ = drawn(TRAIN[::-1], 2000, 2, posterior_of=TRAIN[::-1])
    shifted = parts.softmax(adapt.shift_prior(logits, TRAIN, TRAIN[::-1]))
    np.testing.assert_allclose(shifted, parts.softmax(right), atol=1e-12)
    assert metrics.accuracy(shifted, labels) > metrics.accuracy(parts.softmax(logits), labels) + 0.05


@pytest.mark.parametrize("prior", [np.array([0.5, 0.5, 0]), np.array([1.0]), np.array([np.nan, 0.5, 0.5])])
def test_priors_that_are_none_are_refused(prior):
    uniform = np.full(3, 1 / 3)
    for arguments in ((prior, uniform), (uniform, prior)):
        with pytest.raises(UserError, match="3 positive numbers"):
            adapt.shift_prior(np.zeros((2, 3)), *arguments)


@pytest.mark.parametrize(
    ("imbalance", "expected"),
    [
        pytest.param(100, [40, 15, 6, 2, 1, 0], id="40 * .01**(k/5), cut to whole images; the last is .4"),
        pytest.param(1, [40] * 6, id="nothing is discarded but the surplus"),
        pytest.param(0.01, [0, 1, 2, 6, 15, 40], id="turned round"),
    ],
)
def test_test_sets_are_cut_by_training_count(imbalance, expected):
    counts = np.array([5, 300, 20, 100, 50, 10])  # class 1 has most, class 0 fewest
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(6), [40, 50, 41, 60, 44, 40]))
    positions = adapt.cut(labels, counts, imbalance)
    by_rank = np.bincount(labels[positions], minlength=6)[[1, 3, 4, 2, 5, 0]]
    np.testing.assert_array_equal(by_rank, expected)
    assert (np.diff(positions) > 0).all()


def test_which_images_stay_depends_on_the_seed_only():
    labels, counts = np.repeat(np.arange(4), 30), np.array([40, 30, 20, 10])
    np.testing.assert_array_equal(adapt.cut(labels, counts, 10, 1), adapt.cut(labels, counts, 10, 1))
    assert (adapt.cut(labels, counts, 10, 1) != adapt.cut(labels, counts, 10, 2)).any()
    assert set(adapt.cut(labels, counts, 20, 1)) < set(adapt.cut(labels, counts, 10, 1))  # cuts are nested


def test_classes_with_equal_counts_keep_their_order():
    # Many of them: an unstable sort of sixteen or less is stable all the same.
    kept = adapt.cut(np.repeat(np.arange(40), 40), np.full(40, 7), 20)
    np.testing.assert_array_equal(np.bincount(np.repeat(np.arange(40), 40)[kept]), priors.profile("exp", 40, 40, 20))


@pytest.mark.parametrize(
    ("labels", "imbalance", "message"),
    [([0, 1], 0.0, "positive"), ([0, 1], np.nan, "positive"), ([0, 0], 10.0, "class 1 has no test image")],
)
def test_cuts_that_cannot_be_made(labels, imbalance, message):
    with pytest.raises(UserError, match=message):
        adapt.cut(np.array(labels), np.array([2, 1]), imbalance)


@pytest.mark.parametrize("true", [0.3, 1.0, 1.7, 6.0])
def test_the_temperature_of_scaled_logits_is_found(true):
    logits, labels = drawn(TRAIN, 20_000, 3)
    # The standard error of log T is about 1 % for 20,000 images.
    assert adapt.fit_temperature(logits * true, labels) == pytest.approx(true, rel=0.04)


@pytest.mark.parametrize("seed", range(5))
def test_a_temperature_is_the_best_of_a_grid_and_never_worse_than_1(seed):
    logits, labels = drawn(UNIFORM, 60, seed)
    logits = logits * [0.2, 1.0, 5.0, 20.0, 1.0][seed]
    temperature = adapt.fit_temperature(logits, labels)
    found = metrics.nll_of_logits(logits / temperature, labels)
    grid = [metrics.nll_of_logits(logits / t, labels) for t in np.geomspace(0.01, 100, 400)]
    assert found <= min(*grid, metrics.nll_of_logits(logits, labels)) + 1e-12


def test_temperatures_of_one_sided_data_stay_in_their_bracket():
    right = np.array([[5.0, 0], [0, 5.0]])
    # All right: the NLL falls to 0 in float64 long before T = .01.
    temperature = adapt.fit_temperature(right, np.array([0, 1]))
    assert 0.01 <= temperature < 0.2
    assert metrics.nll_of_logits(right / temperature, np.array([0, 1])) < 1e-15
    assert adapt.fit_temperature(right, np.array([1, 0])) == pytest.approx(100, rel=1e-6)
    assert adapt.fit_temperature(np.zeros((2, 2)), np.array([0, 1])) == 1.0


def test_bias_correction_undoes_a_temperature_and_a_bias():
    logits, labels = drawn(UNIFORM, 20_000, 4, posterior_of=UNIFORM)
    bias = np.linspace(-1, 1, CLASSES)
    found = adapt.fit_bias_corrected(2 * (logits - bias), labels)
    assert found.temperature == pytest.approx(2, rel=0.05)
    np.testing.assert_allclose(found.bias, bias - bias.mean(), atol=0.15)
    corrected = adapt.calibrated(2 * (logits - bias), found)
    # At its optimum the mean probabilities are the shares of the labels, but for the pull of one image.
    shares = np.bincount(labels, minlength=CLASSES) / len(labels)
    np.testing.assert_allclose(parts.softmax(corrected).mean(axis=0), shares, atol=2e-4)


def test_bias_correction_is_no_worse_than_a_temperature_and_finite_for_an_absent_class():
    logits, labels = drawn(UNIFORM, 100, 5)
    held = logits[labels != 3], labels[labels != 3]
    found = adapt.fit_bias_corrected(*held)
    # The slope by each bias is 0: probabilities less labels, and the pull of one image in equal parts.
    probabilities = parts.softmax(adapt.calibrated(held[0], found)).sum(axis=0)
    pull = parts.softmax(found.bias[None])[0] - 1 / CLASSES
    np.testing.assert_allclose(probabilities + pull, np.bincount(held[1], minlength=CLASSES), atol=0.02)
    cooled = metrics.nll_of_logits(held[0] / adapt.fit_temperature(*held), held[1])
    assert metrics.nll_of_logits(adapt.calibrated(held[0], found), held[1]) <= cooled


@pytest.mark.parametrize("imbalance", [50.0, 1.0, 0.1, 0.02])
def test_em_recovers_a_known_prior_within_its_interval(imbalance):
    prior = priors.read_test_prior(f"imbalance:{imbalance}", TRAIN)
    inside, errors = [], []
    for seed in range(6):
        logits, _ = drawn(prior, 1000, 100 + seed)
        found = adapt.estimate_prior(logits, logits_prior=TRAIN, samples=60, seed=seed)
        inside.append((found.low <= prior) & (prior <= found.high))
        errors.append(np.abs(found.prior - prior).sum() / 2)
        assert found.prior.sum() == pytest.approx(1)
        assert ((found.low <= found.prior) & (found.prior <= found.high)).all()
    # 48 intervals of 95 %, by 60 samples each (which makes them a little short): 40 leaves room for chance.
    assert np.sum(inside) >= 40
    # Half the sum of |share - share|: the draw of 1,000 labels alone makes .03 of it.
    assert np.mean(errors) < 0.07


def test_the_likelihood_of_em_never_falls_and_ends_at_its_maximum():
    logits, _ = drawn(TRAIN[::-1], 500, 7)
    probabilities = parts.softmax(logits)
    prior, likelihoods = adapt.em(probabilities, TRAIN, tolerance=1e-9)
    assert (np.diff(likelihoods) >= -1e-12).all()

    def likelihood(q):
        return np.log((probabilities * (q / TRAIN)).sum(axis=1)).mean()

    assert likelihoods[-1] == pytest.approx(likelihood(prior), abs=1e-9)
    # Concave: no step towards another prior rises.
    for other in [UNIFORM, TRAIN, *np.eye(CLASSES)]:
        assert likelihood(0.999 * prior + 0.001 * other) <= likelihoods[-1] + 1e-9


def test_em_of_samples_is_em_of_each_of_them():
    probabilities = parts.softmax(drawn(UNIFORM, 200, 8)[0])
    weights = np.random.default_rng(0).multinomial(200, np.full(200, 1 / 200), size=3).T
    together, _ = adapt.em(probabilities, TRAIN, weights=weights, tolerance=1e-9)
    for column, sample in zip(together.T, weights.T, strict=True):
        alone, _ = adapt.em(np.repeat(probabilities, sample, axis=0), TRAIN, tolerance=1e-9)
        np.testing.assert_allclose(column, alone, atol=1e-5)  # each stops by its own last move


def test_bbse_is_the_linear_solution_where_there_is_data_enough():
    confusion = np.array([[0.4, 0.1], [0.1, 0.4]])
    # Weights (.4, 1.6): the rarer class is four times the other.
    predicted = confusion @ np.array([0.4, 1.6])
    found = adapt.bbse(confusion, predicted, 10**9, 10**9)
    np.testing.assert_allclose(found[0], [0.2, 0.8], atol=1e-6)
    # Of long-tailed validation images: the weights multiply their shares.
    skewed = confusion * [1.6, 0.4] / 1.0
    found, errors = adapt.bbse(skewed, skewed @ np.array([0.5, 3.0]), 10**9, 10**9)
    np.testing.assert_allclose(found, [0.4, 0.6], atol=1e-6)
    assert (errors < 1e-3).all()
    # Predicted shares that only a negative weight explains: 0 is the nearest.
    found, _ = adapt.bbse(confusion, np.array([0.05, 0.95]), 10**6, 10**6)
    np.testing.assert_allclose(found, [0, 1], atol=1e-3)
    # Without data to speak of the weights stay at 1, that is, the prior of the validation images.
    np.testing.assert_allclose(adapt.bbse(confusion, predicted, 1, 1)[0], [0.5, 0.5], atol=0.1)


@pytest.mark.parametrize("method", adapt.METHODS)
def test_estimates_after_calibration_on_validation_images(method):
    prior = priors.read_test_prior("imbalance:0.05", TRAIN)
    bias = np.linspace(-0.5, 0.5, CLASSES)
    held, held_labels = drawn(UNIFORM, 4000, 9)
    logits, _ = drawn(prior, 3000, 10)
    # The model is over-confident and leans to some classes; nobody knows what prior its logits stand for.
    found = adapt.estimate_prior(
        3 * (logits + bias), validation=(3 * (held + bias), held_labels), method=method, samples=20
    )
    # Measured .02 (EM) and .06 (BBSE, which sees the predicted class only).
    assert np.abs(found.prior - prior).sum() / 2 < 0.08
    assert found.warnings == ()
    wrong = adapt.estimate_prior(3 * (logits + bias), logits_prior=TRAIN, samples=0)
    assert np.abs(wrong.prior - prior).sum() / 2 > 0.08  # uncalibrated, and said to be
    assert "not calibrated" in wrong.warnings[0]
    assert np.isnan(wrong.low).all()


def test_what_should_not_be_trusted_is_said():
    held, held_labels = drawn(UNIFORM, 40, 11)
    few = adapt.estimate_prior(drawn(UNIFORM, 30, 12)[0], validation=(held, held_labels), samples=30)
    assert any("fewer than 10 validation images" in w for w in few.warnings)
    assert any("shares are uncertain" in w for w in few.warnings)
    # Half of the images are of another kind: the model is less sure of them than of any class's images.
    held, held_labels = drawn(UNIFORM, 4000, 13)
    noise = np.random.default_rng(0).normal(0, 0.5, (500, 12)) + CENTRES.mean(axis=0)
    strange = noise @ CENTRES.T - 0.5 * (CENTRES**2).sum(axis=1) + np.log(TRAIN)
    mixed = np.concatenate([strange, drawn(TRAIN, 500, 14)[0]])
    found = adapt.estimate_prior(mixed, validation=(held, held_labels), samples=0)
    assert any("images themselves seem to differ" in w for w in found.warnings)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("prior", [UNIFORM, TRAIN, TRAIN[::-1]], ids=["uniform", "train", "reversed"])
@pytest.mark.parametrize("of_validation", [UNIFORM, TRAIN], ids=["balanced", "long-tailed"])
def test_other_shares_alone_raise_no_alarm(of_validation, prior, seed):
    held, held_labels = drawn(of_validation, 800, 20 + seed)
    logits, _ = drawn(prior, 2000, 30 + seed)
    for method in adapt.METHODS:
        found = adapt.estimate_prior(2 * logits, validation=(2 * held, held_labels), method=method, samples=0)
        assert not any("seem to differ" in w for w in found.warnings)


@pytest.mark.parametrize("method", adapt.METHODS)
def test_classes_that_cannot_be_told_apart_have_wide_intervals(method):
    prior = np.array([0.19, 0.01, 0.2, 0.2, 0.2, 0.2])
    centres = np.array([0, 0, 3, 6, 9, 12.0])  # the first two are twins

    def pairs(of, size, seed):
        random = np.random.default_rng(seed)
        labels = random.choice(6, size, p=of)
        points = centres[labels] + random.normal(0, 1, size)
        return -0.5 * (points[:, None] - centres) ** 2, labels

    held, logits = pairs(np.full(6, 1 / 6), 600, 0), pairs(prior, 1000, 1)[0]
    found = adapt.estimate_prior(logits, validation=held, method=method, samples=40)
    assert ((found.low <= prior) & (prior <= found.high))[:2].all()
    assert found.high[0] - found.low[0] > 0.15
    assert found.high[3] - found.low[3] < 0.15  # of a class that is seen apart
    nothing = adapt.estimate_prior(np.zeros((500, 6)), validation=(np.zeros((600, 6)), held[1]), method=method)
    assert ((nothing.low <= prior) & (prior <= nothing.high)).all()
    assert any("shares are uncertain" in w for w in nothing.warnings)


def test_intervals_hold_where_the_validation_images_are_few_and_long_tailed():
    inside = {method: [] for method in adapt.METHODS}
    for seed in range(8):
        held, held_labels = drawn(TRAIN, 500, 40 + seed)
        logits, _ = drawn(UNIFORM, 1000, 60 + seed)
        for method, found in inside.items():
            estimate = adapt.estimate_prior(logits, validation=(held, held_labels), method=method, samples=50)
            found.append((estimate.low <= UNIFORM) & (UNIFORM <= estimate.high))
    # 64 intervals of nominally 95 %, whose calibration and confusion rest on 5 to 10 images of each tail class.
    assert np.mean(inside["em"]) > 0.8
    assert np.mean(inside["bbse"]) > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give labelled validation predictions"),
        ({"method": "bbse", "logits_prior": UNIFORM}, "BBSE needs labelled validation"),
        ({"method": "mle"}, "unknown method"),
        ({"validation": (np.zeros((3, 2)), np.array([0, 1, 1]))}, "2 classes, those to predict 8"),
    ],
)
def test_estimates_that_cannot_be_made(options, message):
    with pytest.raises(UserError, match=message):
        adapt.estimate_prior(np.zeros((4, CLASSES)), **options)


@pytest.mark.parametrize("scale", [0.0, 1e90], ids=["a model that says nothing", "enormous logits"])
def test_extreme_logits_raise_no_false_alarm(scale, recwarn):
    held, held_labels = drawn(UNIFORM, 200, 70)
    estimate = adapt.estimate_prior(
        scale * drawn(UNIFORM, 300, 71)[0], validation=(scale * held, held_labels), samples=20
    )
    assert not any("seem to differ" in warning for warning in estimate.warnings)
    assert not recwarn.list


def test_a_model_that_never_names_a_class_gets_an_estimate():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 60)
    logits = 1e6 * np.eye(4)[random.integers(0, 3, 60)]  # as of a network that is not trained: the fourth class is 0
    estimate = adapt.estimate_prior(logits, validation=(logits, labels), method="em", samples=20)
    assert np.isfinite(estimate.prior).all()
    np.testing.assert_allclose(estimate.prior.sum(), 1)
