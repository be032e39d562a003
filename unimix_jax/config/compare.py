"""Compare the config of a run with the one that it is resumed with."""

import json

from unimix_jax.config import fields
from unimix_jax.config.old_names import with_new_names


def flat(config: dict, prefix: str = "") -> dict:
    """Flatten nested dicts to dotted keys.

    Args:
      config: nested dicts.
      prefix: put before each key.

    Returns:
      The leaves by their dotted keys.

    Example:
      >>> flat({"seed": 0, "data": {"dir": "images"}})
      {'seed': 0, 'data.dir': 'images'}
    """
    pairs = {}
    for key, value in config.items():
        if isinstance(value, dict):
            pairs |= flat(value, f"{prefix}{key}.")
        else:
            pairs[prefix + key] = value
    return pairs


def differing_keys(old: dict, new: dict) -> tuple[list[str], list[str]]:
    """Compare two configs; old names of fields are read as the new ones.

    Args:
      old: nested dicts as read from config.json; a field that an older version did not have has its default.
      new: nested dicts; tuples are compared as lists.

    Returns:
      The dotted keys that differ and change numbers; and those that differ and do not change numbers, or change them
      only by way of the data, whose digests are compared elsewhere.
    """
    old, new = (flat(with_new_names(each)[0]) for each in (old, json.loads(json.dumps(new))))
    source = old.get("data.source", "")
    for name, field in fields.FIELDS.items():
        if name in new and name not in old and not callable(default := field.default_for(source)):
            old[name] = json.loads(json.dumps(default))
    missing = object()
    keys = sorted(k for k in old.keys() | new.keys() if old.get(k, missing) != new.get(k, missing))
    may_differ = [k for k in keys if k in fields.FIELDS and fields.FIELDS[k].resume != fields.FIXED]
    return [k for k in keys if k not in may_differ], may_differ
