"""Long-tailed image recognition with calibrated confidence, in JAX.

A method is a recipe (`methods/recipes.py`), a run is a config (`configs/`), training writes `predictions.npz`, and the
measures turn it into numbers. `docs/architecture.md` has the map.
"""

__version__ = "0.1.0"
