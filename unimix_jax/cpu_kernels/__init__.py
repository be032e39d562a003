"""Optional programs for x86-64 CPUs that compute the layers of networks faster than XLA does.

They are written in LLVM's assembly language for each shape (`assembly`, `handler`, `convolution_programs`), compiled by
llvmlite and called by XLA (`executable`). `convolution` and `pooling` make JAX functions with gradients of them;
`normalisation` has a gradient of its own. `implementations` is what `models.ops` registers; nothing else uses this
package, and everything works without it.
"""

import functools
from collections.abc import Callable

from unimix_jax.cpu_kernels.convolution import conv2d
from unimix_jax.cpu_kernels.normalisation import batch_norm
from unimix_jax.cpu_kernels.pooling import max_pool
from unimix_jax.cpu_kernels.trial import unavailable

__all__ = ["implementations", "unavailable"]


def implementations(threads: int) -> dict[str, Callable]:
    """Return what computes each operation of `models.ops`, by its name.

    Args:
      threads: of XLA, which share out the work.
    """
    return {
        "conv2d": functools.partial(conv2d, threads=threads),
        "max_pool": functools.partial(max_pool, threads=threads),
        "batch_norm": batch_norm,
    }
