"""The functions that a config can name, found by their names, with their `traits`. Imports no package.

An entry is a function, or a class, that states its traits beside itself:

    @registry.Loss(natural_prior="train", options={"gamma": registry.at_least(0)})
    def mine(logits, labels, *, counts, gamma=1.0): ...

The entries of a kind are all such functions of the module that `KINDS` names. A user's function is named
"module:function" instead; it may state traits too, and without them the cautious defaults of its kind hold.
A function asks for what the run knows by the names of keyword-only arguments (`counts`, `train_prior`, ...); its other
keyword-only arguments are its options.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from unimix_jax.errors import UserError, described, did_you_mean, one_of
from unimix_jax.traits import (
    ANYTHING,
    FLAG,
    NUMBER,
    PRIORS,
    RATE,
    SIZE,
    SIZES,
    Augmentation,
    Bound,
    ClassWeight,
    Logger,
    Loss,
    Measure,
    Mixer,
    Optimizer,
    PairSampler,
    Posthoc,
    Sampler,
    Schedule,
    Traits,
    above,
    at_least,
    check_value,
    choice,
    percent,
    within,
)

__all__ = [
    "ANYTHING",
    "FLAG",
    "KINDS",
    "NUMBER",
    "PRIORS",
    "RATE",
    "SIZE",
    "SIZES",
    "Augmentation",
    "Bound",
    "ClassWeight",
    "Kind",
    "Logger",
    "Loss",
    "Measure",
    "Mixer",
    "Optimizer",
    "PairSampler",
    "Posthoc",
    "Sampler",
    "Schedule",
    "Traits",
    "above",
    "at_least",
    "bind",
    "check_options",
    "check_value",
    "choice",
    "entries",
    "inherit",
    "option",
    "percent",
    "prior_holds",
    "resolve",
    "traits",
    "within",
]


class Kind(NamedTuple):
    """A kind of entries: their traits, and the module or package that has them."""

    traits: type[Traits]
    module: str
    optional: bool = False  # "none" is a name too, and no function
    later: tuple[str, ...] = ()  # arguments that the run passes at each call
    library: tuple[str, str] | None = None  # a package, whose functions with this parameter are entries, too
    table: str = ""  # name of the dict of all entries in the module; "" where entries are found by their traits


KINDS = {
    "loss": Kind(Loss, "unimix_jax.methods.losses"),
    "mixer": Kind(Mixer, "unimix_jax.methods.mixing", optional=True),
    "pair_sampler": Kind(PairSampler, "unimix_jax.data.pairs", optional=True, later=("seed", "step", "table")),
    "sampler": Kind(Sampler, "unimix_jax.data.sampling", later=("seed", "step", "batch_size")),
    "class_weight": Kind(ClassWeight, "unimix_jax.priors", optional=True),
    "posthoc": Kind(Posthoc, "unimix_jax.methods.posthoc", optional=True, later=("validation",)),
    "optimiser": Kind(Optimizer, "unimix_jax.training.optim", library=("optax", "learning_rate")),
    "schedule": Kind(Schedule, "unimix_jax.training.schedules"),
    "augmentation": Kind(Augmentation, "unimix_jax.training.augmentations"),
    "head": Kind(Traits, "unimix_jax.models.heads", table="HEADS"),
    "network": Kind(Traits, "unimix_jax.models.networks", table="NETWORKS"),
    "source": Kind(Traits, "unimix_jax.data.sources", table="SOURCES"),
    "measure": Kind(Measure, "unimix_jax.metrics.summaries", table="MEASURES"),
    "logger": Kind(Logger, "unimix_jax.training.loggers", later=("directory", "config", "first_step", "num_steps")),
}


@functools.cache
def entries(kind: str) -> dict[str, Callable]:
    """Return the project's entries of a kind by name, in the order of their module.

    Args:
      kind: a key of `KINDS`.

    Returns:
      {name: function or class}.
    """
    module = importlib.import_module(KINDS[kind].module)
    if KINDS[kind].table:
        return vars(module)[KINDS[kind].table]
    stated = {
        entry: entry.__dict__.get("traits")
        for entry in vars(module).values()
        if (inspect.isfunction(entry) or inspect.isclass(entry)) and entry.__module__ == module.__name__
    }
    return {t.name or e.__name__: e for e, t in stated.items() if isinstance(t, KINDS[kind].traits)}


def resolve(kind: str, name: str) -> Callable | None:
    """Return the function that a config names.

    Args:
      kind: a key of `KINDS`.
      name: of an entry; "module:function" for a user's; "none" where the kind has it.

    Returns:
      The function; None for "none".

    Raises:
      UserError: no entry has the name, or the module cannot be imported.
    """
    if ":" in name:
        return _imported(name)
    known = {**_of_library(kind), **entries(kind)}
    others = ', or your own as "module:object"'
    one_of(kind, name, [*known, "none"] if KINDS[kind].optional else known, others)
    return known.get(name)


@functools.cache
def _of_library(kind: str) -> dict[str, Callable]:
    """Return the functions of another package that are entries of a kind, by their names.

    Private ones and those named `scale_by_...`, which are parts of others, are none.
    """
    if KINDS[kind].library is None:
        return {}
    package, parameter = KINDS[kind].library
    functions = {n: f for n, f in vars(importlib.import_module(package)).items() if inspect.isfunction(f)}
    return {
        name: f
        for name, f in functions.items()
        if parameter in inspect.signature(f).parameters and not name.startswith(("_", "scale_by_"))
    }


def _imported(name: str) -> Callable:
    module, _, function = name.partition(":")
    if not module or not function or module.startswith("."):
        raise UserError(f'cannot import {name!r}: it must be "module:object", such as my_losses:rare_first')
    try:
        value = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # the module is the user's program and may raise anything
        raise UserError(f"cannot import {name!r}: {described(error)}") from None
    if not callable(value):
        raise UserError(f"{name!r} is {value!r} and no function")
    return value


def traits(kind: str, function: Callable) -> Any:
    """Return the traits of a function, or the cautious ones of its kind where it states none.

    Args:
      kind: a key of `KINDS`.
      function: of `resolve` or `bind`.

    Returns:
      An instance of the kind's class of traits.
    """
    while isinstance(function, functools.partial):
        function = function.func
    stated = getattr(function, "traits", None)
    if isinstance(stated, KINDS[kind].traits):
        return stated
    if kind == "pair_sampler" and "table" in inspect.signature(function).parameters:
        return PairSampler(in_batch=False, needs_neighbours=True)
    return KINDS[kind].traits()


def option(function: functools.partial, name: str) -> Any:
    """Return the value of an option of a bound function: the one bound, else its default.

    Args:
      function: of `bind`.
      name: of the option.

    Raises:
      KeyError: the function has no such option.
    """
    if name in function.keywords:
        return function.keywords[name]
    return inspect.signature(function.func).parameters[name].default


def prior_holds(stated: Loss | Posthoc, function: functools.partial) -> bool:
    """Return whether the options of a bound function are those at which its stated prior holds.

    Args:
      stated: its traits.
      function: of `bind`.
    """
    return all(option(function, name) == value for name, value in stated.prior_holds_at.items())


def bind(kind: str, options: Mapping[str, Any], context: Mapping[str, Any]) -> functools.partial | None:
    """Return the function that an entry of a config names, with its options and what it asks for bound.

    Args:
      kind: a key of `KINDS`.
      options: "name", and the options of the function by name.
      context: what a function may ask for, by name: counts, train_prior, test_prior, scale. `scale`, of the head's
        logits, is given only where the traits say so: another function may have an option of that name.

    Returns:
      A partial function; None for the name "none".

    Raises:
      UserError: an unknown name, an option that the function does not take or whose value is out of bounds, or one
        that it needs.
    """
    options = dict(options)
    name = options.pop("name")
    function = resolve(kind, name)
    if function is None:
        if options:
            raise UserError(f"{kind} {name!r} takes no options, but {min(options)!r} is given")
        return None
    stated = traits(kind, function)
    if not getattr(stated, "head_scale", False):
        context = {key: value for key, value in context.items() if key != "scale"}
    parameters = inspect.signature(function).parameters
    given_by_run = (*context, *KINDS[kind].later)
    own = [name for name, p in parameters.items() if _is_option(kind, function, p) and name not in given_by_run]
    for key, value in options.items():
        if key not in own:
            why = ", for the run passes it" if key in parameters and key in given_by_run else did_you_mean(key, own)
            raise UserError(f"{kind} {name!r} takes no option {key!r}{why}; it takes {', '.join(own) or 'none'}")
        check_value(f"{key} of {kind} {name!r}", value, stated.options.get(key, ANYTHING))
    for key in own:
        if key not in options and parameters[key].default is inspect.Parameter.empty:
            raise UserError(f"{kind} {name!r} needs the option {key!r}")
    return functools.partial(function, **{k: v for k, v in context.items() if k in parameters}, **options)


def _is_option(kind: str, function: Callable, parameter: inspect.Parameter) -> bool:
    """Return whether a parameter is set by name: behind a `*`, with a default, or of another package's function."""
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        return True
    has_default = parameter.default is not inspect.Parameter.empty
    named = has_default or function in _of_library(kind).values()  # other packages seldom write a `*`
    return parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and named


