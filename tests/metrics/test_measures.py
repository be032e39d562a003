"""Every measure against its definition, by hand and by other code."""

import numpy as np
import pytest

from unimix_jax import metrics
from unimix_jax.metrics import per_example


def slow_ece(probabilities, labels, bins):
    """The definition, example by example."""
    gaps = []
    for b in range(bins):
        members = []
        for row, label in zip(probabilities, labels, strict=True):
            confidence = max(row)
            low, high = np.linspace(0, 1, bins + 1)[b : b + 2]
            if low < confidence <= high:
                members.append((confidence, np.argmax(row) == label))
        gaps.append(abs(sum(c for c, _ in members) - sum(h for _, h in members)) / len(labels))
    return sum(gaps)


@pytest.mark.parametrize("file", ["metrics_c10", "metrics_c100"])
@pytest.mark.parametrize("bins", [15, 10, 1])
def test_calibration_errors_are_the_authors(golden, file, bins):
    file = golden(file)
    probabilities, labels = file["probs"].astype(np.float64), file["labels"]
    expected = file[f"authors_bins{bins}_expected_calibration_error"]
    np.testing.assert_allclose(metrics.ece(probabilities, labels, bins), expected, rtol=1e-9)
    expected = file[f"authors_bins{bins}_max_calibration_error"]
    np.testing.assert_allclose(metrics.mce(probabilities, labels, bins), expected, rtol=1e-9)
    found = metrics.reliability(probabilities, labels, bins)
    np.testing.assert_array_equal(found.count, file[f"authors_bins{bins}_counts"])
    for name, values in (("accuracies", found.accuracy), ("confidences", found.confidence)):
        expected = file[f"authors_bins{bins}_{name}"]  # 0 in an empty bin, ours nan
        np.testing.assert_allclose(np.nan_to_num(values), expected, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["metrics_c10", "metrics_c100"])
@pytest.mark.parametrize(
    ("measure", "options", "array"),
    [
        ("accuracy", {}, "accuracy"),
        ("top_accuracy", {}, "top5"),
        ("nll", {}, "nll_direct"),
        ("brier", {}, "brier_direct"),
        ("ece", {}, "pearce_onehot_ece"),
        ("mce", {}, "pearce_onehot_mce"),
        ("sce", {}, "pearce_onehot_sce"),
        ("ace", {}, "text_ace_count_weighted"),
        ("ace", {"weighting": "range"}, "text_ace_unweighted"),
        ("tace", {}, "text_tace_count_weighted"),
        ("tace", {"weighting": "range"}, "text_tace_unweighted"),
    ],
)
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_measures_are_those_of_other_code(golden, file, measure, options, array, kind):
    file = golden(file)
    value = getattr(metrics, measure)(file["probs"].astype(kind), file["labels"], **options)
    # top5 is stored in float32.
    np.testing.assert_allclose(value, np.squeeze(file[array]), rtol=1e-7 if array == "top5" else 1e-9)


def two_classes(confidence, predicted, true):
    """Rows whose largest probability is `confidence`, on class 0, right where predicted == true.

    A confidence below 1/2 is no maximum of two, so the rest is spread over many classes.
    """
    classes = 40
    rows = np.repeat((1 - confidence)[:, None] / (classes - 1), classes, axis=1)
    rows[:, 0] = confidence
    return rows, np.where(predicted == true, 0, 1)


@pytest.mark.parametrize(("name", "bins"), [("edge", 15), ("edge", 10), ("sparse", 15)])
def test_confidences_on_the_edges_fall_where_the_authors_put_them(golden, name, bins):
    file = golden("metrics_edges")
    confidence = file[f"{name}_confidence"]
    kept = confidence > 0.03  # the authors drop exactly 0; below 1/40 it is not the largest of 40
    rows, labels = two_classes(confidence[kept], file[f"{name}_pred"][kept], file[f"{name}_true"][kept])
    edges = np.linspace(0, 1, bins + 1)
    place = np.digitize(confidence[kept], edges, right=True) - 1
    hits = labels == 0
    expected = sum(abs((hits[place == b] - confidence[kept][place == b]).sum()) for b in range(bins)) / kept.sum()
    np.testing.assert_allclose(metrics.ece(rows, labels, bins), expected, rtol=1e-9)
    prefix = f"edge_bins{bins}" if name == "edge" else "sparse"
    found = np.bincount(place, minlength=bins)
    np.testing.assert_array_equal(found[1:], file[f"{prefix}_counts"][1:])


