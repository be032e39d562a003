"""Make configs: the default fields, those of a data source, and the recipe of a method. For config files.

A config file is a few lines on top of `default()`. The last one wins: config file, recipe of the method, arguments
after the colon of --config, overrides. What a YAML or JSON file sets goes before the recipe (`load`).
"""

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from unimix_jax import registry
from unimix_jax.config import fields, hints
from unimix_jax.errors import UserError, one_of
from unimix_jax.methods.recipes import RECIPES

if TYPE_CHECKING:
    from ml_collections import ConfigDict


METHOD = ("name", "head", "posthoc", "stages")  # the entries of config.method
_OF_ALL = {entry: RECIPES["erm"][entry] for entry in ("head", "posthoc")}  # of a recipe that does not say them


def default() -> "ConfigDict":
    """Return a ConfigDict with the fields that all data sources have.

    `use_source` adds those of a source, `use_method` a method.
    """
    from ml_collections import ConfigDict

    config = ConfigDict()
    for field in fields.of_source(""):
        _set(config, field, "")
    for name in fields.OPTIONS:
        group, _, last = name.rpartition(".")
        (config[group] if group else config)[last] = ConfigDict()
    config.method = ConfigDict()
    return config


def use_source(config: "ConfigDict", source: str) -> None:
    """Put a data source into a config: its name, its own fields, and its defaults of the other fields.

    Args:
      config: of `default`.
      source: the name of a data source, such as "digits"; "module:function" for a user's, see `fields.OF_OWN_SOURCE`.
    """
    config.data.source = source
    for field in fields.of_source(source):
        own = ":" in source and field.name in fields.OF_OWN_SOURCE
        if own or source in field.sources or source in field.by_source:
            _set(config, field, source)


def use_photographs(config: "ConfigDict") -> None:
    """Put the fields of photographs into a config: images in files, augmented as is usual for ImageNet.

    Args:
      config: of `default`.
    """
    use_source(config, "photographs")


def use_paper_schedule(config: "ConfigDict") -> None:
    """Set epochs and learning rate as the paper has them for photographs (supplement, C.2).

    Args:
      config: of `default`.
    """
    config.epochs = 90
    config.optim.learning_rate = 0.2
    config.optim.decay_at = (1 / 3, 2 / 3)  # epochs 30 and 60
    config.optim.decay_factor = 0.1


def use_usual_schedule(config: "ConfigDict", epochs: int, weight_decay: float) -> None:
    """Set batch and learning rate as most of the field has them for photographs: batch 256, rate .1, cosine.

    Args:
      config: of `default`.
      epochs: length of the run.
      weight_decay: of SGD.
    """
    config.epochs = epochs
    config.batch_size = 256
    config.optim.learning_rate = 0.1
    config.optim.schedule = "cosine"
    config.optim.weight_decay = weight_decay


def use_method(
    config: "ConfigDict", name: str, data: str = "", recipe: str = "", changes: dict[str, Any] | None = None
) -> None:
    """Put the recipe of a method into a config: its stages, and the fields of the run that it changes.

    A config file calls it last, because a recipe may differ between data sets.

    Args:
      config: of `default`.
      name: a key of `RECIPES`.
      data: the data set's key in `by_data`; "" for the name of the source.
      recipe: of the config file, where it has several; the method's recipe may differ between them.
      changes: what differs from the recipe, nested as it is: {"stages": {"mixed": {"mixer": {"alpha": 0.8}}}}. A stage
        that the recipe does not have must say when it begins.

    Raises:
      UserError: no method has that name, or the changes are of what the recipe does not have.
    """
    from ml_collections import ConfigDict

    changed = RECIPES[one_of("method", name, RECIPES)]
    by_data = changed.get("by_data", {})
    data = data or config.data.source
    for key in (data, f"{data}_{config.data.imbalance:g}", f"{data}_{recipe}"):
        changed = registry.inherit(changed, by_data.get(key, {}))
    check_groups(changes or {})
    check_entries(changes or {}, changed["stages"])
    for stage, entries in (changes or {}).get("stages", {}).items():
        if stage not in changed["stages"] and "begin" not in entries:
            sentence = hints.unknown_stage(name, stage, changed["stages"])
            raise UserError(f"{sentence}; a new one must say when it begins, as a fraction of the run: begin")
    changed = registry.inherit({**_OF_ALL, **changed, "name": name}, {**(changes or {}), "name": name})
    stages = changed["stages"]
    # The first stage is displayed with all that it takes from erm, so that every option can be overridden there; the
    # other stages go on from it.
    first = min(stages, key=lambda stage: stages[stage].get("begin", 0.0))
    stages = {**stages, first: registry.inherit(RECIPES["erm"]["stages"]["plain"], stages[first])}
    config.method = ConfigDict(copy.deepcopy({**{entry: changed[entry] for entry in METHOD}, "stages": stages}))
    config.update(copy.deepcopy(changed.get("config", {})))


def check_groups(method: Mapping[str, Any]) -> None:
    """Refuse a method whose groups of fields, those that are there, are something else.

    Args:
      method: of a config, or what differs from a recipe.

    Raises:
      UserError: the group, and what it is.
    """
    groups = {f"method.{name}": method[name] for name in ("posthoc", "stages") if name in method}
    if hasattr(groups.get("method.stages"), "keys"):
        groups |= {f"method.stages.{name}": stage for name, stage in groups["method.stages"].items()}
    for name, group in groups.items():
        if not hasattr(group, "keys"):
            raise UserError(f"config.{name} is {group!r}; it must be a group of fields")


def check_entries(method: Mapping[str, Any], stages: Iterable[str]) -> None:
    """Refuse entries that no method has.

    Args:
      method: of a config, or what differs from a recipe.
      stages: the names of its stages, or of those of the recipe.

    Raises:
      UserError: the entry, and where it belongs.
    """
    for entry in method:
        if entry in RECIPES["erm"]["stages"]["plain"]:
            raise UserError(f"{entry} is an entry of a stage: write method.stages.{next(iter(stages))}.{entry}")
        one_of("entry of config.method", entry, METHOD)


def arguments(text: str | None, **defaults: Any) -> dict[str, Any]:
    """Parse the text after the colon of --config: NAME=VALUE pairs with commas between them.

    Args:
      text: such as "dataset=cifar10,imbalance=100".
      **defaults: the known names, with their values where `text` does not set them; a value must have the type of its
        default.

    Returns:
      The value of each name.

    Raises:
      UserError: an unknown name, a name that is there twice, no "=", or another type.

    Example:
      >>> arguments("imbalance=50", method="erm", imbalance=100.0)
      {'method': 'erm', 'imbalance': 50.0}
    """
    values, seen = dict(defaults), set()
    for pair in filter(None, (text or "").split(",")):
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"config argument {pair!r} has no value; write NAME=VALUE, known: {', '.join(defaults)}")
        one_of("config argument", name, defaults)
        if name in seen:
            raise UserError(f"config argument {name!r} is given twice")
        seen.add(name)
        kind = type(defaults[name])
        try:
            values[name] = kind(value)
        except ValueError:
            raise UserError(f"config argument {pair!r}: {value!r} is no {kind.__name__}") from None
    return values


def _set(config, field: fields.Field, source: str) -> None:
    """Set a field of a config to its default for a source; make the groups that are not there."""
    *groups, last = field.name.split(".")
    group = config
    for part in groups:
        if part not in group:
            group[part] = type(config)()
        group = group[part]
    value = field.default_for(source)
    group[last] = value(config) if callable(value) else value