def check_options(function: Callable, **options: Any) -> None:
    """Refuse values of options that the traits of an entry do not allow, where it is called without a config.

    Args:
      function: an entry.
      **options: some of its options, by name.

    Raises:
      UserError: the value, and what it must be.
    """
    for key, value in options.items():
        check_value(key, value, function.traits.options[key])


def inherit(before: Any, changes: Any) -> Any:
    """Return nested options with changes; where another function is named, the options of the one before are dropped.

    This is the one rule for all places where options are put on top of others: a stage on the stage before it, a data
    set's differences on a recipe, an override on a config.

    Args:
      before: nested dicts of options; a dict with "name" holds the options of that function.
      changes: of the same form, what differs.

    Returns:
      A new dict; `changes` itself where one of both is no dict.

    Example:
      >>> inherit({"name": "ldam", "max_margin": 0.5}, {"max_margin": 0.3})
      {'name': 'ldam', 'max_margin': 0.3}
      >>> inherit({"name": "ldam", "max_margin": 0.5}, {"name": "focal"})
      {'name': 'focal'}
    """
    if not (isinstance(before, dict) and isinstance(changes, dict)):
        return changes
    if changes.get("name", before.get("name")) != before.get("name"):
        return dict(changes)
    return {**before, **{key: inherit(before.get(key), value) for key, value in changes.items()}}