@pytest.mark.parametrize(
    ("probabilities", "labels", "ece", "mce"),
    [
        pytest.param([[1, 0], [0, 1]], [0, 1], 0.0, 0.0, id="certain and right"),
        pytest.param([[1, 0], [0, 1]], [1, 0], 1.0, 1.0, id="certain and wrong"),
        pytest.param([[0.8, 0.2]] * 4, [0, 0, 0, 1], 0.05, 0.05, id="80 % sure, 75 % right"),
        pytest.param([[0.8, 0.2]] * 3 + [[1, 0]], [0, 0, 0, 1], 0.4, 1.0, id="(3 * .2 + 1 * 1) / 4"),
        pytest.param([[1 + 1e-7, 0]], [0], 1e-7, 1e-7, id="above 1 by rounding counts in the last bin"),
    ],
)
def test_calibration_by_hand(probabilities, labels, ece, mce):
    np.testing.assert_allclose(metrics.ece(np.array(probabilities), np.array(labels)), ece, atol=1e-12)
    np.testing.assert_allclose(metrics.mce(np.array(probabilities), np.array(labels)), mce, atol=1e-12)


def test_ece_is_its_definition():
    random = np.random.default_rng(0)
    probabilities, labels = per_example.softmax(random.normal(0, 2, (300, 4))), random.integers(0, 4, 300)
    for bins in (1, 7, 15):
        np.testing.assert_allclose(metrics.ece(probabilities, labels, bins), slow_ece(probabilities, labels, bins))


def test_softmax_of_large_logits():
    np.testing.assert_allclose(per_example.softmax(np.array([[1e4, 1e4, -1e4]])), [[0.5, 0.5, 0]])
    np.testing.assert_allclose(per_example.normalised(np.array([[0, -1e4]])), [[0, -1e4]])


def test_accuracies_by_class_and_group():
    probabilities = np.eye(4)[[0, 0, 1, 2]]
    labels = np.array([0, 1, 1, 2])
    np.testing.assert_array_equal(metrics.class_accuracy(probabilities, labels), [1, 0.5, 1, np.nan])
    assert metrics.group_accuracy(probabilities, labels, np.array([1, 1, 0, 0], bool)) == 0.75
    assert metrics.group_accuracy(probabilities, labels, np.array([0, 0, 1, 1], bool)) == 1
    assert np.isnan(metrics.group_accuracy(probabilities, labels, np.array([0, 0, 0, 1], bool)))


