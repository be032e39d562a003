import inspect
import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax import registry
from unimix_jax.config import parse
from unimix_jax.errors import UserError
from unimix_jax.methods import build, losses, mixing
from unimix_jax.methods.recipes import NEW_ENTRIES, NEW_FUNCTIONS, RECIPES

from . import quick

COUNTS = np.array([60, 30, 10])
ALL = [(kind, name) for kind in registry.KINDS for name in registry.entries(kind)]
# Kinds whose entries recipes name, and kinds of functions with options.
IN_RECIPES = ("loss", "mixer", "pair_sampler", "sampler", "class_weight", "posthoc")
FUNCTIONS = (*IN_RECIPES, "optimiser", "schedule", "augmentation")
CONTEXT = {
    "optimiser": {"momentum", "weight_decay", "mask"},
    "schedule": {"total_steps", "steps_per_epoch"},
    "augmentation": {"pad", "flip", "jitter", "mean"},
} | {kind: {"counts", "train_prior", "test_prior"} for kind in IN_RECIPES}


def names_in_recipes(kind):
    """The functions that recipes name for a kind of entry, stages and whole recipes together."""
    parts = [part for recipe in RECIPES.values() for part in (recipe, *recipe["stages"].values()) if kind in part]
    return {part[kind]["name"] for part in parts}


@pytest.mark.parametrize(("kind", "name"), [each for each in ALL if each[0] in IN_RECIPES])
def test_every_entry_is_used_by_a_recipe_or_says_why_not(kind, name):
    stated = registry.traits(kind, registry.resolve(kind, name))
    assert (name in names_in_recipes(kind)) == (stated.no_recipe == "")


@pytest.mark.parametrize(("kind", "name"), [each for each in ALL if each[0] in FUNCTIONS])
def test_every_entry_bounds_its_options_and_describes_its_arguments(kind, name):
    function = registry.resolve(kind, name)
    stated, parameters = registry.traits(kind, function), inspect.signature(function).parameters
    asked = {*CONTEXT[kind], *registry.KINDS[kind].later}
    asked |= {"scale"} if getattr(stated, "head_scale", False) else set()
    keywords = {p for p in parameters if parameters[p].kind is inspect.Parameter.KEYWORD_ONLY}
    assert set(stated.options) == keywords - asked
    for option, bound in stated.options.items():
        default = parameters[option].default
        assert default in (None, inspect.Parameter.empty) or bound.allows(default), option
    assert "Args:" in function.__doc__
    for parameter in parameters:
        assert f"\n      {parameter}: " in function.__doc__, parameter


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_every_public_function_of_a_kind_states_traits(kind):
    """A function that looks like an entry is one: it takes what all entries of its kind take first."""
    entries = registry.entries(kind)
    first = {tuple(inspect.signature(f).parameters)[:2] for f in entries.values()}
    module = sys.modules[registry.KINDS[kind].module]
    alike = {
        name
        for name, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == module.__name__ and not name.startswith("_")
        if tuple(inspect.signature(f).parameters)[:2] in first
    }
    helpers = {"sampler": {"indices", "natural_order"}, "class_weight": {"profile", "prior"}}
    assert alike - helpers.get(kind, set()) <= set(entries)


def test_the_entries_are_those_of_the_papers():
    assert {"cross_entropy", "bayias", "ldam", "label_aware_smoothing"} <= set(registry.entries("loss"))
    assert set(registry.entries("mixer")) == {"unimix", "mixup", "cutmix", "manifold_mixup", "remix", "smote"}
    assert set(registry.entries("sampler")) == {"instance_balanced", "class_balanced"}
    assert set(registry.entries("pair_sampler")) == {"by_class", "permutation", "in_batch", "nearest"}
    assert set(registry.entries("posthoc")) == {"logit_adjustment", "tau_norm"}
    assert set(registry.entries("class_weight")) == {"effective_number_weights", "inverse_weights"}


