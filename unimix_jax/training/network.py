"""The network of a run: its module, its first variables, and the check that the method can train it."""

import pathlib
from typing import TYPE_CHECKING

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from unimix_jax import registry
from unimix_jax.errors import UserError
from unimix_jax.methods.build import Method
from unimix_jax.models import init, networks, pretrained
from unimix_jax.training import rundir
from unimix_jax.training.devices import AXIS

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def build(config: "ConfigDict", num_classes: int, head: str) -> nn.Module:
    """Return the network that a config names.

    Args:
      config: of the run.
      num_classes: K.
      head: name of its last layer, see `models.heads`.
    """
    return networks.build(
        config.network,
        num_classes,
        head=head,
        axis=AXIS if config.parallel.batch_norm == "global" else None,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        options=config.network_options.to_dict(),
    )


def first_variables(
    config: "ConfigDict", network: nn.Module, image_shape: tuple[int, int, int], directory: pathlib.Path
) -> dict:
    """Return the network's variables before the first step: drawn from the seed, or read from config.pretrained.

    Args:
      config: of the run.
      network: of `build`.
      image_shape: (H, W, C).
      directory: of the run; a run with checkpoints does not read config.pretrained again.

    Returns:
      {"params": ..., "batch_stats": ...}; batch_stats may be empty.

    Raises:
      UserError: the network has variables that training does not carry, or the file does not fit.
    """
    variables = init.initialise(network, image_shape, config.seed)
    if others := variables.keys() - {"params", "batch_stats"}:
        raise UserError(
            f"network {config.network} keeps variables in the collection {min(others)!r}; training carries params and "
            "batch_stats only"
        )
    if config.pretrained and not rundir.has_checkpoints(directory):
        variables = pretrained.load(config.pretrained, network, variables)
    return variables


def check(name: str, network: nn.Module, variables: dict, image_shape: tuple[int, int, int], method: Method) -> bool:
    """Check that a network returns logits, and that the method's stages find what they need in it.

    Args:
      name: of the network in the config.
      network: of `build`.
      variables: of `first_variables`.
      image_shape: (H, W, C).
      method: of the run.

    Returns:
      Whether the network draws random numbers in training, such as those of dropout.

    Raises:
      UserError: the network fails, or cannot be combined with the method.
    """
    name, classes = f"the network {name}", len(method.test_prior)
    network = network.clone(axis=None) if hasattr(network, "axis") else network
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)

    def logits_in(train: bool, **options):
        mutable = ["batch_stats"] if train else False
        shapes = jax.eval_shape(
            lambda variables, images: network.apply(variables, images, train=train, mutable=mutable, **options),
            variables,
            images,
        )
        return shapes[0] if train else shapes

    random = False
    try:
        logits = logits_in(train=False)
        try:
            logits_in(train=True)
        except flax.errors.InvalidRngError:
            random = True
            logits_in(train=True, rngs={"dropout": jax.random.key(0)})
    except Exception as error:  # the network may be the user's, and raise anything
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(f"{name} fails on images {image_shape}: {why}") from error
    if getattr(logits, "shape", None) != (2, classes):
        raise UserError(f"{name} returns {logits} for two images; it must return logits [2, {classes}]")
    if random and variables["batch_stats"]:
        raise UserError(
            f"{name} has batch statistics and draws random numbers; with random numbers a network is trained image by "
            "image, where a batch has no statistics"
        )
    _check_head(name, variables["params"], method)
    for stage in method.stages:
        if stage.mixer is None or not registry.traits("mixer", stage.mixer).mixes_inside:
            continue
        if random:
            raise UserError(f"{name} draws random numbers, so stage {stage.name!r} cannot mix inside of it")
    return random


def _check_head(name: str, params: dict, method: Method) -> None:
    """Refuse stages that need the parameters of the classifier where the network has no module named head."""
    if "head" in params:
        return
    factors = {stage.name: dict(stage.lr_multipliers) for stage in method.stages}
    needs = [
        f"stage {stage.name!r}"
        for stage in method.stages
        if stage.reinitialise or factors[stage.name].get("backbone", 1) != factors[stage.name].get("classifier", 1)
    ]
    needs += [f"the posthoc function {method.posthoc.func.__name__}"] if method.posthoc is not None else []
    if needs:
        raise UserError(
            f"{name} has no module named head at its top, and {needs[0]} of method {method.name!r} needs its "
            "classifier; make the last layer by unimix_jax.models.heads.build"
        )