def test_a_probability_of_zero_costs_a_finite_amount():
    assert metrics.nll(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(708.4, abs=0.1)


THREE = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
THREE_LABELS = np.array([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("measure", "options", "expected"),
    [
        pytest.param("accuracy", {}, 2 / 4, id="examples 0 and 2 are right"),
        pytest.param("top_accuracy", {"k": 2}, 1.0, id="example 3's label is the first of two tied ones"),
        pytest.param("top_accuracy", {"k": 1}, 2 / 4, id="accuracy"),
        pytest.param("top_accuracy", {"k": 5}, 1.0, id="more than there are classes"),
        pytest.param("balanced_accuracy", {}, 1 / 2, id="half of class 0, half of class 1, class 2 absent"),
        pytest.param("geometric_mean", {}, 1 / 2, id="sqrt(1/2 * 1/2)"),
        pytest.param("brier", {}, (0.14 + 0.86 + 0.38 + 1.46) / 4, id="squared distances"),
        pytest.param("brier", {"normalize": True}, 2.84 / 12, id="and over the classes"),
        pytest.param("nll", {}, -np.log(0.7 * 0.3 * 0.5 * 0.1) / 4, id="product of the labels' probabilities"),
        # Bins of one half. Class 0: values .2 .1 with labels 0 1, and .7 .6 with 1 0: |1 - .3| + |1 - 1.3|.
        # Class 1: .2 .3 .5 .1 with 0 1 1 0: |2 - 1.1|. Class 2: .1 .1 .3 and .8, never its label: .5 + .8.
        pytest.param("sce", {"bins": 2}, (1.0 + 0.9 + 1.3) / 4 / 3, id="two bins a class"),
        # Ranges of two. Class 0: (.1 .2) one label, (.6 .7) one; class 1: (.1 .2) none, (.3 .5) two; class 2: none.
        pytest.param("ace", {"ranges": 2}, (0.7 + 0.3 + 0.3 + 1.2 + 0.2 + 1.1) / 4 / 3, id="two ranges a class"),
        # From .3 on. Class 0: .6 | .7; class 1: .3 | .5; class 2: .3 | .8.
        pytest.param(
            "tace",
            {"ranges": 2, "threshold": 0.3},
            (0.6 + 0.3 + 0.7 + 0.5 + 0.3 + 0.8) / 4 / 3,
            id="values from .3 on, by count",
        ),
        pytest.param(
            "tace",
            {"ranges": 2, "threshold": 0.3, "weighting": "range"},
            (0.6 + 0.3 + 0.7 + 0.5 + 0.3 + 0.8) / 2 / 3,
            id="values from .3 on, by range",
        ),
        pytest.param("tace", {"ranges": 2, "threshold": 0.9}, 0.0, id="none passes"),
        pytest.param("ace", {"ranges": 4}, (0.9 + 0.2 + 0.6 + 0.3 + 0.1 + 0.2 + 0.7 + 0.5 + 1.3) / 12, id="one each"),
        # 5 ranges of 4 values: the last is empty.
        pytest.param("ace", {"ranges": 5}, (0.9 + 0.2 + 0.6 + 0.3 + 0.1 + 0.2 + 0.7 + 0.5 + 1.3) / 12, id="one empty"),
    ],
)
def test_measures_by_hand(measure, options, expected):
    np.testing.assert_allclose(getattr(metrics, measure)(THREE, THREE_LABELS, **options), expected, rtol=1e-12)


def test_a_probability_on_an_edge_is_in_the_bin_below():
    # Class 0: .5 with its label is in (0, .5], .6 without it above; the same of class 1, whose .4 lies below.
    probabilities, labels = np.array([[0.5, 0.5], [0.6, 0.4]]), np.array([0, 1])
    np.testing.assert_allclose(metrics.class_ece(probabilities, labels, 2), [(0.5 + 0.6) / 2, (1 - 0.9) / 2])


def test_of_tied_classes_the_first_ones_are_on_top():
    rows = np.array([[0.1, 0.1, 0.8]] * 2)
    np.testing.assert_array_equal(per_example.top_hits(rows, np.array([0, 1]), 2), [True, False])


def test_labels_of_tied_probabilities_are_shared_out_to_their_ranges():
    # Class 0's values are all .5, and 3 of 4 are its label: 1.5 in each range of two, where 1 is expected.
    probabilities, labels = np.full((4, 2), 0.5), np.array([1, 0, 0, 0])
    np.testing.assert_allclose(metrics.ace(probabilities, labels, ranges=2), 2 * (0.5 + 0.5) / 4 / 2)
    # A constant of 1/4 is calibrated, however the rows are sorted.
    np.testing.assert_allclose(metrics.ace(np.full((200, 4), 0.25), np.repeat(np.arange(4), 50)), 0, atol=1e-12)


@pytest.mark.parametrize("name", ["ace", "tace", "sce", "ece", "mce", "smooth_ece"])
def test_no_calibration_error_of_tied_probabilities_depends_on_the_order_of_the_examples(name):
    probabilities = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2]])[np.arange(100) % 3]
    labels = np.sort(np.arange(100) % 7 % 3)
    order = np.random.default_rng(0).permutation(100)
    found = [metrics.MEASURES[name](probabilities[i], labels[i]) for i in (np.arange(100), order, order[::-1])]
    np.testing.assert_allclose(found, found[0], rtol=1e-12)
    assert metrics.measured((name,), probabilities[order], labels[order])[name] == pytest.approx(found[0], rel=1e-12)


