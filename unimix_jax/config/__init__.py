"""What a run can be told: fields, config files, the command line, and what is refused."""

from unimix_jax.config.build import (
    Command,
    arguments,
    check,
    default,
    find_config,
    parse,
    shipped_configs,
    use_method,
    use_photographs,
)

__all__ = [
    "Command",
    "arguments",
    "check",
    "default",
    "find_config",
    "parse",
    "shipped_configs",
    "use_method",
    "use_photographs",
]
