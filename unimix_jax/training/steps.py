"""The training step and the prediction step: pure functions, written for one device's share of a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from unimix_jax.batch import Batch
from unimix_jax.methods import mixing
from unimix_jax.methods.method import Stage
from unimix_jax.training import augment, keys


class TrainState(NamedTuple):
    """All that training changes, and all that a checkpoint holds."""

    step: Any  # int32[], updates done
    params: Any
    batch_stats: Any
    opt_state: Any


class Numbers(NamedTuple):
    """What may change from step to step without compiling again."""

    seed: Any  # uint32[]
    learning_rate: Any  # float32[]


class Recipe(NamedTuple):
    """What stays the same over a run, beside the stage and the network."""

    optimiser: optax.GradientTransformation
    mean: Any  # float32[C]
    std: Any  # float32[C]
    pad: int
    flip: bool


def first_state(variables: dict, optimiser: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step."""
    params = variables["params"]
    return TrainState(jnp.int32(0), params, variables["batch_stats"], optimiser.init(params))


def mixed_batch(batch: Batch, view_keys: Callable, stage: Stage, recipe: Recipe) -> mixing.Mixed:
    """Augment a batch, and its partners independently, then mix as the stage says."""

    def ready(images, views):
        images = augment.crop_and_flip(view_keys(views), images, pad=recipe.pad, flip=recipe.flip)
        return augment.normalise(images, recipe.mean, recipe.std)

    image = ready(batch.image, batch.view)
    if stage.mixer is None:
        return mixing.Mixed(image, batch.label)
    mix_keys = jax.vmap(lambda key: keys.use(key, keys.Use.MIX))(view_keys(batch.view))
    partner = ready(batch.partner_image, batch.partner_view)
    return stage.mixer(mix_keys, image, partner, batch.label, batch.partner_label)


def train_step(
    state: TrainState,
    batch: Batch,
    numbers: Numbers,
    *,
    stage: Stage,
    network: nn.Module,
    recipe: Recipe,
    axis: str | None = None,
) -> tuple[TrainState, dict]:
    """Take one step of SGD.

    Each device differentiates the *sum* of its losses; gradients and weights are added over the
    devices, then divided once, so that any split of a batch gives the same update.

    Args:
      state: the same on every device.
      batch: this device's share.
      numbers: the same on every device.
      stage, network, recipe: what is trained and how.
      axis: name of the mesh axis to add over; None on one device.

    Returns:
      The new state, and {"loss", "accuracy"}: (sum, weight) pairs over the whole batch, float32[]. While
      mixing, a hit is a prediction of the label with the larger weight.
    """

    def view_keys(views):
        return keys.of_views(numbers.seed, state.step, views)

    mixed = mixed_batch(batch, view_keys, stage, recipe)

    def total_loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = network.apply(variables, mixed.image, train=True, mutable=["batch_stats"])
        return mixing.objective(stage.loss, logits, mixed).sum(), (logits, updates["batch_stats"])

    (loss, (logits, batch_stats)), gradients = jax.value_and_grad(total_loss, has_aux=True)(state.params)
    hits = (logits.argmax(axis=1) == mixing.dominant_label(mixed)).sum().astype(loss.dtype)
    weight = jnp.asarray(len(logits), loss.dtype)
    if axis is not None:
        gradients, loss, hits, weight = jax.lax.psum((gradients, loss, hits, weight), axis)
        batch_stats = jax.lax.pmean(batch_stats, axis)  # equal already, unless each device has its own statistics
    gradients = jax.tree.map(lambda g: g / weight, gradients)
    direction, opt_state = recipe.optimiser.update(gradients, state.opt_state, state.params)
    params = jax.tree.map(lambda p, d: p - numbers.learning_rate * d, state.params, direction)
    sums = {"loss": (loss, weight), "accuracy": (hits, weight)}
    return TrainState(state.step + 1, params, batch_stats, opt_state), sums


def predict_step(variables: dict, images, *, network: nn.Module, recipe: Recipe):
    """Return the logits float32[B, K] of raw images uint8[B, H, W, C], by the running statistics."""
    images = augment.normalise(images, recipe.mean, recipe.std)
    return network.apply(variables, images, train=False)
