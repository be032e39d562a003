import functools
import pathlib
import threading

import jax
import numpy as np
import pytest

from unimix_jax.data import decode, loading, pairs, sampling
from unimix_jax.data.types import BatchIndices
from unimix_jax.data.views import Reading
from unimix_jax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 3, 3, 1), np.uint8)
LABELS = np.arange(20, dtype=np.int32)


@pytest.mark.parametrize("mixed", [False, True])
def test_gather_takes_the_named_rows_on_the_host_and_in_a_compiled_function(mixed):
    index, partner = np.array([3, 3, 19]), np.array([0, 5, 7])
    view = np.arange(3, dtype=np.int32)
    indices = BatchIndices(index, view, partner, view + 3) if mixed else BatchIndices(index, view)
    host = loading.gather(IMAGES, LABELS, indices)
    np.testing.assert_array_equal(host.image, [IMAGES[i] for i in index])
    np.testing.assert_array_equal(host.label, index)
    assert (host.partner_label is not None) == mixed
    device = jax.jit(loading.gather)(IMAGES, LABELS, indices)
    assert jax.tree.structure(device) == jax.tree.structure(host)
    for a, b in zip(jax.tree.leaves(device), jax.tree.leaves(host), strict=True):
        np.testing.assert_array_equal(a, b)


def test_prefetch_keeps_the_order_and_runs_ahead():
    made = []
    ahead = threading.Event()

    def squares():
        for i in range(6):
            made.append(i)
            if i == 2:
                ahead.set()
            yield i * i

    items = loading.prefetch(squares(), depth=2)
    assert next(items) == 0
    assert ahead.wait(10)  # the third is made while the first is used
    assert list(items) == [1, 4, 9, 16, 25]
    assert made == list(range(6))


def test_an_error_comes_out_at_its_turn():
    def numbers():
        yield from (0, 1)
        raise ValueError("two")

    items = loading.prefetch(numbers())
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(items)


def test_closing_ends_the_thread_and_what_it_runs():
    closed = []

    def numbers():
        try:
            yield from range(10**9)
        finally:
            closed.append(True)

    items = loading.prefetch(numbers())
    next(items)
    items.close()
    assert closed == [True]
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())


READING = Reading(size=8, resize=10, min_area=0.5, skip_unreadable=False, threads=1, workers=0)
CLASSES = np.array([0, 0, 0, 1, 1, 2], np.int32)  # of the photographs


def read(source, steps, reading=READING, partners=None, rows=range(4), **options):
    class_index = sampling.sorted_by_class(source.labels)
    indices_of = functools.partial(sampling.indices, class_index, seed=0, batch_size=4, pair_sampler=partners)
    return list(
        loading.batches(
            source,
            class_index,
            indices_of,
            steps,
            rows=rows,
            partners=partners is not None,
            seed=0,
            reading=reading,
            **options,
        )
    )


UNIMIX = functools.partial(pairs.by_class, class_exponent=-1.0)


def test_a_batch_of_photographs_is_its_crops(photographs):
    class_index = sampling.sorted_by_class(photographs.labels)
    for step, (batch, unreadable) in zip(range(3, 6), read(photographs, range(3, 6), partners=UNIMIX), strict=True):
        indices = sampling.indices(class_index, seed=0, step=step, batch_size=4, pair_sampler=UNIMIX)
        for position, view, image in [
            *zip(indices.index, indices.view, batch.image, strict=True),
            *zip(indices.partner, indices.partner_view, batch.partner_image, strict=True),
        ]:
            box_of = functools.partial(decode.random_box, seed=0, step=step, view=int(view), area=(0.5, 1.0))
            np.testing.assert_array_equal(image, decode.decoded(photographs.read(position), box_of, 8))
        np.testing.assert_array_equal(batch.label, CLASSES[indices.index])
        np.testing.assert_array_equal(batch.partner_label, CLASSES[indices.partner])
        np.testing.assert_array_equal(batch.partner_view, indices.partner_view)
        assert unreadable == ()


def digest(batches):
    return [[array.tobytes() for array in batch if array is not None] for batch, _ in batches]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("threads", "workers", "parts"),
    [(1, 0, [(0, 6)]), (5, 0, [(0, 6)]), (2, 0, [(0, 2), (2, 6)]), pytest.param(1, 2, [(0, 6)], id="processes")],
)
def test_pixels_are_the_same_whatever_reads_them_and_wherever_a_run_begins(photographs, threads, workers, parts):
    reading = READING._replace(threads=threads, workers=workers)
    found = [b for first, last in parts for b in read(photographs, range(first, last), reading, UNIMIX)]
    assert digest(found) == digest(read(photographs, range(6), READING, UNIMIX))


TABLE = pairs.neighbour_table(
    np.arange(6 * 3, dtype=np.uint8).reshape(6, 1, 1, 3), sampling.sorted_by_class(CLASSES), 2
)


@pytest.mark.parametrize(
    ("partners", "decoded"),
    [
        (pairs.permutation, 4),
        (pairs.in_batch, 4),
        (functools.partial(pairs.nearest, table=TABLE, neighbours=2), None),
        (UNIMIX, 8),
    ],
)
def test_partners_are_decoded_once(photographs, monkeypatch, partners, decoded):
    seen = []
    of = decode.decoded
    monkeypatch.setattr(decode, "decoded", lambda *args: seen.append(1) or of(*args))
    ((batch, _),) = read(photographs, range(1), partners=partners)
    assert decoded in (None, len(seen))
    class_index = sampling.sorted_by_class(photographs.labels)
    indices = sampling.indices(class_index, seed=0, step=0, batch_size=4, pair_sampler=partners)
    for i, (partner, view) in enumerate(zip(indices.partner, indices.partner_view, strict=True)):
        box_of = functools.partial(decode.random_box, seed=0, step=0, view=int(view), area=(0.5, 1.0))
        np.testing.assert_array_equal(batch.partner_image[i], of(photographs.read(partner), box_of, 8))