@pytest.mark.parametrize("name", registry.entries("mixer"))
def test_mixers_do_what_they_state(name):
    mixer, pairs = registry.resolve("mixer", name), jnp.ones((4, 2, 2, 1))
    stated, labels = registry.traits("mixer", mixer), jnp.array([0, 1, 0, 1])
    asked = {"counts": np.array([3, 1])} if "counts" in inspect.signature(mixer).parameters else {}

    def mix(key):
        return mixer(mixing.Keys(key, jax.random.split(key, 4)), pairs, pairs, labels, labels, **asked)

    mixed = jax.eval_shape(mix, jax.random.key(0))
    assert (mixed.hidden is not None) == stated.mixes_inside
    assert (mixed.label_b is None) == stated.keeps_label


@pytest.mark.parametrize("name", registry.entries("pair_sampler"))
def test_pair_samplers_do_what_they_state(name):
    from unimix_jax.data import pairs, sampling

    labels = np.repeat([0, 1, 2], COUNTS)
    class_index, index = sampling.sorted_by_class(labels), np.arange(0, 100, 2)
    function = registry.resolve("pair_sampler", name)
    stated = registry.traits("pair_sampler", function)
    assert stated.needs_neighbours == ("table" in inspect.signature(function).parameters)
    images = np.random.default_rng(0).integers(0, 256, (100, 1, 1, 1), np.uint8)
    table = {"table": pairs.neighbour_table(images, class_index, 5)} if stated.needs_neighbours else {}
    drawn = [function(class_index, index, seed=0, step=step, **table) for step in range(300)]
    in_batch = [((view < 50) & (index[np.minimum(view, 49)] == partner)).all() for partner, view in drawn]
    assert all(in_batch) if stated.in_batch else not any(in_batch)
    classes = np.concatenate([labels[partner] for partner, _ in drawn])
    assert stated.same_class == (classes == np.tile(labels[index], 300)).all()
    # Ten standard deviations of 15,000 draws from three classes: the others are off by far more.
    moved = np.abs(np.bincount(classes) / 15_000 - COUNTS / 100).max()
    assert (moved > 10 * 0.5 / np.sqrt(15_000)) == stated.changes_label_shares


def of_user(monkeypatch, **functions):
    """Put functions into a module of a user, `mine`."""
    module = types.ModuleType("mine")
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, "mine", module)


def built(stage, posthoc=None, scale=1.0):
    recipe = {"stages": {"plain": stage}, "head": "linear", "posthoc": posthoc or {"name": "none"}}
    return build.build(
        recipe, COUNTS, name="own", epochs=1, steps_per_epoch=1, test_prior=np.full(3, 1 / 3), logit_scale=scale
    )


@pytest.mark.slow
def test_a_loss_outside_of_the_package_is_a_function_with_traits_and_one_recipe(monkeypatch):
    @registry.Loss(natural_prior="train", head_scale=True, options={"floor": registry.within(0, 1)})
    def floored(logits, labels, *, counts, scale, floor=0.5):
        assert scale == 30
        assert counts is COUNTS
        return jnp.maximum(losses.cross_entropy(logits, labels), floor)

    of_user(monkeypatch, floored=floored)
    recipe = {"about": "mine", "stages": {"plain": {"loss": {"name": "mine:floored", "floor": 0.25}}}}
    monkeypatch.setitem(RECIPES, "floored", recipe)
    config = parse(["main", "--config=digits_lt.py:method=floored"]).config
    method = build.build(
        config.method.to_dict(), COUNTS, name="floored", epochs=1, steps_per_epoch=1, test_prior=COUNTS, logit_scale=30
    )
    (stage,) = method.stages
    values = quick.jit(stage.loss)(np.float32([[9, 0, 0], [0, 0, 0]]), np.array([0, 1]))
    np.testing.assert_allclose(values, [0.25, np.log(3)])
    np.testing.assert_allclose(method.logits_prior, COUNTS / 100)
    with pytest.raises(UserError, match="floor of loss 'mine:floored' is 2; it must be in 0..1"):
        built({"loss": {"name": "mine:floored", "floor": 2}}, scale=30)


