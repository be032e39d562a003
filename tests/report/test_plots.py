"""Each picture is drawn, and shows the numbers that it was given."""

import numpy as np
import pytest

from unimix_jax import metrics
from unimix_jax.errors import UserError
from unimix_jax.metrics import per_example
from unimix_jax.report import plots


@pytest.fixture(scope="module")
def predicted():
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 300)
    logits = random.normal(0, 1, (300, 5))
    logits[np.arange(300), labels] += 1.5
    return per_example.softmax(logits), labels


def heights(axis):
    return [patch.get_height() for patch in axis.patches]


def test_a_reliability_diagram_shows_accuracy_gap_and_images(predicted):
    bins = metrics.reliability(*predicted)
    figure = plots.reliability({"test": bins})
    upper, lower = figure.axes
    held = bins.count > 0
    accuracy, over, under = upper.containers
    np.testing.assert_allclose([bar.get_height() for bar in accuracy], bins.accuracy[held])
    confidence, mean = bins.confidence, bins.accuracy
    assert len(over) == (confidence > mean).sum() > 0
    assert len(under) == (confidence < mean).sum() > 0
    np.testing.assert_allclose([bar.get_y() for bar in over], mean[confidence > mean])
    np.testing.assert_allclose([bar.get_y() + bar.get_height() for bar in over], confidence[confidence > mean])
    np.testing.assert_allclose([bar.get_y() for bar in under], mean[confidence < mean])
    np.testing.assert_allclose([bar.get_y() + bar.get_height() for bar in under], confidence[confidence < mean])
    np.testing.assert_allclose(heights(lower), bins.count)
    assert upper.get_title(loc="left") == f"test\nECE {100 * metrics.ece(*predicted):.1f} %"


