"""Names that fields and entries of methods had before: accepted for one release, with a sentence that says the new one.

The names are declared with the fields (`fields.Field.old`) and with the recipes (`NEW_ENTRIES`, `NEW_FUNCTIONS`).
"""

import copy
import logging
from typing import TYPE_CHECKING, Any

from unimix_jax.config.fields import FIELDS
from unimix_jax.methods.recipes import NEW_ENTRIES, NEW_FUNCTIONS

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_log = logging.getLogger(__name__)
_MISSING = object()

NEW_FIELDS = {field.old: field for field in FIELDS.values() if field.old}


def with_new_names(config: dict) -> tuple[dict, dict[str, str]]:
    """Replace the old names in a config.

    Args:
      config: nested dicts as in config.json, of whatever content.

    Returns:
      A config with the new names, and {old name: new name} of those that were replaced.
    """
    config = copy.deepcopy(config)
    return config, rename(config)


def rename(config: "ConfigDict") -> dict[str, str]:
    """Replace the old names in a config in place.

    Args:
      config: a ConfigDict or nested dicts.

    Returns:
      {old name: new name} of those that were replaced.
    """
    renamed = {}
    for old, field in NEW_FIELDS.items():
        value = _take(config, old)
        if value is not _MISSING:
            _put(config, field.name, _new_value(value, field.new_values))
            renamed[old] = field.name
    method = config.get("method") if hasattr(config, "keys") else None
    stages = method.get("stages") if hasattr(method, "keys") else None
    for name, stage in stages.items() if hasattr(stages, "keys") else ():
        if hasattr(stage, "keys"):
            renamed |= {f"method.stages.{name}.{k}": f"method.stages.{name}.{v}" for k, v in _rename_stage(stage)}
    return renamed


def new_field(name: str) -> str:
    """Return the present name of a dotted field; the same name where it is no old one."""
    if name in NEW_FIELDS:
        return NEW_FIELDS[name].name
    parts = name.split(".")
    if parts[:2] == ["method", "stages"] and len(parts) > 3:
        parts[3] = NEW_ENTRIES.get(parts[3], parts[3])
    return ".".join(parts)


def new_text(name: str, text: str) -> str:
    """Return the present value of a field as the command line writes it.

    Args:
      name: the dotted name that the command line has, old or new.
      text: the value that it has there.
    """
    if name in NEW_FIELDS:
        return str(_new_value(text, NEW_FIELDS[name].new_values))
    parts = name.split(".")
    if parts[:2] == ["method", "stages"] and parts[4:] == ["name"] and parts[3] in NEW_ENTRIES:
        return NEW_FUNCTIONS.get(NEW_ENTRIES[parts[3]], {}).get(text, text)
    return text


def warn(where: str, renamed: dict[str, str]) -> None:
    """Log one sentence that names the new names.

    Args:
      where: the file or command line that has the old ones.
      renamed: {old name: new name}; nothing is logged if it is empty.
    """
    if renamed:
        pairs = ", ".join(f"{old} is now {new}" for old, new in renamed.items())
        _log.warning("%s uses old names, which the next release does not know: %s", where, pairs)


def _rename_stage(stage):
    """Replace the old names in a stage; yield each old name with its new one."""
    for old, new in NEW_ENTRIES.items():
        if old in stage:
            value = stage[old]
            del stage[old]
            stage[new] = value
            yield old, new
    for entry, functions in NEW_FUNCTIONS.items():
        options = stage.get(entry)
        name = options.get("name") if hasattr(options, "keys") else None
        if isinstance(name, str) and name in functions:
            options["name"] = functions[name]


def _new_value(value: Any, new_values) -> Any:
    return new_values.get(value, value) if isinstance(value, str) else value


def _take(config, name: str) -> Any:
    """Remove a dotted field from a config and return its value; `_MISSING` if it is not there."""
    *groups, last = name.split(".")
    for part in groups:
        config = config.get(part) if hasattr(config, "keys") else None
    if not hasattr(config, "keys") or last not in config:
        return _MISSING
    value = config[last]
    del config[last]
    return value


def _put(config, name: str, value: Any) -> None:
    """Set a dotted field of a config whose groups are there."""
    *groups, last = name.split(".")
    for part in groups:
        config = config[part]
    config[last] = value
