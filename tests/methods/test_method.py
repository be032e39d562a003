import copy
import functools

import numpy as np
import pytest

from unimix_jax.data import sampling
from unimix_jax.errors import UserError
from unimix_jax.methods import losses, method, mixing
from unimix_jax.methods.rows import ROWS

COUNTS = np.array([60, 30, 10])
PRIOR = COUNTS / 100


def build(name="unimix_bayias", change=None, steps=1000):
    row = copy.deepcopy(ROWS[name])
    if change:
        change(row["stages"])
    test_prior = np.array([0.2, 0.3, 0.5])
    return method.build(row, COUNTS, name=name, steps=steps, partners=sampling.PARTNERS, test_prior=test_prior)


def test_erm_is_one_stage_of_cross_entropy():
    (stage,) = build("erm").stages
    assert (stage.first, stage.last) == (0, 1000)
    assert stage.loss.func is losses.cross_entropy
    assert stage.mixer is stage.partners is None
    np.testing.assert_array_equal(build("erm").logits_prior, PRIOR)


def test_the_papers_method_mixes_until_120_of_200():
    mixed, plain = build(steps=200 * 97).stages
    assert (mixed.first, mixed.last, plain.first, plain.last) == (0, 120 * 97, 120 * 97, 200 * 97)
    assert mixed.mixer.func is mixing.unimix
    assert mixed.mixer.keywords["alpha"] == 0.5
    assert mixed.mixer.keywords["wrap"] is True
    assert mixed.partners.keywords == {"class_exponent": -1.0}
    assert plain.mixer is plain.partners is None
    # Equal options are one function, so that equal stages share a program.
    assert mixed.loss is plain.loss
    np.testing.assert_array_equal(plain.loss.keywords["train_prior"], PRIOR)
    np.testing.assert_array_equal(build().logits_prior, [0.2, 0.3, 0.5])


def test_a_changed_option_reaches_the_stages_after_it():
    def change(stages):
        stages["mixed"]["loss"] = {"name": "cross_entropy"}
        stages["mixed"]["mixer"]["alpha"] = 0.8

    mixed, plain = build(change=change).stages
    assert mixed.loss.func is plain.loss.func is losses.cross_entropy
    assert mixed.mixer.keywords["alpha"] == 0.8


def test_a_users_own_loss_comes_in_by_name():
    def change(stages):
        stages["plain"]["loss"] = {"name": f"{__name__}:own_loss", "strength": 3.0}

    import sys

    sys.modules.setdefault(__name__, sys.modules[own_loss.__module__])
    built = build("erm", change)
    np.testing.assert_array_equal(built.stages[0].loss(np.zeros((2, 3)), np.array([0, 2])), [180, 30])
    assert built.logits_prior is None


def own_loss(logits, labels, *, counts, strength):
    return strength * counts[labels]


def test_a_stage_too_short_for_a_step_is_left_out():
    assert [stage.name for stage in build(steps=1).stages] == ["mixed"]


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
        (with_("mixed.partners.name", "friends"), "unknown partners 'friends'"),
        (with_("mixed.mixer.beta", 1.0), "mixer 'unimix' takes no option 'beta'; it takes alpha, wrap"),
        (with_("mixed.loss.train_prior", 1.0), "takes no option 'train_prior'"),
        (with_("mixed.partners.seed", 1), "takes no option 'seed'; it takes class_exponent"),
        (with_("plain.mixer.alpha", 1.0), "'none' takes no options"),
        (with_("plain.begin", 1.5), "stage 'plain' begins at 1.5"),
        (with_("mixed.begin", 0.1), "the first stage begins at 0"),
        (with_("plain.mixxer", {"name": "none"}), "unknown entry 'mixxer'"),
        (with_("plain.partners", {"name": "partners_by_class", "class_exponent": 0.0}), "needs a mixer and partners"),
        (with_("mixed.loss.name", "no_such_module:loss"), "cannot import 'no_such_module:loss'"),
        (with_("mixed.loss.name", "math:loss"), "cannot import 'math:loss'"),
    ],
)
def test_wrong_rows_get_a_sentence(change, message):
    with pytest.raises(UserError, match=message):
        build(change=change)


def test_every_public_loss_and_mixer_has_a_row():
    named = {kind: set() for kind in ("loss", "mixer", "partners")}
    for row in ROWS.values():
        for stage in row["stages"].values():
            for kind in named:
                if kind in stage:
                    named[kind].add(stage[kind]["name"])
    assert named["loss"] == set(method.LOSSES)
    assert named["mixer"] == set(method.MIXERS)
    assert named["partners"] == {"none", *sampling.PARTNERS}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_says_what_it_is_and_builds(name):
    assert ROWS[name]["about"]
    built = build(name)
    assert built.stages[0].first == 0
    assert built.stages[-1].last == 1000
