"""The text of --config=FILE --help: every field of a config with its value and its help."""

import shlex
from typing import TYPE_CHECKING, Any

from unimix_jax.config import fields, hints
from unimix_jax.config.compare import flat

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def listing(config: "ConfigDict", name: str) -> str:
    """Return the text that lists every field of a config.

    Args:
      config: a ConfigDict.
      name: of the config file, for the head of the text.
    """
    values = flat(config.to_dict())
    declared = [field for field in fields.FIELDS.values() if field.name in values]
    lines = [f"The fields of {name} with their values; set another value as --config.FIELD=VALUE.", ""]
    for field in declared:
        lines += _entry(field.name, values.pop(field.name), _help(field))
    method = {dotted: values.pop(dotted) for dotted in list(values) if dotted.startswith("method.")}
    for own, value in values.items():
        text = "An option of a function." if fields.is_option(own) else "A field of the config file itself."
        lines += _entry(own, value, text)
    lines += ["", "Groups of options:"]
    for group, text in fields.OPTIONS.items():
        lines.append(f"  config.{group}: {text}")
    lines += ["", "The method; --config=FILE:method=NAME chooses another one, and --methods lists them:"]
    for dotted, value in method.items():
        lines += _entry(dotted, value, _method_help(dotted, method))
    return "\n".join(lines)


def _entry(name: str, value: Any, text: str) -> list[str]:
    return [f"  --config.{name}={_written(value)}", f"      {text}"]


def _help(field: fields.Field) -> str:
    """Return a field's help with the values that it may have; longer words of a bound say what the help says."""
    words = "," if isinstance(field.bound, str) else field.bound.words
    return field.help if "," in words or isinstance(field.default, bool) else f"{field.help} [{words}]"


def _method_help(dotted: str, method: dict[str, Any]) -> str:
    """Return the help of a leaf of config.method: of the entry itself, or of the entry whose option it is."""
    parts = dotted.split(".")
    entries = parts[3:] if parts[1] == "stages" else parts[1:]
    if len(entries) == 2 and entries[1] != "name" and f"{dotted.rpartition('.')[0]}.name" in method:
        return f"An option of {method[dotted.rpartition('.')[0] + '.name']}."
    return fields.METHOD_ENTRIES.get(entries[0], "")


def _written(value: Any) -> str:
    """Return a value as the command line takes it."""
    if hints.holds_names(value):
        return shlex.quote(",".join(value))
    text = repr(value).replace(" ", "") if isinstance(value, tuple) else str(value)
    return shlex.quote(text) if text else ""