def sorted_ranges(probabilities, labels, ranges, threshold, weighting):
    """The definition of ACE and TACE, class by class; each example has the mean label of those tied with it."""
    total = 0.0
    for c, column in enumerate(probabilities.T):
        kept = np.flatnonzero(column >= threshold)
        own = np.array([(labels[column == value] == c).mean() for value in column])
        for part in np.array_split(kept[np.argsort(column[kept], kind="stable")], ranges):
            if len(part):
                weight = len(part) / len(labels) if weighting == "count" else 1 / ranges
                total += weight * abs(own[part].mean() - column[part].mean())
    return total / probabilities.shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("weighting", metrics.WEIGHTINGS)
@pytest.mark.parametrize("threshold", [0.0, 1e-3, 0.2])
@pytest.mark.parametrize("decimals", [16, 2])
def test_adaptive_errors_are_their_definition(weighting, threshold, decimals):
    random = np.random.default_rng(1)
    # 40 classes: more than one block of them; two decimals: nearly all values are tied, many are 0.
    probabilities = np.round(per_example.softmax(random.normal(0, 2, (230, 40))), decimals)
    probabilities[:, -1] += 1 - probabilities.sum(axis=1)
    probabilities = np.abs(probabilities) / np.abs(probabilities).sum(axis=1, keepdims=True)
    labels = random.integers(0, 40, 230)
    expected = sorted_ranges(probabilities, labels, 7, threshold, weighting)
    np.testing.assert_allclose(metrics.tace(probabilities, labels, 7, threshold, weighting), expected, rtol=1e-9)


def test_class_errors_are_the_ece_of_a_class_against_the_rest():
    random = np.random.default_rng(2)
    probabilities, labels = per_example.softmax(random.normal(0, 2, (300, 4))), random.integers(0, 3, 300)
    for c, value in enumerate(metrics.class_ece(probabilities, labels, 7)):
        np.testing.assert_allclose(value, per_example.ece_of(probabilities[:, c], labels == c, 7), rtol=1e-12)
    assert metrics.sce(probabilities, labels, 7) == metrics.class_ece(probabilities, labels, 7).mean()


def test_smooth_ece_of_one_confidence_is_its_gap():
    # All mass of the kernel has one sign, so the integral is |.75 - .8| at any width, and the width that equals it too.
    probabilities, labels = np.array([[0.8, 0.2]] * 4), np.array([0, 0, 0, 1])
    np.testing.assert_allclose(metrics.smooth_ece(probabilities, labels), 0.05, atol=1e-6)
    np.testing.assert_allclose(metrics.smooth_ece(probabilities, 1 - labels), 0.8 - 0.25, atol=1e-6)


