"""The layers of the project's networks, as Flax modules. `ops` computes them."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from unimix_jax.errors import UserError, described
from unimix_jax.models import ops


def made(what: str, make: Callable[[], Any]) -> nn.Module:
    """Make a module of a class that may be the user's.

    Args:
      what: the part and its name, for the sentence of an error.
      make: returns the module.

    Returns:
      The module.

    Raises:
      UserError: the class fails, or it is none of a Flax module.
    """
    try:
        module = make()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the class may raise anything
        raise UserError(f"the {what} cannot be made: {described(error)}") from error
    if not isinstance(module, nn.Module):
        raise UserError(f"the {what} is of type {type(module).__name__}; it must be a Flax module, flax.linen.Module")
    return module


class Convolution(nn.Module):
    """Square convolution without bias, padded by half of its size on every side.

    Attributes:
      features: output channels.
      stride: of both axes.
      dtype: in which it computes.
      size: of the kernel, odd.
      groups: of channels, each of which is convolved by itself.
    """

    features: int
    stride: int = 1
    dtype: Any = jnp.float32
    size: int = 3
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve images.

        Args:
          x: float[N, H, W, C].

        Returns:
          dtype[N, ceil(H / stride), ceil(W / stride), features].
        """
        # Flax holds the kernel and promotes the dtypes; padding and stride are those of `ops.conv2d`.
        return nn.Conv(
            self.features,
            (self.size, self.size),
            feature_group_count=self.groups,
            use_bias=False,
            dtype=self.dtype,
            conv_general_dilated=lambda x, kernel, *_, **__: ops.conv2d(x, kernel, self.stride, self.groups),
            name="conv",
        )(x)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with the statistics of PyTorch.

    It normalises by the biased variance of the batch, and keeps running statistics with the unbiased one:
    new = momentum * old + (1 - momentum) * batch. It computes in the dtype of `ops.widened`.

    Attributes:
      axis: mesh axis whose devices share the batch in training; None for each device's own statistics.
      momentum: share of the old running statistics.
      epsilon: added to the variance.
    """

    axis: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, residual: jax.Array | None = None, relu: bool = False) -> jax.Array:
        """Normalise activations, add a residual, apply ReLU; one call does so for `ops.batch_norm`.

        Args:
          x: float[..., C].
          train: take the statistics of the batch, and update the running ones.
          residual: as x, or None.
          relu: whether ReLU follows.

        Returns:
          The result, as x.
        """
        features = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, features)
        bias = self.param("bias", nn.initializers.zeros, features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_variance = self.variable("batch_stats", "var", jnp.ones, features)
        if not train:
            statistics = running_mean.value, running_variance.value
            return ops.batch_norm_inference(x, scale, bias, *statistics, residual, relu, self.epsilon)
        y, mean, variance = ops.batch_norm(x, scale, bias, residual, relu, self.axis, self.epsilon)
        if not self.is_initializing():
            size = x.size // x.shape[-1] * (1 if self.axis is None else jax.lax.axis_size(self.axis))
            keep, new = self.momentum, 1 - self.momentum
            running_mean.value = keep * running_mean.value + new * mean
            running_variance.value = keep * running_variance.value + new * variance * (size / max(size - 1, 1))
        return y
