"""The config of a run: its fields, config files, the command line, and the checks of values.

A config file uses `default`, `use_source`, `use_method` and `arguments`; see `configs/`. The fields are declared in
`fields`.
"""

from unimix_jax.config.build import (
    arguments,
    default,
    use_method,
    use_paper_schedule,
    use_photographs,
    use_source,
    use_usual_schedule,
)
from unimix_jax.config.checks import check
from unimix_jax.config.command_line import Command, parse, usage
from unimix_jax.config.load import find_config, shipped_configs

__all__ = [
    "Command",
    "arguments",
    "check",
    "default",
    "find_config",
    "parse",
    "shipped_configs",
    "usage",
    "use_method",
    "use_paper_schedule",
    "use_photographs",
    "use_source",
    "use_usual_schedule",
]