def test_a_user_s_function_without_traits_is_taken_cautiously(monkeypatch):
    def loss(logits, labels, *, scale=2.0):
        return scale * losses.cross_entropy(logits, labels)

    def mixer(keys, image_a, image_b, label_a, label_b):
        return mixing.Mixed(image_a, label_a)

    def partners(class_index, index, *, seed, step):
        return index, np.arange(len(index))

    def sampler(class_index, *, seed, step, batch_size):
        return np.zeros(batch_size, np.int64)

    of_user(monkeypatch, loss=loss, mixer=mixer, partners=partners, sampler=sampler)
    assert built({}).logits_prior is not None
    permuted = {"mixer": {"name": "mixup"}, "pair_sampler": {"name": "permutation"}}
    assert built(permuted).logits_prior is not None
    for changes in (
        {"loss": {"name": "mine:loss"}},
        {"sampler": {"name": "mine:sampler"}},
        {**permuted, "mixer": {"name": "mine:mixer"}},
        {**permuted, "pair_sampler": {"name": "mine:partners"}},
    ):
        assert built(changes).logits_prior is None
    # An option of the user's that is called scale is theirs.
    assert built({"loss": {"name": "mine:loss"}}, scale=30).stages[0].loss.keywords == {}
    with pytest.raises(UserError, match="keeps one label"):
        built({"mixer": {"name": "smote"}, "pair_sampler": {"name": "mine:partners"}})


def test_a_user_s_pair_sampler_may_keep_the_class_and_ask_for_neighbours(monkeypatch):
    @registry.PairSampler(in_batch=False, same_class=True, needs_neighbours=True, changes_label_shares=False)
    def stated(class_index, index, *, table, neighbours=3, seed, step):
        return index, np.arange(len(index))

    def silent(class_index, index, *, table, neighbours=4, seed, step):
        return index, np.arange(len(index))

    def without_number(class_index, index, *, table, seed, step):
        return index, np.arange(len(index))

    of_user(monkeypatch, stated=stated, silent=silent, without_number=without_number)
    method = built({"mixer": {"name": "smote"}, "pair_sampler": {"name": "mine:stated", "neighbours": 7}})
    assert method.stages[0].neighbours == 7
    assert method.logits_prior is not None
    mixup = {"mixer": {"name": "mixup"}}
    assert built({**mixup, "pair_sampler": {"name": "mine:silent"}}).stages[0].neighbours == 4
    with pytest.raises(UserError, match="needs an option `neighbours`"):
        built({**mixup, "pair_sampler": {"name": "mine:without_number"}})


def test_a_user_s_change_of_trained_logits_may_state_its_prior(monkeypatch):
    @registry.Posthoc(turns_prior=("train", "test"))
    def to_test(logits, head, *, validation=None):
        return logits, {}

    of_user(monkeypatch, to_test=to_test)
    np.testing.assert_allclose(built({}, {"name": "mine:to_test"}).logits_prior, np.full(3, 1 / 3))
    assert built({"loss": {"name": "focal"}}, {"name": "mine:to_test"}).logits_prior is None


@pytest.mark.parametrize("mixer", ["remix", "unimix"])
def test_a_mixer_that_moves_labels_leaves_no_prior(mixer):
    assert built({"mixer": {"name": mixer}, "pair_sampler": {"name": "permutation"}}).logits_prior is None


def test_a_prior_holds_only_at_the_options_that_say_so():
    for strength, prior in ((1.0, np.full(3, 1 / 3)), (0.5, None)):
        found = built({"loss": {"name": "logit_adjustment", "strength": strength}}).logits_prior
        assert found is None if prior is None else np.allclose(found, prior)


def test_traits_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="cross_entropy takes no option 'gamma'"):
        registry.Loss(options={"gamma": registry.NUMBER})(losses.cross_entropy)
    with pytest.raises(UserError, match="unknown prior of a loss 'tran' .did you mean 'train'"):
        registry.Loss(natural_prior="tran")


