import numpy as np
import pytest

from unimix_jax import priors
from unimix_jax.config import parse
from unimix_jax.data import longtail
from unimix_jax.report import class_distributions, files
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
