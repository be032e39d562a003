"""The last layers of networks. Each class states what other code must know of it.

`logit_scale` is the scale of the head's logits, for losses that ask for it. `parameter_groups` names the group of each
of the head's parameters, by which a recipe sets learning rates: "classifier", or "scale" for a learnable scale.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from unimix_jax import registry
from unimix_jax.models import layers


class LinearHead(nn.Module):
    """Logits W f + b.

    Attributes:
      num_classes: K.
    """

    num_classes: int

    logit_scale: ClassVar[float] = 1.0
    parameter_groups: ClassVar[Mapping[str, str]] = {"linear": "classifier"}

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map features float[B, F] to logits float[B, K]."""
        return nn.Dense(self.num_classes, dtype=x.dtype, name="linear")(x)


class ScaledHead(nn.Module):
    """Logits s * (W f + b) with a learnable scale s for each class, 1 at first.

    Attributes:
      num_classes: K.

    Source: dvlab-research/MiSLAS, methods.py `LearnableWeightScaling`.
    """

    num_classes: int

    logit_scale: ClassVar[float] = 1.0
    parameter_groups: ClassVar[Mapping[str, str]] = {"linear": "classifier", "scale": "scale"}

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map features float[B, F] to logits float[B, K]."""
        logits = nn.Dense(self.num_classes, dtype=x.dtype, name="linear")(x)
        return logits * self.param("scale", nn.initializers.ones, (self.num_classes,)).astype(logits.dtype)


class CosineHead(nn.Module):
    """Logits logit_scale * cos(f, W_class), without bias; they lie in -logit_scale..logit_scale.

    Attributes:
      num_classes: K.
      logit_scale: the `s` of LDAM-DRW.

    Source: kaidic/LDAM-DRW, models/resnet_cifar.py `NormedLinear`, which leaves the scale to the loss.
    """

    num_classes: int
    logit_scale: float = 30.0

    parameter_groups: ClassVar[Mapping[str, str]] = {"cosine": "classifier"}

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map features float[B, F] to logits float[B, K]."""
        kernel = self.param("cosine", nn.initializers.ones, (x.shape[-1], self.num_classes)).astype(x.dtype)
        return self.logit_scale * (_unit(x, 1) @ _unit(kernel, 0))


def _unit(x, axis: int):
    """Return vectors of length 1; a vector of length 0 stays 0, and its gradient finite."""
    squares = (x * x).sum(axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


HEADS = {"linear": LinearHead, "scaled": ScaledHead, "cosine": CosineHead}


def build(name: str, num_classes: int) -> nn.Module:
    """Return the head that a config names, as the module "head" of the network that calls this.

    Args:
      name: a key of `HEADS`, or "module:Class" of a user's: a Flax module with the attribute `num_classes`.
      num_classes: K.

    Raises:
      UserError: no head has that name, or it is no Flax module.
    """
    return layers.made(f"head {name}", lambda: registry.resolve("head", name)(num_classes, name="head"))


def logit_scale(name: str) -> float:
    """Return the scale of the logits of a head, 1 where its class states none.

    Args:
      name: of the head, see `build`.
    """
    return getattr(registry.resolve("head", name), "logit_scale", 1.0)


def parameter_groups(name: str) -> Mapping[str, str]:
    """Return the groups of a head's parameters that its class states; the others are of the group "classifier".

    Args:
      name: of the head, see `build`.
    """
    return getattr(registry.resolve("head", name), "parameter_groups", {})
