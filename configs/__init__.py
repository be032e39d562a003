"""One short file a task; see `unimix_jax/settings.py` for the fields that all of them have."""
