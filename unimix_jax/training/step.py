"""The training step and the prediction step: pure functions of one device's share of a batch."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import optax

from unimix_jax.data.types import Batch
from unimix_jax.methods import mixing
from unimix_jax.methods.build import Stage
from unimix_jax.models import ops
from unimix_jax.training import augment, rng

_SUMS = jax.tree.structure({"loss": (0, 0), "accuracy": (0, 0)})  # what a step returns beside its state


class TrainState(NamedTuple):
    """Everything that training changes, and everything that a checkpoint holds."""

    step: Any  # int32[], updates done
    params: Any
    batch_stats: Any
    opt_state: Any


class StepInputs(NamedTuple):
    """Inputs of a step that may change without compiling again."""

    seed: Any  # uint32[]; of replicates uint32[R]
    learning_rate: Any  # float32[]; of several steps float32[K]
    class_weight: Any  # float32[K]


class StepConfig(NamedTuple):
    """Values that do not change in a run; the stage and the network are passed separately."""

    optimiser: optax.GradientTransformation
    mean: Any  # float32[C]
    std: Any  # float32[C]
    augmentations: tuple[Callable, ...] = ()  # (keys, images) -> images, see `augment.apply`
    grad_accum_steps: int = 1  # parts of a device's share that are differentiated one after the other
    unroll: bool = True  # write the parts out instead of looping: faster on a CPU, more memory elsewhere
    ops: str = "xla"  # the backend of the network's layers, see `models.ops`
    head_groups: Mapping[str, str] = MappingProxyType({})  # of `heads.parameter_groups`
    dropout: bool = False  # whether the network draws random numbers in training; then it sees one image at a time


def first_state(variables: dict, optimiser: optax.GradientTransformation, replicates: int = 1) -> TrainState:
    """Return the state before the first step.

    Args:
      variables: of the network; of several replicates with a leading axis of them.
      optimiser: of the run.
      replicates: that are trained together.
    """

    def state_of(variables):
        params = variables["params"]
        return TrainState(jnp.int32(0), params, variables["batch_stats"], optimiser.init(params))

    return state_of(variables) if replicates == 1 else jax.vmap(state_of)(variables)


def group_of(path: tuple, head_groups: Mapping[str, str]) -> str:
    """Return the group of a parameter, by which a stage sets its learning rate.

    Args:
      path: of the parameter in the tree.
      head_groups: of `heads.parameter_groups`.
    """
    names = [key.key for key in path]
    return head_groups.get(names[1], "classifier") if names[0] == "head" else "backbone"


def mixed_batch(batch: Batch, seed: jax.Array, step: jax.Array, stage: Stage, config: StepConfig) -> mixing.Mixed:
    """Augment a batch and its partners, each image by the random keys of its view, then mix as the stage says."""

    def ready(images, views):
        view_keys = rng.of_views(seed, step, views)
        return augment.standardise(augment.apply(config.augmentations, view_keys, images), config.mean, config.std)

    image = ready(batch.image, batch.view)
    if stage.mixer is None:
        return mixing.Mixed(image, batch.label)
    partner = ready(batch.partner_image, batch.partner_view)
    mix_keys = mixing.Keys(
        rng.use(rng.of_batch(seed, step), rng.Use.MIX),
        jax.vmap(lambda key: rng.use(key, rng.Use.MIX))(rng.of_views(seed, step, batch.view)),
    )
    return stage.mixer(mix_keys, image, partner, batch.label, batch.partner_label)


def train_step(
    state: TrainState,
    batch: Batch,
    inputs: StepInputs,
    *,
    stage: Stage,
    network: nn.Module,
    config: StepConfig,
    axis: str | None = None,
    kernels: Sequence[jax.Array] = (),
) -> tuple[TrainState, dict]:
    """Take one step of the optimiser.

    Each device differentiates the *sum* of its weighted losses; gradients and weights are added over the devices and
    then divided once, so that the update does not depend on how the batch is split. With `config.grad_accum_steps` a
    device differentiates one part of its share after the other; batch statistics are then those of each part.

    Args:
      state: the same on every device.
      batch: this device's share.
      inputs: the same on every device.
      stage: the loss, mixer and learning rate factors.
      network: the flax module.
      config: what stays the same over the run.
      axis: name of the mesh axis to add over; None on one device.
      kernels: `cast_kernels` of the parameters; none to cast each where it is used.

    Returns:
      The new state, and {"loss", "accuracy"}: pairs (sum, weight) over the whole batch, float32[]. For mixed images,
      the label with the larger weight counts as the right one.
    """
    mixed = mixed_batch(batch, inputs.seed, state.step, stage, config)
    keys = _dropout_keys(batch, inputs.seed, state.step) if config.dropout else None
    factors, apply = dict(stage.lr_multipliers), ops.using(config.ops, network.apply)
    params = _with_kernels(state.params, kernels)

    def factor(path) -> float:
        return factors.get(group_of(path, config.head_groups), 1)

    def total_loss(params, examples, batch_stats):
        mixed, keys = examples
        # No gradient of frozen parameters is requested, so none is computed.
        params = jax.tree_util.tree_map_with_path(
            lambda path, p: p if factor(path) else jax.lax.stop_gradient(p), params
        )
        variables = {"params": params, "batch_stats": batch_stats}
        options = {}  # a network without levels need not take a mixing function
        if mixed.hidden is not None:
            options["mix"] = functools.partial(mixing.mix_hidden, mixed=mixed, slots=batch.partner_view, axis=axis)
        if stage.batch_norm == "frozen":
            logits = apply(variables, mixed.image, train=False, **options)
        elif config.dropout:
            # Image by image, each with the random numbers of its view, so that they depend on no device.
            logits = jax.vmap(lambda image, key: apply(variables, image[None], train=True, rngs={"dropout": key})[0])(
                mixed.image, keys
            )
        else:
            logits, updates = apply(variables, mixed.image, train=True, mutable=["batch_stats"], **options)
            batch_stats = updates.get("batch_stats", batch_stats)
        logits = _at_least_float32(logits)
        losses = mixing.objective(stage.loss, logits, mixed, inputs.class_weight)
        return losses.sum(), (logits, batch_stats)

    def part(examples, batch_stats):
        differentiated = jax.value_and_grad(total_loss, has_aux=True)
        (loss, (logits, batch_stats)), gradients = differentiated(params, examples, batch_stats)
        gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, state.params)
        hits = (logits.argmax(axis=1) == mixing.dominant_label(examples[0])).sum().astype(loss.dtype)
        return gradients, loss, hits, batch_stats

    if config.grad_accum_steps == 1:
        gradients, loss, hits, batch_stats = part((mixed, keys), state.batch_stats)
    else:
        gradients, loss, hits, batch_stats = _accumulated(part, (mixed, keys), state.batch_stats, config)
    weight = mixing.example_weight(mixed, inputs.class_weight).sum().astype(loss.dtype)
    size = jnp.asarray(len(mixed.image), loss.dtype)
    if axis is not None:
        gradients, loss, weight, hits, size = jax.lax.psum((gradients, loss, weight, hits, size), axis)
        batch_stats = jax.lax.pmean(batch_stats, axis)  # equal already, unless each device has its own statistics
    if stage.reduction == "count":
        weight = size
    gradients = jax.tree.map(lambda g: g / weight, gradients)
    direction, opt_state = config.optimiser.update(gradients, state.opt_state, state.params)
    params = jax.tree_util.tree_map_with_path(
        lambda path, p, d: p - inputs.learning_rate * factor(path) * d if factor(path) else p,
        state.params,
        direction,
    )
    sums = {"loss": (loss, weight), "accuracy": (hits, size)}
    return TrainState(state.step + 1, params, batch_stats, opt_state), sums


def many_steps(
    take_step: Callable,
    state: TrainState,
    batches: Any,
    inputs: StepInputs,
    *,
    axis: str | None = None,
    dtype: Any = jnp.float32,
    join: bool = False,
) -> tuple[TrainState, dict]:
    """Take several steps in one program.

    Each step casts the kernels for the next one. The casts then are in the launches that update the kernels; where
    kernels are used, each is a launch of its own.

    Args:
      take_step: called as take_step(state, batch, inputs, axis=axis, kernels=kernels), as `train_step` is.
      state: before them.
      batches: with a leading axis of K steps.
      inputs: with K learning rates.
      axis: name of the mesh axis.
      dtype: of `kernel_dtype`.
      join: whether the running statistics go from step to step in one vector, which one launch updates. Without it XLA
        joins their updates with what computes statistics, but for the kernels of `models.pallas`.

    Returns:
      The state after them, and the sums of each step, stacked: pairs of float32[K].
    """
    to_vector, from_vector = _joining(state.batch_stats) if join else (lambda tree: tree,) * 2

    def body(carry, step):
        (state, kernels), (batch, rate) = carry, step
        state = state._replace(batch_stats=from_vector(state.batch_stats))
        state, sums = take_step(state, batch, inputs._replace(learning_rate=rate), axis=axis, kernels=kernels)
        return carried(state), jnp.stack(jax.tree.leaves(sums))  # stored by one launch

    def carried(state):
        return state._replace(batch_stats=to_vector(state.batch_stats)), cast_kernels(state.params, dtype)

    (state, _), sums = jax.lax.scan(body, carried(state), (batches, inputs.learning_rate))
    return state._replace(batch_stats=from_vector(state.batch_stats)), jax.tree.unflatten(_SUMS, sums.T)


def _joining(tree: Any) -> tuple[Callable, Callable]:
    """Return functions that join arrays to a vector and separate them; of several dtypes they stay as they are."""
    if len({leaf.dtype for leaf in jax.tree.leaves(tree)}) != 1:
        return (lambda tree: tree,) * 2
    separate = jax.flatten_util.ravel_pytree(tree)[1]
    return lambda tree: jax.flatten_util.ravel_pytree(tree)[0], separate


def kernel_dtype(network: nn.Module) -> Any:
    """Return the dtype to which every convolution of a network casts its kernel.

    Args:
      network: the flax module.

    Returns:
      The network's dtype; float32, which is no cast, for modules of users, whose layers may have any dtype.
    """
    return network.dtype if type(network).__module__.startswith("unimix_jax.") else jnp.float32


def cast_kernels(params: Any, dtype: Any) -> list:
    """Cast the kernels of convolutions to a dtype of fewer bits.

    Args:
      params: of a network.
      dtype: of `kernel_dtype`.

    Returns:
      The float32 kernels in this dtype, in the order of the tree; none of them if it has as many bits.
    """
    return [leaf.astype(dtype) for leaf in jax.tree.leaves(params) if _is_cast(leaf, dtype)]


def _with_kernels(params: Any, kernels: list) -> Any:
    """Return parameters with the kernels of `cast_kernels` in place of theirs."""
    if not kernels:
        return params
    rest = iter(kernels)
    return jax.tree.map(lambda leaf: next(rest) if _is_cast(leaf, kernels[0].dtype) else leaf, params)


def _is_cast(leaf: jax.Array, dtype: Any) -> bool:
    return leaf.ndim == 4 and leaf.dtype == jnp.float32 and jnp.finfo(dtype).bits < 32


def over_replicates(take_steps: Callable) -> Callable:
    """Return `train_step` or `many_steps` of several replicates, which stand on the leading axis of their arrays.

    Args:
      take_steps: called as take_steps(state, batch, inputs, *shared arrays, axis=axis).

    Returns:
      A function of the same arguments: state, batch and the seeds of the inputs have the leading axis, and so have the
      state and the sums that it returns.
    """

    def of_replicates(state, batch, inputs, *shared, axis=None):
        def of_one(state, batch, seed):
            return take_steps(state, batch, inputs._replace(seed=seed), *shared, axis=axis)

        if len(inputs.seed) > 1:
            return jax.vmap(of_one)(state, batch, inputs.seed)
        alone = of_one(*jax.tree.map(lambda x: x[0], (state, batch, inputs.seed)))
        return jax.tree.map(lambda x: x[None], alone)

    return of_replicates


def _dropout_keys(batch: Batch, seed: jax.Array, step: jax.Array) -> jax.Array:
    """Return the keys of the network's random numbers, one a view."""
    return jax.vmap(lambda key: rng.use(key, rng.Use.DROPOUT))(rng.of_views(seed, step, batch.view))


