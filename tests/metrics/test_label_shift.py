"""Shifting, temperature and estimates on a world whose posteriors are known: Gaussian classes of equal spread."""

import warnings

import numpy as np
import pytest

from unimix_jax import metrics, priors
from unimix_jax.data import longtail
from unimix_jax.errors import UserError
from unimix_jax.metrics import calibration, label_shift, per_example
from unimix_jax.metrics.predictions import Predictions, write_predictions
from unimix_jax.report import evaluation

CLASSES = 8
TRAIN = priors.prior(longtail.profile("exp", 1000, CLASSES, 50))
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
    shifted = label_shift.shift_prior(np.zeros((1, 2)), np.array([0.5, 0.5]), np.array([0.9, 0.1]))
    np.testing.assert_allclose(per_example.softmax(shifted), [[0.9, 0.1]])


def test_shifting_there_and_back_is_the_identity():
    logits, _ = drawn(UNIFORM, 50, 1)
    there = label_shift.shift_prior(logits, TRAIN, UNIFORM)
    np.testing.assert_allclose(label_shift.shift_prior(there, UNIFORM, TRAIN), logits, atol=1e-12)
    np.testing.assert_allclose(label_shift.shift_prior(logits, 3 * TRAIN, TRAIN), logits, atol=1e-12)


def test_shifted_logits_are_those_of_a_model_of_the_other_prior():
    logits, labels = drawn(TRAIN[::-1], 2000, 2)
    right, _ = drawn(TRAIN[::-1], 2000, 2, posterior_of=TRAIN[::-1])
    shifted = per_example.softmax(label_shift.shift_prior(logits, TRAIN, TRAIN[::-1]))
    np.testing.assert_allclose(shifted, per_example.softmax(right), atol=1e-12)
    assert metrics.accuracy(shifted, labels) > metrics.accuracy(per_example.softmax(logits), labels) + 0.05


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        ([0.5, -0.5, 1], "is -0.5 for class 1"),
        ([1.0], "a number for each of the 3 classes"),
        ([np.nan, 0.5, 0.5], "is nan for class 0"),
        (np.zeros(3), "is 0 for all classes"),
        ("uniform", "has the shape"),
    ],
)
def test_priors_that_are_none_are_refused(prior, words):
    uniform = np.full(3, 1 / 3)
    for name, arguments in {"from_prior": (prior, uniform), "to_prior": (uniform, prior)}.items():
        with pytest.raises(UserError, match=f"{name} {words}|{name}.*{words}"):
            label_shift.shift_prior(np.zeros((2, 3)), *arguments)


def test_a_class_that_does_not_occur_gets_the_probability_0_and_none_can_be_corrected_from_a_share_of_0():
    logits, prior = np.array([[1.0, 2.0, 0.5]]), np.array([0.5, 0.5, 0.0])
    shifted = label_shift.shift_prior(logits, np.ones(3), prior)
    expected = np.exp(logits[0]) * prior
    np.testing.assert_allclose(per_example.softmax(shifted)[0], expected / expected.sum(), rtol=1e-12)
    assert metrics.nll_of_logits(shifted, np.array([2])) > 700  # as a probability of 0 counts elsewhere
    with pytest.raises(UserError, match="from_prior is 0 for class 2.* leave the class out"):
        label_shift.shift_prior(logits, prior, np.ones(3))
    with pytest.raises(UserError, match="logits_prior is 0 for class 2"):
        label_shift.estimate_prior(logits, logits_prior=prior, samples=0)


def test_validation_may_be_a_pair_predictions_or_a_file(tmp_path):
    logits, labels = drawn(TRAIN, 300, 4)
    write_predictions(tmp_path / "validation.npz", Predictions(logits, labels))
    pair, *others = (
        label_shift.estimate_prior(logits, validation=validation, samples=0).prior
        for validation in ((logits, labels), Predictions(logits, labels), tmp_path / "validation.npz")
    )
    for prior in others:
        np.testing.assert_allclose(prior, pair, rtol=1e-12)


