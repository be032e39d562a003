import copy
import functools
import itertools

import numpy as np
import pytest

from unimix_jax.config import parse
from unimix_jax.data import pairs, sampling
from unimix_jax.errors import UserError
from unimix_jax.methods import build, losses, mixing
from unimix_jax.methods.recipes import RECIPES

COUNTS = np.array([60, 30, 10])
PRIOR = COUNTS / 100
TEST_PRIOR = np.array([0.2, 0.3, 0.5])
UNIFORM = np.full(3, 1 / 3)


def built_by(name="unimix_bayias", change=None, epochs=200, steps_per_epoch=97):
    recipe = copy.deepcopy(RECIPES[name])
    if change:
        change(recipe["stages"])
    return build.build(recipe, COUNTS, name=name, epochs=epochs, steps_per_epoch=steps_per_epoch, test_prior=TEST_PRIOR)


def test_erm_is_one_stage_of_cross_entropy():
    (stage,) = built_by("erm").stages
    assert (stage.first, stage.last) == (0, 200 * 97)
    assert stage.loss.func is losses.cross_entropy
    assert stage.mixer is stage.pair_sampler is None
    np.testing.assert_array_equal(stage.class_weight, [1, 1, 1])
    assert not stage.restart


def test_the_papers_method_mixes_until_120_of_200():
    mixed, plain = built_by().stages
    assert (mixed.first, mixed.last, plain.first, plain.last) == (0, 120 * 97, 120 * 97, 200 * 97)
    assert mixed.mixer.func is mixing.unimix
    assert mixed.mixer.keywords["alpha"] == 0.5
    assert mixed.mixer.keywords["wrap"] is True
    assert mixed.pair_sampler.keywords == {"class_exponent": -1.0}
    assert plain.mixer is plain.pair_sampler is None
    # Equal options are one function, so that equal stages share a program.
    assert mixed.loss is plain.loss
    np.testing.assert_array_equal(plain.loss.keywords["train_prior"], PRIOR)


def test_deferred_weights_begin_at_160_of_200_and_change_numbers_only(golden):
    plain, reweighted = built_by("cb_drw").stages
    assert (reweighted.first, reweighted.last) == (160 * 97, 200 * 97)
    assert plain.program == reweighted.program
    counts = golden("losses_c10")["counts"]
    recipe = RECIPES["cb_drw"]
    built = build.build(recipe, counts, name="cb_drw", epochs=200, steps_per_epoch=1, test_prior=counts)
    at = {epoch: next(s for s in built.stages if s.first <= epoch < s.last) for epoch in (0, 159, 160, 199)}
    schedules = golden("schedules")
    for epoch, weights in zip(schedules["drw_epochs"], schedules["drw_weights_c10"], strict=True):
        np.testing.assert_allclose(at[int(epoch)].class_weight, weights, rtol=1e-6)


def test_a_second_stage_follows_the_run_with_its_own_rate_and_parameters():
    mixed, smoothed = built_by("mislas").stages
    assert (mixed.last, smoothed.first, smoothed.last) == (200 * 97, 200 * 97, 210 * 97)
    assert smoothed.restart
    assert dict(smoothed.lr_multipliers) == {"backbone": 0.0, "classifier": 0.5, "scale": 1.0}
    assert dict(mixed.lr_multipliers) == {"backbone": 1.0, "classifier": 1.0, "scale": 0.0}
    assert smoothed.batch_norm == "frozen"
    assert smoothed.sampler.func is sampling.class_balanced
    assert smoothed.mixer is None
    assert [s.name for s in built_by("unimix_bayias_las").stages] == ["mixed", "plain", "smoothed"]
    retrained = built_by("crt").stages[1]
    assert retrained.reinitialise
    assert retrained.batch_norm == "train"
    assert dict(retrained.lr_multipliers)["backbone"] == 0.0


def test_a_changed_option_reaches_the_stages_after_it():
    def change(stages):
        stages["mixed"]["loss"] = {"name": "cross_entropy"}
        stages["mixed"]["mixer"]["alpha"] = 0.8

    mixed, plain = built_by(change=change).stages
    assert mixed.loss.func is plain.loss.func is losses.cross_entropy
    assert mixed.mixer.keywords["alpha"] == 0.8


