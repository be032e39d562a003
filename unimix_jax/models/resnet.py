"""Residual networks of small images and of photographs."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax import registry
from unimix_jax.models import heads, ops, torch_names
from unimix_jax.models.layers import BatchNorm, Convolution

_STATISTICS = {"running_mean": "mean", "running_var": "var"}  # PyTorch's names and those here

# A shortcut of a block is a function (block, x, train) -> what is added to the output of the block's convolutions. The
# block calls it inside of its own `__call__`, so that layers which it makes belong to the block.


def subsampled(block: nn.Module, x: jax.Array, train: bool) -> jax.Array:
    """Subsample the activations and pad their channels with zeros: the shortcut without parameters, option A.

    Args:
      block: the module that calls it; it has the attributes of `BasicBlock`.
      x: float[B, H, W, C].
      train: not used, as in every shortcut.

    Returns:
      float[B, ceil(H / stride), ceil(W / stride), block.features].
    """
    missing = block.features - x.shape[-1]
    if block.stride == 1 and not missing:
        return x
    x = x[:, :: block.stride, :: block.stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


def projected(block: nn.Module, x: jax.Array, train: bool) -> jax.Array:
    """Apply a 1 x 1 convolution and normalisation where the shape changes: the shortcut of photographs, option B.

    Args:
      block: the module that calls it; it has the attributes of `BasicBlock`.
      x: float[B, H, W, C].
      train: whether normalisation takes the statistics of the batch.

    Returns:
      float[B, ceil(H / stride), ceil(W / stride), block.expansion * block.features].
    """
    features = block.expansion * block.features
    if block.stride == 1 and x.shape[-1] == features:
        return x
    x = Convolution(features, block.stride, block.dtype, 1, name="downsample_conv")(x)
    return BatchNorm(block.axis, name="downsample_bn")(x, train)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut.

    Attributes:
      features: channels of the output, divided by `expansion`.
      stride: of the first convolution and of the shortcut.
      axis: mesh axis over which batch statistics are taken.
      dtype: of convolutions and activations.
      shortcut: a function such as `subsampled`.
    """

    features: int
    stride: int
    axis: str | None
    dtype: Any
    shortcut: Callable = projected

    expansion: ClassVar[int] = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map activations float[B, H, W, C] to those of the next block."""
        conv = functools.partial(Convolution, self.features, dtype=self.dtype)
        y = conv(self.stride, name="conv1")(x)
        y = BatchNorm(self.axis, name="bn1")(y, train, relu=True)
        y = conv(name="conv2")(y)
        return BatchNorm(self.axis, name="bn2")(y, train, self.shortcut(self, x, train), relu=True)


class Bottleneck(nn.Module):
    """A 1 x 1, a 3 x 3 (with the stride, in groups) and a 1 x 1 convolution, and a projected shortcut.

    Attributes:
      features: channels of the output, divided by `expansion`.
      stride: of the 3 x 3 convolution and of the shortcut.
      axis: mesh axis over which batch statistics are taken.
      dtype: of convolutions and activations.
      groups: of the 3 x 3 convolution.
      width: channels of a group in the first stage.
    """

    features: int
    stride: int
    axis: str | None
    dtype: Any
    groups: int = 1
    width: int = 64

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map activations float[B, H, W, C] to those of the next block."""
        inner = self.features * self.width // 64 * self.groups
        conv = functools.partial(Convolution, dtype=self.dtype)
        norm = functools.partial(BatchNorm, self.axis)
        y = conv(inner, size=1, name="conv1")(x)
        y = norm(name="bn1")(y, train, relu=True)
        y = conv(inner, self.stride, groups=self.groups, name="conv2")(y)
        y = norm(name="bn2")(y, train, relu=True)
        y = conv(4 * self.features, size=1, name="conv3")(y)
        return norm(name="bn3")(y, train, projected(self, x, train), relu=True)


def from_torch(arrays: dict[str, np.ndarray], variables: dict | None = None) -> dict:
    """Convert the state of a ResNet in PyTorch to variables of the same network here.

    Args:
      arrays: values by PyTorch's names, such as "layer1.0.conv1.weight" float32[out, in, 3, 3],
        "bn1.running_var", "linear.weight" (LDAM-DRW) or "fc.weight" (torchvision) float32[K, features], or
        [features, K] of a cosine head, which has no bias. `num_batches_tracked` and the prefix "module." are ignored.
      variables: of the network here; not used.

    Returns:
      {"params": ..., "batch_stats": ...} of numpy arrays.
    """
    arrays = {name.removeprefix("module."): value for name, value in arrays.items()}
    cosine = "linear.bias" not in arrays and "fc.bias" not in arrays
    leaves = (
        _converted(*name.split("."), value=value, cosine=cosine)
        for name, value in arrays.items()
        if not name.endswith("num_batches_tracked")
    )
    return {"params": {}, "batch_stats": {}, **torch_names.tree(leaves)}


def _converted(*names: str, value: np.ndarray, cosine: bool) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the path here and the value of one of PyTorch's arrays."""
    *modules, last = names
    modules = _modules(modules)
    if last in _STATISTICS:
        return ("batch_stats", *modules, _STATISTICS[last]), value
    if modules[-1] == "linear" and cosine and last == "weight":
        return ("params", "head", "cosine"), value
    name, value = torch_names.leaf(last, value)
    return ("params", *modules, *["conv"] * (value.ndim == 4), name), value


