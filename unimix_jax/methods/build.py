"""From a row of options to a `Method`: names become functions, counts and options are bound."""

import functools
import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from unimix_jax import priors
from unimix_jax.errors import UserError, one_of
from unimix_jax.methods import losses, mixing, posthoc
from unimix_jax.methods.mixing import Mixed
from unimix_jax.methods.recipes import RECIPES as ROWS


def _public_functions(module, returns: Any = None) -> dict[str, Callable]:
    """Return the functions that a module defines by name, those with a return annotation if one is given."""
    own = {name: f for name, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__}
    return {
        name: f
        for name, f in own.items()
        if not name.startswith("_") and returns in (None, f.__annotations__.get("return"))
    }


LOSSES = {name: f for name, f in _public_functions(losses).items() if "labels" in inspect.signature(f).parameters}
MIXERS = _public_functions(mixing, Mixed)
POSTHOCS = _public_functions(posthoc)
CLASS_WEIGHTS = {f.__name__: f for f in (priors.effective_number_weights, priors.inverse_weights)}

# The prior that softmax(logits) stands for after training by each loss on naturally drawn images.
# A loss that is not here has none: its logits cannot be corrected for another prior.
LOGITS_PRIOR = {
    "cross_entropy": "train",
    "bayias": "test",
    "logit_adjustment": "uniform",
    "balanced_softmax": "uniform",
}
# What the run gives to a function at each step; no row sets it.
_GIVEN = ("seed", "step", "batch_size", "table", "validation")
# What an option of each name may be, whichever of the project's functions takes it.
_OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "alpha": (lambda v: 0.01 <= v <= 100, "in .01..100"),
    "beta": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "class_exponent": (lambda v: abs(v) <= 10, "in -10..10"),
    "image_exponent": (lambda v: abs(v) <= 10, "in -10..10"),
    "formula": (lambda v: v in losses.FORMULAS, " or ".join(losses.FORMULAS)),
    "gamma": (lambda v: v >= 0, "at least 0"),
    "head": (lambda v: 0 <= v <= 1, "in 0..1"),
    "kappa": (lambda v: v > 1, "above 1"),
    "max_margin": (lambda v: v >= 0, "at least 0"),
    "neighbours": (lambda v: v >= 1, "at least 1"),
    "power": (lambda v: v > 0, "above 0"),
    "shape": (lambda v: v in losses.SHAPES, " or ".join(losses.SHAPES)),
    "tail": (lambda v: 0 <= v <= 1, "in 0..1"),
    "threshold": (lambda v: 0 <= v <= 1, "in 0..1"),
}
_REDUCTIONS = ("weights", "count")
_SCHEDULES = ("run", "cosine")
_GROUPS = ("backbone", "classifier", "scale")


class Stage(NamedTuple):
    """What is trained from step `first` to before step `last`, and how."""

    name: str
    first: int
    last: int
    loss: Callable  # (logits, labels) -> float32[B]
    mixer: Callable | None  # (Keys, image_a, image_b, label_a, label_b) -> Mixed
    partners: Callable | None  # (ByClass, index, seed, step) -> (partner, view)
    order: Callable  # (ByClass, seed, step, batch_size) -> int64[B]
    class_weight: np.ndarray  # float32[K]
    reduction: str = "weights"
    trains: tuple[tuple[str, float], ...] = ()  # parameter group and factor of its learning rate; 1 if absent
    batch_norm: str = "train"
    restart: bool = False  # begin with an optimiser state of zeros
    reinitialise: bool = False  # and with a classifier drawn anew
    schedule: tuple[tuple[str, Any], ...] = (("name", "run"),)
    mixes_inside: bool = False  # of the network, with partners of the same batch; seen from what the mixer returns

    @property
    def program(self) -> tuple:
        """What the compiled step depends on: stages with equal programs share one."""
        return self.loss, self.mixer, self.partners is None, self.reduction, self.trains, self.batch_norm


class Method(NamedTuple):
    """A row, ready to train."""

    name: str
    head: str
    stages: tuple[Stage, ...]
    posthoc: Callable | None  # (logits, head's parameters, validation) -> (logits, dict)
    test_prior: np.ndarray  # float64[K], of the data to predict, for losses that take it
    logits_prior: np.ndarray | None  # float64[K], see LOGITS_PRIOR; None if it stands for none


