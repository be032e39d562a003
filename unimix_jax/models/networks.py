"""The networks by their names.

A network is a Flax module with the attributes `num_classes`, `head`, `axis`, `dtype` and `remat`, called as
network(images, train, mix). Its class states more:

- `levels`: the number of levels at which a mixer can mix inside: 0 for the input, i for the output of stage i;
- `from_torch(arrays, variables)`: PyTorch's arrays by their names, as variables of the network whose first ones are
  `variables`; see `pretrained.load`;
- `first_values`, unless its layers are those of `layers`, and `drawn_as_torchvision`: see `init.initialise`;
- the bounds of its options, its other attributes, as traits (`registry.Traits`).
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from unimix_jax import registry
from unimix_jax.errors import UserError, did_you_mean
from unimix_jax.models import convnext, layers, resnet, vit

NETWORKS = {  # of small images: CIFAR, digits
    f"resnet{depth}": functools.partial(resnet.CifarResNet, blocks=(depth - 2) // 6)
    for depth in (8, 20, 32, 44, 56, 110)
} | {  # of photographs
    "resnet10": functools.partial(resnet.ImageNetResNet, blocks=(1, 1, 1, 1)),
    "resnet18": functools.partial(resnet.ImageNetResNet, blocks=(2, 2, 2, 2)),
    "resnet34": functools.partial(resnet.ImageNetResNet, blocks=(3, 4, 6, 3)),
    "resnet50": functools.partial(resnet.ImageNetResNet, blocks=(3, 4, 6, 3), block=resnet.Bottleneck),
    "resnet101": functools.partial(resnet.ImageNetResNet, blocks=(3, 4, 23, 3), block=resnet.Bottleneck),
    "resnet152": functools.partial(resnet.ImageNetResNet, blocks=(3, 8, 36, 3), block=resnet.Bottleneck),
    "resnext50_32x4d": functools.partial(
        resnet.ImageNetResNet, blocks=(3, 4, 6, 3), block=functools.partial(resnet.Bottleneck, groups=32, width=4)
    ),
    "vit_s16": functools.partial(vit.ViT, width=384, depth=12, heads=6),
    "vit_b16": functools.partial(vit.ViT, width=768, depth=12, heads=12),
    "convnext_tiny": functools.partial(convnext.ConvNeXt, blocks=(3, 3, 9, 3), widths=(96, 192, 384, 768)),
    "convnext_small": functools.partial(convnext.ConvNeXt, blocks=(3, 3, 27, 3), widths=(96, 192, 384, 768)),
    "convnext_base": functools.partial(convnext.ConvNeXt, blocks=(3, 3, 27, 3), widths=(128, 256, 512, 1024)),
}


# Attributes that a user's class may lack as long as they have these values; without `axis` it is trained on one device
# or has no batch statistics, see `training.network.check`.
_ASSUMED = {"head": "linear", "dtype": jnp.float32, "remat": False}


def build(
    name: str,
    num_classes: int,
    *,
    head: str = "linear",
    axis: str | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return the network of a name.

    Args:
      name: a key of `NETWORKS`, or "module:Class" of a user's Flax module. The module is called as network(images,
        train), returns logits, and gets those of the arguments below that are attributes of it; without the attributes
        `head`, `dtype` and `remat` no other value than the default can be asked for. Its last layer is
        `heads.build(self.head, self.num_classes)` if stages are to know it.
      num_classes: K.
      head: name of the last layer, see `heads.build`.
      axis: mesh axis over which batch statistics are taken; None for each device's own.
      dtype: of convolutions and activations.
      remat: compute activations again in the backward pass instead of keeping them.
      options: other attributes of the network, such as the rate of its dropout.

    Returns:
      A Flax module, called as network(images, train, mix).

    Raises:
      UserError: no network or head has that name; the class cannot be called so, or makes no Flax module; an option is
        unknown or out of bounds; an argument asks for what the class cannot do.
    """
    network = registry.resolve("network", name)
    registry.resolve("head", head)
    attributes = {"num_classes": num_classes, "head": head, "axis": axis, "dtype": dtype, "remat": remat}
    taken = _parameters(name, network)
    own = [option for option in taken if option not in (*attributes, "parent", "name")]
    for option in options or {}:
        if option not in own:
            raise UserError(
                f"the network {name} takes no option {option!r}{did_you_mean(option, own)}; it takes "
                f"{', '.join(own) or 'none'}"
            )
    registry.traits("network", network).check(f"network {name!r}", options or {})
    for attribute, assumed in _ASSUMED.items():
        if attribute not in taken and attributes[attribute] != assumed:
            raise UserError(
                f"the network {name} has no attribute `{attribute}`, so it cannot have the {attribute} "
                f"{attributes[attribute]} that the config asks for; give its class that attribute"
            )
    attributes = {attribute: value for attribute, value in attributes.items() if attribute in taken}
    return layers.made(f"network {name}", lambda: network(**attributes, **(options or {})))


def _parameters(name: str, network: Callable) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a network's class."""
    try:
        return inspect.signature(network).parameters
    except ValueError:  # some of Python's own functions state none
        raise UserError(f"the network {name} is no class of a Flax module") from None