def _modules(names: list[str]) -> list[str]:
    """Return the names here of PyTorch's nested modules, from the outermost to the innermost."""
    if names[0].startswith("layer"):
        names = [f"{names[0]}_{names[1]}", *names[2:]]
    if names[-2:-1] == ["downsample"]:
        names = [*names[:-2], "downsample_conv" if names[-1] == "0" else "downsample_bn"]
    return ["head", "linear"] if names[0] in ("linear", "fc") else names


def _logits(network, x, train: bool, mix: Callable, block: Callable, blocks: tuple[int, ...], features: int):
    """Take the output of the stem through the stages, the mean and the head. A network's `__call__` calls it.

    Args:
      network: whose head, axis, dtype, remat and num_classes are used.
      x: float[B, H, W, C].
      train: as in the call of the network.
      mix: as in the call of the network.
      block: called as block(features, stride, axis, dtype, name=...).
      blocks: of each stage.
      features: of the first stage; each other stage has twice as many as the one before.

    Returns:
      float[B, num_classes].
    """
    block = _rematerialised(block) if network.remat else block
    for stage, count in enumerate(blocks, start=1):
        for i in range(count):
            stride = 2 if stage > 1 and i == 0 else 1
            x = block(features, stride, network.axis, network.dtype, name=f"layer{stage}_{i}")(x, train)
        x = mix(stage, x)
        features *= 2
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(axis=(1, 2))
    return heads.build(network.head, network.num_classes)(x)


def _unmixed(level: int, x):
    return x


def _rematerialised(block: Callable) -> Callable:
    """Return a block that computes its activations again in the backward pass, instead of keeping them."""
    train_argument = (2,)  # static: Python code depends on it
    if isinstance(block, functools.partial):
        return functools.partial(nn.remat(block.func, static_argnums=train_argument), **block.keywords)
    return nn.remat(block, static_argnums=train_argument)


@registry.Traits(options={"blocks": registry.SIZE})
class CifarResNet(nn.Module):
    """The ResNet of small images: a 3 x 3 stem, three stages of 16, 32, 64 channels, the mean, the head.

    Attributes:
      num_classes: K.
      blocks: of each stage; the depth is 6 * blocks + 2.
      head: a key of `heads.HEADS`.
      axis: mesh axis over which batch statistics are taken; None for each device's own.
      dtype: of convolutions and activations; parameters and logits stay float32.
      remat: compute the activations of each block again in the backward pass: less memory, more time.

    Source: models/resnet_cifar.py of kaidic/LDAM-DRW and XuZhengzhuo/Prior-LT; He et al., CVPR 2016, 4.2.
    """

    num_classes: int
    blocks: int
    head: str = "linear"
    axis: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    levels: ClassVar[int] = 3  # at which a mixer can mix: the input, the outputs of the first and the second stage
    from_torch = staticmethod(from_torch)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mix: Callable | None = None) -> jax.Array:
        """Map images to logits.

        Args:
          x: float[B, H, W, C].
          train: take the statistics of the batch, and update the running ones.
          mix: (level, activations) -> activations, called with the input, level 0, and with the output of stage i,
            level i.

        Returns:
          float32[B, num_classes]; float64 for float64 images.
        """
        mix = mix or _unmixed
        x = Convolution(16, 1, self.dtype, name="conv1")(mix(0, x))
        x = BatchNorm(self.axis, name="bn1")(x, train, relu=True)
        block = functools.partial(BasicBlock, shortcut=subsampled)
        return _logits(self, x, train, mix, block, (self.blocks,) * 3, 16)


@registry.Traits(options={"blocks": registry.SIZES, "block": registry.Bound(callable, "a class of blocks")})
class ImageNetResNet(nn.Module):
    """The ResNet of photographs: a 7 x 7 stem and max-pooling, four stages of 64 to 512 features, the mean, the head.

    The stride of a bottleneck is on its 3 x 3 convolution (v1.5).

    Attributes:
      num_classes: K.
      blocks: of each stage.
      block: BasicBlock or Bottleneck.
      head: as in `CifarResNet`.
      axis: as in `CifarResNet`.
      dtype: as in `CifarResNet`.
      remat: as in `CifarResNet`.

    Source: torchvision, models/resnet.py; ResNet-10 of facebookresearch/classifier-balancing, a basic block a stage.
    """

    num_classes: int
    blocks: tuple[int, int, int, int]
    block: Callable = BasicBlock
    head: str = "linear"
    axis: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    levels: ClassVar[int] = 3  # at which a mixer can mix: the input, the outputs of the first and the second stage
    drawn_as_torchvision: ClassVar[bool] = True  # see `init.initialise`
    from_torch = staticmethod(from_torch)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mix: Callable | None = None) -> jax.Array:
        """Map images to logits; arguments and result are those of `CifarResNet`."""
        mix = mix or _unmixed
        x = Convolution(64, 2, self.dtype, 7, name="conv1")(mix(0, x))
        x = BatchNorm(self.axis, name="bn1")(x, train, relu=True)
        return _logits(self, ops.max_pool(x), train, mix, self.block, self.blocks, 64)
