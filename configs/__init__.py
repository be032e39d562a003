"""One short file a task; `--config=FILE --help` lists its fields, `unimix_jax/config/fields.py` declares them."""
