import functools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from unimix_jax.batch import Picks
from unimix_jax.data import decode, loading, pairs, sampling
from unimix_jax.data.types import Source
from unimix_jax.errors import Failure, UserError

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


READING = loading.Reading(size=8, resize=10, min_area=0.5, skip_unreadable=False, threads=1, workers=0)
CLASSES = np.array([0, 0, 0, 1, 1, 2], np.int32)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Six photographs of three classes."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(random.integers(0, 256, (20 + i, 24, 3), np.uint8)).save(root / f"{i}.png")
    flat = np.zeros(3, np.float32)
    return Source(CLASSES, ("a", "b", "c"), flat, flat, names=tuple(f"{i}.png" for i in range(6)), root=str(root))


def read(source, steps, reading=READING, partners=None, views=4, **options):
    sets = sampling.sorted_by_class(source.labels)
    picks_at = functools.partial(sampling.picks, sets, seed=0, batch_size=4, partners=partners)
    return list(loading.batches(source, sets, picks_at, steps, views=views, seed=0, reading=reading, **options))


UNIMIX = functools.partial(pairs.by_class, class_exponent=-1.0)


def test_a_batch_of_photographs_is_its_crops(photographs):
    sets = sampling.sorted_by_class(CLASSES)
    for step, (batch, unreadable) in zip(
        range(3, 6), read(photographs, range(3, 6), partners=UNIMIX, views=8), strict=True
    ):
        picks = sampling.picks(sets, seed=0, step=step, batch_size=4, partners=UNIMIX)
        for position, view, image in [
            *zip(picks.index, picks.view, batch.image, strict=True),
            *zip(picks.partner, picks.partner_view, batch.partner_image, strict=True),
        ]:
            box_of = functools.partial(decode.random_box, seed=0, step=step, view=int(view), area=(0.5, 1.0))
            np.testing.assert_array_equal(image, decode.decoded(photographs.read(position), box_of, 8))
        np.testing.assert_array_equal(batch.label, CLASSES[picks.index])
        np.testing.assert_array_equal(batch.partner_label, CLASSES[picks.partner])
        np.testing.assert_array_equal(batch.partner_view, picks.partner_view)
        assert unreadable == ()


def digest(batches):
    return [[array.tobytes() for array in batch if array is not None] for batch, _ in batches]


@pytest.mark.parametrize(
    ("threads", "workers", "parts"),
    [(1, 0, [(0, 6)]), (5, 0, [(0, 6)]), (2, 0, [(0, 2), (2, 6)]), pytest.param(1, 2, [(0, 6)], id="processes")],
)
def test_pixels_are_the_same_whatever_reads_them_and_wherever_a_run_begins(photographs, threads, workers, parts):
    reading = READING._replace(threads=threads, workers=workers)
    found = [b for first, last in parts for b in read(photographs, range(first, last), reading, UNIMIX, 8)]
    assert digest(found) == digest(read(photographs, range(6), READING, UNIMIX, 8))


TABLE = pairs.neighbour_table(
    np.arange(6 * 3, dtype=np.uint8).reshape(6, 1, 1, 3), sampling.sorted_by_class(CLASSES), 2
)


@pytest.mark.parametrize(
    ("partners", "views", "decoded"),
    [
        (pairs.permutation, 4, 4),
        (pairs.in_batch, 4, 4),
        (functools.partial(pairs.nearest, table=TABLE, neighbours=2), 8, None),
        (UNIMIX, 8, 8),
    ],
)
def test_partners_are_decoded_once(photographs, monkeypatch, partners, views, decoded):
    seen = []
    of = decode.decoded
    monkeypatch.setattr(decode, "decoded", lambda *args: seen.append(1) or of(*args))
    ((batch, _),) = read(photographs, range(1), partners=partners, views=views)
    assert decoded in (None, len(seen))
    sets = sampling.sorted_by_class(CLASSES)
    picks = sampling.picks(sets, seed=0, step=0, batch_size=4, partners=partners)
    for i, (partner, view) in enumerate(zip(picks.partner, picks.partner_view, strict=True)):
        box_of = functools.partial(decode.random_box, seed=0, step=0, view=int(view), area=(0.5, 1.0))
        np.testing.assert_array_equal(batch.partner_image[i], of(photographs.read(partner), box_of, 8))