def drawn(figure):
    """Return the pixels of a figure in the pictures' style, float[H, W, 3], and its renderer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255, canvas.get_renderer()


def test_the_solid_bar_of_an_under_confident_bin_ends_at_the_accuracy():
    probabilities = np.tile([0.55, 0.45], (10, 1))
    figure = plots.reliability({"test": metrics.reliability(probabilities, np.zeros(10, int), 10)})  # accuracy 1
    pixels, _ = drawn(figure)
    blue, pale = np.array([0, 0x72, 0xB2]) / 255, np.array([0xD6, 0xE9, 0xF8]) / 255

    def inside(left, right, low, high):
        """Shares of the pixels of a part of the axes that are blue and that are pale."""
        (x, y), (x_end, y_end) = figure.axes[0].transData.transform([(left, low), (right, high)])
        part = pixels[len(pixels) - round(y_end) : len(pixels) - round(y), round(x) : round(x_end)]
        return [(np.abs(part - colour).max(axis=-1) < 0.02).mean() for colour in (blue, pale)]

    # The bin reaches from 0.5 to 0.6, the gap from 0.55 to 1: hatched in its whole width, and blue all the way up.
    assert inside(0.51, 0.59, 0.05, 0.48) == [1, 0]
    for left, right in ((0.505, 0.53), (0.53, 0.57), (0.57, 0.595)):
        for low, high in ((0.57, 0.75), (0.75, 0.98)):
            of_blue, of_pale = inside(left, right, low, high)
            assert of_blue > 0.3
            assert of_pale > 0.02


LONG = ("W" * 60, "a rather long name, in words, of a run that says all of what was done in it")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test", *LONG])
@pytest.mark.parametrize(
    "draw",
    [
        lambda bins, name: plots.reliability({name: bins}),
        lambda bins, name: plots.reliability({name: bins, f"2{name}": bins}),
        lambda bins, name: plots.error_bars({name: (0.5, (0.4, 0.6)), f"2{name}": (0.4, None)}),
        lambda bins, name: plots.training_curves(
            {
                f"{i}{name}": [{"epoch": 1.0, "loss": 1.0, "accuracy": 0.5}, {"epoch": 2.0, "loss": 0.5}]
                for i in range(4)
            }
        ),
        lambda bins, name: plots.accuracy_by_count(
            {f"{i}{name}": (np.array([30, 3]), np.array([0.9, 0.5])) for i in range(2)}
        ),
    ],
    ids=["one diagram", "two diagrams", "errors", "curves", "accuracy by count"],
)
def test_names_and_legends_of_any_length_lie_in_the_picture(predicted, draw, name, recwarn):
    from matplotlib.legend import Legend

    figure = draw(metrics.reliability(*predicted), name)
    _, renderer = drawn(figure)
    legends = figure.findobj(Legend)
    texts = [axis._left_title for axis in figure.axes] + [t for a in figure.axes for t in a.get_yticklabels()]
    shown = [each for each in texts if "…" in each.get_text() or "test" in each.get_text()] + legends
    assert shown
    for each in shown:
        box = each.get_window_extent(renderer)
        assert figure.bbox.x0 - 1 <= box.x0 < box.x1 <= figure.bbox.x1 + 1, each
        assert figure.bbox.y0 - 1 <= box.y0 < box.y1 <= figure.bbox.y1 + 1, each
    if len(figure.axes) == 3:  # the legend of the curves lies beside no axis
        assert legends[0].get_window_extent(renderer).y0 > max(axis.get_window_extent().y1 for axis in figure.axes)
    assert not recwarn.list


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 4, 5])
def test_diagrams_side_by_side(predicted, number):
    bins = metrics.reliability(*predicted)
    figure = plots.reliability({f"run {i}": bins if i else bins._replace(count=bins.count * 2) for i in range(number)})
    assert sum(axis.get_visible() for axis in figure.axes) == 2 * number
    assert len({axis.get_ylim() for axis in figure.axes if axis.get_visible()}) == 2  # of accuracies, of images


@pytest.mark.slow
def test_the_density_of_mini_batches_lies_around_the_means(predicted):
    confidence, hits = per_example.top_label(*predicted)
    axis = plots.density(confidence, hits, batch=50).axes[0]
    mark = axis.lines[-1]
    assert axis.get_xlabel() == "mean confidence of 50 images"
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (confidence.mean(), hits.mean())
    assert axis.get_xlim()[0] < confidence.mean() < axis.get_xlim()[1]
    plots.density(np.ones(3), np.ones(3, bool), batch=50)  # fewer images than a batch, all certain and right


@pytest.mark.slow
def test_densities_side_by_side_have_the_same_axes_and_lie_around_their_means(predicted):
    random = np.random.default_rng(1)
    sure = random.uniform(0.8, 1, 900), random.random(900) < 0.3
    panels = {"a": per_example.top_label(*predicted), "sure": sure, "b": per_example.top_label(*predicted)}
    figure = plots.densities(panels, batch=400, draws=300)
    axes, bar = figure.axes[:3], figure.axes[3:]
    assert [axis.get_title(loc="left") for axis in axes] == list(panels)
    assert len(bar) == 1
    limits = {(*axis.get_xlim(), *axis.get_ylim()) for axis in axes}
    assert len(limits) == 1
    assert figure.get_supxlabel() == "mean confidence of 300 images"  # the fewest images
    for axis, (confidence, hits) in zip(axes, panels.values(), strict=True):
        (mark,) = axis.lines[1].get_xydata()
        assert mark.tolist() == [confidence.mean(), hits.mean()]
        corners = np.vstack([path.vertices for path in axis.collections[0].get_paths() if len(path.vertices)])
        # Means of 300 images of 900: most within some standard errors of the mean of all.
        spread = np.sqrt([confidence.var() / 300, hits.var() / 300])
        assert (abs(corners.mean(axis=0) - mark) < 3 * spread + 0.01).all()
        assert (abs(corners - mark) < 4 * spread + 0.01).all()


@pytest.mark.parametrize("log", [False, True])
def test_a_confusion_matrix_is_sorted_by_training_images_and_its_columns_sum_to_one(predicted, log):
    probabilities, labels = predicted
    guesses = probabilities.argmax(axis=1)
    matrix = per_example.confusion_matrix(labels, guesses, 5)
    order = [3, 0, 4, 1, 2]
    axis = plots.confusion(matrix, np.array([40, 20, 10, 50, 30]), list("abcde"), log=log).axes[0]
    shown = axis.images[0].get_array()
    shares = 10**shown if log else shown
    for column, label in enumerate(order):
        of_label = guesses[labels == label]
        expected = [np.mean(of_label == guess) for guess in order]  # none is 0 here
        np.testing.assert_allclose(shares[:, column], expected)
    np.testing.assert_allclose(shares.sum(axis=0), 1)
    for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [text.get_text() for text in ticks] == list("daebc")
    assert axis.get_xlabel() == "true class, most training images first"
    assert axis.get_ylabel() == "predicted class"
    assert axis.get_ylim() == (5.5, 0.5)  # the first class at the top


@pytest.mark.parametrize("number", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_confusion_matrices_side_by_side_have_one_colour_bar(number):
    random = np.random.default_rng(0)
    counts = np.array([9, 5, 7])
    matrices = [random.integers(1, 50, (3, 3)) for _ in range(number)]
    figure = plots.confusions({f"run {i}": (m, counts, ["x", "y", "z"]) for i, m in enumerate(matrices)}, log=True)
    *axes, bar = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in axes] == [f"run {i}" for i in range(number)]
    assert len({axis.images[0].get_clim() for axis in axes}) == 1
    assert bar.get_ylabel() == "share of the column"
    for axis, matrix in zip(axes, matrices, strict=True):
        shares = (matrix / matrix.sum(axis=1, keepdims=True))[[0, 2, 1]][:, [0, 2, 1]]
        np.testing.assert_allclose(10 ** axis.images[0].get_array().T, shares)
    rows = sorted({round(axis.get_position().y0, 2) for axis in axes})
    assert len(rows) == (1 if number == 3 else 2)
    named = [any(text.get_text() and text.get_visible() for text in axis.get_yticklabels()) for axis in axes]
    assert sum(named) == len(rows)  # once a row


def test_confusion_matrices_of_other_classes_have_their_own_names():
    figure = plots.confusions({"a": (np.eye(2), None, ["u", "v"]), "b": (np.eye(3), np.array([1, 2, 3]), list("xyz"))})
    names = [[text.get_text() for text in axis.get_yticklabels()] for axis in figure.axes[:2]]
    assert names == [["u", "v"], ["z", "y", "x"]]
    assert all(text.get_visible() for axis in figure.axes[:2] for text in axis.get_yticklabels())


def test_a_confusion_matrix_of_many_classes_is_drawn_in_blocks():
    matrix = np.eye(1000, dtype=int) * 7
    axis = plots.confusion(matrix, None, [str(c) for c in range(1000)]).axes[0]
    shown = axis.images[0].get_array()
    assert shown.shape == (300, 300)
    np.testing.assert_allclose(shown, np.eye(300))
    assert axis.get_xlim() == (-0.5, 999.5)  # ticks are classes, not blocks


def test_long_names_of_panels_take_two_lines_and_stay_apart():
    names = [f"unimix_bayias_{i}, ensemble of 2 seeds" for i in (10, 50)]
    figure = plots.confusions({name: (np.eye(2), None, ["u", "v"]) for name in (*names, "short", "W" * 60)})
    titles = [axis.get_title(loc="left") for axis in figure.axes[:4]]
    assert titles[:3] == [*(name.replace(", ", ",\n") for name in names), "short"]
    assert "\n" not in titles[3]
    assert "…" in titles[3]


@pytest.mark.parametrize("draw", [plots.confusions, plots.densities])
def test_no_panel_is_refused(draw):
    with pytest.raises(UserError, match="panels must hold one at least"):
        draw({})


def test_accuracy_against_training_images_leaves_out_absent_classes():
    accuracy = np.array([0.9, np.nan, 0.5])
    axis = plots.accuracy_by_count({"run": (np.array([100, 10, 1]), accuracy)}, ["a", "b", "$x_1$"]).axes[0]
    np.testing.assert_allclose(axis.lines[1].get_ydata(), [50, 90])
    assert [text.get_text() for text in axis.texts] == [r"\$x_1\$", "a"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "counts",
    [[7, 7, 7], [100, 100, 100], [5, 0, 0], [0, 0, 0]],
    ids=["equal", "equal, many", "classes without images", "no images"],
)
def test_accuracy_against_training_images_at_its_edges(counts, recwarn):
    axis = plots.accuracy_by_count({"_run": (np.array(counts), np.array([0.9, 0.7, 0.5]))}, ["a", "b", "c"]).axes[0]
    assert len(axis.lines[0].get_xdata()) == len(axis.texts) == np.count_nonzero(counts)
    assert axis.get_legend_handles_labels()[1] == [" _run"]
    assert axis.get_xscale() == "linear"  # there are no orders of magnitude
    drawn(axis.figure)
    assert not recwarn.list


def test_training_curves_show_the_lines_of_a_run():
    lines = [
        {"step": 1, "epoch": 1.0, "loss": 2.0, "accuracy": 0.1},
        {"step": 1, "epoch": 1.0, "split": "test", "accuracy": 0.2, "ece": 0.3},
        {"step": 2, "epoch": 2.0, "loss": None, "accuracy": 0.4},
        {"step": 2, "epoch": 2.0, "split": "test", "accuracy": 0.5, "ece": 0.1},
    ]
    loss, accuracy, error = plots.training_curves({"": lines}).axes
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [2.0])
    np.testing.assert_allclose(accuracy.lines[1].get_ydata(), [20, 50])
    np.testing.assert_allclose(error.lines[0].get_ydata(), [30, 10])


def test_test_errors_have_their_intervals():
    axis = plots.error_bars({"a": (0.9, (0.8, 0.95)), "b": (0.5, None)}).axes[0]
    np.testing.assert_allclose([patch.get_width() for patch in axis.patches], [10, 50])
    np.testing.assert_allclose(axis.lines[0].get_xdata(), [5, 20])


def test_errors_by_imbalance_have_means_deviations_and_the_best_and_worst_marked():
    errors = {
        "erm": {100: [0.30, 0.34], 10: [0.2]},
        "mixup": {10: [0.25], 100: [0.28]},
        "_a$b": {10: [0.1, 0.12, 0.14]},
    }
    figure = plots.errors_by_imbalance(errors, "Digits")
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["10", "100"]
    shown = [container for container in axis.containers if container.lines]
    expected = [(20, 0), (25, 0), (12, 2), (32, 2 * 2**0.5), (28, 0)]  # by imbalance, then by method
    for container, (mean, deviation) in zip(shown, expected, strict=True):
        point, _, bars = container.lines
        assert float(point.get_ydata()[0]) == pytest.approx(mean)
        ends = [end for bar in bars for path in bar.get_paths() for end in path.vertices[:, 1]]
        assert ends == pytest.approx([mean - deviation, mean + deviation] if deviation else [])
    colours = [container.lines[0].get_color() for container in shown]
    assert colours[0] == colours[3] != colours[1] == colours[4]
    rings = [float(line.get_ydata()[0]) for line in axis.lines if line.get_fillstyle() == "none"]
    np.testing.assert_allclose(rings, [12, 25, 28, 32])
    assert [text.get_text() for text in axis.texts] == ["best\n12.0", "worst\n25.0", "best\n28.0", "worst\n32.0"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["erm", "mixup", " _a\\$b"]


@pytest.mark.slow
def test_the_words_on_the_best_and_the_worst_lie_in_the_axes():
    random = np.random.default_rng(0)
    panels = {
        name: {f"method {m}": {i: random.uniform(0.1, 0.9, 3) for i in (10, 50, 100, 200)} for m in range(9)}
        for name in ("one", "two")
    }
    figure = plots.errors_side_by_side(panels)
    _, renderer = drawn(figure)
    for axis in figure.axes:
        box = axis.get_window_extent(renderer)
        words = [text.get_window_extent(renderer) for text in axis.texts]
        assert len(words) == 8
        assert all(box.y0 <= word.y0 < word.y1 <= box.y1 for word in words)
        assert all(figure.bbox.x0 <= word.x0 < word.x1 <= figure.bbox.x1 for word in words)


def test_one_method_is_neither_best_nor_worst():
    axis = plots.errors_by_imbalance({"erm": {10: [0.1], 100: [0.2]}}).axes[0]
    assert not axis.texts


@pytest.mark.parametrize(("errors", "said"), [({}, "none"), ({"a": {10: [28.0]}}, "28"), ({"a": {10: []}}, "none")])
def test_errors_that_are_no_shares_are_refused(errors, said):
    with pytest.raises(UserError, match=f"an error is {said}.*; panels must hold errors in 0..1"):
        plots.errors_by_imbalance(errors)


def test_class_distributions_show_closed_exact_and_drawn():
    panel = {"title": "t", "closed": ("closed", np.arange(3), np.ones(3) / 3), "exact": [0.5, 0.3, 0.2]}
    panels = [panel | {"drawn": [0.4, 0.4, 0.2]}] * 4
    axes = plots.class_distributions(panels).axes
    axis = axes[0]
    assert len({round(a.get_position().y0, 2) for a in axes}) == 2  # four make two rows
    np.testing.assert_allclose(heights(axis), [0.5, 0.3, 0.2])
    np.testing.assert_allclose(axis.lines[1].get_ydata(), [0.4, 0.4, 0.2])


@pytest.mark.slow
def test_files_are_whole_the_same_each_time_and_the_users_settings_stay(predicted):
    import matplotlib

    bins = metrics.reliability(*predicted)
    with matplotlib.rc_context({"font.size": 31.0, "figure.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        first, again = (plots.image(plots.reliability({"test": bins}), kind) for kind in ("png", "png"))
        document = plots.image(plots.reliability({"test": bins}), "pdf")
        assert dict(matplotlib.rcParams) == before
    assert first == again == plots.image(plots.reliability({"test": bins}), "png")
    assert first.startswith(b"\x89PNG")
    assert document.startswith(b"%PDF")


@pytest.mark.parametrize(
    "panels", [{}, None, "bins", {"model": 3}, metrics.reliability(np.full((2, 2), 0.5), np.array([0, 1]))]
)
def test_panels_that_are_none_are_refused(panels):
    with pytest.raises(UserError, match="they must be a dict with the title and the bins of each panel"):
        plots.reliability(panels)
