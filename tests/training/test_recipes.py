"""Every recipe takes two steps on the digits in each of its stages, and gives the same updates on eight devices.

On the stem of a network alone: what rows differ in is before and behind it.
"""

import functools
import pathlib
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax.config import parse
from unimix_jax.errors import UserError
from unimix_jax.methods import mixing
from unimix_jax.methods.recipes import RECIPES
from unimix_jax.models import heads, init, networks
from unimix_jax.training import input as training_input
from unimix_jax.training import loop, optim, rundir, stages
from unimix_jax.training.devices import replicate
from unimix_jax.training.run import run
from unimix_jax.training.setup import prepare
from unimix_jax.training.step import StepInputs, first_state, group_of, train_step

from .. import quick

pytestmark = pytest.mark.usefixtures("quick_compilation", "stem", "flat")
COMPILED = {}
# Recipes that touch the network itself: its statistics, its levels or its parameter groups. The others are compiled in
# a third of the time with a network that is a classifier of pixels alone, and without augmentations.
_OF_LAYERS = ("erm", "manifold_mixup", "mislas", "crt", "unimix_bayias_las")


class Flat(nn.Module):
    """A classifier of pixels."""

    num_classes: int
    head: str = "linear"

    @nn.compact
    def __call__(self, images, train):
        return heads.build(self.head, self.num_classes)(images.reshape(len(images), -1))


