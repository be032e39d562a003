"""Residual networks, their initial values, and the way from PyTorch's names to ours."""

import functools
import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax.errors import one_of
from unimix_jax.models.layers import HEADS, BatchNorm, Convolution, relu


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters (option A: subsample, pad channels with zeros)."""

    features: int
    stride: int
    axis: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        y = Convolution(self.features, self.stride, self.dtype, name="conv1")(x)
        y = relu(BatchNorm(self.axis, name="bn1")(y, train))
        y = Convolution(self.features, 1, self.dtype, name="conv2")(y)
        y = BatchNorm(self.axis, name="bn2")(y, train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = x[:, :: self.stride, :: self.stride]
            missing = self.features - x.shape[-1]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
        return relu(x + y)


class CifarResNet(nn.Module):
    """The ResNet of small images: a 3 x 3 stem, three stages of 16, 32, 64 channels, mean, linear layer.

    Source: models/resnet_cifar.py of kaidic/LDAM-DRW and XuZhengzhuo/Prior-LT; He et al., CVPR 2016, 4.2.
    """

    num_classes: int
    blocks: int  # a stage; the depth is 6 * blocks + 2
    head: str = "linear"
    axis: str | None = None  # the mesh axis over which batch statistics are taken
    dtype: Any = jnp.float32  # of convolutions and activations; parameters and logits stay float32

    @nn.compact
    def __call__(self, x, train: bool, mix: Callable | None = None):
        """Map float[B, H, W, C] images to logits float32[B, num_classes] (float64 for float64).

        Args:
          x: the images.
          train: take statistics of the batch, and update the running ones.
          mix: (level, activations) -> activations, called with the input, 0, and the first two stages.
        """
        mix = mix or (lambda level, x: x)
        x = Convolution(16, 1, self.dtype, name="conv1")(mix(0, x))
        x = relu(BatchNorm(self.axis, name="bn1")(x, train))
        for stage, features in enumerate((16, 32, 64), start=1):
            for block in range(self.blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                x = Block(features, stride, self.axis, self.dtype, name=f"layer{stage}_{block}")(x, train)
            x = mix(stage, x) if stage < 3 else x
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(axis=(1, 2))
        return HEADS[self.head](self.num_classes, name="head")(x)


NETWORKS = {
    f"resnet{depth}": functools.partial(CifarResNet, blocks=(depth - 2) // 6) for depth in (8, 20, 32, 44, 56, 110)
}


def build(
    name: str, num_classes: int, *, head: str = "linear", axis: str | None = None, dtype: Any = jnp.float32
) -> nn.Module:
    """Return the network of that name.

    Args:
      name: a key of `NETWORKS`.
      num_classes: K.
      head: a key of `layers.HEADS`: linear, scaled, cosine.
      axis: name of the mesh axis over which batch statistics are taken; None for each device's own.
      dtype: of convolutions and activations.

    Raises:
      UserError: no network or head has that name.
    """
    network = NETWORKS[one_of("network (config.network)", name, NETWORKS)]
    return network(num_classes, head=one_of("head (config.method.head)", head, HEADS), axis=axis, dtype=dtype)


def initialise(network: nn.Module, image_shape: tuple[int, int, int], seed: int, draw: int = 0) -> dict:
    """Draw a network's first parameters, in numpy, each leaf by its own name and the seed.

    Weights Kaiming normal by fan-in with gain sqrt(2); the linear layer's bias uniform within
    1/sqrt(fan-in), PyTorch's default; the columns of a cosine head uniform, of length 1; normalisation and
    scales start as the identity. Flax's own `init` would compile for 6 to 60 s; and drawn so, the values
    depend on no device and no other layer.

    Args:
      network: a flax module called as network(images, train=...).
      image_shape: (H, W, C).
      seed: 0 <= seed < 2**64.
      draw: another number gives other values: a classifier that is drawn anew.

    Returns:
      {"params": ..., "batch_stats": ...} of numpy float32.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    # Only shapes are asked for, and one device has no axis to sum over.
    init = functools.partial(network.clone(axis=None).init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), image)
    kernels = {path[:-1]: leaf.shape for path, leaf in _leaves(shapes) if path[-1] == "kernel"}

    def value_of(path, leaf):
        names = _names(path)
        key, counter = [seed, zlib.crc32("/".join(names).encode())], [0, 0, 0, draw]
        random = np.random.Generator(np.random.Philox(key=key, counter=counter))
        kernel = kernels.get(names[:-1])
        if names[-1] == "kernel":
            value = random.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(kernel[:-1]))
        elif names[-1] == "bias" and kernel is not None:
            value = random.uniform(-1, 1, leaf.shape) / np.sqrt(np.prod(kernel[:-1]))
        elif names[-1] == "cosine":
            value = random.uniform(-1, 1, leaf.shape)
            value /= np.linalg.norm(value, axis=0)
        else:
            value = np.ones(leaf.shape) if names[-1] in ("scale", "var") else np.zeros(leaf.shape)
        return value.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(value_of, shapes)


def from_pytorch(arrays: dict[str, np.ndarray]) -> dict:
    """Turn a CIFAR ResNet's PyTorch state into variables of the same network here.

    Args:
      arrays: values by PyTorch's names, such as "layer1.0.conv1.weight" float32[out, in, 3, 3],
        "bn1.running_var", "linear.weight" float32[K, 64], or [64, K] of a cosine head, which has no
        "linear.bias"; `num_batches_tracked` is passed over.

    Returns:
      {"params": ..., "batch_stats": ...} of numpy arrays.
    """
    variables = {"params": {}, "batch_stats": {}}
    leaf = {"running_mean": "mean", "running_var": "var", "bias": "bias"}
    for name, value in arrays.items():
        *modules, last = name.split(".")
        if last == "num_batches_tracked":
            continue
        if modules[0].startswith("layer"):
            modules = [f"{modules[0]}_{modules[1]}", *modules[2:]]
        if modules[0] == "linear":
            modules = ["head", "linear"]
        group = variables["batch_stats" if last.startswith("running") else "params"]
        if last != "weight":
            target = leaf[last]
        elif modules[-1] == "linear" and "linear.bias" not in arrays:
            modules, target = ["head"], "cosine"
        elif value.ndim == 4:
            modules, target, value = [*modules, "conv"], "kernel", value.transpose(2, 3, 1, 0)
        else:
            target, value = ("kernel", value.T) if value.ndim == 2 else ("scale", value)
        for module in modules:
            group = group.setdefault(module, {})
        group[target] = np.ascontiguousarray(value)
    return variables


def _names(path) -> tuple[str, ...]:
    return tuple(key.key for key in path)


def _leaves(tree):
    return [(_names(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]