@pytest.fixture
def damaged(photographs, tmp_path):
    """The photographs, the second and the last two of which cannot be read."""
    for name in photographs.names:
        data = pathlib.Path(photographs.root, name).read_bytes()
        (tmp_path / name).write_bytes(data if name not in ("1.png", "4.png", "5.png") else data[: len(data) // 2])
    return photographs._replace(root=str(tmp_path))


def test_an_unreadable_image_stops_with_its_path(damaged):
    with pytest.raises(UserError, match=r"cannot read the image .*[145].png \(.*\); mend it or .*skip_unreadable"):
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
    sets = sampling.sorted_by_class(source.labels)
    for step, (batch, _) in enumerate(found):
        picks = sampling.picks(sets, seed=0, step=step, batch_size=4)
        for position, view, image in zip(picks.index, picks.view, batch.image, strict=True):
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


def test_an_evaluation_leaves_out_what_cannot_be_read(damaged):
    ((block, here, unreadable),) = loading.blocks(damaged, 8, READING._replace(skip_unreadable=True))
    np.testing.assert_array_equal(np.flatnonzero(here), [0, 2, 3])
    assert [pathlib.Path(name).name for name in unreadable] == ["1.png", "4.png", "5.png"]
    assert not block[~here].any()


def test_thumbnails_are_whole_images(photographs, damaged):
    small = loading.thumbnails(photographs, READING)
    expected = Image.open(f"{photographs.root}/3.png").resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(small[3], expected)
    with pytest.raises(UserError, match="cannot read the image"):
        loading.thumbnails(damaged, READING)
    assert not loading.thumbnails(damaged, READING._replace(skip_unreadable=True))[1].any()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_the_search_finds_what_training_could_not_read(tmp_path, suffix):
    """Whole, cut short, and with a bit flipped; training decodes the same files at their size."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"0.{suffix}")
    content = (tmp_path / f"0.{suffix}").read_bytes()
    for i, share in enumerate((0.2, 0.6, 0.99), start=1):
        (tmp_path / f"{i}.{suffix}").write_bytes(content[: int(share * len(content))])
        flipped = bytearray(content)
        flipped[int(share * len(content))] ^= 64
        (tmp_path / f"{i + 3}.{suffix}").write_bytes(flipped)
    (tmp_path / f"7.{suffix}").write_bytes(b"text")
    names = tuple(f"{i}.{suffix}" for i in range(9))  # the last one is not there
    source = Source(np.zeros(9, np.int32), ("a",), np.zeros(3), np.ones(3), names=names, root=str(tmp_path))
    bad = []
    for i in range(9):
        try:
            decode.decoded(source.read(i), lambda *size: (0, 0, *size), 224)
        except Exception:  # as training does
            bad.append(i)
    assert bad[-2:] == [7, 8]
    told = []
    np.testing.assert_array_equal(loading.unreadable(source, READING, told.append), bad)
    assert told == [9]


def test_threads_end_with_the_batches(photographs):
    sets = sampling.sorted_by_class(CLASSES)
    picks_at = functools.partial(sampling.picks, sets, seed=0, batch_size=4)
    made = loading.batches(photographs, sets, picks_at, range(10**6), views=4, seed=0, reading=READING)
    items = loading.prefetch(made)
    next(items)
    assert any(thread.name.startswith("grain") for thread in threading.enumerate())
    items.close()
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith(("grain", "prefetch"))]:
        thread.join(10)
        assert not thread.is_alive()


def gone(number):
    """Whether a process is no longer there, or a zombie of which only its parent has not heard."""
    try:
        os.kill(number, 0)
        return pathlib.Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_suspended_worker_is_told_and_a_killed_one_ends_the_run(photographs, monkeypatch):
    """The worker is suspended before its first image, and killed once it was said that it is waited for."""
    monkeypatch.setattr(loading, "_PATIENCE", 0.2)
    sets = sampling.sorted_by_class(photographs.labels)
    picks_at = functools.partial(sampling.picks, sets, seed=0, batch_size=4)
    options = {"views": 4, "seed": 0, "reading": READING._replace(workers=1)}
    made = loading.batches(photographs, sets, picks_at, range(10**6), **options)
    next(made)
    (worker,) = loading.multiprocessing.active_children()
    told = []
    monkeypatch.setattr(loading._log, "warning", lambda text, *values: told.append(text % values))
    os.kill(worker.pid, signal.SIGSTOP)

    def kill_when_told():
        while len(told) < 2:
            time.sleep(0.05)
        os.kill(worker.pid, signal.SIGKILL)

    threading.Thread(target=kill_when_told).start()
    with pytest.raises(Failure, match="a worker process that reads images has ended or was killed"):
        for _ in made:
            pass
    assert all(f"for an image from the worker processes {worker.pid}: is" in line for line in told[:2])
    assert gone(worker.pid)
    assert not any(thread.name == "patience" for thread in threading.enumerate())


PARENT = """
import multiprocessing, sys, time
from unimix_jax.data import loading
def work(said):
    loading._begin_worker(0, 1)
    said.put(multiprocessing.current_process().pid)
    time.sleep(1000)
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    context.Process(target=work, args=(said,), daemon=True).start()
    print(said.get(), flush=True)
    time.sleep(1000)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_workers_end_with_a_killed_parent_and_with_no_signal_of_the_terminal(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    root = str(pathlib.Path(__file__).resolve().parents[2])
    command, environment = [sys.executable, tmp_path / "parent.py"], {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        worker = int(parent.stdout.readline())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(worker, number)
        assert not gone(worker)
        parent.kill()
        parent.stdout.read()  # until the worker, who holds it too, has ended
    assert gone(worker)