@pytest.mark.parametrize(
    ("name", "prior"),
    [
        ("erm", PRIOR),
        ("mixup_drw", None),
        ("unimix", PRIOR),
        ("bayias", TEST_PRIOR),
        ("unimix_bayias", TEST_PRIOR),
        ("logit_adjustment", UNIFORM),
        ("balanced_softmax", UNIFORM),
        ("logit_adjustment_posthoc", UNIFORM),
        ("mixup", PRIOR),
        ("unimix_bayias_code", None),
        ("unimix_bayias_las", UNIFORM),
        ("ldam", None),
        ("cdt", None),
        ("focal", None),
        ("cb", None),
        ("las", None),
        ("mislas", UNIFORM),
        ("crt", UNIFORM),
        ("smote", UNIFORM),
        ("tau_norm", None),
    ],
)
def test_which_prior_the_logits_stand_for(name, prior):
    logits_prior = built_by(name).logits_prior
    if prior is None:
        assert logits_prior is None
    else:
        np.testing.assert_allclose(logits_prior, prior)


@pytest.mark.parametrize("name", ["crt", "cb", "cb_drw", "smote", "unimix_bayias", "ldam"])
def test_adjusting_logits_that_do_not_stand_for_the_training_prior_leaves_none(name):
    recipe = {**copy.deepcopy(RECIPES[name]), "posthoc": {"name": "logit_adjustment", "strength": 1.0}}
    built = build.build(recipe, COUNTS, name=name, epochs=10, steps_per_epoch=1, test_prior=TEST_PRIOR)
    assert built.logits_prior is None


def test_any_loss_goes_with_any_mixer_weight_and_sampler():
    def change(stages):
        stages["mixed"] |= {
            "loss": {"name": "ldam", "max_margin": 0.3},
            "class_weight": {"name": "inverse_weights"},
            "reduction": "count",
            "sampler": {"name": "class_balanced"},
            "pair_sampler": {"name": "permutation"},
        }

    mixed = built_by(change=change).stages[0]
    assert mixed.loss.keywords["max_margin"] == 0.3
    assert mixed.loss.keywords["scale"] == 1.0  # of the linear head's logits
    np.testing.assert_allclose(mixed.class_weight, 3 * (1 / COUNTS) / (1 / COUNTS).sum(), rtol=1e-6)
    assert (mixed.reduction, mixed.sampler.func, mixed.pair_sampler.func) == (
        "count",
        sampling.class_balanced,
        pairs.permutation,
    )
    assert built_by(change=change).logits_prior is None


def test_the_order_of_stages_is_that_of_their_begins():
    def change(stages):
        stages["a_last"] = stages.pop("plain")

    recipe = copy.deepcopy(RECIPES["unimix_bayias"])
    change(recipe["stages"])
    recipe["stages"] = dict(sorted(recipe["stages"].items()))  # as a config would have them
    built = build.build(recipe, COUNTS, name="own", epochs=10, steps_per_epoch=1, test_prior=TEST_PRIOR)
    assert [(s.name, s.first, s.last) for s in built.stages] == [("mixed", 0, 6), ("a_last", 6, 10)]


def test_a_stage_goes_on_from_the_one_before_but_draws_its_classifier_anew_only_if_it_says_so():
    def change(stages):
        stages["longer"] = {"begin": 1.0, "epochs": 3}

    _, retrained, longer = built_by("crt", change).stages
    assert (retrained.reinitialise, longer.reinitialise) == (True, False)
    assert (longer.first, longer.last) == (retrained.last, retrained.last + 3 * 97)
    assert longer.lr_multipliers == retrained.lr_multipliers
    assert longer.restart


def test_a_stage_too_short_for_a_step_is_left_out():
    assert [stage.name for stage in built_by(epochs=1, steps_per_epoch=1).stages] == ["mixed"]


