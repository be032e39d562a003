"""Sentences for fields and options that do not exist: the name here of what other tools call otherwise."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from unimix_jax.config import fields
from unimix_jax.errors import did_you_mean

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Options of the command line by the names that other tools have for them.
_WORKDIR = ("output_dir", "out_dir", "outdir", "output", "save_dir", "log_dir", "logdir", "work_dir")
_OPTIONS = dict.fromkeys(_WORKDIR, "workdir")
# Names that are not fields here, with the sentence to print.
_NO_FIELD = {
    "resume": "a run goes on where it stopped by the same command with the same --workdir",
    "seed_everything": "the seed of a run is --config.seed",
}
_NO_FIELD["resume_from"] = _NO_FIELD["resume"]
TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", tuple: "a list of numbers"}
_NAMES = "a list of names"
_METHOD = ("method", "loss", "loss_type", "mixer", "recipe", "algorithm")
_DATASET = ("dataset", "data")


def holds_names(default: Any) -> bool:
    """Return whether a field with this default takes a list of names; an empty list is one of names."""
    return isinstance(default, tuple) and all(isinstance(value, str) for value in default)


def type_words(default: Any) -> str:
    """Return the words for the type of the values of a field with this default."""
    return _NAMES if holds_names(default) else TYPES.get(type(default), "of another type")


def unknown_field(name: str, config: "ConfigDict") -> str:
    """Return the sentence for an override of a field that a config does not have.

    Args:
      name: the dotted name.
      config: of the run.
    """
    from unimix_jax.config.compare import flat

    last = _last(name)
    everywhere = "; add --help to see every field"
    if last in _NO_FIELD:
        return f"unknown config field {name!r}: {_NO_FIELD[last]}"
    if last in _METHOD and "." not in name:
        return f"unknown config field {name!r}: a method is chosen after the colon, as in --config=FILE:method=unimix"
    stages, stage = config.get("method", {}).get("stages", {}), name.split(".")[2:3]
    if name.startswith("method.stages.") and stage[0] not in stages:
        return f"unknown config field {name!r}: {unknown_stage(config.method.get('name', ''), stage[0], stages)}"
    field = _field_of(name)
    if field is None:
        return f"unknown config field {name!r}{did_you_mean(name, flat(config.to_dict()))}{everywhere}"
    source = config.data.source
    if field.sources and source not in field.sources:
        what = "this name" if field.name == name else f"{field.name}, its name here,"
        whose = f"{what} is a field of {' and '.join(field.sources)}, not of the data source {source!r}"
        return f"unknown config field {name!r}: {whose}{everywhere}"
    return f"unknown config field {name!r} (did you mean {field.name!r}?){everywhere}"


def unknown_stage(method: str, stage: str, stages: Iterable[str]) -> str:
    """Return the sentence for a stage that a method does not have.

    Args:
      method: its name.
      stage: what the user wrote.
      stages: the names of its stages.
    """
    return f"method {method!r} has no stage {stage!r}{did_you_mean(stage, stages)}; its stages: {', '.join(stages)}"


def unknown_option(name: str, text: str | None, known: tuple[str, ...]) -> str:
    """Return the sentence for an option that the command line does not have.

    Args:
      name: without the dashes.
      text: its value; None if it has none.
      known: the options that there are.
    """
    last = _last(name)
    value = "VALUE" if text is None else text
    if last in _NO_FIELD:
        hint = f"; {_NO_FIELD[last]}"
    elif last in _OPTIONS:
        hint = f"; write --{_OPTIONS[last]}={value}"
    elif last in _METHOD:
        hint = f"; a method is chosen after the colon: write --config=FILE:method={value}"
    elif last in _DATASET:
        hint = "; the config file chooses the data: see the list of --help"
    elif (field := _field_of(name)) is not None:
        of = f", a field of {' and '.join(field.sources)}" if field.sources else ""
        hint = f"; write --config.{field.name}={value}{of}"
    else:
        hint = did_you_mean(name, known) + "; --help lists the options"
    return f"unknown option --{name}{hint}"


def _last(name: str) -> str:
    return name.lower().replace("-", "_").split(".")[-1]


def _field_of(name: str) -> fields.Field | None:
    """Return the field that a name stands for: its own, its last part, or a name of other tools; None if no field."""
    plain, last = name.lower().replace("-", "_"), _last(name)
    for field in fields.FIELDS.values():
        if plain in (field.name, field.old):
            return field
    candidates = [f for f in fields.FIELDS.values() if last == f.name.split(".")[-1] or last in f.hints]
    return candidates[0] if len(candidates) == 1 else None
