"""Build a `Method` of a recipe: replace names by functions, bind counts and options."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from unimix_jax import priors, registry
from unimix_jax.errors import UserError, did_you_mean, one_of
from unimix_jax.methods.recipes import NEW_ENTRIES, RECIPES

_DEFAULTS = RECIPES["erm"]["stages"]["plain"]  # all entries of a stage
_FUNCTIONS = ("loss", "mixer", "pair_sampler", "sampler", "class_weight")  # entries of a stage that name a function
_REDUCTIONS = ("weights", "count")
_BATCH_NORMS = ("train", "frozen")


class Stage(NamedTuple):
    """A stage of training: the steps first, ..., last - 1, and the functions that they use."""

    name: str
    first: int
    last: int
    loss: Callable  # (logits, labels) -> float32[B]
    mixer: Callable | None  # (Keys, image_a, image_b, label_a, label_b) -> Mixed
    pair_sampler: Callable | None  # (ClassIndex, index, seed, step) -> (partner, view)
    sampler: Callable  # (ClassIndex, seed, step, batch_size) -> int64[B]
    class_weight: np.ndarray  # float32[K]
    reduction: str = "weights"
    lr_multipliers: tuple[tuple[str, float], ...] = ()  # of the learning rate, by parameter group; 1 if absent
    batch_norm: str = "train"  # or "frozen": the network runs as in evaluation
    restart: bool = False  # begin with an optimiser state of zeros
    reinitialise: bool = False  # and with a classifier drawn anew
    schedule: Callable[[int], float] | None = None  # steps of the stage -> learning rate; None for that of the run
    mixes_inside: bool = False  # of the network, with partners of the same batch; seen from what the mixer returns
    neighbours: int = 0  # nearest images whose table the pair sampler asks for; 0 if it asks for none
    logits_prior: np.ndarray | None = None  # float64[K], the prior that softmax(logits) stands for at its end, if any

    @property
    def program(self) -> tuple:
        """The values that the compiled step depends on: stages with equal programs share a compiled step."""
        plain = self.pair_sampler is None
        return self.loss, self.mixer, plain, self.reduction, self.lr_multipliers, self.batch_norm


class Method(NamedTuple):
    """A recipe, ready to train."""

    name: str
    head: str
    stages: tuple[Stage, ...]
    posthoc: Callable | None  # (logits, head's parameters, validation) -> (logits, dict)
    test_prior: np.ndarray  # float64[K], of the data to predict, for losses that take it
    logits_prior: np.ndarray | None  # as that of its last stage, but after `posthoc`

    def ended_by_restart(self) -> dict[int, Stage]:
        """Return the stages whose last state is a model of its own, by their last step.

        The stage behind such a one follows the run, or begins with a new classifier.
        """
        return {stage.last: stage for stage, following in itertools.pairwise(self.stages) if following.restart}


def build(
    recipe: dict[str, Any],
    counts: np.ndarray,
    *,
    name: str,
    epochs: int,
    steps_per_epoch: int,
    test_prior: np.ndarray,
    logit_scale: float = 1.0,
) -> Method:
    """Resolve a recipe for a data set.

    Args:
      recipe: in the grammar of `recipes.py`, overrides applied.
      counts: int64[K], training images per class, none 0.
      name: of the recipe.
      epochs: of the run, stages after it not counted.
      steps_per_epoch: steps of one epoch.
      test_prior: float64[K], for losses that ask for it.
      logit_scale: of the head's logits, for losses that ask for it.

    Returns:
      The method; stages too short for a step are left out.

    Raises:
      UserError: an unknown name, an option that its function does not take, stages out of order.
    """
    named = {"train": priors.prior(counts), "test": test_prior, "uniform": np.full(len(counts), 1 / len(counts))}
    context = {"counts": counts, "train_prior": named["train"], "test_prior": test_prior, "scale": logit_scale}
    bound = {}

    def bind(kind: str, options: dict):
        # Stages with equal options hold the same function, and so share a compiled step.
        key = kind, repr(sorted(options.items()))
        if key not in bound:
            bound[key] = registry.bind(kind, options, context)
        return bound[key]

    stages, prior = [], "none"
    steps = _step_ranges(name, recipe["stages"], epochs * steps_per_epoch, steps_per_epoch)
    for (stage, options), (first, last) in zip(_options(name, recipe["stages"]).items(), steps, strict=True):
        functions = {kind: bind(kind, options[kind]) for kind in _FUNCTIONS}
        functions["schedule"] = _schedule(options["schedule"], last - first, steps_per_epoch)
        resolved = _stage(stage, first, last, options, functions, counts, name)
        if first < last:
            prior = _trained_prior(functions)
            stages.append(resolved._replace(logits_prior=named.get(prior)))
    head = recipe.get("head", RECIPES["erm"]["head"])
    post = registry.inherit({"name": "none"}, recipe.get("posthoc", {}))
    posthoc = bind("posthoc", post)
    if posthoc is not None:
        stated = registry.traits("posthoc", posthoc)
        turned = stated.turns_prior if registry.prior_holds(stated, posthoc) else None
        prior = turned[1] if turned is not None and turned[0] == prior else "none"
    return Method(name, head, tuple(stages), posthoc, test_prior, named.get(prior))


def _options(method: str, stages: dict[str, dict]) -> dict[str, dict]:
    """Return all options of each stage, in the order of their begins: what a stage does not say, it inherits."""
    options, complete = _DEFAULTS, {}
    for stage, changes in _in_order(method, stages).items():
        if extra := changes.keys() - _DEFAULTS.keys():
            entry = min(extra)
            hint = f" (now {NEW_ENTRIES[entry]!r})" if entry in NEW_ENTRIES else did_you_mean(entry, _DEFAULTS)
            raise UserError(f"stage {stage!r} of method {method!r} has the unknown entry {entry!r}{hint}")
        for entry, value in changes.items():
            if isinstance(_DEFAULTS[entry], dict) and not isinstance(value, dict):
                raise UserError(
                    f"{entry} of stage {stage!r} is {value!r}; it has a name and options: write {entry}.name"
                )
        options = registry.inherit(options, changes)
        options["reinitialise"] = changes.get("reinitialise", False)  # what happens once is not inherited
        complete[stage] = options
    return complete


def _step_ranges(method: str, stages: dict[str, dict], total: int, steps_per_epoch: int) -> list[tuple[int, int]]:
    """Return the first step of each stage, and the step before which it ends, in the order of their begins.

    Args:
      method: its name.
      stages: what each one changes, by name.
      total: steps of the run, stages after it not counted.
      steps_per_epoch: steps of one epoch.

    Raises:
      UserError: a stage within the run has epochs.
    """
    ordered = _in_order(method, stages)
    begins = [changes.get("begin", 0.0) for changes in ordered.values()]
    ranges, end = [], 0
    for (stage, changes), begin, next_begin in zip(ordered.items(), begins, [*begins[1:], 1.0], strict=True):
        if begin < 1:
            if changes.get("epochs", 0):
                raise UserError(
                    f"stage {stage!r} of method {method!r} begins at {begin:g} of the run and has epochs; only a stage "
                    "that begins at 1 has them, so set epochs to 0 or begin to 1"
                )
            first, end = (round(fraction * total) for fraction in (begin, next_begin))
        else:
            first, end = end, end + changes["epochs"] * steps_per_epoch
        ranges.append((first, end))
    return ranges


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


def _stage(stage: str, first: int, last: int, options: dict, functions: dict, counts, method: str) -> Stage:
    """Put a stage together, its choices checked.

    Args:
      stage: its name.
      first: its first step.
      last: the step before which it ends.
      options: all of them.
      functions: what `options` names, bound, by kind.
      counts: int64[K].
      method: its name.

    Returns:
      The stage.

    Raises:
      UserError: a choice that does not exist, or functions that do not go together.
    """
    where = f"of stage {stage!r}"
    mixer, pair_sampler, weights = (functions[kind] for kind in ("mixer", "pair_sampler", "class_weight"))
    _check_pairs(mixer, pair_sampler, options, f"stage {stage!r} of method {method!r}")
    factors = options["lr_multipliers"]
    for group, factor in factors.items():
        one_of(f"parameter group in lr_multipliers {where}", group, _DEFAULTS["lr_multipliers"])
        if not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise UserError(
                f"the factor of {group} in lr_multipliers {where} is {factor}; it must be 0 (frozen) or above"
            )
    return Stage(
        stage,
        first,
        last,
        functions["loss"],
        mixer,
        pair_sampler,
        functions["sampler"],
        np.asarray(np.ones(len(counts)) if weights is None else weights(), np.float32),
        reduction=one_of(f"reduction {where}", options["reduction"], _REDUCTIONS),
        lr_multipliers=tuple(sorted((group, float(factor)) for group, factor in factors.items())),
        batch_norm=one_of(f"batch_norm {where}", options["batch_norm"], _BATCH_NORMS),
        restart=options["begin"] == 1 or options["reinitialise"],
        reinitialise=bool(options["reinitialise"]),
        schedule=functions["schedule"],
        neighbours=_neighbours(pair_sampler, options["pair_sampler"]["name"]),
    )


def _schedule(options: dict, total_steps: int, steps_per_epoch: int) -> functools.partial | None:
    """Return the schedule of a stage, bound to its length; None for that of the run."""
    if options["name"] == "run":
        return None
    return registry.bind("schedule", options, {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch})


def _check_pairs(mixer: Callable | None, pair_sampler: Callable | None, options: dict, where: str) -> None:
    """Refuse a mixer and a pair sampler that do not go together.

    Raises:
      UserError: one of them is missing, or the mixer needs other partners.
    """
    if (mixer is None) != (pair_sampler is None):
        raise UserError(f"{where} needs a mixer and a pair_sampler, or neither of them")
    if mixer is None:
        return
    mixed, paired = registry.traits("mixer", mixer), registry.traits("pair_sampler", pair_sampler)
    if mixed.keeps_label and not paired.same_class:
        raise UserError(
            f"{where}: the mixer {options['mixer']['name']} keeps one label, so that it needs partners of the same "
            f"class: pair_sampler must be {_pair_samplers('same_class')}"
        )
    if mixed.mixes_inside and paired.in_batch is False:
        raise UserError(outside_of_batch(where))


def outside_of_batch(where: str) -> str:
    """Return the sentence that refuses partners from outside of the batch for a mixer inside of the network.

    Args:
      where: names the stage and its method.
    """
    return (
        f"{where} mixes inside of the network, where only partners of the same batch are found: pair_sampler must be "
        f"{_pair_samplers('in_batch')}, or a function that returns for each partner, as its view, the place in the "
        "batch where it stands"
    )


def _pair_samplers(trait: str) -> str:
    """Return the names of the pair samplers with a trait, with commas between."""
    known = registry.entries("pair_sampler")
    return ", ".join(name for name, f in known.items() if getattr(registry.traits("pair_sampler", f), trait))


def _neighbours(pair_sampler: Callable | None, name: str) -> int:
    """Return how many nearest images a pair sampler asks for, 0 if none.

    Raises:
      UserError: it asks for their table, but has no option that says how many.
    """
    if pair_sampler is None or not registry.traits("pair_sampler", pair_sampler).needs_neighbours:
        return 0
    try:
        return registry.option(pair_sampler, "neighbours")
    except KeyError:
        raise UserError(
            f"pair_sampler {name!r} asks for a table of nearest images; it needs an option `neighbours`, how many"
        ) from None


def _trained_prior(functions: dict[str, functools.partial | None]) -> str:
    """Return the prior that the logits stand for after a stage: train, test, uniform, or none.

    Args:
      functions: of the stage, bound, by kind.
    """
    for kind in ("mixer", "pair_sampler", "class_weight"):
        if functions[kind] is not None and registry.traits(kind, functions[kind]).changes_label_shares:
            return "none"
    stated = registry.traits("loss", functions["loss"])
    if not registry.prior_holds(stated, functions["loss"]):
        return "none"
    drawn = registry.traits("sampler", functions["sampler"]).class_frequencies
    return {"natural": stated.natural_prior, "balanced": stated.balanced_prior}.get(drawn, "none")
