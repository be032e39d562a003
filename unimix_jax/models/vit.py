"""Vision transformers."""

import functools
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax import registry
from unimix_jax.errors import UserError
from unimix_jax.models import heads, torch_names

_log = logging.getLogger(__name__)
_NAMES = (  # torchvision's as timm's, then timm's as those of the modules here
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
    (r"^(heads\.)?head\.", "head.linear."),
    (r"^patch_embed\.proj\.", "patches."),
    (r"^blocks\.(\d+)\.(attn\.|mlp\.)?", r"blocks_\1."),
)
_SIZES = ("width", "depth", "heads", "patch_size", "mlp_ratio")
_normalisation = functools.partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)


def from_torch(arrays: dict[str, np.ndarray], variables: dict) -> dict:
    """Convert the state of a vision transformer of timm or torchvision; position embeddings go to the grid here.

    Args:
      arrays: values by names such as timm's "blocks.0.attn.qkv.weight" float32[3 * width, width] or torchvision's
        "encoder.layers.encoder_layer_0.self_attention.in_proj_weight". The prefix "module." is ignored.
      variables: of the network here, whose images may have another size.

    Returns:
      {"params": ..., "batch_stats": {}} of numpy arrays.

    Raises:
      ValueError: the position embeddings are not those of a class token and a square of patches.

    Source: timm, layers/pos_embed.py `resample_abs_pos_embed`: bicubic, with antialiasing.
    """
    leaves = []
    for torch_name, value in arrays.items():
        name = torch_names.renamed(torch_name.removeprefix("module."), _NAMES)
        *modules, last = name.split(".")
        if name == "cls_token":
            leaves.append((["class_token"], value.reshape(-1)))
        elif name == "pos_embed":
            class_position, position = _positions(value, variables["params"]["position"].shape[:2])
            leaves += [(["class_position"], class_position), (["position"], position)]
        else:
            last, value = torch_names.leaf(last, value)
            leaves.append(([*modules, last], value))
    return {"params": torch_names.tree(leaves), "batch_stats": {}}