def test_an_unreadable_image_stops_with_its_path(damaged):
    with pytest.raises(
        UserError, match=r"cannot read the image .*[145].png \(.*\); repair or remove it, or .*skip_unreadable"
    ):
        read(damaged, range(3))
    with pytest.raises(UserError, match=r"cannot read the image .*1.png"):
        list(loading.blocks(damaged, 4, READING))


def test_an_image_of_too_many_pixels_counts_as_unreadable(photographs):
    reading = READING._replace(max_megapixels=1e-6)
    with pytest.raises(UserError, match=r"cannot read the image .*0.png \(it has .* config.data.max_megapixels; raise"):
        next(loading.blocks(photographs, 2, reading))
    ((_, here, names),) = loading.blocks(photographs, 6, reading._replace(skip_unreadable=True))
    assert not here.any()
    assert len(names) == 6


def test_or_it_is_replaced_by_the_next_of_its_class_and_listed(damaged):
    source = damaged.take(np.arange(5))
    reading = READING._replace(skip_unreadable=True)
    found = read(source, range(2), reading)
    listed = [pathlib.Path(name).name for _, names in found for name in names]
    assert set(listed) == {"1.png", "4.png"}
    class_index = sampling.sorted_by_class(source.labels)
    for step, (batch, _) in enumerate(found):
        indices = sampling.indices(class_index, seed=0, step=step, batch_size=4)
        for position, view, image in zip(indices.index, indices.view, batch.image, strict=True):
            instead = {1: 2, 4: 3}.get(int(position), int(position))
            box_of = functools.partial(decode.random_box, seed=0, step=step, view=int(view), area=(0.5, 1.0))
            np.testing.assert_array_equal(image, decode.decoded(source.read(instead), box_of, 8))
    with pytest.raises(UserError, match="none of the 1 images of class 'c' can be read"):
        read(damaged, range(4), reading)


@pytest.mark.parametrize("size", [1, 4, 6, 10])
def test_an_evaluation_sees_every_image_once_in_order(photographs, size):
    blocks = list(loading.blocks(photographs, size, READING))
    assert {len(block) for block, _, _ in blocks} == {size}
    seen = np.concatenate([block[here] for block, here, _ in blocks])
    for i, image in enumerate(seen):
        box_of = functools.partial(decode.centre_box, size=8, resize=10)
        np.testing.assert_array_equal(image, decode.decoded(photographs.read(i), box_of, 8))
    assert len(seen) == 6
    arrays = photographs._replace(images=seen, names=None)
    again = np.concatenate([block[here] for block, here, _ in loading.blocks(arrays, size)])
    np.testing.assert_array_equal(again, seen)


@pytest.mark.parametrize("partners", [None, UNIMIX, pairs.permutation])
def test_processes_that_read_their_rows_have_the_batch_together(photographs, partners):
    """Partners in rows of another process are decoded again, to the same pixels."""
    whole = [batch for batch, _ in read(photographs, range(3), partners=partners)]
    halves = [
        [batch for batch, _ in read(photographs, range(3), partners=partners, rows=rows)]
        for rows in (range(2), range(2, 4))
    ]
    for step, expected in enumerate(whole):
        for name, value in expected._asdict().items():
            found = [getattr(half[step], name) for half in halves]
            assert (value is None) == (found[0] is None)
            if value is not None:
                np.testing.assert_array_equal(np.concatenate(found), value)


@pytest.mark.parametrize("size", [2, 4, 6, 10])
def test_processes_that_evaluate_their_rows_see_every_image_once(photographs, size):
    whole = list(loading.blocks(photographs, size, READING))
    halves = [
        list(loading.blocks(photographs, size, READING, rows)) for rows in (range(size // 2), range(size // 2, size))
    ]
    assert [len(half) for half in halves] == [len(whole)] * 2
    for block, *parts in zip(whole, *halves, strict=True):
        for value, *found in zip(block[:2], *(part[:2] for part in parts), strict=True):
            np.testing.assert_array_equal(np.concatenate(found), value)
    arrays = photographs._replace(images=np.concatenate([b[here] for b, here, _ in whole]), names=None)
    for block, *parts in zip(
        whole,
        *(loading.blocks(arrays, size, None, half) for half in (range(size // 2), range(size // 2, size))),
        strict=True,
    ):
        np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), block[0])


def test_an_evaluation_leaves_out_what_cannot_be_read(damaged):
    ((block, here, unreadable),) = loading.blocks(damaged, 8, READING._replace(skip_unreadable=True))
    np.testing.assert_array_equal(np.flatnonzero(here), [0, 2, 3])
    assert [pathlib.Path(name).name for name in unreadable] == ["1.png", "4.png", "5.png"]
    assert not block[~here].any()


def test_threads_end_with_the_batches(photographs):
    class_index = sampling.sorted_by_class(photographs.labels)
    indices_of = functools.partial(sampling.indices, class_index, seed=0, batch_size=4)
    made = loading.batches(
        photographs, class_index, indices_of, range(10**6), rows=range(4), partners=False, seed=0, reading=READING
    )
    items = loading.prefetch(made)
    next(items)
    assert any(thread.name.startswith("grain") for thread in threading.enumerate())
    items.close()
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith(("grain", "prefetch"))]:
        thread.join(10)
        assert not thread.is_alive()
