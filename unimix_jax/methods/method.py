"""From a row of options to a `Method`: names become functions, counts and options are bound."""

import functools
import importlib
import inspect
import itertools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from unimix_jax.errors import UserError, one_of
from unimix_jax.methods import losses, mixing
from unimix_jax.methods.mixing import Mixed
from unimix_jax.methods.rows import ROWS

HEADS = ("linear",)
LOSSES = {name: f for name, f in vars(losses).items() if inspect.isfunction(f) and not name.startswith("_")}
MIXERS = {"none": None} | {
    name: f for name, f in vars(mixing).items() if inspect.isfunction(f) and f.__annotations__.get("return") is Mixed
}
# The prior that softmax(logits) stands for after training by each loss on naturally drawn images.
# A loss that is not here has none: its logits cannot be corrected for another prior.
LOGITS_PRIOR = {"cross_entropy": "train", "bayias": "test"}
# What the run gives to a function at each step; no row sets it.
_GIVEN = ("seed", "step", "size")


class Stage(NamedTuple):
    """What is trained from step `first` to before step `last`."""

    name: str
    first: int
    last: int
    loss: Callable  # (logits, labels) -> float32[B]
    mixer: Callable | None  # (keys, image_a, image_b, label_a, label_b) -> Mixed
    partners: Callable | None  # (ByClass, seed, step, size) -> int64[size]

    @property
    def program(self) -> tuple:
        """What the compiled step depends on: stages with equal programs share one."""
        return self.loss, self.mixer, self.partners is None


class Method(NamedTuple):
    """A row, ready to train."""

    name: str
    head: str
    stages: tuple[Stage, ...]
    logits_prior: np.ndarray | None  # float64[K], see LOGITS_PRIOR; None if it stands for none


def build(
    row: dict[str, Any],
    counts: np.ndarray,
    *,
    name: str,
    steps: int,
    partners: dict[str, Callable],
    test_prior: np.ndarray,
) -> Method:
    """Resolve a row for a data set.

    Args:
      row: options in the grammar of `rows.py`, overrides applied.
      counts: int64[K], training images per class, none 0.
      name: the row's name.
      steps: of the whole run.
      partners: the partner rules by name (those of data/sampling.py: the wings do not know each other).
      test_prior: float64[K], for losses that take it.

    Raises:
      UserError: an unknown name, an option that its function does not take, stages out of order.
    """
    train_prior = np.asarray(counts, np.float64) / np.sum(counts)
    context = {"counts": counts, "train_prior": train_prior, "test_prior": test_prior}
    known = {"loss": LOSSES, "mixer": MIXERS, "partners": {"none": None, **partners}}
    # Cached, so that stages with equal options hold the same function and share a compiled step.
    bind = functools.cache(lambda kind, options: _bind(kind, json.loads(options), known[kind], context))

    options, begins, resolved = ROWS["erm"]["stages"]["plain"], [], []
    for stage, changes in row["stages"].items():
        options = {k: _inherit(options.get(k), v) for k, v in {**options, **changes}.items()}
        extra = options.keys() - {"begin", *known}
        if extra:
            raise UserError(f"stage {stage!r} of method {name!r} has the unknown entry {min(extra)!r}")
        begins.append(_begin(stage, options["begin"], begins))
        resolved.append({kind: bind(kind, json.dumps(options[kind], sort_keys=True)) for kind in known})
        if (resolved[-1]["mixer"] is None) != (resolved[-1]["partners"] is None):
            raise UserError(f"stage {stage!r} of method {name!r} needs a mixer and partners, or neither of them")
    edges = [round(begin * steps) for begin in begins] + [steps]
    stages = tuple(
        Stage(stage, first, last, **functions)
        for stage, (first, last), functions in zip(row["stages"], itertools.pairwise(edges), resolved, strict=True)
        if first < last
    )
    priors = {"train": train_prior, "test": test_prior}
    head = one_of("head (config.method.head)", row.get("head", "linear"), HEADS)
    return Method(name, head, stages, priors.get(LOGITS_PRIOR.get(options["loss"]["name"])))


def _inherit(before: Any, changes: Any) -> Any:
    """Merge a stage's entry into that of the stage before; another function starts with its own options."""
    if not isinstance(changes, dict) or before is None:
        return changes
    same = changes.get("name", before["name"]) == before["name"]
    return {**before, **changes} if same else dict(changes)


def _begin(stage: str, begin: float, before: list[float]) -> float:
    if not (0 <= begin < 1) or (before and begin < before[-1]) or (not before and begin != 0):
        raise UserError(
            f"stage {stage!r} begins at {begin:g} of the run; the first stage begins at 0, each later one after "
            "the one before it, all before 1"
        )
    return begin


def _bind(kind: str, options: dict[str, Any], known: dict[str, Callable | None], context: dict[str, Any]):
    """Return the named function with its options, and what it asks of `context`, bound."""
    options = dict(options)
    name = options.pop("name")
    function = _imported(name) if ":" in name else known[one_of(kind, name, known)]
    if function is None:
        if options:
            raise UserError(f"{kind} {name!r} takes no options, but {min(options)!r} is given")
        return None
    takes = inspect.signature(function).parameters
    own = [p for p in takes if takes[p].kind is inspect.Parameter.KEYWORD_ONLY and p not in (*context, *_GIVEN)]
    for option in options:
        if option not in own:
            raise UserError(f"{kind} {name!r} takes no option {option!r}; it takes {', '.join(own) or 'none'}")
    return functools.partial(function, **{k: v for k, v in context.items() if k in takes}, **options)


def _imported(name: str) -> Callable:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"cannot import {name!r}: {error}") from None
