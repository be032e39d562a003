"""The processor of this machine: whether it can run the programs, and how LLVM compiles for it."""

import functools
import hashlib
import platform
import sys

BYTES = {"float32": 4, "float64": 8}  # of a number, by the dtypes that programs support


def unsupported() -> str:
    """Return why this machine cannot run the programs; "" if it can."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return "they are made for x86-64 Linux only"
    try:
        import llvmlite.binding as llvm

        features = llvm.get_host_cpu_features()
        target()
    except ImportError:
        return "llvmlite is not installed (pip install llvmlite, or the extra `fast`)"
    except (AttributeError, OSError, RuntimeError) as error:
        return f"llvmlite does not work here ({error})"
    return "" if features.get("avx2") and features.get("fma") else "this processor has no AVX2 and FMA"


@functools.cache
def target() -> tuple:
    """Return what LLVM compiles for.

    Returns:
      LLVM's target machine for this processor; whether it has AVX-512; a text that tells processors, their features
      and versions of LLVM apart.
    """
    import llvmlite
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features()
    machine = llvm.Target.from_default_triple().create_target_machine(name, features.flatten(), opt=3, jit=True)
    return machine, bool(features.get("avx512f")), f"{name} {features.flatten()} {llvmlite.__version__}"


def lanes(dtype: str) -> int:
    """Return how many numbers a vector of this processor holds.

    Args:
      dtype: a key of `BYTES`.
    """
    return (64 if target()[1] else 32) // BYTES[dtype]


def registers() -> int:
    """Return how many vector registers this processor has."""
    return 32 if target()[1] else 16


def digest(*texts: str) -> str:
    """Return a digest of texts, this kind of processor and this version of LLVM.

    Args:
      *texts: what else the digest depends on.
    """
    return hashlib.sha256("\n".join([target()[2], *texts]).encode()).hexdigest()[:32]
