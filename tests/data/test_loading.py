import threading

import jax
import numpy as np
import pytest

from unimix_jax.batch import Picks
from unimix_jax.data import loading

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 3, 3, 1), np.uint8)
LABELS = np.arange(20, dtype=np.int32)


@pytest.mark.parametrize("mixed", [False, True])
def test_gather_takes_the_named_rows_on_the_host_and_in_a_compiled_function(mixed):
    index, partner = np.array([3, 3, 19]), np.array([0, 5, 7])
    view = np.arange(3, dtype=np.int32)
    picks = Picks(index, view, partner, view + 3) if mixed else Picks(index, view)
    host = loading.gather(IMAGES, LABELS, picks)
    np.testing.assert_array_equal(host.image, [IMAGES[i] for i in index])
    np.testing.assert_array_equal(host.label, index)
    assert (host.partner_label is not None) == mixed
    device = jax.jit(loading.gather)(IMAGES, LABELS, picks)
    assert jax.tree.structure(device) == jax.tree.structure(host)
    for a, b in zip(jax.tree.leaves(device), jax.tree.leaves(host), strict=True):
        np.testing.assert_array_equal(a, b)


def test_prefetch_keeps_the_order_and_runs_ahead():
    made = []
    ahead = threading.Event()

    def make(i):
        made.append(i)
        if i == 2:
            ahead.set()
        return i * i

    items = loading.prefetch(make, range(6), depth=2)
    assert next(items) == 0
    assert ahead.wait(10)  # the third is made while the first is used
    assert made == [0, 1, 2]
    assert list(items) == [1, 4, 9, 16, 25]
    assert made == list(range(6))


def test_an_error_comes_out_at_its_turn():
    def make(i):
        if i == 2:
            raise ValueError("two")
        return i

    items = loading.prefetch(make, range(5))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(items)


def test_closing_ends_the_thread():
    items = loading.prefetch(lambda i: i, range(10**9))
    next(items)
    items.close()
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())
