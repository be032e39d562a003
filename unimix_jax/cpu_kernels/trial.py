"""Find out whether the programs can be used here, by a trial in another process.

The programs are machine code that machine code of XLA calls, and a mistake in such code ends the process. So another
process tries them on several threads and compares them with NumPy, once for each kind of processor, version
of jaxlib and version of this package. The answer is kept beside JAX's compile cache.
"""

import functools
import inspect
import logging
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np

from unimix_jax import storage
from unimix_jax.cpu_kernels import (
    assembly,
    convolution,
    convolution_programs,
    executable,
    handler,
    pooling,
    processor,
)

_log = logging.getLogger(__name__)

_MODULES = (assembly, convolution, convolution_programs, executable, handler, pooling, processor)
# XLA's foreign function interface is public; still, each version of jaxlib is tested before it is added here.
_TESTED_JAXLIB = ("0.10.", "0.11.", "0.12.")
_THREADS = 4
_SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from unimix_jax.cpu_kernels import trial
print("agrees" if trial.agrees() else "differs")
"""


@functools.cache
def unavailable(any_jaxlib: bool = False) -> str:
    """Return why the programs cannot be used in this process; "" if they can.

    Args:
      any_jaxlib: whether to try a version of jaxlib too with which the project was not tested.
    """
    import jaxlib

    if reason := processor.unsupported():
        return reason
    version = jaxlib.__version__
    if not (any_jaxlib or version.startswith(_TESTED_JAXLIB)):
        return f"jaxlib {version} is none of the versions with which they were tested"
    try:
        source = [inspect.getsource(module) for module in (*_MODULES, sys.modules[__name__])]
    except OSError:
        return "their source, by which the result of a trial is kept, cannot be read"
    cache, name = jax.config.jax_compilation_cache_dir, f"cpu_kernels-trial-{processor.digest(version, *source)}"
    if cache and (answer := storage.read_cached(cache, name)):
        return "" if answer == b"agrees" else answer.decode()
    _log.info("trying the CPU kernels, once on this machine")
    # -P and the first place in sys.path: the package of this process, not another one in the working directory.
    command = [sys.executable, "-P", "-c", _SCRIPT, str(pathlib.Path(__file__).parents[2])]
    # Without JAX's filter a traceback ends with its error, and not with a sentence on frames that were left out.
    settings = {"JAX_PLATFORMS": "cpu", "NPROC": str(_THREADS), "PJRT_NPROC": str(_THREADS)}
    environment = {**os.environ, **settings, "JAX_TRACEBACK_FILTERING": "off"}
    try:
        trial = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the trial of them could not be run ({error})"
    reason, is_certain = _outcome(trial)
    if cache and is_certain:
        storage.write_cached(cache, name, (reason or "agrees").encode())
    return reason


_ERROR = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt)\b")


def _outcome(trial: subprocess.CompletedProcess) -> tuple[str, bool]:
    """Return why a trial failed, "" if it did not, and whether that is certain enough to be kept."""
    lines = [*trial.stdout.split("\n"), *trial.stderr.split("\n")]
    if trial.stdout.split()[-1:] == ["agrees"]:
        return "", True
    telling = [line for line in lines if line == "differs" or _ERROR.match(line)]
    last = (telling or [line for line in lines if line.strip()] or ["it printed nothing"])[-1]
    was_killed = trial.returncode < 0
    return f"the trial of them ended with code {trial.returncode}: {last.strip()}", bool(telling or was_killed)


def agrees() -> bool:
    """Return whether programs of all kinds give the values and gradients of plain NumPy in this process."""
    random = np.random.Generator(np.random.Philox(0))
    x = random.standard_normal((8, 30, 26, 16), np.float32)  # so large that several threads take part
    # Size, outputs, stride. Together they divide the work in all ways: a batch by images (with and without borders, one
    # and two vectors of channels, rows of whole and broken tiles), the gradient of a kernel by parts of the batch and
    # by taps, the gradient of the input as a convolution of each kind.
    shapes = [(1, 128, 2), (3, 64, 2), (3, 512, 1)]
    functions = [functools.partial(pooling.pool, threads=_THREADS)]
    references, arguments = [_max_pool], [(x,)]
    for size, outputs, stride in shapes:
        functions.append(functools.partial(convolution.convolve, stride=stride, threads=_THREADS))
        references.append(functools.partial(_conv2d, stride=stride))
        arguments.append((x, random.standard_normal((size, size, 16, outputs), np.float32)))
    outs = [jax.eval_shape(function, *some) for function, some in zip(functions, arguments, strict=True)]
    slopes = [random.standard_normal(out.shape, np.float32) for out in outs]

    @jax.jit  # one program, because XLA takes .1 s for each
    def results(arguments, slopes):
        pulled = [jax.vjp(function, *some) for function, some in zip(functions, arguments, strict=True)]
        return [(out, *pull(slope)) for (out, pull), slope in zip(pulled, slopes, strict=True)]

    expected = [reference(*some, slope) for reference, some, slope in zip(references, arguments, slopes, strict=True)]
    pairs = zip(*map(jax.tree.leaves, (results(arguments, slopes), expected)), strict=True)
    return all(bool(np.abs(a - b).max() < 1e-4 * np.abs(b).max()) for a, b in pairs)


def _conv2d(x, kernel, slopes, stride: int):
    """Return a convolution, and the gradients of its input and kernel for slopes of its output."""
    size, (_, h, w, _), (_, rows, columns, _) = kernel.shape[0], x.shape, slopes.shape
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out, x_gradient, kernel_gradient = np.zeros_like(slopes), np.zeros_like(x), np.zeros_like(kernel)
    for tap in np.ndindex(size, size):
        at = np.s_[:, *(slice(i, i + stride * n, stride) for i, n in zip(tap, (rows, columns), strict=True))]
        out += x[at] @ kernel[tap]
        x_gradient[at] += slopes @ kernel[tap].T
        kernel_gradient[tap] = np.tensordot(x[at], slopes, ((0, 1, 2), (0, 1, 2)))
    return out, x_gradient[:, pad : pad + h, pad : pad + w], kernel_gradient


def _max_pool(x, slopes):
    """Return max-pooling over 3 x 3 windows at stride 2, and the gradient of its input for slopes of its output."""
    (_, h, w, _), (_, rows, columns, _) = x.shape, slopes.shape
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = [np.s_[:, a : a + 2 * rows : 2, b : b + 2 * columns : 2] for a, b in np.ndindex(3, 3)]
    taps = np.stack([x[at] for at in windows])
    gradient = np.zeros_like(x)
    for tap, at in enumerate(windows):
        gradient[at] += slopes * (taps.argmax(axis=0) == tap)
    return taps.max(axis=0), gradient[:, 1 : 1 + h, 1 : 1 + w]
