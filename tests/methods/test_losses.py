import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax import priors
from unimix_jax.errors import UserError
from unimix_jax.methods import build, losses, mixing
from unimix_jax.methods.mixing import Mixed
from unimix_jax.methods.recipes import RECIPES

from .. import quick

# The golden name of each loss -> how it is called here.
GOLDEN = {
    "ce": lambda f: losses.cross_entropy,
    "bayias": lambda f: bind(losses.bayias, train_prior=f["prior"]),
    "bayias_test_train": lambda f: bind(losses.bayias, train_prior=f["prior"], test_prior=f["prior"]),
    "bayias_test_lt10": lambda f: bind(losses.bayias, train_prior=f["prior"], test_prior=f["test_prior_lt10"]),
    "bayias_test_reversed": lambda f: bind(losses.bayias, train_prior=f["prior"], test_prior=f["test_prior_reversed"]),
    "focal_g0p5": lambda f: bind(losses.focal, gamma=0.5),
    "focal_g1": lambda f: bind(losses.focal, gamma=1.0),
    "focal_g2": lambda f: bind(losses.focal, gamma=2.0),
    "cb_focal_g1": lambda f: bind(losses.focal, gamma=1.0, inner_weight=f["cb_weights_beta0p9999"]),
    "cdt_g0p1": lambda f: bind(losses.cdt, counts=f["counts"], gamma=0.1),
    "cdt_g0p2": lambda f: bind(losses.cdt, counts=f["counts"], gamma=0.2),
    "cdt_g0p4": lambda f: bind(losses.cdt, counts=f["counts"], gamma=0.4),
    "la_t0p5": lambda f: bind(losses.logit_adjustment, train_prior=f["prior"], strength=0.5),
    "la_t1p0": lambda f: bind(losses.logit_adjustment, train_prior=f["prior"], strength=1.0),
    "la_t2p0": lambda f: bind(losses.logit_adjustment, train_prior=f["prior"], strength=2.0),
    "balanced_softmax": lambda f: bind(losses.balanced_softmax, counts=f["counts"]),
    **{
        f"las_{shape}": lambda f, shape=shape: bind(
            losses.label_aware_smoothing,
            counts=f["counts"],
            head=float(f["las_head_tail"][0]),
            tail=float(f["las_head_tail"][1]),
            shape=shape,
            power=float(f["las_exp_power"]),
        )
        for shape in ("concave", "linear", "convex", "exp")
    },
}
bind = functools.partial

COUNTS = np.array([500, 120, 40, 9, 5])
PRIOR = COUNTS / COUNTS.sum()


def bound(entry, order=range(5)):
    """The loss that a recipe's entry names, for COUNTS in another order of the classes."""
    order = np.array(order)
    return build.build(
        {"stages": {"only": {"loss": entry}}},
        COUNTS[order],
        name="one loss",
        epochs=1,
        steps_per_epoch=1,
        test_prior=np.array([0.1, 0.2, 0.3, 0.3, 0.1])[order],
    ).stages[0].loss  # fmt: skip


def every_entry():
    """The entries of recipes that name a loss, each once, named by the first recipe and stage that has it."""
    found = {}
    for name, row in RECIPES.items():
        for stage, entries in row["stages"].items():
            if "loss" in entries:
                found.setdefault(str(entries["loss"]), pytest.param(entries["loss"], id=f"{name}-{stage}"))
    return list(found.values())


def value_and_gradient(loss, logits, labels):
    """The losses of examples, and the gradient of their sum by the logits; one backward pass gives both."""
    (_, values), gradient = jax.value_and_grad(lambda z: (loss(z, labels).sum(), loss(z, labels)), has_aux=True)(logits)
    return values, gradient


@pytest.fixture(scope="module")
def all_losses(golden):
    """Return found(classes): each loss's values and gradients for all inputs, from one program for all losses."""

    @functools.cache
    def found(classes):
        file = golden(f"losses_{classes}")
        bound = {name: make(file) for name, make in GOLDEN.items()}
        every = quick.jit(lambda z, y: {name: value_and_gradient(loss, z, y) for name, loss in bound.items()})
        return jax.device_get(
            every(*(np.concatenate([file[f"{name}_{inputs}"] for inputs in INPUTS]) for name in ("logits", "labels")))
        )

    return found


INPUTS = ["moderate", "extreme"]


