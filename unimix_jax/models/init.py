"""The first parameters of networks, drawn from a seed."""

import functools
import zlib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax.models import heads, layers, ops

Path = tuple[str, ...]  # of a variable: its collection, the names of its modules, its own name

_COMPILED_FOR_ONE_RUN = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def initialise(network: nn.Module, image_shape: tuple[int, int, int], seed: int, draw: int = 0) -> dict:
    """Draw the first variables of a network.

    The project's own layers are drawn in numpy, each variable by its path and the seed. Values then depend on no
    device and on no other layer, and nothing is compiled; the `init` of Flax compiles for 6 to 60 s. Layers are drawn
    as by LDAM-DRW: weights Kaiming normal by fan-in with gain sqrt(2). A network that states `drawn_as_torchvision`, as
    those of photographs do, has convolutions Kaiming normal by fan-out, the linear layer uniform within 1/sqrt(fan-in).
    In both, the bias of the linear layer is uniform within 1/sqrt(fan-in), PyTorch's default, the columns of a cosine
    head are uniform and scaled to length 1, and normalisation and scales start as the identity. A network that states
    `first_values`, mean and deviation of a normal distribution by a variable's name, is drawn by them; its head is
    drawn as that of photographs' networks. All other layers, such as a user's, are drawn by their own initialisers.

    Args:
      network: a Flax module called as network(images, train=...).
      image_shape: (H, W, C).
      seed: 0 <= seed < 2**64.
      draw: another number gives other values, for a classifier that is drawn anew.

    Returns:
      {"params": ..., "batch_stats": ...} of numpy float32, and other collections that the network has.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    alone = {"axis": None} if hasattr(network, "axis") else {}  # one device has no axis to sum over
    init = functools.partial(network.clone(**alone).init, train=False)
    normal = getattr(network, "first_values", None)
    with ops.use("xla"):  # shapes do not depend on the backend, and other backends may compile for them
        shapes, of_the_project = _shapes(init, image)
        foreign = [path for path, _ in _leaves(shapes) if path not in of_the_project and normal is None]
        drawn_by_flax = _own_draws(init, image, foreign, seed, draw) if foreign else {}
    kernel_shapes = {path[:-1]: leaf.shape for path, leaf in _leaves(shapes) if path[-1] == "kernel"}
    torchvision = getattr(network, "drawn_as_torchvision", False) or normal is not None

    def value_of(tree_path, leaf):
        path = _path(tree_path)
        if path in drawn_by_flax:
            return drawn_by_flax[path]
        key, counter = [seed, zlib.crc32("/".join(path).encode())], [0, 0, 0, draw]
        random = np.random.Generator(np.random.Philox(key=key, counter=counter))
        if normal is not None and path[1] != "head":
            mean, deviation = normal[path[-1]]
            return (mean + deviation * random.standard_normal(leaf.shape)).astype(leaf.dtype)
        return _drawn(random, path[-1], leaf.shape, kernel_shapes.get(path[:-1]), torchvision).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(value_of, shapes)


def _shapes(init: Callable, image: jax.ShapeDtypeStruct) -> tuple[dict, set[Path]]:
    """Return the shapes of a network's variables, and the paths of those that belong to the project's layers."""
    modules = set()

    def note(call, arguments, keywords, context):
        if type(context.module).__module__ in (layers.__name__, heads.__name__):
            modules.add(context.module.path)
        return call(*arguments, **keywords)

    with nn.intercept_methods(note):
        shapes = jax.eval_shape(init, jax.random.key(0), image)
    shapes = {"batch_stats": {}, **shapes}
    paths = [path for path, _ in _leaves(shapes)]
    return shapes, {path for path in paths if any(path[1:end] in modules for end in range(2, len(path)))}


def _own_draws(init: Callable, image: jax.ShapeDtypeStruct, paths: list[Path], seed: int, draw: int) -> dict:
    """Return the values that a network's own initialisers give to the variables of these paths."""

    # It runs once: compiling takes the time. XLA removes what is not returned: the network itself is not compiled.
    @functools.partial(jax.jit, compiler_options=_COMPILED_FOR_ONE_RUN)
    def values(key):
        variables = dict(_leaves(init(key, jnp.zeros(image.shape, image.dtype))))
        return [variables[path] for path in paths]

    key = jax.random.key(seed % 2**32)
    for number in (seed >> 32, draw):
        key = jax.random.fold_in(key, number)
    return dict(zip(paths, map(np.asarray, values(key)), strict=True))


def _drawn(
    random: np.random.Generator, name: str, shape: tuple[int, ...], kernel: tuple[int, ...] | None, torchvision: bool
) -> np.ndarray:
    """Draw one variable of the project's layers.

    Args:
      random: the generator of this variable.
      name: the last part of its path.
      shape: of the variable.
      kernel: shape of the kernel that stands beside it, None if none does.
      torchvision: whether to draw as torchvision does.

    Returns:
      float64 of that shape.
    """
    if name == "kernel":
        return _drawn_kernel(random, shape, torchvision)
    if name == "bias" and kernel is not None:
        return random.uniform(-1, 1, shape) / np.sqrt(np.prod(kernel[:-1]))
    if name == "cosine":
        columns = random.uniform(-1, 1, shape)
        return columns / np.linalg.norm(columns, axis=0)
    return np.ones(shape) if name in ("scale", "var") else np.zeros(shape)


def _drawn_kernel(random: np.random.Generator, shape: tuple[int, ...], torchvision: bool) -> np.ndarray:
    """Draw the weights of a convolution [h, w, in / groups, out] or a linear layer [in, out]."""
    if torchvision and len(shape) == 2:
        return random.uniform(-1, 1, shape) / np.sqrt(shape[0])
    fan = np.prod(shape[:2]) * shape[3] if torchvision else np.prod(shape[:-1])
    return random.standard_normal(shape) * np.sqrt(2 / fan)


def _path(tree_path) -> Path:
    return tuple(key.key for key in tree_path)


def _leaves(tree) -> list[tuple[Path, jax.Array]]:
    return [(_path(tree_path), leaf) for tree_path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]
