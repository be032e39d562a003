"""Residual networks, their initial values, and the way from PyTorch's names to ours."""

import functools
import zlib
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax.errors import one_of
from unimix_jax.models import layers
from unimix_jax.models.layers import HEADS, KERNELS, BatchNorm, Convolution, max_pool

# A block's shortcut: (block, x, train) -> what is added to its convolutions. Called inside of the block, whose layers
# it makes.


def subsampled(block, x, train: bool):
    """The shortcut without parameters, option A: subsample, pad channels with zeros."""
    missing = block.features - x.shape[-1]
    if block.stride == 1 and not missing:
        return x
    x = x[:, :: block.stride, :: block.stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


def projected(block, x, train: bool):
    """The shortcut of photographs, option B: a 1 x 1 convolution and normalisation where the shape changes."""
    features = block.expansion * block.features
    if block.stride == 1 and x.shape[-1] == features:
        return x
    x = Convolution(features, block.stride, block.dtype, 1, kernels=block.kernels, name="downsample_conv")(x)
    return BatchNorm(block.axis, kernels=block.kernels, name="downsample_bn")(x, train)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    features: int
    stride: int
    axis: str | None
    dtype: Any
    kernels: str = "plain"
    shortcut: Callable = projected

    expansion: ClassVar[int] = 1  # output channels / features

    @nn.compact
    def __call__(self, x, train: bool):
        conv = functools.partial(Convolution, self.features, dtype=self.dtype, kernels=self.kernels)
        norm = functools.partial(BatchNorm, self.axis, kernels=self.kernels)
        y = conv(self.stride, name="conv1")(x)
        y = norm(name="bn1")(y, train, activate=True)
        y = conv(name="conv2")(y)
        return norm(name="bn2")(y, train, self.shortcut(self, x, train), activate=True)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride, in groups), 1 x 1 convolutions; and a projected shortcut."""

    features: int
    stride: int
    axis: str | None
    dtype: Any
    kernels: str = "plain"
    groups: int = 1
    width: int = 64  # of a group in the first stage

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x, train: bool):
        inner = self.features * self.width // 64 * self.groups
        conv = functools.partial(Convolution, dtype=self.dtype, kernels=self.kernels)
        norm = functools.partial(BatchNorm, self.axis, kernels=self.kernels)
        y = conv(inner, size=1, name="conv1")(x)
        y = norm(name="bn1")(y, train, activate=True)
        y = conv(inner, self.stride, groups=self.groups, name="conv2")(y)
        y = norm(name="bn2")(y, train, activate=True)
        y = conv(4 * self.features, size=1, name="conv3")(y)
        return norm(name="bn3")(y, train, projected(self, x, train), activate=True)


def _classified(network, x, train: bool, mix: Callable, block: Callable, blocks: tuple[int, ...], features: int):
    """Take what the stem returns through the stages, the mean and the head; called inside of the network.

    Args:
      network: its head, axis, dtype, kernels, remat, num_classes are used.
      x, train, mix: as in its call.
      block: called as block(features, stride, axis, dtype, kernels, name=...).
      blocks: of each stage.
      features: of the first stage; each other one has twice those of the one before.
    """
    block = _remembering(block, network.remat)
    for stage, count in enumerate(blocks, start=1):
        for i in range(count):
            stride = 2 if stage > 1 and i == 0 else 1
            given = features, stride, network.axis, network.dtype, network.kernels
            x = block(*given, name=f"layer{stage}_{i}")(x, train)
        x = mix(stage, x)
        features *= 2
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(axis=(1, 2))
    return HEADS[network.head](network.num_classes, name="head")(x)


def _unmixed(level: int, x):
    return x


def _remembering(block: Callable, remat: bool) -> Callable:
    """Return a block that forgets its activations after the forward pass, if so wished."""
    if not remat:
        return block
    if isinstance(block, functools.partial):
        return functools.partial(nn.remat(block.func, static_argnums=(2,)), **block.keywords)
    return nn.remat(block, static_argnums=(2,))  # 2: `train`


class CifarResNet(nn.Module):
    """The ResNet of small images: a 3 x 3 stem, three stages of 16, 32, 64 channels, mean, linear layer.

    Source: models/resnet_cifar.py of kaidic/LDAM-DRW and XuZhengzhuo/Prior-LT; He et al., CVPR 2016, 4.2.
    """

    num_classes: int
    blocks: int  # a stage; the depth is 6 * blocks + 2
    head: str = "linear"
    axis: str | None = None  # the mesh axis over which batch statistics are taken
    dtype: Any = jnp.float32  # of convolutions and activations; parameters and logits stay float32
    kernels: str = "plain"  # which form of its layers, see `layers`
    remat: bool = False  # compute each block's activations again in the backward pass: less memory, more time

    @nn.compact
    def __call__(self, x, train: bool, mix: Callable | None = None):
        """Map float[B, H, W, C] images to logits float32[B, num_classes] (float64 for float64).

        Args:
          x: the images.
          train: take statistics of the batch, and update the running ones.
          mix: (level, activations) -> activations, called with the input, level 0, and the output of stage i, level i.
        """
        mix = mix or _unmixed
        x = Convolution(16, 1, self.dtype, kernels=self.kernels, name="conv1")(mix(0, x))
        x = BatchNorm(self.axis, kernels=self.kernels, name="bn1")(x, train, activate=True)
        block = functools.partial(BasicBlock, shortcut=subsampled)
        return _classified(self, x, train, mix, block, (self.blocks,) * 3, 16)


class ImageNetResNet(nn.Module):
    """The ResNet of photographs: a 7 x 7 stem and max-pooling, four stages of 64 to 512 features, mean, linear layer.

    The stride of a bottleneck is on its 3 x 3 convolution (v1.5).

    Source: torchvision, models/resnet.py; ResNet-10 of facebookresearch/classifier-balancing, a basic block a stage.
    """

    num_classes: int
    blocks: tuple[int, int, int, int]  # of each stage
    block: Callable = BasicBlock
    head: str = "linear"
    axis: str | None = None
    dtype: Any = jnp.float32
    kernels: str = "plain"
    remat: bool = False

    @nn.compact
    def __call__(self, x, train: bool, mix: Callable | None = None):
        """Map float[B, H, W, C] images to logits, as `CifarResNet` does."""
        mix = mix or _unmixed
        x = Convolution(64, 2, self.dtype, 7, kernels=self.kernels, name="conv1")(mix(0, x))
        x = BatchNorm(self.axis, kernels=self.kernels, name="bn1")(x, train, activate=True)
        x = max_pool(x, self.kernels)
        return _classified(self, x, train, mix, self.block, self.blocks, 64)


NETWORKS = {  # of small images: CIFAR, digits
    f"resnet{depth}": functools.partial(CifarResNet, blocks=(depth - 2) // 6) for depth in (8, 20, 32, 44, 56, 110)
} | {  # of photographs
    "resnet10": functools.partial(ImageNetResNet, blocks=(1, 1, 1, 1)),
    "resnet18": functools.partial(ImageNetResNet, blocks=(2, 2, 2, 2)),
    "resnet34": functools.partial(ImageNetResNet, blocks=(3, 4, 6, 3)),
    "resnet50": functools.partial(ImageNetResNet, blocks=(3, 4, 6, 3), block=Bottleneck),
    "resnet101": functools.partial(ImageNetResNet, blocks=(3, 4, 23, 3), block=Bottleneck),
    "resnet152": functools.partial(ImageNetResNet, blocks=(3, 8, 36, 3), block=Bottleneck),
    "resnext50_32x4d": functools.partial(
        ImageNetResNet, blocks=(3, 4, 6, 3), block=functools.partial(Bottleneck, groups=32, width=4)
    ),
}


def build(
    name: str,
    num_classes: int,
    *,
    head: str = "linear",
    axis: str | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
    kernels: str = "plain",
) -> nn.Module:
    """Return the network of that name.

    Args:
      name: a key of `NETWORKS`.
      num_classes: K.
      head: a key of `layers.HEADS`: linear, scaled, cosine.
      axis: name of the mesh axis over which batch statistics are taken; None for each device's own.
      dtype: of convolutions and activations.
      remat: compute activations again in the backward pass instead of keeping them.
      kernels: of `layers.KERNELS`, which form of its layers is used; only "plain" runs elsewhere than on a CPU.

    Raises:
      UserError: no network or head has that name.
    """
    network = NETWORKS[one_of("network (config.network)", name, NETWORKS)]
    one_of("head (config.method.head)", head, HEADS)
    one_of("kernels", kernels, KERNELS)
    return network(num_classes, head=head, axis=axis, dtype=dtype, remat=remat, kernels=kernels)


def initialise(network: nn.Module, image_shape: tuple[int, int, int], seed: int, draw: int = 0) -> dict:
    """Draw a network's first parameters: those of the project's layers in numpy, each by its own name and the seed.

    Small networks as LDAM-DRW draws them: weights Kaiming normal by fan-in with gain sqrt(2). Those of
    photographs as torchvision does: convolutions Kaiming normal by fan-out, the linear layer uniform within
    1/sqrt(fan-in). In both the linear layer's bias is uniform within that, PyTorch's default; the columns of a
    cosine head uniform, of length 1; normalisation and scales start as the identity. Flax's own `init` would
    compile for 6 to 60 s; and drawn so, the values depend on no device and no other layer. Whatever layers are not
    those of `layers`, such as a user's, are drawn by their own initialisers, in all collections.

    Args:
      network: a flax module called as network(images, train=...).
      image_shape: (H, W, C).
      seed: 0 <= seed < 2**64.
      draw: another number gives other values: a classifier that is drawn anew.

    Returns:
      {"params": ..., "batch_stats": ...} of numpy float32, and other collections that the network has.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    # Only shapes are asked for: one device has no axis to sum over, and nothing is to be compiled.
    alone = {name: value for name, value in (("axis", None), ("kernels", "plain")) if hasattr(network, name)}
    init = functools.partial(network.clone(**alone).init, train=False)
    ours = set()  # paths of the project's layers

    def note(call, arguments, keywords, context):
        if type(context.module).__module__ == layers.__name__:
            ours.add(context.module.path)
        return call(*arguments, **keywords)

    with nn.intercept_methods(note):
        shapes = jax.eval_shape(init, jax.random.key(0), image)
    shapes = {"batch_stats": {}, **shapes}

    def is_ours(names) -> bool:
        return any(names[1:end] in ours for end in range(2, len(names)))

    foreign = [names for names, _ in _leaves(shapes) if not is_ours(names)]
    own = _first_values(init, image, foreign, seed, draw) if foreign else {}
    kernels = {path[:-1]: leaf.shape for path, leaf in _leaves(shapes) if path[-1] == "kernel"}

    def value_of(path, leaf):
        names = _names(path)
        if names in own:
            return own[names]
        key, counter = [seed, zlib.crc32("/".join(names).encode())], [0, 0, 0, draw]
        random = np.random.Generator(np.random.Philox(key=key, counter=counter))
        kernel = kernels.get(names[:-1])
        if names[-1] == "kernel":
            value = _first_kernel(random, leaf.shape, torchvision=isinstance(network, ImageNetResNet))
        elif names[-1] == "bias" and kernel is not None:
            value = random.uniform(-1, 1, leaf.shape) / np.sqrt(np.prod(kernel[:-1]))
        elif names[-1] == "cosine":
            value = random.uniform(-1, 1, leaf.shape)
            value /= np.linalg.norm(value, axis=0)
        else:
            value = np.ones(leaf.shape) if names[-1] in ("scale", "var") else np.zeros(leaf.shape)
        return value.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(value_of, shapes)


