"""What networks are built of. Arrays in, arrays out; no devices, but for an axis that is named.

Some layers exist twice, with the same values and gradients: plain, which XLA compiles well for GPUs and TPUs, and in
`cpu`. Which is used, `kernels` says, a name in `KERNELS`; `parallel.kernels` chooses it.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax.cpu_kernels import batch_norm as cpu
from unimix_jax.cpu_kernels import convolution as native

KERNELS = (
    "plain",
    "cpu",  # normalisation with its own gradient
    "native",  # that, and convolutions and max-pooling by programs for this CPU
)


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
    kernels: str = "plain"

    @nn.compact
    def __call__(self, x):
        own = None
        if self.kernels == "native" and self.groups == 1 and native.takes(jnp.dtype(self.dtype), self.features):

            def own(x, kernel, *_, **__):
                return cpu.convolve(x, kernel, self.stride)

        return nn.Conv(
            self.features,
            (self.size, self.size),
            self.stride,
            ((self.size // 2, self.size // 2),) * 2,
            feature_group_count=self.groups,
            use_bias=False,
            dtype=self.dtype,
            conv_general_dilated=own,
            name="conv",
        )(x)


def max_pool(x, kernels: str = "plain"):
    """Take the largest of each 3 x 3 window at stride 2, padded by 1."""
    if kernels == "native" and native.takes(x.dtype, x.shape[-1]):
        return cpu.max_pool(x)
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def normalise(x, scale, bias, residual, activate: bool, axis: str | None, epsilon: float):
    """Normalise by the statistics of the batch, add a residual, cut at 0.

    Args:
      x: float[..., C].
      scale, bias: float[C].
      residual: as x, or None.
      activate: whether to cut at 0.
      axis: mesh axis whose devices share the batch; None for one device.
      epsilon: added to the variance.

    Returns:
      As x; mean and biased variance [C].
    """
    over, size = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    sums = x.sum(over), (x * x).sum(over)
    if axis is not None:
        sums, size = jax.lax.psum(sums, axis), size * jax.lax.axis_size(axis)
    mean = sums[0] / size
    variance = jnp.maximum(sums[1] / size - mean * mean, 0)
    return _shifted(x, scale, bias, mean, variance, residual, activate, epsilon), mean, variance


def _shifted(x, scale, bias, mean, variance, residual, activate: bool, epsilon: float):
    factor = scale * jax.lax.rsqrt(variance + epsilon)
    out = x * factor + (bias - mean * factor)
    out = out if residual is None else out + residual
    return relu(out) if activate else out


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, and what follows it; the statistics are PyTorch's.

    Normalises by the biased variance of the batch and keeps running statistics, the variance
    unbiased: new = .9 * old + .1 * batch. In training with `axis` the batch is that of all devices on
    that mesh axis. Computes in float32, in float64 where that comes in. What follows, in one call because a CPU then
    reads its activations once: a residual is added, and the sum is cut at 0 (relu).
    """

    axis: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    kernels: str = "plain"

    @nn.compact
    def __call__(self, x, train: bool, residual=None, activate: bool = False):
        features, dtype = x.shape[-1:], jnp.promote_types(x.dtype, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, features)
        bias = self.param("bias", nn.initializers.zeros, features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        x, given = x.astype(dtype), x.dtype
        residual = None if residual is None else residual.astype(dtype)
        if not train:
            mean, variance = running_mean.value, running_var.value
            return _shifted(x, scale, bias, mean, variance, residual, activate, self.epsilon).astype(given)
        function = normalise if self.kernels == "plain" else cpu.normalise
        y, mean, variance = function(x, scale, bias, residual, activate, self.axis, self.epsilon)
        if not self.is_initializing():
            size = x.size // x.shape[-1] * (1 if self.axis is None else jax.lax.axis_size(self.axis))
            keep, new = self.momentum, 1 - self.momentum
            running_mean.value = keep * running_mean.value + new * mean
            running_var.value = keep * running_var.value + new * variance * (size / max(size - 1, 1))
        return y.astype(given)


def native_agrees() -> bool:
    """Return whether native layers of all kinds give the values and gradients of plain ones on this machine."""
    random = np.random.Generator(np.random.Philox(0))
    x = random.standard_normal((8, 30, 26, 16), np.float32)  # so many that several threads take part

    def close(of, *arguments) -> bool:
        found = []
        for kernels in ("plain", "native"):
            out, pull = jax.vjp(functools.partial(of, kernels=kernels), *arguments)
            found.append((out, pull(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))))
        pairs = zip(*map(jax.tree.leaves, found), strict=True)
        return all(bool(jnp.abs(a - b).max() < 1e-4 * jnp.abs(a).max()) for a, b in pairs)

    def convolved(x, kernel, stride: int, kernels: str):
        layer = Convolution(kernel.shape[3], stride, size=kernel.shape[0], kernels=kernels)
        return layer.apply({"params": {"conv": {"kernel": kernel}}}, x)

    shapes = [(128, 1, 2), (64, 3, 2), (512, 3, 1)]  # outputs, size, stride: every way in which work is split
    return close(max_pool, x) and all(
        close(functools.partial(convolved, stride=stride), x, random.standard_normal((size, size, 16, out), np.float32))
        for out, size, stride in shapes
    )


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
