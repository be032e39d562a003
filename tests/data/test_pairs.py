import functools

import numpy as np
import pytest

from unimix_jax import priors
from unimix_jax.data import longtail, pairs, sampling

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [60, 30, 10]))


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5, 1.0])
def test_partners_follow_the_power_of_the_prior_and_are_uniform_within_a_class(exponent):
    draws = 200_000
    partners = pairs.partners_by_class(LABELS, class_exponent=exponent, seed=0, step=0, size=draws)
    expected = priors.prior(np.bincount(LABELS), exponent)
    frequency = np.bincount(LABELS[partners], minlength=3) / draws
    # Five standard deviations of a binomial frequency.
    np.testing.assert_array_less(np.abs(frequency - expected), 5 * np.sqrt(expected * (1 - expected) / draws))
    share = expected[LABELS] / np.bincount(LABELS)[LABELS]
    of_each = np.bincount(partners, minlength=len(LABELS)) / draws
    np.testing.assert_array_less(np.abs(of_each - share), 5 * np.sqrt(share / draws))


def test_partners_are_a_function_of_seed_and_step_and_do_not_need_the_labels_sorted_anew():
    draw = functools.partial(pairs.partners_by_class, class_exponent=-1.0, size=50)
    first = draw(LABELS, seed=1, step=5)
    np.testing.assert_array_equal(first, draw(sampling.sorted_by_class(LABELS), seed=1, step=5))
    assert (first != draw(LABELS, seed=1, step=6)).any()
    assert (first != draw(LABELS, seed=2, step=5)).any()


def test_a_class_without_images_is_never_a_partner():
    labels = np.array([0, 0, 2])
    partners = pairs.partners_by_class(labels, class_exponent=-1.0, seed=0, step=0, size=1000)
    assert set(labels[partners]) == {0, 2}


def test_a_permutation_pairs_each_image_of_the_batch_once_with_the_view_of_its_slot():
    index = np.array([7, 3, 9, 50, 12])
    partner, view = pairs.permutation(None, index, seed=0, step=4)
    np.testing.assert_array_equal(np.sort(view), np.arange(5))
    np.testing.assert_array_equal(partner, index[view])


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "exponent"), [(10, -0.5), (10, -1), (10, 0), (100, -0.1)])
@pytest.mark.parametrize("batch", [64, 128])
def test_partners_from_the_batch_follow_the_authors_law(golden, classes, exponent, batch):
    file = golden("unimix_sampler")
    counts = file[f"counts_c{classes}"]
    class_index = sampling.sorted_by_class(np.repeat(np.arange(classes), counts))
    frequency, random, batches = np.zeros(classes), np.random.default_rng(1), 3000
    for step in range(batches):
        index = random.integers(0, len(class_index.labels), batch)
        partner, view = pairs.in_batch(class_index, index, image_exponent=exponent, seed=0, step=step)
        assert (index[view] == partner).all()
        frequency += np.bincount(class_index.labels[partner], minlength=classes)
    expected = file[f"freq_c{classes}_tau{exponent}_b{batch}"]
    # Both are frequencies of 3000 batches; which rare images a batch holds varies more than single draws do.
    spread = 6 * np.sqrt(2 * expected / batches * (1 / batch + expected.max()))
    np.testing.assert_array_less(np.abs(frequency / batches / batch - expected), spread + 2e-4)


def test_one_fixed_batch_follows_the_authors_law(golden):
    file = golden("unimix_sampler")
    labels, counts = file["fixed_labels_c10"], file["counts_c10"]
    class_index = sampling.sorted_by_class(np.repeat(np.arange(10), counts))
    index = class_index.first[labels]
    views = [pairs.in_batch(class_index, index, image_exponent=-0.5, seed=0, step=s)[1] for s in range(3000)]
    frequency = np.bincount(np.concatenate(views), minlength=64) / (64 * 3000)
    exact = priors.prior(counts[labels], -0.5)
    np.testing.assert_array_less(np.abs(frequency - exact), 5 * np.sqrt(exact / (64 * 3000)))
    np.testing.assert_array_less(np.abs(file["fixed_index_freq_c10_tau-0.5"] - exact), 5 * np.sqrt(exact / (64 * 3000)))


@pytest.mark.slow
@pytest.mark.parametrize("block", [7, 1000])
def test_neighbours_are_those_of_scikit_learn(block):
    from sklearn.neighbors import NearestNeighbors

    images = np.random.default_rng(0).integers(0, 256, (100, 3, 3, 1), np.uint8)
    class_index = sampling.sorted_by_class(LABELS)
    table = pairs.neighbour_table(images, class_index, 5, block)
    for c in range(3):
        members = np.flatnonzero(LABELS == c)
        pixels = images[members].reshape(len(members), -1).astype(float)
        expected = NearestNeighbors(n_neighbors=6).fit(pixels).kneighbors(pixels, return_distance=False)[:, 1:]
        np.testing.assert_array_equal(table[members], members[expected])


def test_the_rule_of_nearest_keeps_the_view_and_small_classes():
    labels = np.array([0, 0, 0, 1, 1, 2])
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1) * 10
    class_index = sampling.sorted_by_class(labels)
    table = pairs.neighbour_table(images, class_index, 5)
    index = np.resize(np.arange(6), 600)
    partner, view = pairs.nearest(class_index, index, table=table, neighbours=5, seed=0, step=0)
    np.testing.assert_array_equal(view, np.arange(600))
    of = {i: set(partner[index == i].tolist()) for i in range(6)}
    assert of == {0: {1, 2}, 1: {0, 2}, 2: {0, 1}, 3: {4}, 4: {3}, 5: {5}}


@pytest.mark.slow
@pytest.mark.parametrize("class_exponent", [-1.0, 0.0, 1.0])
def test_class_frequencies_of_partners_with_8142_classes(class_exponent):
    counts = longtail.profile("exp", 1000, 8142, 500.0)  # iNaturalist 2018's number of classes, largest and smallest
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(8142), counts))
    class_index = sampling.sorted_by_class(labels)
    options = {"class_exponent": class_exponent, "seed": 0, "size": 2048}
    draws = np.concatenate([pairs.partners_by_class(class_index, step=step, **options) for step in range(400)])
    expected = priors.prior(counts, class_exponent) * len(draws)
    found = np.bincount(labels[draws], minlength=8142)
    chi2 = ((found - expected) ** 2 / expected).sum()
    variance = 2 * 8141 + (1 / expected).sum()  # of the statistic where some classes are drawn once or twice
    assert abs(chi2 - 8141) < 4 * np.sqrt(variance)
