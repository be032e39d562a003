"""The mean and standard deviation of pixels, by which images in memory are normalised. numpy only."""

import numpy as np

_BLOCK = 1024  # images that are counted at once


def mean_and_std(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation of each channel.

    Args:
      images: uint8[N, H, W, C].

    Returns:
      float32[C] each, of pixels / 255; a flat channel has a standard deviation of one grey level, 1 / 255.
    """
    # Histograms, block by block, are exact and need no copy of all images in floats.
    histograms = np.zeros((images.shape[-1], 256))
    for start in range(0, len(images), _BLOCK):
        for channel, histogram in enumerate(histograms):
            histogram += np.bincount(images[start : start + _BLOCK, ..., channel].ravel(), minlength=256)
    values, shares = np.arange(256.0), histograms / histograms.sum(axis=1, keepdims=True)
    mean = shares @ values
    std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
    return (mean / 255).astype(np.float32), (np.maximum(std, 1) / 255).astype(np.float32)
