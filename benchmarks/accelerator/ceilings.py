"""The machine and what it can do at most: products of matrices, memory, launches."""

import os
import platform
import shutil
import subprocess
import time

import jax
import jax.numpy as jnp

from unimix_jax.training import runtime
from unimix_jax.training.devices import local_devices


def environment() -> dict:
    """Return versions, device, its memory and, for NVIDIA's cards, driver and clocks."""
    devices = local_devices(1)
    card = ""
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"
        answer = subprocess.run(["nvidia-smi", query, "--format=csv"], capture_output=True, text=True, timeout=30)
        card = (answer.stdout or answer.stderr).strip()
    return {
        **runtime.environment(devices, "shard_map", "as each result says"),
        "platform": devices[0].platform,
        "device_memory_mib": (devices[0].memory_stats() or {}).get("bytes_limit", 0) // 2**20,
        "card": card,
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }


def seconds_a_call(function, *arguments, calls: int) -> float:
    """Return the least mean time of three rounds of calls, each of which waits for its last result only."""
    jax.block_until_ready(function(*arguments))
    rounds = []
    for _ in range(3):
        begun = time.perf_counter()
        for _ in range(calls):
            result = function(*arguments)
        jax.block_until_ready(result)
        rounds.append((time.perf_counter() - begun) / calls)
    return min(rounds)


def products(size: int) -> dict:
    """Return TFLOP/s of products of square matrices: float32 in full, float32 as JAX multiplies by default, bfloat16.

    On NVIDIA's cards the default for float32 is TF32.
    """
    found = {}
    for name, dtype, precision in (
        ("float32_default", jnp.float32, "default"),
        ("bfloat16", jnp.bfloat16, "default"),
        ("float32_highest", jnp.float32, "highest"),
    ):
        left, right = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
        multiply = jax.jit(lambda a, b, precision=precision: jnp.dot(a, b, precision=precision))
        found[f"{name}_tflops"] = 2 * size**3 / seconds_a_call(multiply, left, right, calls=10) / 1e12
    return found


def memory_and_launches(gib: float, kernels: int) -> dict:
    """Return bytes a second, read and written, of a pass over memory, and launches a second.

    Launches: of a chain of kernels in one program, where each needs the one before, without and with the project's
    compiler options, and of one program after the other.
    """
    array = jnp.ones(int(gib * 2**28), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    found = {"memory_gb_s": 2 * array.nbytes / seconds_a_call(add, array, calls=10) / 1e9}
    small = jnp.ones(64)

    def chain(x):
        for _ in range(kernels):
            x = jax.lax.optimization_barrier(x * 1.5 + 1)  # otherwise the chain would be one kernel
        return x

    for name, options in (("launches_a_second", {}), ("launches_a_second_by_options", runtime.compiler_options())):
        compiled = jax.jit(chain, compiler_options=options).lower(small).compile()
        found["kernels_of_chain"] = compiled.as_text().count(" fusion(")  # fewer where the compiler joins some
        found[name] = found["kernels_of_chain"] / seconds_a_call(compiled, small, calls=10)
    return found | {"programs_a_second": 1 / seconds_a_call(add, small, calls=500)}
