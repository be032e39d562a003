"""The functions that a config can name, and their traits: what other code must know of each. Imports no package.

An entry is a function, or a class, that states its traits beside itself:

    @registry.Loss(natural_prior="train", options={"gamma": registry.at_least(0)})
    def mine(logits, labels, *, counts, gamma=1.0): ...

The entries of a kind are all such functions of the module that `KINDS` names. A user's function is named
"module:function" instead; it may state traits too, and without them the cautious defaults of its kind hold.
A function asks for what the run knows by the names of keyword-only arguments (`counts`, `train_prior`, ...); its other
keyword-only arguments are its options.
"""

import dataclasses
import functools
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from unimix_jax.errors import UserError, described, did_you_mean, one_of

PRIORS = ("train", "test", "uniform", "none")  # that softmax(logits) can stand for


class Bound(NamedTuple):
    """The values that an option may have."""

    allows: Callable[[Any], bool]
    words: str  # after "it must be"


def _short(number: float) -> str:
    return f"{number:g}".replace("0.", ".", 1) if 0 < number < 1 else f"{number:g}"


def within(low: float, high: float) -> Bound:
    """Return the bound of a number between two others.

    Args:
      low: the smallest value that is allowed.
      high: the largest one.
    """
    return Bound(lambda v: low <= v <= high, f"in {_short(low)}..{_short(high)}")


def at_least(low: float, below: float = math.inf) -> Bound:
    """Return the bound of a number that is not too small.

    Args:
      low: the smallest value that is allowed.
      below: the smallest value above it that is not.
    """
    words = f"at least {low:g}" + ("" if below == math.inf else f" and below {below:g}")
    return Bound(lambda v: low <= v < below, words)


def above(low: float) -> Bound:
    """Return the bound of a finite number above another one.

    Args:
      low: the largest value that is not allowed.
    """
    return Bound(lambda v: low < v < math.inf, f"above {low:g}")


def choice(*values: Any) -> Bound:
    """Return the bound of one of some values.

    Args:
      *values: all that are allowed.
    """
    return Bound(lambda v: v in values, " or ".join(map(str, values)))