def _positions(embeddings: np.ndarray, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Split PyTorch's embeddings float32[1, 1 + N, F] into that of the class token [F] and of a grid [h, w, F]."""
    side, features = math.isqrt(embeddings.shape[1] - 1), embeddings.shape[2]
    if embeddings.shape[:2] != (1, 1 + side**2):
        raise ValueError(f"position embeddings of shape {embeddings.shape}, which is no class token and a square")
    position = embeddings[0, 1:].reshape(side, side, features)
    if grid != (side, side):
        _log.info("position embeddings of %d x %d patches are interpolated to %d x %d", side, side, *grid)
        position = np.asarray(jax.image.resize(position, (*grid, features), "bicubic", antialias=True))
    return embeddings[0, 0], position


class Block(nn.Module):
    """Attention and two linear layers, each after a normalisation, and added to its input.

    Attributes:
      heads: of the attention; they divide the features.
      mlp_ratio: inner features of the two linear layers, divided by the features.
      dtype: of activations.
      dropout: rate after each linear layer but that of queries, keys and values.
      drop_path: rate at which an image skips one of the two branches.
    """

    heads: int
    mlp_ratio: int
    dtype: Any
    dropout: float
    drop_path: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map tokens float[B, N, F] to those of the next block."""
        features = x.shape[-1]
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        skip = nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=not train)

        y = dense(3 * features, name="qkv")(_normalisation(dtype=self.dtype, name="norm1")(x))
        queries, keys, values = jnp.moveaxis(y.reshape(*y.shape[:2], 3, self.heads, -1), 2, 0)
        # `jax.nn.dot_product_attention` takes 1.15 of the time on a CPU, and computes in float32 for float64.
        wide, scale = jnp.promote_types(self.dtype, jnp.float32), (features // self.heads) ** -0.5
        y = jnp.einsum("bqhd,bkhd->bhqk", queries * scale, keys, preferred_element_type=wide)
        y = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(y).astype(self.dtype), values).reshape(x.shape)
        x = x + skip(drop(dense(features, name="proj")(y)))

        y = dense(self.mlp_ratio * features, name="fc1")(_normalisation(dtype=self.dtype, name="norm2")(x))
        y = drop(nn.gelu(y, approximate=False))
        return x + skip(drop(dense(features, name="fc2")(y)))


@registry.Traits(options=dict.fromkeys(_SIZES, registry.SIZE) | dict.fromkeys(("dropout", "drop_path"), registry.RATE))
class ViT(nn.Module):
    """The vision transformer: patches as tokens behind a class token, blocks, the class token's output, the head.

    Attributes:
      num_classes: K.
      width: features of a token.
      depth: blocks.
      heads: of the attention; they divide the width.
      patch_size: pixels of a side of a patch; it divides the sides of an image.
      mlp_ratio: inner features of a block's linear layers, divided by the width.
      head: a key of `heads.HEADS`.
      axis: not used; no layer takes statistics of the batch.
      dtype: of activations; parameters and logits stay float32.
      remat: compute the activations of each block again in the backward pass: less memory, more time.
      dropout: rate, after the position embeddings and inside of the blocks.
      drop_path: rate at which an image skips a branch of the last block; it rises linearly from 0 in the first.

    Source: Dosovitskiy et al., ICLR 2021; timm, models/vision_transformer.py; dropout as in google-research.
    """

    num_classes: int
    width: int
    depth: int
    heads: int
    patch_size: int = 16
    mlp_ratio: int = 4
    head: str = "linear"
    axis: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0

    levels: ClassVar[int] = 1  # at which a mixer can mix: the input
    # Mean and deviation by a variable's name. timm's `trunc_normal_(std=.02)`, cut at -2 and 2, is normal.
    # The deviation of its patches' kernel is 1 / sqrt(3 fan-in), .0208 for 16 x 16 pixels in colour.
    first_values: ClassVar[Mapping[str, tuple[float, float]]] = {
        **{name: (0, 0.02) for name in ("kernel", "position", "class_position")},
        **{"class_token": (0, 1e-6), "scale": (1, 0), "bias": (0, 0)},
    }
    from_torch = staticmethod(from_torch)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mix: Callable | None = None) -> jax.Array:
        """Map images to logits.

        Args:
          x: float[B, H, W, C]; H and W are multiples of `patch_size`.
          train: whether to drop, with the random key "dropout"; without rates no key is needed.
          mix: (level, activations) -> activations, called with the input, level 0.

        Returns:
          float32[B, num_classes]; float64 for float64 images.

        Raises:
          UserError: patches do not divide the images, or heads do not divide the width.
        """
        if self.width % self.heads:
            raise UserError(f"the {self.heads} heads of the attention do not divide the network's width, {self.width}")
        size = self.patch_size
        if x.shape[1] % size or x.shape[2] % size:
            raise UserError(
                f"images of {x.shape[1]} x {x.shape[2]} pixels do not consist of this network's patches of {size} x "
                f"{size}: choose another size of images or another network"
            )
        x = x if mix is None else mix(0, x)
        dtype = jnp.promote_types(x.dtype, self.dtype) if x.dtype == jnp.float64 else self.dtype
        x = nn.Conv(self.width, (size, size), size, "VALID", dtype=dtype, name="patches")(x)
        batch, *grid, _ = x.shape
        learned = functools.partial(self.param, init_fn=nn.initializers.zeros)  # drawn by `first_values`
        x = (x + learned("position", shape=(*grid, self.width)).astype(dtype)).reshape(batch, -1, self.width)
        first = [learned(name, shape=(self.width,)).astype(dtype) for name in ("class_token", "class_position")]
        x = jnp.concatenate([jnp.broadcast_to(sum(first), (batch, 1, self.width)), x], axis=1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block  # 2: Python code depends on `train`
        for i in range(self.depth):
            drop_path = self.drop_path * i / max(self.depth - 1, 1)
            x = block(self.heads, self.mlp_ratio, dtype, self.dropout, drop_path, name=f"blocks_{i}")(x, train)
        x = x[:, 0].astype(jnp.promote_types(dtype, jnp.float32))
        return heads.build(self.head, self.num_classes)(_normalisation(dtype=x.dtype, name="norm")(x))