def build(
    row: dict[str, Any],
    counts: np.ndarray,
    *,
    name: str,
    epochs: int,
    steps_per_epoch: int,
    rules: dict[str, dict[str, Callable]],
    test_prior: np.ndarray,
    logit_scale: float = 1.0,
) -> Method:
    """Resolve a row for a data set.

    Args:
      row: options in the grammar of `rows.py`, overrides applied.
      counts: int64[K], training images per class, none 0.
      name: the row's name.
      epochs: of the run, stages after it not counted.
      steps_per_epoch: steps of one.
      rules: {"order": ..., "partners": ...}, the rules of data/sampling.py by name (the wings do not
        know each other).
      test_prior: float64[K], for losses that take it.
      logit_scale: of the head's logits, for losses that take it as `scale`.

    Raises:
      UserError: an unknown name, an option that its function does not take, stages out of order.
    """
    train_prior = priors.prior(counts)
    context = {"counts": counts, "train_prior": train_prior, "test_prior": test_prior}
    bound = {}
    none = {"none": None}
    known = {
        "loss": LOSSES,
        "mixer": none | MIXERS,
        "partners": none | rules["partners"],
        "order": rules["order"],
        "class_weight": none | CLASS_WEIGHTS,
        "posthoc": none | POSTHOCS,
    }

    def bind(kind: str, options: dict):
        # Stages with equal options hold the same function, and so share a compiled step.
        key = kind, repr(sorted(options.items()))
        if key not in bound:
            bound[key] = _bind(kind, options, known[kind], context, logit_scale)
        return bound[key]

    defaults = ROWS["erm"]["stages"]["plain"]
    options, stages, end = defaults, [], 0
    ordered = _in_order(name, row["stages"])
    begins = [changes.get("begin", 0.0) for changes in ordered.values()]
    for (stage, changes), begin, next_begin in zip(ordered.items(), begins, [*begins[1:], 1.0], strict=True):
        if extra := changes.keys() - defaults.keys():
            raise UserError(f"stage {stage!r} of method {name!r} has the unknown entry {min(extra)!r}")
        for entry, value in changes.items():
            if isinstance(defaults[entry], dict) and not isinstance(value, dict):
                raise UserError(
                    f"{entry} of stage {stage!r} is {value!r}; it has a name and options: write {entry}.name"
                )
        options = {k: _inherit(options[k], v) for k, v in {**options, **changes}.items()}
        options["reinitialise"] = changes.get("reinitialise", False)  # what happens once is not taken over
        if begin < 1:
            if changes.get("epochs", 0):
                raise UserError(
                    f"stage {stage!r} of method {name!r} begins at {begin:g} of the run and has epochs; only a stage "
                    "that begins at 1 has them, so set epochs to 0 or begin to 1"
                )
            first, end = (round(b * epochs * steps_per_epoch) for b in (begin, next_begin))
        else:
            first, end = end, end + options["epochs"] * steps_per_epoch
        functions = {kind: bind(kind, options[kind]) for kind in known if kind != "posthoc"}
        resolved = _stage(stage, first, end, options, functions, counts, name)
        if first < end:
            stages.append(resolved)
            last = options
    post = _inherit({"name": "none"}, row.get("posthoc", {"name": "none"}))
    head = row.get("head", ROWS["erm"]["head"])
    if post["name"] == "tau_norm" and head != "linear":
        raise UserError(f"posthoc tau_norm of method {name!r} needs the linear head, not {head!r}")
    return Method(
        name,
        head,
        tuple(stages),
        bind("posthoc", post),
        test_prior,
        _logits_prior(last, post, train_prior, test_prior),
    )


def _stage(stage, first, last, options, functions, counts, method) -> Stage:
    """Put a stage together, its choices checked."""
    where = f"of stage {stage!r}"
    if (functions["mixer"] is None) != (functions["partners"] is None):
        raise UserError(f"stage {stage!r} of method {method!r} needs a mixer and partners, or neither of them")
    weights = functions["class_weight"]
    one_of(f"schedule {where}", options["schedule"]["name"], _SCHEDULES)
    if options["mixer"]["name"] == "smote" and options["partners"]["name"] != "nearest":
        raise UserError(
            f"stage {stage!r} of method {method!r} keeps one label: the mixer smote needs the partners nearest"
        )
    for group, factor in options["trains"].items():
        one_of(f"parameter group in trains {where}", group, _GROUPS)
        if not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise UserError(f"the factor of {group} in trains {where} is {factor}; it must be 0 (frozen) or above")
    if options["schedule"]["name"] == "cosine" and not 0 < options["schedule"].get("learning_rate", 0.0) < math.inf:
        raise UserError(f"learning_rate in schedule {where} must be above 0")
    return Stage(
        stage,
        first,
        last,
        functions["loss"],
        functions["mixer"],
        functions["partners"],
        functions["order"],
        np.asarray(np.ones(len(counts)) if weights is None else weights(), np.float32),
        one_of(f"reduction {where}", options["reduction"], _REDUCTIONS),
        tuple(sorted((group, float(factor)) for group, factor in options["trains"].items())),
        one_of(f"batch_norm {where}", options["batch_norm"], ("train", "frozen")),
        options["begin"] == 1 or options["reinitialise"],
        bool(options["reinitialise"]),
        tuple(sorted(options["schedule"].items())),
    )


