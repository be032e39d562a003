"""Programs that are compiled in a third of the time: for what is computed, not for the programs that users run.

One program costs about 0.1 s, and JAX compiles each operation outside of `jit` by itself: so a test puts all that it
computes under one `jit`, by this one where it compares neither with the authors' figures nor bits of a run.
"""

import functools

import jax
import pytest

from unimix_jax.training import runtime

# No optimisation by LLVM, and no emitters of fused loops by way of MLIR.
OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


@functools.cache
def options():
    """Return those of them that this jaxlib knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "_CPU_OPTIONS", OPTIONS)
        return runtime.compiler_options.__wrapped__()


def jit(function, **more):
    """Compile a function quickly; see `jax.jit`."""
    return jax.jit(function, compiler_options=options(), **more)
