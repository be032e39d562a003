"""Closed forms and exact class distributions of Corollaries 1 to 3 of the paper."""

from unimix_jax.theory import closed_forms, exact

__all__ = ["closed_forms", "exact"]
