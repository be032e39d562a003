"""Long-tailed image recognition with calibrated confidence, in JAX.

A method is a row of data (`methods/rows.py`), a run is a config (`configs/`), and training turns it
into `predictions.npz`, which the measures turn into numbers. `docs/architecture.md` has the map.
"""

__version__ = "0.1.0"
