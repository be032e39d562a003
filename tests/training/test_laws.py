import numpy as np
import pytest

from unimix_jax import settings
from unimix_jax.training import laws, record


@pytest.mark.parametrize("wrap", [True, False])
def test_what_is_drawn_is_what_theory_says(wrap):
    counts = np.array([3, 90, 20, 0, 8])  # in any order, one class without images
    for panel in laws.class_laws(counts, alpha=0.7, class_exponent=-0.5, wrap=wrap):
        assert len(panel["exact"]) == 4
        assert panel["exact"].sum() == pytest.approx(1)
        # 100,000 pairs: four standard errors of a share of one half.
        np.testing.assert_allclose(panel["drawn"], panel["exact"], atol=4 * np.sqrt(0.25 / 100_000))
        _, y, values = panel["closed"]
        assert (y[0], y[-1]) == (1, 4)
        assert (values >= 0).all()


@pytest.mark.parametrize("counts", [[5], [5, 0], [1] * 1001, [10**12, 10]])
def test_what_is_not_drawn(counts):
    assert laws.class_laws(np.array(counts)) is None


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--config.method.stages.mixed.mixer.alpha=.3"], {"alpha": 0.3, "class_exponent": -1.0, "wrap": True}),
        (["--config.method.stages.mixed.mixer.wrap=False"], {"alpha": 0.5, "class_exponent": -1.0, "wrap": False}),
    ],
)
def test_the_factor_is_the_run_s(argv, expected):
    config = settings.parse(["main", "--config=digits_lt.py", *argv]).config
    assert laws.factor_of(record.plain(config)) == expected


def test_a_method_that_does_not_mix_so_has_the_paper_s_factor():
    for method in ("erm", "mixup", "unimix_bayias_code"):
        config = settings.parse(["main", f"--config=digits_lt.py:method={method}"]).config
        assert laws.factor_of(record.plain(config)) == {"alpha": 0.5, "class_exponent": -1.0, "wrap": True}