def with_(path, value):
    def change(stages):
        *parents, last = path.split(".")
        functools.reduce(lambda group, key: group[key], parents, stages)[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_("mixed.loss.name", "bayes"), "unknown loss 'bayes' .did you mean 'bayias'"),
        (with_("mixed.mixer.name", "mixdown"), "unknown mixer 'mixdown'"),
        (with_("mixed.pair_sampler.name", "friends"), "unknown pair_sampler 'friends'"),
        (with_("mixed.mixer.beta", 1.0), "mixer 'unimix' takes no option 'beta'; it takes alpha, wrap"),
        (with_("mixed.loss.train_prior", 1.0), "takes no option 'train_prior'"),
        (with_("mixed.pair_sampler.seed", 1), "takes no option 'seed', for the run passes it; it takes class_exponent"),
        (with_("plain.mixer.alpha", 1.0), "'none' takes no options"),
        (with_("plain.begin", 1.5), "begin at 0, 1.5 of the run; one must begin at 0"),
        (with_("plain.begin", 0.0), "begin at 0, 0 of the run"),
        (with_("plain.begin", 1.0), "begins at 1, after the run; give it epochs"),
        (with_("mixed.begin", 0.1), "begin at 0.1, 0.6 of the run"),
        (with_("mixed.mixer.alpha", 0.0), "alpha of mixer 'unimix' is 0.0; it must be in .01..100"),
        (with_("mixed.mixer.alpha", float("nan")), "must be finite"),
        (with_("mixed.lr_multipliers", {"backbone": -1.0}), "the factor of backbone"),
        (with_("mixed.lr_multipliers", {"backbone": "x"}), "the factor of backbone"),
        (with_("mixed.mixer.alpha", "a"), "alpha of mixer 'unimix' is 'a'"),
        (with_("mixed.loss.name", "math:pi"), "'math:pi' is 3.14.* and no function"),
        (with_("mixed.loss.name", ":x"), "cannot import ':x'"),
        (with_("mixed.mixer", {"name": "smote"}), "the mixer smote keeps one label.*pair_sampler must be nearest"),
        (with_("plain.epochs", 5), "begins at 0.6 of the run and has epochs"),
        (with_("mixed.schedule", {"name": "cosine", "learning_rate": 0.0}), "learning_rate .* must be above 0"),
        (with_("mixed.schedule", {"name": "cosine"}), "schedule 'cosine' needs the option 'learning_rate'"),
        (with_("plain.mixxer", {"name": "none"}), "unknown entry 'mixxer' .did you mean 'mixer'"),
        (with_("plain.partners", {"name": "none"}), "unknown entry 'partners' .now 'pair_sampler'"),
        (with_("mixed.mixer.alfa", 1.0), "takes no option 'alfa' .did you mean 'alpha'.*it takes alpha, wrap"),
        (with_("mixed.mixer.wrap", "no"), "wrap of mixer 'unimix' is 'no'; it must be True or False"),
        (with_("mixed.loss", {"name": "logit_adjustment", "strength": "x"}), "strength .* must be a number"),
        (with_("mixed.mixer", {"name": "manifold_mixup"}), "mixes inside .*pair_sampler must be permutation, in_batch"),
        (with_("plain.pair_sampler", {"name": "permutation"}), "needs a mixer and a pair_sampler"),
        (with_("mixed.loss.name", "no_such_module:loss"), "cannot import 'no_such_module:loss'"),
        (with_("mixed.loss.name", "math:loss"), "cannot import 'math:loss'"),
        (with_("mixed.sampler", {"name": "sorted"}), "unknown sampler 'sorted'"),
        (with_("mixed.class_weight", {"name": "square"}), "unknown class_weight 'square'"),
        (with_("mixed.reduction", "mean"), "unknown reduction of stage 'mixed' 'mean'"),
        (with_("mixed.batch_norm", "off"), "unknown batch_norm of stage 'mixed' 'off'"),
        (with_("mixed.schedule", {"name": "linear"}), "unknown schedule 'linear'"),
        (with_("mixed.lr_multipliers", {"backbon": 1.0}), "lr_multipliers of stage 'mixed'.*'backbon'"),
    ],
)
def test_wrong_recipes_get_a_sentence(change, message):
    with pytest.raises(UserError, match=message):
        built_by(change=change)


CE, BAYIAS = ("cross_entropy", {}), ("bayias", {})
LAS = ("label_aware_smoothing", {"head": 0.3, "tail": 0.0, "shape": "concave", "power": 2.0, "formula": "code"})
LDAM = ("ldam", {"max_margin": 0.5})
MIXUP, REMIX = (
    ("mixup", {"alpha": 1.0, "per_example": False}),
    ("remix", {"alpha": 1.0, "kappa": 3.0, "threshold": 0.5}),
)
UNIMIX, RARE = ("unimix", {"alpha": 0.5, "wrap": True}), ("by_class", {"class_exponent": -1.0})
CUTMIX = ("cutmix", {"alpha": 1.0, "probability": 0.5, "per_example": False})
PERMUTED = ("permutation", {})


def stage_of(end, loss, mixer=None, pair_sampler=None, **more):
    """The expected facts of a stage: its end in epochs of 200, functions with options, the rest by default."""
    usual = {"sampler": "instance_balanced", "weighted": False, "backbone": 1.0, "classifier": 1.0, "scale": 0.0}
    usual |= {"batch_norm": "train", "reinitialise": False, "schedule": "run"}
    return {"end": end, "loss": loss, "mixer": mixer, "pair_sampler": pair_sampler, **usual, **more}


