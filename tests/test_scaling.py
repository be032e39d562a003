"""benchmarks/scaling.py: its counts against known numbers and closed forms, its tables against the document."""

import importlib.util
import math
import pathlib

import pytest

from unimix_jax.data import sampling

FILE = pathlib.Path(__file__).resolve().parents[1] / "benchmarks" / "scaling.py"
spec = importlib.util.spec_from_file_location("scaling", FILE)
scaling = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scaling)

# Parameters of torchvision's resnet50 as its documentation lists them; a head is 2,048 weights and a bias a class.
OF_1000 = 25_557_032
OF_8142 = OF_1000 + (8142 - 1000) * 2049
# Channels of ResNet-50's normalisations: the stem, then blocks of two of `width` and one of 4 * `width`, and shortcuts.
CHANNELS = 64 + sum(blocks * 6 * width + 4 * width for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)))


@pytest.mark.slow
def test_the_network_has_the_known_numbers():
    assert scaling._RESNET50[1000] == (OF_1000, CHANNELS, 53)
    assert scaling._RESNET50[8142] == (OF_8142, CHANNELS, 53)


@pytest.mark.slow
def test_the_document_has_the_tables_of_the_script():
    text = scaling.DOCUMENT.read_text(encoding="utf-8")
    assert scaling.with_tables(text, scaling.tables()) == text


@pytest.mark.slow
def test_the_real_step_adds_as_many_bytes_as_are_counted():
    counted = scaling.shapes("resnet8", 10, 32)
    traced, arrays = scaling.traced_all_reduces("resnet8", 10, 32, devices=4)
    assert traced == counted.all_reduced()
    # Of a normalisation: two sums forwards, two backwards, two running statistics, gradients of scale and bias, and the
    # gradient of its convolution; gradients of the head; four sums of loss and accuracy.
    assert arrays == counted.normalisations * (2 + 2 + 2 + 2 + 1) + 2 + 4


def test_steps_of_an_epoch_are_those_of_the_loop(monkeypatch):
    monkeypatch.setattr(scaling, "_RESNET50", {1000: scaling.Shapes(1, 1, 1), 8142: scaling.Shapes(1, 1, 1)})
    (row,) = (line for line in scaling.bytes_table().splitlines() if line.startswith("| steps of an epoch"))
    steps = [sampling.steps_per_epoch(data.images, scaling.BATCH) for data in scaling.DATA.values()]
    assert [int(cell) for cell in row.split("|")[2:4]] == steps


def test_sums_over_chips_take_the_time_of_what_each_sends():
    h100, v5e = scaling.CHIPS["H100"], scaling.CHIPS["v5e"]
    size = 100_000_000
    assert scaling.all_reduce_seconds(v5e, 1, size) == 0
    # Two chips: each sends half, then the half that it has added.
    assert scaling.all_reduce_seconds(v5e, 2, size) == pytest.approx(size / 200e9)
    # The page of v5e gives 51.2 TB/s of all-reduce for a pod of 256 chips, 200 GB/s each.
    assert scaling.all_reduce_seconds(v5e, 256, size) == pytest.approx(2 * 255 / 256 * size / (51.2e12 / 256))
    within = 2 * 7 / 8 * size / 450e9
    assert scaling.all_reduce_seconds(h100, 8, size) == pytest.approx(within)
    # Two nodes: each chip exchanges its eighth with its fellow of the other node.
    assert scaling.all_reduce_seconds(h100, 16, size) == pytest.approx(within + size / 8 / 50e9)


def test_xla_s_count_of_operations_is_that_of_the_literature(monkeypatch):
    monkeypatch.setattr(
        scaling, "_RESNET50", {n: scaling.Shapes(p, 0, 0) for n, p in ((1000, OF_1000), (8142, OF_8142))}
    )
    # torchvision lists 4.09 G multiply-adds for resnet50; backwards is twice forwards, but the images have no gradient.
    # XLA leaves out products with padding, some 3 %.
    literature = 3 * 2 * 4.09e9 - 2 * 112 * 112 * 64 * 7 * 7 * 3
    for chip in scaling.CHIPS.values():
        operations, traffic = scaling.compiled(chip)
        assert operations == pytest.approx(literature, rel=0.03)
        # The least: 53 outputs of normalisations in bfloat16, 11.1 M numbers, written and read forwards and backwards.
        assert traffic > 2 * 4 * 11.1e6


def test_a_step_is_bound_by_its_largest_term():
    terms = scaling.Terms(1.0, 2.0, 3.0, 0.5, 1.0)
    assert (terms.bound(), terms.step()) == ("gradients", 3.5)
    assert terms._replace(loading=9.0).step() == 9.0
    assert terms._replace(loading=math.nan).step() == 3.5


def test_the_rates_of_loading_are_those_of_the_document():
    assert scaling.view_rates() == {
        "Caltech-101 as it is": 797.0,
        "the same at 500 x 375": 550.5,
        "the same at 1000 x 750": 341.5,
    }


NUMBERS = {0.0484: "0.048", 0.9: "0.90", 1.06: "1.1", 43.2: "43", 7160.0: "7,200", math.nan: "-", 0.0: "0"}


@pytest.mark.parametrize("value", NUMBERS)
def test_numbers_have_two_digits(value):
    assert scaling._number(value) == NUMBERS[value]
