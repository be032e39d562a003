"""Change fields of a config as the command line says: --config.FIELD=VALUE."""

import ast
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from unimix_jax import registry
from unimix_jax.config import fields, hints, old_names
from unimix_jax.config.compare import flat
from unimix_jax.errors import UserError
from unimix_jax.methods.recipes import RECIPES

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_STAGE = RECIPES["erm"]["stages"]["plain"]  # every entry that a stage can have


class Override(NamedTuple):
    """A field and its value as the command line has them; the value is None where it gives none."""

    field: str
    text: str | None


def apply(config: "ConfigDict", overrides: list[Override], name: str) -> "ConfigDict":
    """Return a config with fields changed by the command line.

    Args:
      config: of `load`; it is changed.
      overrides: in the order of the command line.
      name: of the config file, for sentences.

    Raises:
      UserError: an unknown field, a value of another type.
    """
    from absl import flags
    from ml_collections import config_flags

    overrides = _with_new_names(overrides)
    before = {path: options.to_dict() for path, options in _functions_of(config).items()}
    for override in overrides:
        _check_method(override, name)
        _make_room(config, override)
        _check_field(config, override.field)
    overrides = [_with_quoted_names(override) for override in overrides]
    values = flags.FlagValues()
    argv = ["", *(f"--config.{field}" if text is None else f"--config.{field}={text}" for field, text in overrides)]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        for field, text in overrides:
            if str(error).startswith(f"flag --config.{field}={text}:"):
                wanted = hints.type_words(flat(config.to_dict())[field])
                raise UserError(f"config.{field} is {text!r}; it must be {wanted}") from None
        raise UserError(" ".join(str(error).split())) from None
    config = values.config
    _drop_options_of_other_functions(config, before, {override.field for override in overrides})
    return config


def _with_new_names(overrides: list[Override]) -> list[Override]:
    """Replace old names of fields and values, with a logged sentence."""
    result, renamed = [], {}
    for field, text in overrides:
        new = Override(old_names.new_field(field), None if text is None else old_names.new_text(field, text))
        if new.field != field:
            renamed[f"config.{field}"] = f"config.{new.field}"
        result.append(new)
    old_names.warn("the command line", renamed)
    return result


def _with_quoted_names(override: Override) -> Override:
    """Write a list of names as Python does, because a,b is one text for the parser of fields."""
    field = fields.FIELDS.get(override.field)
    if override.text is None or field is None or not hints.holds_names(field.default):
        return override
    return override._replace(text=repr(tuple(re.findall(r"""[^\s,'"()\[\]]+""", override.text))))


def _check_method(override: Override, name: str) -> None:
    """Refuse the choice of a method by an override: its recipe must be there before its fields are changed."""
    if override.field not in ("method", "method.name"):
        return
    if name.endswith(".py") or "." not in name:
        how = f"a method is chosen by its name after the colon, as in --config={name}:method={override.text or 'NAME'}"
    else:
        how = f"{name} holds the method; change it there, or give a Python config, as in --config=FILE.py:method=NAME"
    raise UserError(f"config.{override.field} cannot be set; {how}")


def _make_room(config, override: Override) -> None:
    """Add an option of a function that the command line sets and the config does not show.

    A later stage shows only its changes, and another function has other options; `registry.bind` refuses what its
    function does not take.
    """
    path = override.field.split(".")
    stage = path[:2] == ["method", "stages"] and len(path) > 3 and path[2] in config.method.stages
    in_method = (stage and path[3] in _STAGE) or path[:2] == ["method", "posthoc"]
    if override.text is None or not (in_method or fields.is_option(override.field)):
        return
    group = config
    with config.unlocked():
        for part in path[:-1]:
            if part not in group:
                group[part] = type(config)()
            group = group[part]
            if not hasattr(group, "keys"):
                return
        if path[-1] not in group:
            group[path[-1]] = _literal(override.text)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _check_field(config, name: str) -> None:
    """Refuse a field that the config does not have, and a group of fields."""
    value = config
    for part in name.split("."):
        if not hasattr(value, "keys") or part not in value:
            raise UserError(hints.unknown_field(name, config))
        value = value[part]
    if hasattr(value, "keys"):
        inside = f"{name}.name" if "name" in value else next((f for f in fields.FIELDS if f.startswith(f"{name}.")), "")
        example = f"; write --config.{inside}=VALUE" if inside else ""
        raise UserError(f"config.{name} is a group of fields and has no value of its own{example}")


def _functions_of(config) -> dict[str, Any]:
    """Return the groups of a method's fields that name a function and its options, by their dotted name."""
    parents = {"method": config.method} | {
        f"method.stages.{name}": stage for name, stage in config.method.stages.items()
    }
    return {
        f"{path}.{entry}": options
        for path, entries in parents.items()
        for entry, options in entries.items()
        if entry != "stages" and hasattr(options, "keys")
    }


def _drop_options_of_other_functions(config, before: dict[str, dict], overridden: set[str]) -> None:
    """Drop the options of a function where the command line names another function.

    Args:
      config: with the overrides.
      before: the functions and options that it had without them.
      overridden: the fields of the command line.
    """
    for path, options in _functions_of(config).items():
        if f"{path}.name" in overridden:
            changes = {option: value for option, value in options.items() if f"{path}.{option}" in overridden}
            kept = registry.inherit(before.get(path, {}), changes)
            with options.unlocked():
                for option in set(options) - set(kept):
                    del options[option]