SECOND = {"sampler": "class_balanced", "backbone": 0.0, "schedule": "cosine"}
SMOOTHED = stage_of(210, LAS, **SECOND, classifier=0.5, scale=1.0, batch_norm="frozen")
# Each recipe on CIFAR-10-LT-100, written from the papers and the originals' code: head and stages.
EXPECTED = {
    "erm": ("linear", stage_of(200, CE)),
    "mixup": ("linear", stage_of(120, CE, MIXUP, PERMUTED), stage_of(200, CE)),
    "manifold_mixup": ("linear", stage_of(120, CE, ("manifold_mixup", {"alpha": 1.0}), PERMUTED), stage_of(200, CE)),
    "cutmix": ("linear", stage_of(200, CE, CUTMIX, PERMUTED)),
    "cmo": (
        "linear",
        stage_of(4, CE), stage_of(197, CE, CUTMIX, ("by_class", {"class_exponent": 0.0})), stage_of(200, CE),
    ),
    "remix": ("linear", stage_of(120, CE, REMIX, PERMUTED), stage_of(200, CE)),
    "mixup_drw": (
        "linear", stage_of(120, CE, MIXUP, PERMUTED), stage_of(160, CE), stage_of(200, CE, weighted=True),
    ),
    "remix_drw": (
        "linear", stage_of(120, CE, REMIX, PERMUTED), stage_of(160, CE), stage_of(200, CE, weighted=True),
    ),
    "focal": ("linear", stage_of(200, ("focal", {"gamma": 1.0}))),
    "cb": ("linear", stage_of(200, CE, weighted=True)),
    "cb_drw": ("linear", stage_of(160, CE), stage_of(200, CE, weighted=True)),
    "cdt": ("linear", stage_of(200, ("cdt", {"gamma": 0.2}))),
    "ldam": ("cosine", stage_of(200, LDAM)),
    "ldam_drw": ("cosine", stage_of(160, LDAM), stage_of(200, LDAM, weighted=True)),
    "logit_adjustment": ("linear", stage_of(200, ("logit_adjustment", {"strength": 1.0}))),
    "balanced_softmax": ("linear", stage_of(200, ("balanced_softmax", {}))),
    "logit_adjustment_posthoc": ("linear", stage_of(200, CE)),
    "las": ("linear", stage_of(200, LAS)),
    "smote": ("linear", stage_of(200, CE, ("smote", {}), ("nearest", {"neighbours": 5}), sampler="class_balanced")),
    "unimix": ("linear", stage_of(120, CE, UNIMIX, RARE), stage_of(200, CE)),
    "bayias": ("linear", stage_of(200, BAYIAS)),
    "unimix_bayias": ("linear", stage_of(120, BAYIAS, UNIMIX, RARE), stage_of(200, BAYIAS)),
    "unimix_bayias_code": (
        "linear",
        stage_of(200, BAYIAS, ("unimix", {"alpha": 0.8, "wrap": True}), ("in_batch", {"image_exponent": -0.5})),
    ),
    "mislas": ("scaled", stage_of(200, CE, MIXUP, PERMUTED), SMOOTHED),
    "unimix_bayias_las": ("scaled", stage_of(120, BAYIAS, UNIMIX, RARE), stage_of(200, BAYIAS), SMOOTHED),
    "crt": ("linear", stage_of(200, CE), stage_of(210, CE, **SECOND, reinitialise=True)),
    "tau_norm": ("linear", stage_of(200, CE)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_that_of_its_paper(name):
    config = parse(["main", f"--config=cifar_lt.py:method={name}"]).config
    counts = np.array([5000, 400, 50])
    built = build.build(
        config.method.to_dict(), counts, name=name, epochs=200, steps_per_epoch=1, test_prior=TEST_PRIOR
    )
    context = ("counts", "train_prior", "test_prior", "scale", "table")

    def of(function):
        options = {k: v for k, v in function.keywords.items() if k not in context} if function else None
        return function and (function.func.__name__, options)

    found = [
        {
            "end": stage.last,
            "loss": of(stage.loss),
            "mixer": of(stage.mixer),
            "pair_sampler": of(stage.pair_sampler),
            "sampler": stage.sampler.func.__name__,
            "weighted": not (stage.class_weight == 1).all(),
            **dict(stage.lr_multipliers),
            "batch_norm": stage.batch_norm,
            "reinitialise": stage.reinitialise,
            "schedule": "run" if stage.schedule is None else stage.schedule.func.__name__,
        }
        for stage in built.stages
    ]
    head, *expected = EXPECTED[name]
    assert built.head == head
    assert found == expected
    assert all(stage.reduction == "weights" for stage in built.stages)
    assert config.batch_size == (64 if name == "unimix_bayias_code" else 128)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_what_it_is_and_builds(name):
    assert RECIPES[name]["about"]
    stages = built_by(name).stages
    assert stages[0].first == 0
    assert all(a.last == b.first for a, b in itertools.pairwise(stages))
    assert max(s.last for s in stages if not s.restart) == 200 * 97