NUMBER = Bound(lambda v: abs(v) < math.inf, "a number")
FLAG = choice(True, False)
ANYTHING = Bound(lambda v: True, "anything")
RATE = Bound(lambda v: not isinstance(v, bool) and 0 <= v < 1, "a number of at least 0 and below 1")
SIZE = Bound(lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0, "a whole number of at least 1")
SIZES = Bound(lambda v: len(v) > 0 and all(map(SIZE.allows, v)), "whole numbers of at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traits:
    """The traits that every entry can have. An instance is also the decorator of the entry.

    Attributes:
      name: of the entry in a config; "" for the name of the function.
      options: the values that each option may have.
      no_recipe: why no recipe uses the entry, if none does.
    """

    name: str = ""
    options: Mapping[str, Bound] = dataclasses.field(default_factory=dict)
    no_recipe: str = ""

    def __call__(self, entry: Callable) -> Callable:
        """State the traits of an entry.

        Args:
          entry: a function or a class.

        Returns:
          The entry itself.

        Raises:
          ValueError: a bound is given for an option that the function does not take.
        """
        if unknown := self.options.keys() - inspect.signature(entry).parameters.keys():
            raise ValueError(f"{entry.__name__} takes no option {min(unknown)!r}, but its traits bound it")
        entry.traits = self
        return entry

    def check(self, entry: str, options: Mapping[str, Any]) -> None:
        """Refuse options whose values are out of bounds.

        Args:
          entry: its kind and name, for the sentence of an error.
          options: of the entry, by name.

        Raises:
          UserError: a value, and what it must be.
        """
        for key, value in options.items():
            check_value(f"{key} of {entry}", value, self.options.get(key, ANYTHING))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss(Traits):
    """Traits of a loss.

    Attributes:
      natural_prior: the prior that softmax(logits) stands for after training on images as they come, one of `PRIORS`;
        "none" if it stands for no prior, and so cannot be corrected for another one.
      balanced_prior: the same after training on class-balanced images.
      prior_holds_at: options, and the values at which these priors hold; at others it is "none".
      head_scale: whether the loss asks for the scale of the head's logits, as `scale`.
    """

    natural_prior: str = "none"
    balanced_prior: str = "none"
    prior_holds_at: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head_scale: bool = False

    def __post_init__(self):
        for prior in (self.natural_prior, self.balanced_prior):
            one_of("prior of a loss", prior, PRIORS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixer(Traits):
    """Traits of a mixer.

    Attributes:
      mixes_inside: whether it leaves the mixing to the network, and therefore needs partners of the same batch.
      keeps_label: whether the mixed image has the label of the first one, so that partners must be of its class.
      changes_label_shares: whether labels weigh more or less in all than images and partners bring them.
    """

    mixes_inside: bool = False
    keeps_label: bool = False
    changes_label_shares: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSampler(Traits):
    """Traits of a pair sampler, which chooses partners.

    Attributes:
      in_batch: whether all partners are images of the same batch, in the same view; None if it is not known.
      same_class: whether each partner has the class of its image.
      needs_neighbours: whether it asks for `table`, of as many nearest images as its option `neighbours` says.
      changes_label_shares: whether labels of partners have other frequencies than labels of images.
    """

    in_batch: bool | None = None
    same_class: bool = False
    needs_neighbours: bool = False
    changes_label_shares: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler(Traits):
    """Traits of a sampler, which chooses the images of a step.

    Attributes:
      class_frequencies: how often classes are drawn: "natural", "balanced", or "" for others.
    """

    class_frequencies: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassWeight(Traits):
    """Traits of a function that weights classes.

    Attributes:
      changes_label_shares: whether classes weigh other than as often as they occur.
    """

    changes_label_shares: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Posthoc(Traits):
    """Traits of a change of trained logits.

    Attributes:
      turns_prior: (before, after): logits that stand for the first prior stand for the second one afterwards; None if
        they stand for no prior.
      prior_holds_at: options, and the values at which this holds.
      head_parameters: that it reads: paths such as "linear/kernel". It can change the logits of a head that has these
        parameters and no others; of any head if it names none.
    """

    turns_prior: tuple[str, str] | None = None
    prior_holds_at: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head_parameters: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(Traits):
    """Traits of an optimiser: a function that returns an optax transformation for the learning rate 1.

    Attributes:
      is_direction: whether the step subtracts the update, instead of adding it as optax does.
    """

    is_direction: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule(Traits):
    """Traits of a schedule: a function from a step to the learning rate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation(Traits):
    """Traits of an augmentation: a function of keys and images.

    Attributes:
      any_dtype: whether it only moves pixels, so that it takes uint8 as well as float32 in 0..1.
      purpose: the number of its random keys in `training.rng.Use`; None for a number by its place in the list.
    """

    any_dtype: bool = False
    purpose: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure(Traits):
    """Traits of a measure: how it is shown, and how its interval is made.

    Attributes:
      title: of its row in a table; the first words are its short title, up to a bracket or a comma.
      unit: in which a table shows it; "" for a plain number.
      factor: from the value to that unit.
      decimals: that a table shows.
      lowest: the smallest possible value; intervals end there.
      highest: the largest possible value.
      bins: whether it takes a number of bins, as `bins`.
      classwise: whether it looks at the probability of every class; these are measured together, and slowly.
      raised_by_chance: whether chance makes it larger also for a perfectly calibrated model.
      interval: whether it has a bootstrap interval.
      more_classes_than: the number of classes up to which it says nothing.
    """

    title: str = ""
    unit: str = ""
    factor: float = 1
    decimals: int = 4
    lowest: float = -math.inf
    highest: float = math.inf
    bins: bool = False
    classwise: bool = False
    raised_by_chance: bool = False
    interval: bool = True
    more_classes_than: int = 1

    @property
    def short_title(self) -> str:
        """The title without what stands behind a bracket or a comma."""
        return self.title.partition(" (")[0].partition(",")[0]

    def shown(self, value: float | None) -> str:
        """Return a value as a table shows it; "-" for None."""
        return "-" if value is None else f"{self.factor * value:.{self.decimals}f}"


# Traits of a measure in 0..1 that is shown in per cent.
percent = functools.partial(Measure, unit="%", factor=100, decimals=1, lowest=0.0, highest=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logger(Traits):
    """Traits of a logger.

    Attributes:
      package: that it imports, "" for none; the extra that installs it has the name of the logger.
      required: whether no run can do without it: each config names it, and its errors end the run.
      every_step: whether it has a method `update(steps)`, too, which is called after each dispatch of so many steps.
    """

    package: str = ""
    required: bool = False
    every_step: bool = False


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


def check_value(what: str, value: Any, bound: Bound) -> None:
    """Refuse a value of an option that its bound does not allow.

    Args:
      what: its name in the sentence of an error.
      value: of the option.
      bound: of the option.

    Raises:
      UserError: the value, and what it must be.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{what} is {value}; it must be finite")
    try:
        allowed = bound.allows(value)
    except (TypeError, ValueError):  # of another type than the bound's
        allowed = False
    if not allowed:
        raise UserError(f"{what} is {value!r}; it must be {bound.words}")


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
