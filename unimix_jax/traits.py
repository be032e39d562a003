"""Traits of the functions that a config can name: what other code must know of each. Imports no package.

`registry` gives these names, too: a user's module imports that one.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from unimix_jax.errors import UserError, one_of

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
