"""The network of a run: its module, its first variables, and the checks that the method can train it."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from unimix_jax import registry
from unimix_jax.errors import UserError, described, shown
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
    config: "ConfigDict",
    network: nn.Module,
    image_shape: tuple[int, int, int],
    directory: pathlib.Path,
    seed: int | None = None,
) -> dict:
    """Return the network's variables before the first step: drawn from the seed, or read from config.pretrained.

    Args:
      config: of the run.
      network: of `build`.
      image_shape: (H, W, C).
      directory: of the run; a run with checkpoints does not read config.pretrained again.
      seed: of what is drawn; None for config.seed.

    Returns:
      {"params": ..., "batch_stats": ...}; batch_stats may be empty.

    Raises:
      UserError: the network fails, or has variables that training does not carry, or the file does not fit.
    """
    with _sentences_for_failures(config, image_shape):
        variables = init.initialise(network, image_shape, config.seed if seed is None else seed)
    if others := variables.keys() - {"params", "batch_stats"}:
        raise UserError(
            f"network {config.network} keeps variables in the collection {min(others)!r}; training carries params and "
            "batch_stats only"
        )
    if config.pretrained and not rundir.has_checkpoints(directory):
        variables = pretrained.load(config.pretrained, network, variables)
    return variables


def draws_random_numbers(
    config: "ConfigDict", network: nn.Module, variables: dict, image_shape: tuple[int, int, int]
) -> bool:
    """Return whether a network draws random numbers in training, such as those of dropout.

    Args:
      config: of the run.
      network: of `build`.
      variables: of `first_variables`.
      image_shape: (H, W, C).

    Raises:
      UserError: the network fails in training.
    """
    with _sentences_for_failures(config, image_shape):
        try:
            _output(network, variables, image_shape, train=True)
        except flax.errors.InvalidRngError:
            _output(network, variables, image_shape, train=True, rngs={"dropout": jax.random.key(0)})
            return True
    return False


def check(
    config: "ConfigDict",
    network: nn.Module,
    variables: dict,
    image_shape: tuple[int, int, int],
    method: Method,
    *,
    random: bool,
    devices: int,
) -> None:
    """Check that a network returns logits, and that the devices and the method's stages find what they need in it.

    Args:
      config: of the run.
      network: of `build`.
      variables: of `first_variables`.
      image_shape: (H, W, C).
      method: of the run.
      random: of `draws_random_numbers`.
      devices: of the run.

    Raises:
      UserError: the network fails, or cannot be combined with the devices or the method.
    """
    name, classes = f"the network {config.network}", len(method.test_prior)
    with _sentences_for_failures(config, image_shape):
        logits = _output(network, variables, image_shape, train=False)
    if getattr(logits, "shape", None) != (2, classes):
        raise UserError(f"{name} returns {shown(logits)} for two images; it must return logits [2, {classes}]")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise UserError(f"{name} returns logits of the type {logits.dtype}; they must be floats")
    if random and variables["batch_stats"]:
        raise UserError(
            f"{name} has batch statistics and draws random numbers; with random numbers a network is trained image by "
            "image, where a batch has no statistics"
        )
    shared = devices > 1 and config.parallel.batch_norm == "global"
    if shared and variables["batch_stats"] and not hasattr(network, "axis"):
        raise UserError(
            f"{name} has batch statistics and no attribute `axis`, so {devices} devices cannot take them of the whole "
            "batch: give it `axis` and pass it on as the axis_name of nn.BatchNorm, or set config.parallel.batch_norm "
            "to device"
        )
    _check_head(name, variables["params"], method)
    for stage in method.stages:
        if stage.mixer is None or not registry.traits("mixer", stage.mixer).mixes_inside:
            continue
        if random:
            raise UserError(f"{name} draws random numbers, so stage {stage.name!r} cannot mix inside of it")


def _output(network: nn.Module, variables: dict, image_shape: tuple[int, int, int], *, train: bool, **options):
    """Return the shape and type of a network's output for two images, on one device."""
    network = network.clone(axis=None) if hasattr(network, "axis") else network
    mutable = ["batch_stats"] if train else False
    output = jax.eval_shape(
        lambda variables, images: network.apply(variables, images, train=train, mutable=mutable, **options),
        variables,
        jax.ShapeDtypeStruct((2, *image_shape), jnp.float32),
    )
    return output[0] if train else output


@contextlib.contextmanager
def _sentences_for_failures(config: "ConfigDict", image_shape: tuple[int, int, int]) -> Iterator[None]:
    """Turn whatever a network raises into a sentence that names the error and its last place in the user's code."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the network may be the user's, and raise anything
        height, width, channels = image_shape
        raise UserError(
            f"the network {config.network} with the head {config.method.head} fails on images of {height} x {width} x "
            f"{channels}: {described(error)}"
        ) from error


def _check_head(name: str, params: dict, method: Method) -> None:
    """Refuse a method whose stages or change of trained logits do not find what they need as the network's head."""
    head = params.get("head")
    if head is not None and not isinstance(head, Mapping):
        raise UserError(
            f"{name} has a parameter named head at its top; only the module of the last layer has that name"
        )
    factors = {stage.name: dict(stage.lr_multipliers) for stage in method.stages}
    needs = [
        f"stage {stage.name!r}"
        for stage in method.stages
        if stage.reinitialise or factors[stage.name].get("backbone", 1) != factors[stage.name].get("classifier", 1)
    ]
    needs += [f"the posthoc function {method.posthoc.func.__name__}"] if method.posthoc is not None else []
    if needs and head is None:
        raise UserError(
            f"{name} has no module named head at its top, and {needs[0]} of method {method.name!r} needs its "
            "classifier; make the last layer by unimix_jax.models.heads.build"
        )
    if method.posthoc is None:
        return
    parameters = {"/".join(path) for path in flax.traverse_util.flatten_dict(head)}
    required = registry.traits("posthoc", method.posthoc).head_parameters
    if required and parameters != set(required):
        raise UserError(
            f"the head of {name} has the parameters {', '.join(sorted(parameters))}; {method.posthoc.func.__name__} of "
            f"method {method.name!r} needs one with {' and '.join(required)} only, such as models.heads.LinearHead"
        )