def _accumulated(part, examples: tuple, batch_stats, config: StepConfig):
    """Return the sums of what `part` returns over the parts of a batch; batch statistics go from part to part."""
    # Every k-th example, so that a part is the same examples however many devices share the batch.
    parts = jax.tree.map(lambda x: x.reshape(-1, config.grad_accum_steps, *x.shape[1:]).swapaxes(0, 1), examples)
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, first, batch_stats)[:3])

    def add(carry, examples):
        sums, batch_stats = carry
        *part_sums, batch_stats = part(examples, batch_stats)
        return (jax.tree.map(jnp.add, sums, tuple(part_sums)), batch_stats), None

    (sums, batch_stats), _ = jax.lax.scan(add, (zeros, batch_stats), parts, unroll=config.unroll)
    return *sums, batch_stats


def predict_step(variables: dict, images: jax.Array, *, network: nn.Module, config: StepConfig) -> jax.Array:
    """Return the logits float32[B, K] of raw images uint8[B, H, W, C], with the running batch statistics."""
    images = augment.normalise(images, config.mean, config.std)
    return _at_least_float32(ops.using(config.ops, network.apply)(variables, images, train=False))


def _at_least_float32(logits: jax.Array) -> jax.Array:
    """Return logits of a network in float32, if they have fewer bits; losses and files are in float32."""
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