@pytest.mark.parametrize(
    ("validation", "words"),
    [
        (np.eye(3), "validation is of the type ndarray; it must be metrics.Predictions"),
        (5, "validation is of the type int; it must be"),
        (Predictions(np.zeros((2, 3)) - 1), "the validation predictions have no labels"),
        ((np.zeros((2, 2)) - 1, np.array([0, 1])), "the validation predictions have 2 classes, those to predict 3"),
    ],
)
def test_validation_of_another_kind_is_refused(validation, words):
    with pytest.raises(UserError, match=words):
        label_shift.estimate_prior(np.zeros((2, 3)) - 1, validation=validation)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda logits, labels: calibration.calibrated(logits, 2.0), "calibration is 2.0; it must be a Calibration"),
        (lambda logits, labels: calibration.fit_bias_corrected(logits, labels, start=2.0), "start is 2.0"),
        (
            lambda logits, labels: calibration.calibrated(
                logits, calibration.Calibration(1.0, np.zeros(2), np.ones(2))
            ),
            r"calibration has biases \[2\], but the logits have 3 classes",
        ),
        (
            lambda logits, labels: label_shift.estimate_prior(logits, logits_prior=np.ones(3), samples=1.5),
            "samples is 1.5",
        ),
    ],
)
def test_calibrations_that_are_none_are_refused(function, words):
    with pytest.raises(UserError, match=words):
        function(np.array([[1.0, -2, 0], [0, 0, -1]]), np.array([0, 1]))