def _first_values(init: Callable, image, wanted: list[tuple[str, ...]], seed: int, draw: int) -> dict:
    """Return what a network's own initialisers give to the variables of these names."""

    @jax.jit  # what is not returned is not computed: the network itself is not compiled
    def values(key):
        found = dict(_leaves(init(key, jnp.zeros(image.shape, image.dtype))))
        return [found[names] for names in wanted]

    key = jax.random.key(seed % 2**32)
    for number in (seed >> 32, draw):
        key = jax.random.fold_in(key, number)
    return dict(zip(wanted, map(np.asarray, values(key)), strict=True))


def _first_kernel(random: np.random.Generator, shape: tuple[int, ...], torchvision: bool) -> np.ndarray:
    """Draw the weights of a convolution [h, w, in / groups, out] or a linear layer [in, out]."""
    if torchvision and len(shape) == 2:
        return random.uniform(-1, 1, shape) / np.sqrt(shape[0])
    fan = np.prod(shape[:2]) * shape[3] if torchvision else np.prod(shape[:-1])
    return random.standard_normal(shape) * np.sqrt(2 / fan)


def from_pytorch(arrays: dict[str, np.ndarray]) -> dict:
    """Turn a ResNet's PyTorch state into variables of the same network here.

    Args:
      arrays: values by PyTorch's names, such as "layer1.0.conv1.weight" float32[out, in, 3, 3],
        "bn1.running_var", "linear.weight" (LDAM-DRW) or "fc.weight" (torchvision) float32[K, features], or
        [features, K] of a cosine head, which has no bias; `num_batches_tracked` and the prefix "module." are
        passed over.

    Returns:
      {"params": ..., "batch_stats": ...} of numpy arrays.
    """
    variables = {"params": {}, "batch_stats": {}}
    leaf = {"running_mean": "mean", "running_var": "var", "bias": "bias"}
    arrays = {name.removeprefix("module."): value for name, value in arrays.items()}
    has_bias = "linear.bias" in arrays or "fc.bias" in arrays
    for name, value in arrays.items():
        *modules, last = name.split(".")
        if last == "num_batches_tracked":
            continue
        if modules[0].startswith("layer"):
            modules = [f"{modules[0]}_{modules[1]}", *modules[2:]]
        if modules[-2:-1] == ["downsample"]:
            modules = [*modules[:-2], "downsample_conv" if modules[-1] == "0" else "downsample_bn"]
        if modules[0] in ("linear", "fc"):
            modules = ["head", "linear"]
        group = variables["batch_stats" if last.startswith("running") else "params"]
        if last != "weight":
            target = leaf[last]
        elif modules[-1] == "linear" and not has_bias:
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
