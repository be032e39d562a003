import numpy as np

from unimix_jax.data.sources.statistics import mean_and_std


def test_statistics_are_numpys():
    images = np.random.default_rng(1).integers(0, 256, (1500, 5, 4, 3), np.uint8) // np.array([1, 2, 3], np.uint8)
    mean, std = mean_and_std(images)  # of more than one block
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-6)


def test_a_flat_channel_divides_by_no_zero():
    _, std = mean_and_std(np.full((2, 3, 3, 1), 7, np.uint8))
    np.testing.assert_allclose(std, [1 / 255])
