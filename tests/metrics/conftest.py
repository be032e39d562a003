"""Probabilities and labels of a model."""

import numpy as np
import pytest

from unimix_jax.metrics import per_example


@pytest.fixture(scope="module")
def predicted():
    """240 examples of 6 classes, all probabilities of a class distinct."""
    random = np.random.default_rng(4)
    return per_example.softmax(random.normal(0, 1, (240, 6))), random.integers(0, 6, 240)
