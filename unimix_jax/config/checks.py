"""Refuse values that are out of range before anything is loaded or compiled."""

from typing import TYPE_CHECKING, Any

from unimix_jax.config import fields
from unimix_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def check(config: "ConfigDict") -> None:
    """Refuse values that are out of range.

    Args:
      config: a ConfigDict with the fields of its data source.

    Raises:
      UserError: the first field that is wrong, its value, and what would be right.
    """
    source = config.get("data", {}).get("source", "")
    for field in fields.of_source(source):
        value = _value(config, field, source)
        if not isinstance(field.bound, str) and not _allowed(field.bound, value):
            raise UserError(f"config.{field.name} is {value!r}; it must be {field.bound.words}")
        if value is None:
            raise UserError(f"config.{field.name} is None; it must have a value, such as {field.default!r}")
    if not config.get("method", {}).get("stages"):
        raise UserError("config.method.stages is empty; it must be at least one stage")
    if source == "photographs":
        _check_photographs(config.data)


def _value(config, field: fields.Field, source: str) -> Any:
    """Return the value of a field.

    Raises:
      UserError: the config has no such field.
    """
    value = config
    try:
        for part in field.name.split("."):
            value = value[part]
    except (KeyError, TypeError):
        begin = f"use_source(config, {source!r})" if field.sources else "default()"
        raise UserError(f"the config has no field {field.name}; begin it with unimix_jax.config.{begin}") from None
    return value


def _allowed(bound, value: Any) -> bool:
    try:
        return value is not None and bool(bound.allows(value))
    except (AttributeError, TypeError):  # a value of another type than that of the default
        return False


def _check_photographs(data) -> None:
    """Refuse fields of photographs that do not go together."""
    if data.on_device:
        raise UserError("config.data.on_device is True; it must be false, for photographs are read from files")
    if data.resize < data.image_size:
        raise UserError(
            f"config.data.resize is {data.resize}, less than config.data.image_size, {data.image_size}; an evaluation "
            "cuts its centre out of the resized image"
        )
    if data.test_share + data.validation_share > 0.5:
        raise UserError("config.data.test_share and validation_share are more than .5 together; training keeps half")
