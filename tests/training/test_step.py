"""One whole step: against the authors' code, and what must be true of any step."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax.data.types import Batch
from unimix_jax.methods import losses, mixing
from unimix_jax.methods.build import Stage
from unimix_jax.models import heads, init, networks, resnet
from unimix_jax.training import augment, augmentations, optim, rng
from unimix_jax.training.devices import distribute, replicate, shard
from unimix_jax.training.step import StepConfig, StepInputs, first_state, group_of, mixed_batch, train_step

from .. import quick

CROP_AND_FLIP = functools.partial(augmentations.crop, pad=2), functools.partial(augmentations.flip, flip=True)
# Recipe whose normalisation hands float images on as they are, for inputs that the authors normalised.
STEP_CONFIG = StepConfig(
    optim.sgd(momentum=0.9, weight_decay=2e-4), np.zeros(3, np.float32), np.full(3, 1 / 255, np.float32)
)


def stage(loss, mixer=None, classes=10, **more):
    partners = None if mixer is None else "given"
    return Stage("test", 0, 1, loss, mixer, partners, "given", np.ones(classes, np.float32), **more)


def numbers(rate, classes=10):
    return StepInputs(np.uint32(0), np.float32(rate), np.ones(classes, np.float32))


def jitted(a_stage, compiler=quick.jit):
    network = networks.build("resnet32", 10)
    return compiler(functools.partial(train_step, stage=a_stage, network=network, config=STEP_CONFIG))


def same_leaves(found, file, prefix, rtol, start=None):
    """Compare leaves with those that the file holds under PyTorch's names: the norm of the difference
    over that of the leaf, or of its change since `start`."""
    expected = resnet.from_torch({k.removeprefix(prefix): v for k, v in file.items() if k.startswith(prefix)})
    for path, leaf in jax.tree_util.tree_flatten_with_path(expected["params"])[0]:
        at = lambda tree: functools.reduce(lambda group, key: group[key.key], path, tree)  # noqa: B023, E731
        size = np.linalg.norm(leaf - (0 if start is None else at(start)))
        assert np.linalg.norm(at(found) - leaf) < rtol * size, jax.tree_util.keystr(path)


@pytest.fixture(scope="module")
def authors(golden):
    file = golden("resnet32_steps")
    variables = resnet.from_torch(golden("resnet32_params"))
    state = jax.device_get(quick.jit(lambda v: first_state(v, STEP_CONFIG.optimiser))(variables))
    image = file["input"].transpose(0, 2, 3, 1)
    return file, state, Batch(image, file["labels"].astype(np.int32), np.arange(8, dtype=np.int32))


@pytest.mark.slow
def test_two_steps_of_sgd_are_the_authors(authors):
    file, start, batch = authors
    step = jitted(stage(losses.cross_entropy))
    state, sums = step(start, batch, numbers(0.1))
    np.testing.assert_allclose(sums["loss"][0] / sums["loss"][1], file["train_loss"], rtol=1e-5)
    # Measured 6e-6 of the change.
    same_leaves(state.params, file, "sgd1/", 2e-5, start.params)
    state, sums = step(state, batch, numbers(0.1))
    np.testing.assert_allclose(sums["loss"][0] / sums["loss"][1], file["train_loss_2"], rtol=1e-3)
    # Inputs of a relu within rounding of 0 now fall on either side: measured 3.5e-3.
    same_leaves(state.params, file, "sgd2/", 1e-2, start.params)
    assert int(state.step) == 2


@pytest.mark.slow
def test_a_step_of_unimix_and_bayias_is_the_authors(authors):
    file, state, batch = authors
    share = file["step/lam"][:, None, None, None]

    def given_factors(keys, image_a, image_b, label_a, label_b):
        return mixing.Mixed(share * image_a + (1 - share) * image_b, label_a, label_b, share[:, 0, 0, 0])

    counts = file["step/counts"]
    bayias = functools.partial(losses.bayias, train_prior=counts / counts.sum())
    index = file["step/index"]
    batch = batch._replace(
        partner_image=batch.image[index],
        partner_label=batch.label[index],
        partner_view=np.arange(8, 16, dtype=np.int32),
    )
    np.testing.assert_array_equal(batch.partner_label, file["step/labels_2"])
    # Compiled as for users: gradients of the first layers are sums of many terms that nearly cancel.
    after, sums = jitted(stage(bayias, given_factors), jax.jit)(state, batch, numbers(1.0))
    np.testing.assert_allclose(sums["loss"][0] / sums["loss"][1], file["step/loss"], rtol=1e-5)
    # The first step at rate 1 moves each parameter by its gradient and 2e-4 of itself.
    gradients = jax.tree.map(lambda a, b: a - b - np.float32(2e-4) * a, state.params, jax.device_get(after.params))
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(norm, file["step/grad_norm"], rtol=1e-5)
    same_leaves(gradients, file, "step_grad/", 1e-3)


def test_hits_are_counted_on_the_label_with_the_larger_weight():
    class Fixed:
        """Answers class 1, whatever it sees."""

        def apply(self, variables, image, *, train, mutable):
            logits = jnp.tile(jnp.array([0.0, 1.0, 0.0]), (len(image), 1)) + variables["params"]["w"]
            return logits, {"batch_stats": {}}

    def mixer(keys, image_a, image_b, label_a, label_b):
        return mixing.Mixed(image_a, label_a, label_b, jnp.array([0.9, 0.4, 0.5, 0.1]))

    images = np.zeros((4, 2, 2, 3), np.uint8)
    view = np.arange(4, dtype=np.int32)
    batch = Batch(images, np.array([1, 0, 1, 1]), view, images, np.array([0, 1, 2, 0]), view + 4)
    state = first_state({"params": {"w": jnp.zeros(3)}, "batch_stats": {}}, STEP_CONFIG.optimiser)
    a_stage = stage(losses.cross_entropy, mixer, classes=3)
    step = functools.partial(train_step, stage=a_stage, network=Fixed(), config=STEP_CONFIG)
    _, sums = quick.jit(step)(state, batch, numbers(0.1, 3))
    assert [float(x) for x in sums["accuracy"]] == [3, 4]  # .9 of 1; .6 of 1; a tie goes to the first, 1; .9 of 0


@pytest.mark.slow
def test_the_second_stage_of_mislas_is_the_authors(golden):
    """Two steps of a scaled head on fixed features: learnable scale, factors of the rate, label-aware smoothing."""
    file = {k.removeprefix("stage2/"): v for k, v in golden("heads_and_mixers").items() if k.startswith("stage2/")}
    head, tail = (float(x) for x in file["head_tail"])
    loss = functools.partial(losses.label_aware_smoothing, counts=file["counts"], head=head, tail=tail)

    class Head(nn.Module):
        @nn.compact
        def __call__(self, x, train, mix=None):
            return heads.ScaledHead(10, name="head")(x[:, 0, 0])

    linear = {"kernel": file["weight_0"].T, "bias": file["bias_0"]}
    params = {"head": {"linear": linear, "scale": file["scale_0"][0]}}
    step_config = STEP_CONFIG._replace(
        mean=np.zeros(64, np.float32),
        std=np.full(64, 1 / 255, np.float32),
        head_groups=heads.parameter_groups("scaled"),
    )
    state = first_state({"params": params, "batch_stats": {}}, step_config.optimiser)
    batch = Batch(file["features"][:, None, None], file["labels"].astype(np.int32), np.arange(32, dtype=np.int32))
    for k in (1, 2):
        classifier, scale = file[f"lr_{k}"]
        trains = (("backbone", 0.0), ("classifier", float(classifier / scale)), ("scale", 1.0))
        a_stage = stage(loss, lr_multipliers=trains, batch_norm="frozen")
        step = functools.partial(train_step, stage=a_stage, network=Head(), config=step_config)
        state, sums = quick.jit(step)(state, batch, numbers(scale))
        np.testing.assert_allclose(sums["loss"][0] / sums["loss"][1], file[f"loss_{k}"], rtol=1e-5)
        found = state.params["head"]
        np.testing.assert_allclose(found["linear"]["kernel"].T, file[f"weight_{k}"], atol=1e-6)
        np.testing.assert_allclose(found["linear"]["bias"], file[f"bias_{k}"], atol=1e-6)
        np.testing.assert_allclose(found["scale"], file[f"scale_{k}"][0], atol=1e-6)


def tiny_step(**more):
    network = resnet.CifarResNet(3, blocks=0, head="scaled")
    variables = init.initialise(network, (8, 8, 3), 0)
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (8, 8, 8, 3), np.uint8), np.array([0, 1, 2, 0, 1, 2, 0, 0], np.int32)
    batch = Batch(images, labels, np.arange(8, dtype=np.int32))
    weights = more.pop("class_weight", np.ones(3, np.float32))
    a_stage = stage(losses.cross_entropy, classes=3, **more)
    groups = heads.parameter_groups("scaled")
    step_config = STEP_CONFIG._replace(std=np.full(3, 0.3, np.float32), head_groups=groups)

    @quick.jit
    def step(variables, batch, numbers):
        state = first_state(variables, STEP_CONFIG.optimiser)
        return state, *train_step(state, batch, numbers, stage=a_stage, network=network, config=step_config)

    return jax.device_get(step(variables, batch, StepInputs(0, 0.1, weights)))


@pytest.mark.slow
def test_what_is_frozen_stays_to_the_bit_and_the_rest_moves():
    trains = (("backbone", 0.0), ("classifier", 1.0), ("scale", 0.0))
    before, after, _ = tiny_step(lr_multipliers=trains)
    groups = heads.parameter_groups("scaled")
    for path, old in jax.tree_util.tree_flatten_with_path(before.params)[0]:
        new = functools.reduce(lambda group, key: group[key.key], path, after.params)
        assert (np.asarray(old) == np.asarray(new)).all() == (group_of(path, groups) != "classifier"), path
    changed = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), before.batch_stats, after.batch_stats)
    assert all(jax.tree.leaves(changed))  # its statistics move on
    before, after, _ = tiny_step(lr_multipliers=trains, batch_norm="frozen")
    jax.tree.map(np.testing.assert_array_equal, before.batch_stats, after.batch_stats)


@pytest.mark.slow
def test_class_weights_are_divided_by_their_sum_or_by_the_count():
    weights = np.float32([0.1, 1.0, 3.0])
    steps_taken = tiny_step(class_weight=weights), tiny_step(class_weight=weights, reduction="count")
    (_, _, by_weights), (_, _, by_count) = steps_taken
    total = weights[[0, 1, 2, 0, 1, 2, 0, 0]].sum()
    np.testing.assert_allclose(by_weights["loss"][1], total, rtol=1e-6)
    assert by_count["loss"][1] == 8
    assert by_count["loss"][0] == by_weights["loss"][0]
    moved = [
        after.params["head"]["linear"]["bias"] - before.params["head"]["linear"]["bias"] * np.float32(1 - 2e-5)
        for before, after, _ in steps_taken
    ]
    np.testing.assert_allclose(moved[1], moved[0] * total / 8, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_partners_are_augmented_by_their_own_views_and_mixed_by_keys_of_their_own():
    step_config = STEP_CONFIG._replace(augmentations=CROP_AND_FLIP, std=np.ones(3, np.float32))
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    view, label = np.arange(6, dtype=np.int32), np.arange(6, dtype=np.int32)
    batch = Batch(image, label, view, image, label, view + 6)

    @quick.jit
    def mixed(batch, seed, step):
        """What the mixer sees, the same images augmented here, and the data of the mixer's keys and of all others."""
        seen = {}

        def mixer(mix_keys, image_a, image_b, label_a, label_b):
            seen.update(a=image_a, b=image_b, keys=(mix_keys.view[0], mix_keys.step))
            return mixing.Mixed(image_a, label_a)

        mixed_batch(batch, seed, step, stage(losses.cross_entropy, mixer), step_config)
        for name, views in (("cropped_a", batch.view), ("cropped_b", batch.partner_view)):
            seen[name] = augment.apply(CROP_AND_FLIP, rng.of_views(seed, step, views), batch.image) * 255
        first = rng.of_views(seed, step, batch.view)[0]
        seen["used"] = [rng.use(first, purpose) for purpose in rng.Use]
        return seen | {name: [jax.random.key_data(key) for key in seen[name]] for name in ("keys", "used")}

    seen = jax.device_get(mixed(batch, np.uint32(1), np.uint32(2)))
    for name in ("a", "b"):
        np.testing.assert_allclose(seen[name] * 255, seen[f"cropped_{name}"], atol=1e-3)
    assert (seen["a"] != seen["b"]).any()
    (own, of_step), used = ([data.tolist() for data in seen[name]] for name in ("keys", "used"))
    assert own == used[rng.Use.MIX]
    assert used.count(own) == 1
    assert of_step not in used


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(("batch_norm", "unroll"), [("frozen", True), ("train", False)])
def test_an_accumulated_step_is_one_step_on_all_parts(batch_norm, unroll):
    network = resnet.CifarResNet(3, blocks=0)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (8, 8, 8, 3), np.uint8)
    view = np.arange(8, dtype=np.int32)
    labels = random.integers(0, 3, (2, 8)).astype(np.int32)
    batch = Batch(images, labels[0], view, images[::-1], labels[1], view + 8)

    def mixer(keys, image_a, image_b, label_a, label_b):
        return mixing.Mixed(0.7 * image_a + 0.3 * image_b, label_a, label_b, jnp.full(len(label_a), 0.7))

    a_stage = stage(losses.cross_entropy, mixer, classes=3, batch_norm=batch_norm)
    step_config = StepConfig(
        optim.sgd(momentum=0.9, weight_decay=2e-4), np.zeros(3, np.float32), np.ones(3, np.float32)
    )
    state = quick.jit(lambda v: first_state(v, step_config.optimiser))(init.initialise(network, (8, 8, 3), 0))
    weights = StepInputs(np.uint32(0), np.float32(0.1), np.array([1, 2, 3], np.float32))

    def step(step_config, count=1):
        on = functools.partial(train_step, stage=a_stage, network=network.clone(axis="batch"), config=step_config)
        devices = jax.devices()[:count]
        placed = shard(batch, devices), replicate(weights, devices)
        return distribute(on, devices)(replicate(state, devices), *placed)

    accumulating = step_config._replace(grad_accum_steps=4, unroll=unroll)
    after, sums = step(accumulating)
    whole, whole_sums = step(step_config) if batch_norm == "frozen" else step(accumulating, count=2)
    for a, b in zip(jax.tree.leaves((after, sums)), jax.tree.leaves((whole, whole_sums)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    if batch_norm == "frozen":
        return
    # Batch statistics are those of the parts, one after the other: the slow way.
    mixed = jax.device_get(quick.jit(lambda batch: mixed_batch(batch, 0, 0, a_stage, step_config))(batch))
    gradients, stats = [], state.batch_stats

    def loss(params, some, stats):
        variables = {"params": params, "batch_stats": stats}
        logits, updates = network.apply(variables, some.image, train=True, mutable=["batch_stats"])
        return mixing.objective(losses.cross_entropy, logits, some, weights.class_weight).sum(), updates

    slow = quick.jit(jax.grad(loss, has_aux=True))
    for part in range(4):
        some = jax.tree.map(lambda x, rows=slice(part, None, 4): x[rows], mixed)
        found, updates = slow(state.params, some, stats)
        gradients.append(found)
        stats = updates["batch_stats"]
    weight = quick.jit(mixing.example_weight)(mixed, weights.class_weight).sum()
    expected = jax.tree.map(
        lambda p, *g: p - np.float32(0.1) * (sum(g) / np.asarray(weight) + np.float32(2e-4) * p),
        *jax.device_get((state.params, *gradients)),
    )
    for a, b in zip(
        jax.tree.leaves((after.params, after.batch_stats)), jax.tree.leaves((expected, stats)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
