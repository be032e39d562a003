import numpy as np
import pytest

from unimix_jax import priors
from unimix_jax.config import parse
from unimix_jax.data import longtail
from unimix_jax.report import class_distributions, files, plots
from unimix_jax.theory import closed_forms
from unimix_jax.training import manifest


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [True, False])
def test_what_is_drawn_is_what_theory_says(wrap):
    counts = np.array([3, 90, 20, 0, 8])  # in any order, one class without images
    for panel in class_distributions.panels(counts, alpha=0.7, class_exponent=-0.5, wrap=wrap):
        assert len(panel["exact"]) == 4
        assert panel["exact"].sum() == pytest.approx(1)
        # 100,000 pairs: four standard errors of a share of one half.
        np.testing.assert_allclose(panel["drawn"], panel["exact"], atol=4 * np.sqrt(0.25 / 100_000))
        _, y, values = panel["closed"]
        assert (y[0], y[-1]) == (1, 4)
        assert (values >= 0).all()


def test_a_trillion_images_are_drawn():
    unimix = class_distributions.panels(np.array([10**12, 10]))[-1]
    np.testing.assert_allclose(unimix["drawn"], unimix["exact"], atol=4 * np.sqrt(0.25 / 100_000))


@pytest.mark.parametrize(("classes", "imbalance"), [(10, 100), (100, 200)], ids=["panel b", "panel f"])
def test_the_panels_of_the_paper(classes, imbalance):
    panels = class_distributions.panels(closed_forms.exponential_profile(classes, imbalance))
    training, mixup, factor, unimix = panels
    assert [panel["title"] for panel in panels] == [
        "Training images",
        "mixup",
        "UniMix's factor, natural partners",
        "UniMix",
    ]
    prior = imbalance ** (-np.arange(classes) / (classes - 1))
    prior /= prior.sum()
    for panel in (training, mixup):
        np.testing.assert_allclose(panel["exact"], prior, rtol=1e-12)  # rounding
        np.testing.assert_allclose(np.interp(np.arange(1, classes + 1), *panel["closed"][1:]), prior, rtol=2e-3)
    if classes == 10:
        np.testing.assert_allclose(factor["exact"][:4], [0.331, 0.245, 0.165, 0.106], atol=6e-4)  # three digits
        cut = priors.prior(longtail.profile("exp", 5000, 10, 100))
        np.testing.assert_allclose(mixup["exact"], cut, atol=1e-4)  # whole images, cut down
    assert (np.diff(factor["exact"]) < 0).all()  # the factor alone does not change the order of the classes
    assert unimix["exact"].argmax() == classes - 1
    for panel in panels:
        error = np.sqrt(panel["exact"] / 100_000)
        assert (abs(panel["drawn"] - panel["exact"]) < 4.5 * error + 1e-9).all()
    peak = factor["closed"][1][factor["closed"][2].argmax()]  # of A.8, at 1 + ln 2 (C - 1) / ln rho
    assert peak == pytest.approx(1 + np.log(2) * (classes - 1) / np.log(imbalance), abs=classes / 400)


def counted_pairs(classes, imbalance, exponent, alpha, wrap, size=40_000):
    """Share of each class among the images that dominate, of pairs and factors drawn by numpy alone."""
    random = np.random.default_rng(0)
    prior = imbalance ** (-np.arange(classes) / (classes - 1))
    first, second = (random.choice(classes, size, p=p / p.sum()) for p in (prior, prior**exponent))
    shift = prior[second] / (prior[first] + prior[second])
    drawn = random.beta(alpha, alpha, size)
    weight = (drawn + shift) % 1 if wrap else np.clip(drawn + shift - 0.5, 0, 1)
    return np.bincount(np.where(weight > 0.5, first, second), minlength=classes) / size


@pytest.mark.parametrize(("alpha", "exponent", "wrap"), [(0.5, -1.0, True), (0.8, 0.5, False)])
def test_the_six_panels_of_the_paper_in_one_picture(alpha, exponent, wrap):
    figure = plots.class_distributions_side_by_side(class_distributions.paper_panels(alpha, exponent, wrap))
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        f"{classes} classes, imbalance {imbalance}" for classes in (10, 100) for imbalance in (10, 100, 200)
    ]
    for axis, imbalance in zip(figure.axes[:3], (10, 100, 200), strict=True):
        prior = imbalance ** (-np.arange(10) / 9)
        prior /= prior.sum()
        curves, marks = axis.lines[::2], axis.lines[1::2]
        # A.4 and A.5, A.8, A.12 with the partner's exponent, over the classes; by sums over a fine grid.
        y, step = np.linspace(0, 9, 90_001, retstep=True)
        below = {e: np.cumsum(imbalance ** (-e * y / 9)) * step for e in (1.0, exponent)}
        expected = [prior, prior, prior * below[1.0][::10_000], prior * below[exponent][::10_000]]
        for curve, values in zip(curves, expected, strict=True):
            shown = np.interp(np.arange(1, 11), *curve.get_data())
            np.testing.assert_allclose(shown, values / values.sum(), atol=3e-3)  # of a curve of 400 points
        for mark, power in zip(marks[2:], (1.0, exponent), strict=True):
            drawn = counted_pairs(10, imbalance, power, alpha, wrap)
            np.testing.assert_allclose(mark.get_ydata(), drawn, atol=4 * np.sqrt(0.25 / 40_000))  # standard errors
        for mark in marks[:2]:
            np.testing.assert_allclose(mark.get_ydata(), prior)
        assert axis.get_ylim()[1] >= max(line.get_ydata().max() for line in axis.lines)
    for axis in figure.axes[3:]:
        curve, mark = (line.get_data() for line in axis.lines[:2])
        assert (len(mark[0]), mark[0][0], mark[0][-1]) == (25, 1, 100)
        np.testing.assert_allclose(mark[1], np.interp(mark[0], *curve), rtol=2e-3)


@pytest.mark.parametrize("counts", [[5], [5, 0], [1] * 1001])
def test_what_is_not_drawn(counts):
    assert class_distributions.panels(np.array(counts)) is None


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--config.method.stages.mixed.mixer.alpha=.3"], {"alpha": 0.3, "class_exponent": -1.0, "wrap": True}),
        (["--config.method.stages.mixed.mixer.wrap=False"], {"alpha": 0.5, "class_exponent": -1.0, "wrap": False}),
    ],
)
def test_the_factor_is_the_run_s(argv, expected):
    config = parse(["main", "--config=digits_lt.py", *argv]).config
    assert files.unimix_factor(manifest.plain(config)) == expected


def test_a_method_that_does_not_mix_so_has_the_paper_s_factor():
    for method in ("erm", "mixup", "unimix_bayias_code"):
        config = parse(["main", f"--config=digits_lt.py:method={method}"]).config
        assert files.unimix_factor(manifest.plain(config)) == {
            "alpha": 0.5,
            "class_exponent": -1.0,
            "wrap": True,
        }
