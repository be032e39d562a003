"""The old name of `unimix_jax.config`, for config files made before; it goes with the next release."""

import logging

from unimix_jax.config import (
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
    "arguments", "check", "default", "find_config", "parse", "shipped_configs", "use_method", "use_photographs",
]  # fmt: skip

logging.getLogger(__name__).warning(
    "unimix_jax.settings is now unimix_jax.config; the next release does not have the old name"
)