def _logits_prior(last: dict, post: dict, train_prior: np.ndarray, test_prior: np.ndarray) -> np.ndarray | None:
    """Return the prior that the logits stand for after the last stage and what is done post hoc, None if none."""
    uniform = np.full(len(train_prior), 1 / len(train_prior))
    loss, named = last["loss"], {"train": train_prior, "test": test_prior, "uniform": uniform}
    prior = named.get(LOGITS_PRIOR.get(loss["name"]))
    if last["order"]["name"] == "balanced":
        # Label-aware smoothing has no prior of its own; its published use is on balanced classes, and it keeps them.
        prior = uniform if loss["name"] in ("cross_entropy", "label_aware_smoothing") else None
    if (
        last["class_weight"]["name"] != "none"
        or last["partners"]["name"] not in ("none", "permutation", "nearest")  # others change how often a label is seen
        or ":" in last["mixer"]["name"]
        or loss.get("strength", 1.0) != 1
    ):
        prior = None
    if post["name"] == "none":
        return prior
    adjusted = post["name"] == "logit_adjustment" and post.get("strength", 1.0) == 1
    return uniform if adjusted and prior is train_prior else None


def _inherit(before: Any, changes: Any) -> Any:
    """Merge a stage's entry into that of the stage before; another function starts with its own options."""
    if not isinstance(changes, dict):
        return changes
    same = changes.get("name", before.get("name")) == before.get("name")
    return {**before, **changes} if same else dict(changes)


def _in_order(method: str, stages: dict[str, dict]) -> dict[str, dict]:
    """Return the stages by their begin (a config forgets the order of its fields); the first one begins at 0."""
    ordered = dict(sorted(stages.items(), key=lambda item: item[1].get("begin", 0.0)))
    begins = [stage.get("begin", 0.0) for stage in ordered.values()]
    within = [begin for begin in begins if begin != 1]
    if not begins or begins[0] != 0 or not all(0 <= b <= 1 for b in begins) or len(set(within)) < len(within):
        raise UserError(
            f"the stages of method {method!r} begin at {', '.join(f'{b:g}' for b in begins)} of the run; one must "
            "begin at 0, the others each somewhere else in 0..1"
        )
    for stage, changes in ordered.items():
        if changes.get("begin", 0.0) == 1 and changes.get("epochs", 0) < 1:
            raise UserError(f"stage {stage!r} of method {method!r} begins at 1, after the run; give it epochs")
    return ordered


def _bind(kind: str, options: dict, known: dict[str, Callable | None], context: dict, logit_scale: float):
    """Return the named function with its options, and what it asks of `context`, bound."""
    options = dict(options)
    name = options.pop("name")
    own_function = ":" in name
    function = _imported(name) if own_function else known[one_of(kind, name, known)]
    if not own_function:
        context = {**context, "scale": logit_scale}
    if function is None:
        if options:
            raise UserError(f"{kind} {name!r} takes no options, but {min(options)!r} is given")
        return None
    takes = inspect.signature(function).parameters
    own = [p for p in takes if takes[p].kind is inspect.Parameter.KEYWORD_ONLY and p not in (*context, *_GIVEN)]
    for option in options:
        if option not in own:
            raise UserError(f"{kind} {name!r} takes no option {option!r}; it takes {', '.join(own) or 'none'}")
        _check_option(f"{option} of {kind} {name!r}", option, options[option], known={} if own_function else _OPTIONS)
    for option in own:
        if option not in options and takes[option].default is inspect.Parameter.empty:
            raise UserError(f"{kind} {name!r} needs the option {option!r}")
    return functools.partial(function, **{k: v for k, v in context.items() if k in takes}, **options)


def _check_option(what: str, option: str, value: Any, known: dict) -> None:
    """Refuse a value that no function with an option of this name takes."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{what} is {value}; it must be finite")
    right, words = known.get(option, (None, ""))
    try:
        wrong = right is not None and not right(value)
    except TypeError:
        wrong = True
    if wrong:
        raise UserError(f"{what} is {value!r}; it must be {words}")


def _imported(name: str) -> Callable:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # the module is the user's program and may raise anything
        raise UserError(f"cannot import {name!r}: {type(error).__name__}: {error}") from None
    if not callable(found):
        raise UserError(f"{name!r} is {found!r} and no function")
    return found