def test_a_temperature_at_the_end_of_its_range_is_said():
    wrong, labels = np.array([[5.0, 0], [0, 5.0]]), np.array([1, 0])
    with pytest.warns(UserWarning, match="the temperature 100 is at the end of where one is looked for"):
        temperature = calibration.fit_temperature(wrong, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert calibration.search_temperature(wrong, labels) == temperature
        calibration.fit_temperature(*drawn(TRAIN, 200, 3))


@pytest.mark.parametrize("true", [0.3, 1.0, 1.7, 6.0])
def test_the_temperature_of_scaled_logits_is_found(true):
    logits, labels = drawn(TRAIN, 20_000, 3)
    # The standard error of log T is about 1 % for 20,000 images.
    assert calibration.fit_temperature(logits * true, labels) == pytest.approx(true, rel=0.04)


@pytest.mark.parametrize("seed", range(5))
def test_a_temperature_is_the_best_of_a_grid_and_never_worse_than_1(seed):
    logits, labels = drawn(UNIFORM, 60, seed)
    logits = logits * [0.2, 1.0, 5.0, 20.0, 1.0][seed]
    temperature = calibration.fit_temperature(logits, labels)
    found = metrics.nll_of_logits(logits / temperature, labels)
    grid = [metrics.nll_of_logits(logits / t, labels) for t in np.geomspace(0.01, 100, 400)]
    assert found <= min(*grid, metrics.nll_of_logits(logits, labels)) + 1e-12


def test_temperatures_of_one_sided_data_stay_in_their_bracket():
    right = np.array([[5.0, 0], [0, 5.0]])
    # All right: the NLL falls to 0 in float64 long before T = .01.
    temperature = calibration.fit_temperature(right, np.array([0, 1]))
    assert 0.01 <= temperature < 0.2
    assert metrics.nll_of_logits(right / temperature, np.array([0, 1])) < 1e-15
    assert calibration.search_temperature(right, np.array([1, 0])) == pytest.approx(100, rel=1e-6)
    assert calibration.fit_temperature(np.zeros((2, 2)), np.array([0, 1])) == 1.0


def test_bias_correction_undoes_a_temperature_and_a_bias():
    logits, labels = drawn(UNIFORM, 20_000, 4, posterior_of=UNIFORM)
    bias = np.linspace(-1, 1, CLASSES)
    found = calibration.fit_bias_corrected(2 * (logits - bias), labels)
    assert found.temperature == pytest.approx(2, rel=0.05)
    np.testing.assert_allclose(found.bias, bias - bias.mean(), atol=0.15)
    corrected = calibration.calibrated(2 * (logits - bias), found)
    # At its optimum the mean probabilities are the shares of the labels, but for the pull, one image at most.
    shares = np.bincount(labels, minlength=CLASSES) / len(labels)
    np.testing.assert_allclose(per_example.softmax(corrected).mean(axis=0), shares, atol=2e-4)
    np.testing.assert_allclose(found.prior, per_example.softmax(corrected).mean(axis=0))


@pytest.mark.parametrize("logits_prior", [None, TRAIN], ids=["unknown", "known"])
def test_bias_correction_is_no_worse_than_a_temperature_and_finite_for_an_absent_class(logits_prior):
    logits, labels = drawn(UNIFORM, 100, 5)
    held = logits[labels != 3], labels[labels != 3]
    found = calibration.fit_bias_corrected(*held, logits_prior)
    sizes = np.bincount(held[1], minlength=CLASSES)
    # The slope by each bias is 0: probabilities less labels, and the pull to what is expected of it.
    probabilities = per_example.softmax(calibration.calibrated(held[0], found)).sum(axis=0)
    expected = np.zeros(CLASSES) if logits_prior is None else np.log((sizes + 1 / CLASSES) / logits_prior)
    pull = found.bias - (expected - expected.mean())
    np.testing.assert_allclose(probabilities + pull, sizes, atol=0.02)
    cooled = metrics.nll_of_logits(held[0] / calibration.fit_temperature(*held), held[1])
    assert metrics.nll_of_logits(calibration.calibrated(held[0], found), held[1]) <= cooled


@pytest.mark.slow
@pytest.mark.parametrize("of_validation", ["long-tailed", "balanced"])
@pytest.mark.parametrize("biased", [False, True], ids=["exact", "biased"])
def test_few_validation_images_a_class_help_a_biased_model_and_hardly_harm_an_exact_one(of_validation, biased):
    train, uniform = priors.prior(longtail.profile("exp", 500, 100, 100)), np.full(100, 0.01)
    centres = np.random.default_rng(1).normal(0, 0.8, (100, 16))

    def predictions(prior, size, seed):
        """By a model of Gaussian classes that is exact, or half over-confident and with a wrong bias for each class."""
        random = np.random.default_rng(seed)
        labels = random.choice(100, size, p=prior)
        points = centres[labels] + random.normal(0, 1, (size, 16))
        logits = points @ centres.T - 0.5 * (centres**2).sum(axis=1) + np.log(train)
        if biased:
            logits = 1.5 * (logits + np.random.default_rng(2).normal(0, 1, 100))
        return Predictions(logits, labels, logits_prior=train)

    test = predictions(uniform, 3000, 3)
    held = predictions(train if of_validation == "long-tailed" else uniform, 500, 4)
    options = evaluation.Options(samples=0, test_prior="uniform")
    alone = evaluation.evaluate(evaluation.ModelOutputs("m", test), options)
    found = evaluation.evaluate(evaluation.ModelOutputs("m", test, held), options)
    gain = found["corrected"]["accuracy"] - alone["corrected"]["accuracy"]
    # Without the pull an exact model loses 2 % or more. 1.3 % leaves room for 40 of 3,000 images.
    assert gain > (0.03 if biased else -0.013)
    assert not any("seem to differ" in warning for warning in found["warnings"])
    few = int((np.bincount(held.labels, minlength=100) < 10).sum())
    assert f"{few} of 100 classes have fewer than 10 validation images" in found["corrected_logits"]


@pytest.mark.slow
@pytest.mark.parametrize("of_validation", [TRAIN, UNIFORM], ids=["long-tailed", "balanced"])
@pytest.mark.parametrize("test_prior", ["uniform", "imbalance:0.02"])
def test_a_known_prior_is_corrected_for_from_calibrated_logits(of_validation, test_prior):
    # The model is over-confident: its logits are twice those of its true posterior.
    held, held_labels = drawn(of_validation, 1500, 90)
    prior = priors.test_prior(test_prior, TRAIN)
    logits, labels = drawn(prior, 4000, 91)
    counts = longtail.profile("exp", 1000, CLASSES, 50)
    given = evaluation.ModelOutputs(
        "m",
        Predictions(2 * logits, labels, counts, priors.prior(counts)),
        Predictions(2 * held, held_labels),
    )
    result = evaluation.evaluate(given, evaluation.Options(samples=0, test_prior=test_prior))
    bayes = metrics.accuracy(per_example.softmax(label_shift.shift_prior(logits, TRAIN, prior)), labels)
    over_confident = label_shift.shift_prior(2 * logits, TRAIN, prior)
    assert metrics.accuracy(per_example.softmax(over_confident), labels) < bayes - 0.04
    corrected = result["corrected"]
    assert abs(corrected["accuracy"] - bayes) < 0.012
    assert corrected["ece"] < 0.03
    assert corrected["logits"] == result["corrected_logits"]
    assert "calibrated on the 1500 validation images by a temperature, " in corrected["logits"]
    # Knowing the prior is worth at least as much as estimating it, but for chance: a percent is 40 images or fewer.
    for row in result["cut_tests"]:
        for estimated in ("EM", "BBSE"):
            known = row["variants"]["known prior"]
            assert known["accuracy"] > row["variants"][estimated]["accuracy"] - max(0.01, 2 / row["images"])
    # Without validation predictions there is no temperature: the model's own logits, and that is said.
    alone = evaluation.evaluate(given._replace(validation=None), evaluation.Options(samples=0, test_prior=test_prior))
    assert alone["corrected"]["accuracy"] == metrics.accuracy(per_example.softmax(over_confident), labels)
    assert "not calibrated" in alone["corrected"]["logits"]


@pytest.mark.slow
@pytest.mark.parametrize("imbalance", [50.0, 1.0, 0.1, 0.02])
def test_em_recovers_a_known_prior_within_its_interval(imbalance):
    prior = priors.test_prior(f"imbalance:{imbalance}", TRAIN)
    inside, errors = [], []
    for seed in range(6):
        logits, _ = drawn(prior, 1000, 100 + seed)
        found = label_shift.estimate_prior(logits, logits_prior=TRAIN, samples=60, seed=seed)
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
    probabilities = per_example.softmax(logits)
    prior, likelihoods = label_shift.em(probabilities, TRAIN, tolerance=1e-9)
    assert (np.diff(likelihoods) >= -1e-12).all()

    def likelihood(q):
        return np.log((probabilities * (q / TRAIN)).sum(axis=1)).mean()

    assert likelihoods[-1] == pytest.approx(likelihood(prior), abs=1e-9)
    # Concave: no step towards another prior rises.
    for other in [UNIFORM, TRAIN, *np.eye(CLASSES)]:
        assert likelihood(0.999 * prior + 0.001 * other) <= likelihoods[-1] + 1e-9


def test_em_of_samples_is_em_of_each_of_them():
    probabilities = per_example.softmax(drawn(UNIFORM, 200, 8)[0])
    weights = np.random.default_rng(0).multinomial(200, np.full(200, 1 / 200), size=3).T
    together, _ = label_shift.em(probabilities, TRAIN, weights=weights, tolerance=1e-9)
    for column, sample in zip(together.T, weights.T, strict=True):
        alone, _ = label_shift.em(np.repeat(probabilities, sample, axis=0), TRAIN, tolerance=1e-9)
        np.testing.assert_allclose(column, alone, atol=1e-5)  # each stops by its own last move


# Of 4,000 long-tailed validation and 3,000 uniform test images, by abstention 0.1.3.1 (BBSE with soft=True, EM to 1e-9)
# and quapy 0.2.3 (PACC's system by inversion, EMQ to 1e-10), which agree to the digits given.
OTHERS = {
    "bbse": [0.131041, 0.120789, 0.140523, 0.14518, 0.11854, 0.109631, 0.133306, 0.100991],
    "em": [0.11468, 0.124704, 0.145664, 0.132224, 0.123103, 0.115775, 0.135307, 0.108542],
}


def test_estimates_are_those_of_other_packages_where_there_is_data_enough():
    held, held_labels = drawn(TRAIN, 4000, 80)
    held, probabilities = per_example.softmax(held), per_example.softmax(drawn(UNIFORM, 3000, 81)[0])
    np.testing.assert_allclose(label_shift.em(probabilities, held.mean(axis=0))[0], OTHERS["em"], atol=2e-6)
    prior, errors = label_shift.bbse(probabilities, held, held_labels)
    # Only the pull to the validation images' shares differs: (error of a share / .375)**2 of the way.
    np.testing.assert_allclose(prior, OTHERS["bbse"], atol=2e-3)
    assert (np.abs(prior - UNIFORM) < 2.5 * errors).all()


def test_bbse_of_few_long_tailed_images_is_nearer_than_the_plain_solution():
    # L1 errors of 40 such cases: .34, and .43 of abstention's soft BBSE, .66 of its hard one (singular in 21).
    ours, plain, inside = [], [], []
    for seed in range(20):
        held, held_labels = drawn(TRAIN, 500, 100 + seed)
        held, probabilities = per_example.softmax(held), per_example.softmax(drawn(UNIFORM, 1000, 200 + seed)[0])
        prior, errors = label_shift.bbse(probabilities, held, held_labels)
        system = held.T @ np.eye(CLASSES)[held_labels] / len(held)
        shares = np.maximum(np.linalg.solve(system, probabilities.mean(axis=0)) * system.sum(axis=0), 0)
        ours.append(np.abs(prior - UNIFORM).sum())
        plain.append(np.abs(shares / shares.sum() - UNIFORM).sum())
        inside.append(np.abs(prior - UNIFORM) <= 1.96 * errors)
    assert np.mean(ours) < 0.9 * np.mean(plain)
    assert np.mean(inside) > 0.9  # 160 intervals, measured 94 %


def test_bbse_by_hand():
    # Certain predictions, all right: the shares are those that are predicted; no share is negative.
    eye = np.eye(2)
    prior, _ = label_shift.bbse(eye[np.arange(1000) % 5 // 4], eye[np.arange(1000) % 2], np.arange(1000) % 2)
    np.testing.assert_allclose(prior, [0.8, 0.2], atol=1e-4)
    # .8 and .3 for class 0 where it is the label and where it is not: a mean of .9 lies beyond all shares.
    rows = np.array([[0.8, 0.2], [0.3, 0.7]])
    prior, _ = label_shift.bbse(np.full((1000, 2), [0.9, 0.1]), rows[np.arange(1000) % 2], np.arange(1000) % 2)
    np.testing.assert_allclose(prior, [1, 0], atol=1e-5)
    # Predictions that say nothing leave the validation images' shares, and great doubt.
    prior, errors = label_shift.bbse(np.full((900, 3), 1 / 3), np.full((900, 3), 1 / 3), np.arange(900) % 10 // 4)
    np.testing.assert_allclose(prior, [0.4, 0.4, 0.2], atol=1e-3)
    assert (errors > 0.3).all()


@pytest.mark.parametrize("gap", [2.0, 0.5])
def test_em_finds_the_maximum_where_classes_are_alike(gap):
    from scipy.optimize import minimize

    centres = np.array([0, gap, 2 * gap, 6, 9, 12])
    random = np.random.default_rng(3)
    points = centres[random.choice(6, 2000, p=[0.3, 0.1, 0.2, 0.2, 0.1, 0.1])] + random.normal(0, 1, 2000)
    probabilities, source = per_example.softmax(-0.5 * (points[:, None] - centres) ** 2 - 1), np.full(6, 1 / 6)
    ratios = probabilities / source
    best = minimize(
        lambda q: -np.log(ratios @ q).mean(),
        source,
        jac=lambda q: -(ratios / (ratios @ q)[:, None]).mean(axis=0),
        bounds=[(0, 1)] * 6,
        constraints={"type": "eq", "fun": lambda q: q.sum() - 1, "jac": lambda q: np.ones(6)},
        options={"ftol": 1e-16, "maxiter": 1000},
    )
    # Plain steps that end at a move of 1e-4 miss shares by up to .02 here.
    np.testing.assert_allclose(label_shift.em(probabilities, source)[0], best.x, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", label_shift.METHODS)
def test_estimates_after_calibration_on_validation_images(method):
    prior = priors.test_prior("imbalance:0.05", TRAIN)
    bias = np.linspace(-0.5, 0.5, CLASSES)
    held, held_labels = drawn(UNIFORM, 4000, 9)
    logits, _ = drawn(prior, 3000, 10)
    # The model is over-confident and leans to some classes; nobody knows what prior its logits stand for.
    found = label_shift.estimate_prior(
        3 * (logits + bias), validation=(3 * (held + bias), held_labels), method=method, samples=20
    )
    # Measured .02 (EM) and .06 (BBSE, which looks at mean probabilities only).
    assert np.abs(found.prior - prior).sum() / 2 < 0.08
    assert found.warnings == ()
    wrong = label_shift.estimate_prior(3 * (logits + bias), logits_prior=TRAIN, samples=0)
    assert np.abs(wrong.prior - prior).sum() / 2 > 0.08  # uncalibrated, and said to be
    assert "not calibrated" in wrong.warnings[0]
    assert np.isnan(wrong.low).all()


@pytest.mark.slow
def test_what_should_not_be_trusted_is_said():
    held, held_labels = drawn(UNIFORM, 40, 11)
    few = label_shift.estimate_prior(drawn(UNIFORM, 30, 12)[0], validation=(held, held_labels), samples=30)
    assert any("fewer than 10 validation images" in w for w in few.warnings)
    assert any("shares are uncertain" in w for w in few.warnings)
    # Half of the images are of another kind: the model is less sure of them than of any class's images.
    held, held_labels = drawn(UNIFORM, 4000, 13)
    noise = np.random.default_rng(0).normal(0, 0.5, (500, 12)) + CENTRES.mean(axis=0)
    strange = noise @ CENTRES.T - 0.5 * (CENTRES**2).sum(axis=1) + np.log(TRAIN)
    mixed = np.concatenate([strange, drawn(TRAIN, 500, 14)[0]])
    found = label_shift.estimate_prior(mixed, validation=(held, held_labels), samples=0)
    assert any("images themselves seem to differ" in w for w in found.warnings)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("prior", [UNIFORM, TRAIN, TRAIN[::-1]], ids=["uniform", "train", "reversed"])
@pytest.mark.parametrize("of_validation", [UNIFORM, TRAIN], ids=["balanced", "long-tailed"])
def test_other_shares_alone_raise_no_alarm(of_validation, prior, seed):
    held, held_labels = drawn(of_validation, 800, 20 + seed)
    logits, _ = drawn(prior, 2000, 30 + seed)
    for method in label_shift.METHODS:
        found = label_shift.estimate_prior(2 * logits, validation=(2 * held, held_labels), method=method, samples=0)
        assert not any("seem to differ" in w for w in found.warnings)


@pytest.mark.parametrize("method", label_shift.METHODS)
def test_classes_that_cannot_be_told_apart_have_wide_intervals(method):
    prior = np.array([0.19, 0.01, 0.2, 0.2, 0.2, 0.2])
    centres = np.array([0, 0, 3, 6, 9, 12.0])  # the first two are twins

    def pairs(of, size, seed):
        random = np.random.default_rng(seed)
        labels = random.choice(6, size, p=of)
        points = centres[labels] + random.normal(0, 1, size)
        return -0.5 * (points[:, None] - centres) ** 2, labels

    held, logits = pairs(np.full(6, 1 / 6), 600, 0), pairs(prior, 1000, 1)[0]
    found = label_shift.estimate_prior(logits, validation=held, method=method, samples=40)
    assert ((found.low <= prior) & (prior <= found.high))[:2].all()
    assert found.high[0] - found.low[0] > 0.15
    assert found.high[3] - found.low[3] < 0.15  # of a class that is seen apart
    nothing = label_shift.estimate_prior(np.zeros((500, 6)), validation=(np.zeros((600, 6)), held[1]), method=method)
    assert ((nothing.low <= prior) & (prior <= nothing.high)).all()
    assert any("shares are uncertain" in w for w in nothing.warnings)


def test_intervals_hold_where_the_validation_images_are_few_and_long_tailed():
    inside = {method: [] for method in label_shift.METHODS}
    for seed in range(8):
        held, held_labels = drawn(TRAIN, 500, 40 + seed)
        logits, _ = drawn(UNIFORM, 1000, 60 + seed)
        for method, found in inside.items():
            estimate = label_shift.estimate_prior(logits, validation=(held, held_labels), method=method, samples=50)
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
        label_shift.estimate_prior(np.zeros((4, CLASSES)), **options)


@pytest.mark.parametrize("scale", [0.0, 1e90], ids=["a model that says nothing", "enormous logits"])
def test_extreme_logits_raise_no_false_alarm(scale, recwarn):
    held, held_labels = drawn(UNIFORM, 200, 70)
    estimate = label_shift.estimate_prior(
        scale * drawn(UNIFORM, 300, 71)[0], validation=(scale * held, held_labels), samples=20
    )
    assert not any("seem to differ" in warning for warning in estimate.warnings)
    assert not recwarn.list


def test_a_model_that_never_names_a_class_gets_an_estimate():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 60)
    logits = 1e6 * np.eye(4)[random.integers(0, 3, 60)]  # as of a network that is not trained: the fourth class is 0
    estimate = label_shift.estimate_prior(logits, validation=(logits, labels), method="em", samples=20)
    assert np.isfinite(estimate.prior).all()
    np.testing.assert_allclose(estimate.prior.sum(), 1)
