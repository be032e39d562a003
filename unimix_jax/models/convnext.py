"""ConvNeXt: convolutional networks with the layers of transformers."""

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax import registry
from unimix_jax.errors import UserError
from unimix_jax.models import heads, torch_names

_NAMES = (  # timm's names as those of the modules here
    (r"^stem\.0\.", "stem_conv."),
    (r"^stem\.1\.", "stem_norm."),
    (r"^stages\.(\d+)\.downsample\.0\.", r"downsample\1_norm."),
    (r"^stages\.(\d+)\.downsample\.1\.", r"downsample\1_conv."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.(mlp\.)?", r"stage\1_\2."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head.linear."),
)
_TORCHVISION_BLOCK = (
    (r"^layer_scale$", "gamma"),
    (r"^block\.0\.", "conv_dw."),
    (r"^block\.2\.", "norm."),
    (r"^block\.3\.", "mlp.fc1."),
    (r"^block\.5\.", "mlp.fc2."),
)


def from_torch(arrays: dict[str, np.ndarray], variables: dict | None = None) -> dict:
    """Convert the state of a ConvNeXt of timm or torchvision.

    Args:
      arrays: values by names such as timm's "stages.0.blocks.0.conv_dw.weight" float32[C, 1, 7, 7] or torchvision's
        "features.1.0.block.0.weight". The prefix "module." is ignored.
      variables: of the network here; not used.

    Returns:
      {"params": ..., "batch_stats": {}} of numpy arrays.
    """
    leaves = []
    for torch_name, value in arrays.items():
        *modules, last = torch_names.renamed(_timm_name(torch_name.removeprefix("module.")), _NAMES).split(".")
        last, value = ("gamma", value.reshape(-1)) if last == "gamma" else torch_names.leaf(last, value)
        leaves.append(([*modules, last], value))
    return {"params": torch_names.tree(leaves), "batch_stats": {}}


def _timm_name(name: str) -> str:
    """Return timm's name for one of torchvision's, which counts the stem, stages and what is between them in a row."""
    name = torch_names.renamed(name, ((r"^classifier\.0\.", "head.norm."), (r"^classifier\.2\.", "head.fc.")))
    if not (match := re.match(r"features\.(\d+)\.(\d+)\.(.+)", name)):
        return name
    place, number, rest = int(match[1]), match[2], match[3]
    if place % 2:
        return f"stages.{place // 2}.blocks.{number}.{torch_names.renamed(rest, _TORCHVISION_BLOCK)}"
    return f"stages.{place // 2}.downsample.{number}.{rest}" if place else f"stem.{number}.{rest}"


class Block(nn.Module):
    """A 7 x 7 convolution of each channel, normalisation, two linear layers, a scale; added to the input.

    Attributes:
      dtype: of activations.
      drop_path: rate at which an image skips the block.
    """

    dtype: Any
    drop_path: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map activations float[B, H, W, C] to those of the next block."""
        features = x.shape[-1]
        y = _convolution(features, 7, 1, self.dtype, "conv_dw", padding=3, feature_group_count=features)(x)
        y = _normalisation(self.dtype, "norm")(y)
        y = nn.Dense(4 * features, dtype=self.dtype, name="fc1")(y)
        y = nn.gelu(y, approximate=False)
        y = nn.Dense(features, dtype=self.dtype, name="fc2")(y)
        y = y * self.param("gamma", nn.initializers.zeros, (features,)).astype(y.dtype)  # drawn by `first_values`
        return x + nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3), deterministic=not train)(y)


@registry.Traits(options={"blocks": registry.SIZES, "widths": registry.SIZES, "drop_path": registry.RATE})
class ConvNeXt(nn.Module):
    """A 4 x 4 stem with stride 4, stages with a 2 x 2 convolution of stride 2 between them, the mean, the head.

    Attributes:
      num_classes: K.
      blocks: of each stage.
      widths: channels of each stage.
      head: a key of `heads.HEADS`.
      axis: not used; no layer takes statistics of the batch.
      dtype: of activations; parameters and logits stay float32.
      remat: compute the activations of each block again in the backward pass: less memory, more time.
      drop_path: rate at which an image skips the last block; it rises linearly from 0 for the first.

    Source: Liu et al., CVPR 2022; timm, models/convnext.py.
    """

    num_classes: int
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    head: str = "linear"
    axis: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False
    drop_path: float = 0.0

    levels: ClassVar[int] = 3  # at which a mixer can mix: the input, the outputs of the first and the second stage
    # Mean and deviation by a variable's name. timm's `trunc_normal_(std=.02)`, cut at -2 and 2, is normal.
    first_values: ClassVar[Mapping[str, tuple[float, float]]] = {
        "kernel": (0, 0.02), "gamma": (1e-6, 0), "scale": (1, 0), "bias": (0, 0),
    }  # fmt: skip
    from_torch = staticmethod(from_torch)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mix: Callable | None = None) -> jax.Array:
        """Map images to logits.

        Args:
          x: float[B, H, W, C]; pixels that the strides leave over at the right and at the bottom are not seen.
          train: whether to skip blocks, with the random key "dropout"; without a rate no key is needed.
          mix: (level, activations) -> activations, called with the input, level 0, and with the output of stage i,
            level i.

        Returns:
          float32[B, num_classes]; float64 for float64 images.

        Raises:
          UserError: the images are so small that nothing is left of them in the last stage, or `blocks` and `widths`
            differ in length.
        """
        if len(self.blocks) != len(self.widths):
            raise UserError(f"the network has blocks {self.blocks} and widths {self.widths}; each stage needs both")
        smallest = 4 * 2 ** (len(self.blocks) - 1)
        if min(x.shape[1:3]) < smallest:
            raise UserError(
                f"images of {x.shape[1]} x {x.shape[2]} pixels are too small for this network: their sides must have "
                f"at least {smallest} pixels"
            )
        mix = mix or (lambda level, x: x)
        x = mix(0, x)
        dtype = jnp.promote_types(x.dtype, self.dtype) if x.dtype == jnp.float64 else self.dtype
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block  # 2: Python code depends on `train`
        before, last = 0, max(sum(self.blocks) - 1, 1)
        for stage, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True)):
            if stage == 0:
                x = _convolution(width, 4, 4, dtype, "stem_conv")(x)
                x = _normalisation(dtype, "stem_norm")(x)
            else:
                x = _normalisation(dtype, f"downsample{stage}_norm")(x)
                x = _convolution(width, 2, 2, dtype, f"downsample{stage}_conv")(x)
            for i in range(count):
                x = block(dtype, self.drop_path * (before + i) / last, name=f"stage{stage}_{i}")(x, train)
            before += count
            x = mix(stage + 1, x)
        x = x.astype(jnp.promote_types(dtype, jnp.float32)).mean(axis=(1, 2))
        x = _normalisation(x.dtype, "norm")(x)
        return heads.build(self.head, self.num_classes)(x)


def _convolution(features: int, size: int, stride: int, dtype, name: str, padding="VALID", **more) -> nn.Module:
    kernel = {"kernel_size": (size, size), "strides": stride, "padding": padding}
    return nn.Conv(features, **kernel, dtype=dtype, name=name, **more)


def _normalisation(dtype, name: str) -> nn.Module:
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)