def reflected_kernel_error(confidence, hits, width):
    """The integral of smooth ECE's definition, by a sum over 2,000 points and the reflections of each kernel."""
    points = (np.arange(2000) + 0.5) / 2000
    centres = np.concatenate([2 * j + sign * confidence for j in range(-6, 7) for sign in (1, -1)])
    kernel = np.exp(-0.5 * ((points - centres[:, None]) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    return np.abs(np.tile(hits - confidence, 26) @ kernel / len(hits)).mean()


@pytest.mark.parametrize(
    ("power", "truth", "relplot"),
    [
        pytest.param(1.0, lambda f: f, 0.10000036317810566, id="calibrated"),
        pytest.param(0.3, lambda f: f**2, 0.10815721098366761, id="over-confident"),
        pytest.param(0.05, lambda f: 0 * f + 0.9, 0.07093718146355185, id="all in one corner"),
    ],
)
def test_smooth_ece_is_the_width_that_equals_its_error(power, truth, relplot):
    random = np.random.default_rng(0)
    cases = {}
    for p, t in ((1.0, lambda f: f), (0.3, lambda f: f**2), (0.05, lambda f: 0 * f + 0.9)):
        f = random.random(40) ** p
        cases[p] = f, random.random(40) < t(f)
    confidence, hits = cases[power]
    value = per_example.smooth_ece_of(confidence, hits)
    # Two grids: 1,024 cells here, 2,000 points there.
    assert reflected_kernel_error(confidence, hits, value) == pytest.approx(value, abs=2e-6)
    # relplot 1.0.3 on the same numbers; it searches the width on a grid of its own.
    assert value == pytest.approx(relplot, abs=1e-3)


def test_labels_drawn_from_the_probabilities_leave_no_calibration_error():
    random = np.random.default_rng(3)
    errors = []
    for size in (1_000, 100_000):
        probabilities = per_example.softmax(random.normal(0, 1.5, (size, 4)))
        labels = (random.random((size, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
        errors.append([metrics.MEASURES[name](probabilities, labels) for name in ("ece", "smooth_ece", "sce", "ace")])
    few, many = np.array(errors)
    assert (many < 0.006).all()  # noise of 15 bins falls with sqrt(size), smooth ECE with its cube root
    assert (many < 0.4 * few).all()


@pytest.mark.parametrize("name", metrics.MEASURES)
def test_no_measure_depends_on_the_order_or_the_number_of_copies_of_the_examples(name, predicted):
    probabilities, labels = predicted
    measure, value = metrics.MEASURES[name], metrics.MEASURES[name](probabilities, labels)
    order = np.random.default_rng(5).permutation(len(labels))
    assert measure(probabilities[order], labels[order]) == pytest.approx(value, rel=1e-9)
    # All 240 values of a class are TACE's too, and 15 ranges of them come out even, with copies as without.
    assert (probabilities >= 1e-3).all()
    copies = np.repeat(probabilities, 2, axis=0), np.repeat(labels, 2)
    assert measure(*copies) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("bins", [1, 3, 15, 40])
def test_splitting_every_bin_in_two_never_lowers_ece(bins, predicted):
    assert metrics.ece(*predicted, 2 * bins) >= metrics.ece(*predicted, bins) - 1e-12
    assert metrics.sce(*predicted, 2 * bins) >= metrics.sce(*predicted, bins) - 1e-12


def test_agreement_with_scikit_learn(predicted):
    sk = pytest.importorskip("sklearn.metrics")
    probabilities, labels = predicted
    chosen, classes = probabilities.argmax(axis=1), np.arange(6)
    expected = {
        "accuracy": sk.accuracy_score(labels, chosen),
        "top5": sk.top_k_accuracy_score(labels, probabilities, k=5),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, chosen),
        "nll": sk.log_loss(labels, probabilities, labels=classes),
        "geometric_mean": np.prod(sk.recall_score(labels, chosen, average=None)) ** (1 / 6),
        "brier": 6 * np.mean([sk.brier_score_loss(labels == c, probabilities[:, c]) for c in classes]),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics.MEASURES[name](probabilities, labels), value, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", metrics.MEASURES)
@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([[1, 0], [0, 1], [1, 0]], id="exactly 0 and 1"),
        pytest.param([[1 + 1e-7, 0], [0, 1], [1, 0]], id="above 1 by rounding"),
        pytest.param([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]], id="ties"),
    ],
)
def test_extreme_confidences_are_counted(name, rows):
    value = metrics.MEASURES[name](np.array(rows), np.array([0, 1, 1]))
    assert np.isfinite(value)
    if name in ("ece", "mce", "sce") and rows[0][0] >= 1:
        by_hand = {"ece": 1 / 3, "mce": 1 / 3, "sce": 1 / 3}[name]  # 3 certain answers, one of them wrong
        assert value == pytest.approx(by_hand, abs=1e-6)