@pytest.mark.slow
@pytest.mark.parametrize("classes", ["c10", "c100"])
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("name", GOLDEN)
def test_values_and_gradients_are_the_authors(golden, all_losses, name, inputs, classes):
    file = golden(f"losses_{classes}")
    split = len(file["labels_moderate"])
    rows = slice(0, split) if inputs == "moderate" else slice(split, None)
    value, gradient = (found[rows] for found in all_losses(classes)[name])
    # float32 rounds logits of 1e6 to .06: four units in the last place of the largest one of a row.
    rounding = 4 * np.finfo(np.float32).eps * np.abs(file[f"logits_{inputs}"]).max(axis=1)
    difference = np.abs(value - file[f"{name}__{inputs}__value"])
    np.testing.assert_array_less(difference, 1e-5 * np.abs(file[f"{name}__{inputs}__value"]) + rounding + 1e-6)
    assert np.isfinite(gradient).all()
    # At p = 1 the originals' gradient of focal loss with gamma .5 is nan; for 100 classes only some are kept.
    if f"{name}__{inputs}__grad" in file:
        np.testing.assert_allclose(gradient, file[f"{name}__{inputs}__grad"], atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("classes", ["c10", "c100"])
@pytest.mark.parametrize(("name", "scale"), [("ldam", 30.0), ("ldam_s1", 1.0)])
def test_ldam_is_the_authors_on_logits_that_carry_the_scale(golden, name, scale, classes):
    file = golden(f"losses_{classes}")

    def loss(cosines, labels):
        return losses.ldam(scale * cosines, labels, counts=file["counts"], scale=scale)

    both = quick.jit(functools.partial(value_and_gradient, loss))
    value, gradient = both(file["logits_cosine"], file["labels_cosine"])
    np.testing.assert_allclose(value, file[f"{name}__cosine__value"], rtol=1e-5)
    if f"{name}__cosine__grad" in file:
        np.testing.assert_allclose(gradient, file[f"{name}__cosine__grad"], atol=5e-5)  # of entries up to 30


@pytest.mark.slow
@pytest.mark.parametrize(("name", "inputs"), [("cb_ce", "moderate"), ("ldam_drw", "cosine")])
def test_weighted_batches_are_the_authors(golden, name, inputs):
    """The reduction `weights`: sum of weight * loss over sum of weights, values and gradient."""
    file = golden("losses_c10")
    logits, labels = jnp.asarray(file[f"logits_{inputs}"]), jnp.asarray(file[f"labels_{inputs}"])
    weights = priors.effective_number_weights(file["counts"], beta=0.9999)
    np.testing.assert_allclose(weights, file["drw_weights_epoch160"], rtol=1e-6)
    loss = losses.cross_entropy
    if name == "ldam_drw":
        loss = lambda z, y: losses.ldam(30 * z, y, counts=file["counts"], scale=30.0)  # noqa: E731
    mixed = Mixed(None, labels)

    def batch(z):
        return mixing.objective(loss, z, mixed, weights).sum() / mixing.example_weight(mixed, weights).sum()

    value, gradient = quick.jit(jax.value_and_grad(batch))(logits)
    np.testing.assert_allclose(value, file[f"{name}__{inputs}__batch"], rtol=1e-5)
    np.testing.assert_allclose(gradient, file[f"{name}__{inputs}__batch_grad"], atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("classes", ["c10", "c100"])
def test_the_mixed_objective_is_the_authors(golden, classes):
    file = golden(f"losses_{classes}")
    loss = GOLDEN["bayias"](file)
    mixed = Mixed(None, file["labels_moderate"], file["mixed_labels_b"], np.float32(file["mixed_lam"]))

    def objective(logits):
        values = mixing.objective(loss, logits, mixed)
        return values.mean(), values

    (_, values), gradient = quick.jit(jax.value_and_grad(objective, has_aux=True))(file["logits_moderate"])
    np.testing.assert_allclose(values, file["mixed_bayias__value"], rtol=1e-5)
    np.testing.assert_allclose(gradient, file["mixed_bayias__mean_grad"], atol=1e-7)


@pytest.mark.parametrize("shape", ["concave", "linear", "convex", "exp"])
def test_smoothing_amounts_are_the_authors(golden, shape):
    file = golden("losses_c10")
    head, tail = file["las_head_tail"]
    amounts = losses.smoothing_amounts(file["counts"], head, tail, shape, float(file["las_exp_power"]))
    np.testing.assert_allclose(amounts, file[f"las_eps_{shape}"], rtol=1e-5)
    np.testing.assert_allclose(losses.smoothing_amounts([7, 7], head, tail, shape), [head, head])


def test_label_aware_smoothing_by_hand():
    """Two classes, amounts .4 and .1: the targets of the code and of the paper, written out."""
    logits, labels = np.float32([[0.0, np.log(3)], [0.0, np.log(3)]]), np.array([0, 1])
    smooth = functools.partial(losses.label_aware_smoothing, logits, labels, counts=[10, 1], head=0.4, tail=0.1)
    code, paper = quick.jit(lambda: (smooth(), smooth(formula="paper")))()
    cost = np.log([4, 4 / 3])  # of each class
    np.testing.assert_allclose(code, [0.8 * cost[0] + 0.2 * cost[1], 0.05 * cost[0] + 0.95 * cost[1]], rtol=1e-6)
    np.testing.assert_allclose(paper, [0.6 * cost[0] + 0.4 * cost[1], 0.1 * cost[0] + 0.9 * cost[1]], rtol=1e-6)
    with pytest.raises(UserError, match="unknown shape of label_aware_smoothing 'round'"):
        smooth(shape="round")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("test_prior", "expected"),
    [
        pytest.param(None, 2.302585, id="uniform: -log 0.1"),
        pytest.param([0.9, 0.1], 0.693147, id="as trained: cross entropy, log 2"),
        pytest.param([0.1, 0.9], 4.406719, id="reversed: log(1 + 81)"),
    ],
)
def test_bayias_by_hand(test_prior, expected):
    loss = functools.partial(losses.bayias, train_prior=[0.9, 0.1], test_prior=test_prior)
    value = quick.jit(loss)(np.zeros((1, 2), np.float32), np.array([1]))
    np.testing.assert_allclose(value, [expected], rtol=1e-6)


def example(classes=5, size=16):
    random = np.random.default_rng(0)
    return random.normal(0, 3, (size, classes)).astype(np.float32), random.integers(0, classes, size)


UNIFORM = np.full(5, 0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "equals"),
    [
        pytest.param(bind(losses.bayias, train_prior=PRIOR, test_prior=PRIOR), losses.cross_entropy, id="as trained"),
        pytest.param(bind(losses.focal, gamma=0), losses.cross_entropy, id="focal gamma 0"),
        pytest.param(bind(losses.cdt, counts=COUNTS, gamma=0), losses.cross_entropy, id="CDT gamma 0"),
        pytest.param(
            bind(losses.ldam, counts=COUNTS, scale=30.0, max_margin=0), losses.cross_entropy, id="LDAM margin 0"
        ),
        pytest.param(
            bind(losses.label_aware_smoothing, counts=COUNTS, head=0, tail=0), losses.cross_entropy, id="smoothing 0"
        ),
        pytest.param(
            bind(losses.logit_adjustment, train_prior=PRIOR, strength=0), losses.cross_entropy, id="strength 0"
        ),
        pytest.param(
            bind(losses.bayias, train_prior=PRIOR),
            bind(losses.logit_adjustment, train_prior=PRIOR),
            id="Bayias, uniform = logit adjustment",
        ),
        pytest.param(
            bind(losses.bayias, train_prior=PRIOR, test_prior=UNIFORM),
            bind(losses.balanced_softmax, counts=COUNTS),
            id="Bayias, uniform = balanced softmax",
        ),
        pytest.param(
            bind(losses.bayias, train_prior=PRIOR),
            lambda z, y: losses.cross_entropy(z + np.log(PRIOR).astype(np.float32), y),
            id="Bayias is a shift",
        ),
    ],
)
def test_limits(loss, equals):
    found, expected = quick.jit(lambda *batch: (loss(*batch), equals(*batch)))(*example())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("entry", every_entry())