def test_old_names_are_names_of_today():
    stage = RECIPES["erm"]["stages"]["plain"]
    assert not set(NEW_ENTRIES) & set(stage)
    assert set(NEW_ENTRIES.values()) <= set(stage)
    for kind, names in NEW_FUNCTIONS.items():
        assert set(names.values()) <= set(registry.entries(kind))
        assert not set(names) & set(registry.entries(kind))


@pytest.mark.parametrize(
    ("before", "changes", "expected"),
    [
        ({"name": "a", "x": 1}, {"x": 2}, {"name": "a", "x": 2}),
        ({"name": "a", "x": 1}, {"name": "a", "y": 2}, {"name": "a", "x": 1, "y": 2}),
        ({"name": "a", "x": 1}, {"name": "b", "y": 2}, {"name": "b", "y": 2}),
        ({"loss": {"name": "a", "x": 1}, "k": 0}, {"loss": {"name": "b"}}, {"loss": {"name": "b"}, "k": 0}),
        ({"factors": {"p": 1, "q": 2}}, {"factors": {"q": 3}}, {"factors": {"p": 1, "q": 3}}),
        ({}, {"loss": {"name": "b"}}, {"loss": {"name": "b"}}),
        ({"k": 0}, 5, 5),
    ],
)
def test_another_function_drops_the_options_of_the_one_before(before, changes, expected):
    assert registry.inherit(before, changes) == expected


def test_the_document_s_loss_states_its_traits():
    text = (pathlib.Path(__file__).parents[1] / "docs" / "own_loss.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, flags=re.S) if "registry.Loss" in block]
    names = {}
    exec(compile(code, "docs/own_loss.md", "exec"), names)
    stated = registry.traits("loss", names["rare_first"])
    assert (stated.natural_prior, stated.balanced_prior) == ("train", "none")
    decorators = re.findall(r"`registry\.(\w+)` \|", text)
    assert {getattr(registry, name) for name in decorators} == {
        registry.KINDS[kind].traits for kind in (*IN_RECIPES, "logger") if kind != "loss"
    }


def _loss_with_default(logits, labels, strength=1.0):
    return logits[:, 0] * strength


def test_a_parameter_with_a_default_is_an_option_without_a_star(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(loss=_loss_with_default))
    bound = registry.bind("loss", {"name": "mine:loss", "strength": 2.0}, {"counts": np.array([1, 1])})
    assert bound.keywords == {"strength": 2.0}
    with pytest.raises(UserError, match="takes no option 'labels'; it takes strength"):
        registry.bind("loss", {"name": "mine:loss", "labels": 2.0}, {})


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("failing:loss", "ModuleNotFoundError: No module named 'notthere', in line 2 of {}/failing.py"),
        ("outer:loss", "ModuleNotFoundError: No module named 'notthere', in line 2 of {}/failing.py"),
        ("dividing:loss", "ZeroDivisionError: division by zero, in line 2 of {}/dividing.py"),
        ("no_such_module:loss", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("math:loss", "AttributeError: module 'math' has no attribute 'loss'"),
        (":loss", 'it must be "module:object", such as my_losses:rare_first'),
        ("math:", 'it must be "module:object", such as my_losses:rare_first'),
        (".math:loss", 'it must be "module:object", such as my_losses:rare_first'),
    ],
)
def test_a_user_s_module_that_cannot_be_imported_gets_a_sentence_with_its_line(tmp_path, monkeypatch, name, sentence):
    (tmp_path / "failing.py").write_text("import math\nimport notthere\n")
    (tmp_path / "outer.py").write_text("import failing\n")
    (tmp_path / "dividing.py").write_text("def loss(): ...\nloss.share = 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        registry.resolve("loss", name)
    assert str(caught.value) == f"cannot import {name!r}: {sentence.format(tmp_path)}"


def test_an_unknown_name_says_how_one_s_own_is_named():
    with pytest.raises(UserError, match="unknown schedule 'zzz'; known: .*, or your own as \"module:object\"$"):
        registry.resolve("schedule", "zzz")
