"""Loss functions: logits and integer labels in, one value per example out. No devices, no averaging.

Every loss computes in float32, in float64 where that comes in, and returns that type.
"""

import jax
import jax.numpy as jnp
import numpy as np


def cross_entropy(logits, labels):
    """Minus the log of the softmax at the label.

    Args:
      logits: float[B, K].
      labels: int[B], 0 <= label < K.

    Returns:
      float32[B], in nats.

    Example: nothing known of two classes costs log 2.
      >>> cross_entropy(jnp.zeros((1, 2)), jnp.array([1]))
      Array([0.6931472], dtype=float32)
    """
    logits = _centred(logits)
    true = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - true


def bayias(logits, labels, *, train_prior, test_prior=None):
    """Cross entropy of logits shifted by log(train prior / test prior).

    Only training shifts: at test time the raw logits already stand for `test_prior`. With the train
    prior as `test_prior` this is cross entropy; with a uniform one it is logit adjustment at strength
    1 and balanced softmax, for softmax does not see the constant log K.

    Args:
      logits: float[B, K].
      labels: int[B], 0 <= label < K.
      train_prior: float[K], sums to 1, no zeros: the share of each class in training.
      test_prior: float[K], the same for the data to predict; None means uniform.

    Returns:
      float32[B], in nats.

    Example: 90 and 10 images, undecided logits; the shifted softmax is the prior.
      >>> bayias(jnp.zeros((1, 2)), jnp.array([1]), train_prior=[0.9, 0.1])
      Array([2.3025851], dtype=float32)

    Source: Xu, Chai, Yuan, NeurIPS 2021, Eq. B.8 and B.17.
    """
    shift = np.log(np.asarray(train_prior, np.float64))
    if test_prior is not None:
        shift = shift - np.log(np.asarray(test_prior, np.float64))
    return _shifted_cross_entropy(logits, labels, shift)


def _shifted_cross_entropy(logits, labels, shift):
    """Cross entropy of logits + shift; shift float64[K] of numpy, known before the program is made."""
    # Centred first: float32 holds 1e4 + log prior to 1e-3 only.
    logits = _centred(logits)
    return cross_entropy(logits + shift.astype(logits.dtype), labels)


def _centred(logits):
    """Logits in the type of the computation, their largest 0: softmax is the same, rounding is not."""
    logits = jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return logits - jax.lax.stop_gradient(logits.max(axis=1, keepdims=True))