@pytest.fixture(scope="module")
def flat():
    """Let a config name the classifier of pixels as `network=flat`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NETWORKS, "flat", Flat)
        yield


@functools.cache
def prepared(name, devices):
    network = "stem" if name in _OF_LAYERS else "flat"
    argv = ["main", f"--config=digits_lt.py:method={name}", f"--config.network={network}", "--config.batch_size=32"]
    # Flips by view, which are a third of the program that crops are.
    argv += ["--config.data.pad=0", "--config.data.flip=true"] if network == "stem" else ["--config.data.augment="]
    argv += ["--config.epochs=10", f"--config.parallel.devices={devices}"]
    return prepare(parse(argv).config, pathlib.Path("unwritten"))


def step_of(experiment, stage):
    """The compiled step; stages of different rows with the same functions and options share it."""
    functions = tuple((f and f.func, str(f and f.keywords)) for f in (stage.loss, stage.mixer))
    key = functions, experiment.config.network, experiment.method.head, stage.program[2:], len(experiment.devices)
    if key not in COMPILED:
        COMPILED[key] = loop.compiled_step(experiment, stage)
    return COMPILED[key]


def two_steps(name, stage_index, devices):
    """The change of parameters and statistics over the first two steps of a stage, and their sums."""
    experiment = prepared(name, devices)
    stage = experiment.method.stages[stage_index]
    variables = init.initialise(experiment.network, (8, 8, 1), experiment.config.seed)
    state = loop.stage_start(experiment, stage, first_state(variables, experiment.step_config.optimiser))
    state = state._replace(step=replicate(np.int32(stage.first), experiment.devices))
    before, sums = jax.device_get((state.params, state.batch_stats)), []
    for step in (stage.first, stage.first + 1):
        of, _, batch = next(training_input.dispatches(experiment, step))
        assert of is stage
        numbers = StepInputs(np.uint32(0), np.float32(0.01), stage.class_weight)
        state, means = step_of(experiment, stage)(state, batch, numbers)
        sums.append(jax.device_get(means))
    after = jax.device_get((state.params, state.batch_stats))
    return jax.tree.map(lambda a, b: b - a, before, after), sums


STAGES = [
    pytest.param(name, index, id=f"{name}-{stage}")
    for name, row in RECIPES.items()
    for index, stage in enumerate(row["stages"])
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "index"), STAGES)
def test_two_steps_of_each_stage_are_the_same_on_one_and_on_eight_devices(name, index):
    (one, one_sums), (eight, eight_sums) = (two_steps(name, index, devices) for devices in (1, 8))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one))
    assert np.isfinite(largest)
    assert largest > 1e-4
    factors = dict(prepared(name, 1).method.stages[index].lr_multipliers)
    groups = prepared(name, 1).step_config.head_groups
    for path, change in jax.tree_util.tree_flatten_with_path(one[0])[0]:
        # To the bit where the factor is 0, and really moved elsewhere.
        assert np.any(change) == (factors[group_of(path, groups)] > 0), jax.tree_util.keystr(path)
    # float32 sums in another order, twice; measured up to 2e-6 of the largest entry.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), eight, one)
    for a, b in zip(eight_sums, one_sums, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_array_equal(a["accuracy"], b["accuracy"])


@pytest.mark.slow
def test_a_stage_that_only_alters_numbers_compiles_nothing(compilations, tmp_path):
    """A run of two stages that differ in class weights compiles as many programs as a run of one."""

    def compiled(name):
        argv = ["main", f"--config=digits_lt.py:method={name}", "--config.network=flat", "--config.epochs=5"]
        argv += [
            "--config.data.augment=",
            "--config.eval_every=0",
            "--config.log_every=1",
            "--config.parallel.devices=1",
        ]
        before = compilations()
        run(parse(argv).config, tmp_path / name)
        lines = rundir.read_metrics(tmp_path / name / "metrics.jsonl")
        return compilations() - before, {line["stage"] for line in lines if "stage" in line}

    compiled("erm")  # what every run compiles once
    plain, both = compiled("cb"), compiled("cb_drw")
    assert both[1] == {"plain", "reweighted"}
    assert both[0] == plain[0]


@pytest.mark.slow
def test_a_retrained_classifier_begins_anew_and_the_backbone_stays():
    experiment = prepared("crt", 1)
    plain, retrained = experiment.method.stages
    variables = init.initialise(experiment.network, (8, 8, 1), 0)
    state = first_state(variables, optim.sgd(momentum=0.9, weight_decay=0))
    state = state._replace(opt_state=jax.tree.map(lambda leaf: leaf + 1, state.opt_state))
    begun = jax.device_get(loop.stage_start(experiment, retrained, state))
    assert (begun.params["head"]["linear"]["kernel"] != state.params["head"]["linear"]["kernel"]).mean() > 0.99
    np.testing.assert_array_equal(begun.params["conv1"]["conv"]["kernel"], state.params["conv1"]["conv"]["kernel"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(begun.opt_state))
    again = jax.device_get(loop.stage_start(experiment, retrained, state))
    jax.tree.map(np.testing.assert_array_equal, again, begun)  # a resumed run begins the stage alike
    same = jax.device_get(loop.stage_start(experiment, plain, state))
    jax.tree.map(np.testing.assert_array_equal, same, jax.device_get(state))


@pytest.fixture
def mine(monkeypatch):
    """Functions of a user, in a module of theirs: mixers, and rules for partners."""
    module = types.ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)

    def hidden(keys, image_a, image_b, label_a, label_b):
        return mixing.Mixed(image_a, label_a, label_b, jnp.full(len(label_a), 0.7), jnp.int32(1))

    def blended(keys, image_a, image_b, label_a, label_b):
        return mixing.Mixed((image_a + image_b) / 2, label_a, label_b, jnp.full(len(label_a), 0.5))

    def pair(keys, image_a, image_b, label_a, label_b):
        return image_a, label_a

    def fails(keys, image_a, image_b, label_a, label_b):
        return image_a @ label_a

    def neighbour(class_index, index, *, seed, step):
        slots = np.roll(np.arange(len(index), dtype=np.int32), 1)
        return index[slots], slots

    def anywhere(class_index, index, *, seed, step):
        return np.arange(len(index)) % len(class_index.labels), np.arange(len(index), 2 * len(index), dtype=np.int32)

    def other_place(class_index, index, *, seed, step):
        return np.roll(index, 1), np.arange(len(index), dtype=np.int32)

    def later_outside(class_index, index, *, seed, step):
        return (neighbour if step < 3 else anywhere)(class_index, index, seed=seed, step=step)

    def next_nearest(class_index, index, *, table, neighbours=2, seed, step):
        return table[index, neighbours - 1], np.arange(len(index), dtype=np.int32)

    def deep(keys, image_a, image_b, label_a, label_b):
        return hidden(keys, image_a, image_b, label_a, label_b)._replace(hidden=jnp.int32(3))

    def deep_at_times(keys, image_a, image_b, label_a, label_b):
        level = jax.random.randint(keys.step, (), 1, 5)
        return hidden(keys, image_a, image_b, label_a, label_b)._replace(hidden=level)

    mixers = hidden, deep, deep_at_times, blended, pair, fails
    for function in (*mixers, neighbour, anywhere, other_place, later_outside, next_nearest):
        setattr(module, function.__name__, function)


def mixed_by(mixer, partners, *more):
    argv = ["main", "--config=digits_lt.py:method=mixup", "--config.network=stem", "--config.parallel.devices=1"]
    argv += [f"--config.method.stages.mixed.{k}.name={v}" for k, v in (("mixer", mixer), ("pair_sampler", partners))]
    return prepare(parse([*argv, *more]).config, pathlib.Path("unwritten"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixer", "partners"),
    [
        ("mine:hidden", "by_class"),
        ("mine:hidden", "nearest"),
        ("mine:hidden", "mine:anywhere"),
        ("mine:hidden", "mine:other_place"),
        ("manifold_mixup", "by_class"),
        ("manifold_mixup", "nearest"),
        ("manifold_mixup", "mine:anywhere"),
    ],
)
def test_mixing_inside_of_the_network_needs_partners_of_the_batch(mine, mixer, partners):
    message = "stage 'mixed' of method 'mixup' mixes inside .*pair_sampler must be permutation, in_batch, or"
    with pytest.raises(UserError, match=message):
        mixed_by(mixer, partners)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["mine:hidden", "manifold_mixup"])
@pytest.mark.parametrize("partners", ["permutation", "in_batch", "mine:neighbour"])
def test_partners_of_the_batch_are_mixed_inside_of_the_network_but_not_in_parts(mine, mixer, partners):
    assert [stage.mixes_inside for stage in mixed_by(mixer, partners).method.stages] == [True, False]
    with pytest.raises(UserError, match="does not see its partners: set config.grad_accum_steps to 1"):
        mixed_by(mixer, partners, "--config.grad_accum_steps=2")


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["deep", "deep_at_times"])
def test_a_level_that_no_network_has_is_refused(mine, mixer):
    with pytest.raises(UserError, match=f"mixer {mixer} of stage 'mixed' mixes at level 3 of .* has levels 0, 1, 2"):
        mixed_by(f"mine:{mixer}", "permutation")


def test_a_mixer_of_images_takes_any_partners_and_parts(mine):
    for partners in ("by_class", "mine:anywhere"):
        experiment = mixed_by("mine:blended", partners, "--config.grad_accum_steps=2")
        assert not any(stage.mixes_inside for stage in experiment.method.stages)


def test_a_pair_sampler_of_a_user_is_given_the_table_that_it_asks_for(mine):
    experiment = mixed_by("mine:blended", "mine:next_nearest")
    _, _, batch = next(training_input.dispatches(experiment, 0))
    np.testing.assert_array_equal(batch.partner_label, batch.label)
    with pytest.raises(UserError, match="mixes inside of the network"):
        mixed_by("mine:hidden", "mine:next_nearest")


def test_partners_that_leave_the_batch_later_are_refused_then(mine):
    batches = training_input.dispatches(mixed_by("mine:hidden", "mine:later_outside"), 0)
    for _ in range(3):
        next(batches)
    with pytest.raises(UserError, match="mixes inside of the network"):
        next(batches)


@pytest.mark.parametrize(
    ("mixer", "message"),
    [
        ("mine:pair", "the mixer pair of stage 'mixed' returns tuple; it must return Mixed"),
        ("mine:fails", "the mixer fails of stage 'mixed' fails on a batch of images and labels: TypeError"),
    ],
)
def test_a_mixer_that_cannot_work_is_refused_before_training(mine, mixer, message):
    with pytest.raises(UserError, match=message):
        mixed_by(mixer, "permutation")


@pytest.mark.slow
def test_a_network_without_running_statistics_trains_and_one_with_other_collections_is_refused(monkeypatch):
    class Bare(nn.Module):
        num_classes: int
        counts: bool = False

        @nn.compact
        def __call__(self, x, train, mix=None):
            if self.counts:
                self.variable("calls", "count", lambda: jnp.int32(0))
            return nn.Dense(self.num_classes, name="head")(x.reshape(len(x), -1))

    monkeypatch.setitem(networks.NETWORKS, "stem", lambda num_classes, **_: Bare(num_classes))
    experiment = mixed_by("none", "none")
    state = first_state(experiment.variables, experiment.step_config.optimiser)
    numbers = StepInputs(np.uint32(0), np.float32(0.1), np.ones(10, np.float32))
    step = functools.partial(
        train_step, stage=experiment.method.stages[0], network=experiment.network, config=experiment.step_config
    )
    after, _ = quick.jit(step)(state, next(training_input.dispatches(experiment, 0)).batch, numbers)
    assert np.abs(np.asarray(after.params["head"]["kernel"]) - state.params["head"]["kernel"]).max() > 0
    monkeypatch.setitem(networks.NETWORKS, "stem", lambda num_classes, **_: Bare(num_classes, counts=True))
    with pytest.raises(UserError, match="keeps variables in the collection 'calls'"):
        mixed_by("none", "none")


def _loss_of_logits_alone(logits):
    return logits.mean(axis=1)


def _scalar(logits, labels):
    return logits.mean()


def _nothing(logits, labels):
    return None


def _integers(logits, labels):
    return logits.argmax(axis=1)


class _NoFunction:
    pass


def _smaller(keys, image_a, image_b, label_a, label_b):
    return mixing.Mixed(image_a[:, :4], label_a)


def _without_weight(keys, image_a, image_b, label_a, label_b):
    return mixing.Mixed(image_a, label_a, label_b)


def _one_weight(keys, image_a, image_b, label_a, label_b):
    return mixing.Mixed(image_a, label_a, label_b, 0.5)


@pytest.mark.parametrize(
    ("kind", "function", "message"),
    [
        ("loss", _loss_of_logits_alone, r"fails on a batch of logits \[4, 10\] and labels: TypeError"),
        ("loss", _NoFunction, "the loss _NoFunction of stage 'mixed' is a class; it must be a function"),
        (
            "loss",
            _scalar,
            r"loss _scalar of stage .mixed. returns float32\[\]; it must return one value per example",
        ),
        ("loss", _nothing, r"returns NoneType; it must return one value per example, float32\[4\]"),
        ("loss", _integers, r"returns int32\[4\]; it must return one value per example"),
        ("mixer", _smaller, r"returns Mixed with image float32\[4, 4, 8, 1\]; it must be \[4, 8, 8, 1\]"),
        ("mixer", _without_weight, "with only one of label_b and weight"),
        ("mixer", _one_weight, r"returns Mixed with weight float32\[\]; it must be \[4\]"),
    ],
)
def test_functions_of_a_stage_that_cannot_work_are_refused(kind, function, message):
    stage = prepared("unimix", 1).method.stages[0]._replace(**{kind: function})
    with pytest.raises(UserError, match=message):
        stages.check_functions(stage, (8, 8, 1), 4)


def _one_less(class_index, *, seed, step, batch_size):
    return np.zeros(batch_size - 1, int)


def _too_far(class_index, *, seed, step, batch_size):
    return np.full(batch_size, 10**6)


def _no_pair(class_index, index, *, seed, step):
    return index


def _fails(*_, **__):
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("kind", "function", "message"),
    [
        (
            "sampler",
            _one_less,
            r"sampler _one_less of stage 'mixed' returns positions int64\[31\]; they must be 32 whole",
        ),
        ("sampler", _too_far, "returns positions from 1000000 to 1000000; they must be 32 whole numbers in 0..330"),
        ("sampler", _fails, "sampler _fails of stage 'mixed' fails on the first step: SystemExit: 3, in line"),
        ("pair_sampler", _no_pair, r"returns int64\[32\]; it must return \(positions of partners, their views\)"),
        ("pair_sampler", _NoFunction, "pair_sampler _NoFunction of stage 'mixed' is a class; it must be a function"),
    ],
)
def test_samplers_that_choose_no_batch_are_refused(kind, function, message):
    experiment = prepared("unimix", 1)
    stage = experiment.method.stages[0]._replace(**{kind: function})
    with pytest.raises(UserError, match=message):
        stages.check_samplers(stage, experiment.class_index, 32)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda logits, head, *, validation: logits, r"returns float32\[20, 10\]; it must return \(logits, chosen"),
        (lambda logits, head, *, validation: (logits[:, :5], {}), r"returns logits \[20, 5\] for \[20, 10\]"),
        (_fails, r"the posthoc function _fails fails on logits \[20, 10\]: SystemExit: 3"),
    ],
)
def test_changes_of_logits_that_return_no_logits_are_refused(function, message):
    method = prepared("unimix", 1).method._replace(posthoc=function)
    with pytest.raises(UserError, match=message):
        stages.check_posthoc(method, {}, validation=True)
