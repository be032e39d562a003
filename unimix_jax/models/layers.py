"""What networks are built of. Arrays in, arrays out; no devices, but for an axis that is named."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def relu(x):
    """max(x, 0), written such that XLA's CPU backend computes it once.

    A `maximum` reads one large operand and is fused, with all that came before it, into each of its
    consumers; a select reads two and is stored. A step of ResNet-32 takes .65 of the time. The
    comparison is `x <= 0`, so that nan stays nan and a run that went wrong is seen.
    """
    return jnp.where(x <= 0, jnp.zeros((), x.dtype), x)


class Convolution(nn.Module):
    """Square convolution without bias, padded by half its size on every side.

    As in PyTorch: at stride 2 "SAME" would pad a 3 x 3 one by (0, 1).
    """

    features: int
    stride: int = 1
    dtype: Any = jnp.float32
    size: int = 3  # odd
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        return nn.Conv(
            self.features,
            (self.size, self.size),
            self.stride,
            ((self.size // 2, self.size // 2),) * 2,
            feature_group_count=self.groups,
            use_bias=False,
            dtype=self.dtype,
            name="conv",
        )(x)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last; the statistics are PyTorch's.

    Normalises by the biased variance of the batch and keeps running statistics, the variance
    unbiased: new = .9 * old + .1 * batch. In training with `axis` the batch is that of all devices on
    that mesh axis. Computes in float32, in float64 where that comes in.
    """

    axis: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x, train: bool):
        features, dtype = x.shape[-1:], jnp.promote_types(x.dtype, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, features)
        bias = self.param("bias", nn.initializers.zeros, features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        x, out = x.astype(dtype), x.dtype
        if train:
            over = tuple(range(x.ndim - 1))
            sums, size = (x.sum(over), (x * x).sum(over)), x.size // x.shape[-1]
            if self.axis is not None:
                sums = jax.lax.psum(sums, self.axis)
                size *= jax.lax.axis_size(self.axis)
            mean = sums[0] / size
            var = jnp.maximum(sums[1] / size - mean * mean, 0)
            if not self.is_initializing():
                keep, new = self.momentum, 1 - self.momentum
                running_mean.value = keep * running_mean.value + new * mean
                running_var.value = keep * running_var.value + new * var * (size / max(size - 1, 1))
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return (x * factor + (bias - mean * factor)).astype(out)


COSINE_SCALE = 30.0  # of the cosine head's logits; LDAM-DRW's s


class LinearHead(nn.Module):
    """Logits W f + b."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes, dtype=x.dtype, name="linear")(x)


class ScaledHead(nn.Module):
    """Logits s * (W f + b) with a learnable scale s for each class, 1 at first.

    Source: dvlab-research/MiSLAS, methods.py `LearnableWeightScaling`.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x):
        logits = nn.Dense(self.num_classes, dtype=x.dtype, name="linear")(x)
        return logits * self.param("scale", nn.initializers.ones, (self.num_classes,)).astype(logits.dtype)


class CosineHead(nn.Module):
    """Logits scale * cos(f, W_class), without bias: in -scale..scale, what softmax takes.

    Source: kaidic/LDAM-DRW, models/resnet_cifar.py `NormedLinear`, which leaves the scale to the loss.
    """

    num_classes: int
    scale: float = COSINE_SCALE

    @nn.compact
    def __call__(self, x):
        kernel = self.param("cosine", nn.initializers.ones, (x.shape[-1], self.num_classes)).astype(x.dtype)
        return self.scale * (_unit(x, 1) @ _unit(kernel, 0))


def _unit(x, axis: int):
    """Vectors of length 1; one of length 0 stays 0, and its gradient finite."""
    squares = (x * x).sum(axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


LOGIT_SCALES = {"linear": 1.0, "scaled": 1.0, "cosine": COSINE_SCALE}  # for losses that must know it
HEADS = {"linear": LinearHead, "scaled": ScaledHead, "cosine": CosineHead}
