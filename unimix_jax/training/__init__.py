"""The run: from a config to predictions."""
