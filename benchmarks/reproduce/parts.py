"""Parts of methods for the tables, outside of the library."""

import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax import registry
from unimix_jax.data.rng import Stream, generator
from unimix_jax.data.sampling import ClassIndex
from unimix_jax.methods.mixing import Keys, Mixed


@registry.Mixer()
def constant_share(
    keys: Keys, image_a: jax.Array, image_b: jax.Array, label_a: jax.Array, label_b: jax.Array, *, counts: np.ndarray
) -> Mixed:
    """Mix each pair with the share n_b / (n_a + n_b), about which UniMix draws its factor.

    Args:
      keys: unused.
      image_a: float32[B, H, W, C].
      image_b: the same of the partners.
      label_a: int32[B].
      label_b: int32[B].
      counts: int[K], training images per class.

    Source: Corollary 3 of the paper, where lambda is this share.
    """
    counts = jnp.asarray(counts, jnp.float32)
    weight = counts[label_b] / (counts[label_a] + counts[label_b])
    share = weight[:, None, None, None]
    return Mixed(share * image_a + (1 - share) * image_b, label_a, label_b, weight)


@registry.Sampler(class_frequencies="natural")
def independent(class_index: ClassIndex, *, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Choose each example of a batch independently of all others, so that an epoch may miss some of them.

    Args:
      class_index: of the training labels.
      seed: of the run.
      step: from 0.
      batch_size: of the whole batch.

    Returns:
      int64[batch_size].
    """
    return generator(seed, Stream.ORDER, step).integers(len(class_index.labels), size=batch_size)