def test_every_loss_keeps_shape_and_type_and_stays_finite(entry):
    loss = bound(entry)
    logits = np.float32([[1e4, -1e4, 0, 0, 0], [0] * 5, [-1e4, 1e4, 1e4, 0, 0], [1e4] * 5, [0, 0, 0, 0, 1e4]])
    labels = np.array([1, 2, 0, 3, 4])
    value = loss(logits, labels)  # operation by operation
    compiled, gradient = jax.jit(functools.partial(value_and_gradient, loss))(logits, labels)
    assert value.shape == (5,)
    assert value.dtype == jnp.float32
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()
    assert jax.eval_shape(loss, logits.astype(jnp.bfloat16), labels).dtype == jnp.float32
    np.testing.assert_allclose(compiled, value, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("entry", every_entry())
def test_every_loss_is_float64_for_float64_and_its_gradient_is_the_slope(entry):
    loss = bound(entry)
    with jax.enable_x64(True):
        logits, labels = example()[0][:4].astype(np.float64), example()[1][:4]
        # One program for the loss, its gradient and all that its slopes are made of.
        directions = 1e-6 * np.random.default_rng(2).normal(size=(3, 1, 4, 5))
        near = (logits + directions * np.array([1, -1])[:, None, None]).reshape(-1, 5)
        every = np.concatenate([logits, near])
        program = quick.jit(functools.partial(value_and_gradient, loss))
        values, gradient = jax.device_get(program(every, np.tile(labels, 7)))
    assert values.dtype == gradient.dtype == np.float64
    totals = values[4:].reshape(3, 2, 4).sum(axis=2)
    for d, (above, below) in zip(directions[:, 0] / 1e-6, totals, strict=True):
        np.testing.assert_allclose((above - below) / 2e-6, (gradient[:4] * d).sum(), atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("entry", every_entry())
def test_the_order_of_classes_does_not_matter(entry):
    """Permuting logits, labels and all that goes by class leaves the values and permutes the gradient."""
    order = np.array([3, 0, 4, 1, 2])
    logits, labels = example()
    loss, permuted, new_labels = bound(entry), bound(entry, order), np.argsort(order)[labels]
    (value, gradient), (permuted_value, found) = quick.jit(
        lambda: (value_and_gradient(loss, logits, labels), value_and_gradient(permuted, logits[:, order], new_labels))
    )()
    np.testing.assert_allclose(permuted_value, value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, gradient[:, order], atol=2e-6)
