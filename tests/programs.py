"""Programs of steps that several runs of one process share: tracing is most of what a short run takes.

The product makes its programs anew for each run. Two functions that consist of the same code, values and arrays are one
program, as JAX's own cache assumes: so the runs of a test file trace it once. A file whose subject is what is compiled
does not use this.
"""

import dataclasses
import functools
import hashlib
import types

import numpy as np

from unimix_jax.training import devices, runtime
from unimix_jax.training.setup import Experiment

_PROGRAMS = {}
_USED_OF_AN_EXPERIMENT = ("network", "step_config")  # by the functions that a program is made of


def distribute(step, placed, spmd="shard_map", **options):
    """Return the program that an equal call returned before; see `devices.distribute`."""
    key = consists_of((step, placed, spmd, options, runtime.compiler_options(options.get("deterministic", False))))
    if key not in _PROGRAMS:
        _PROGRAMS[key] = devices.distribute(step, placed, spmd, **options)
    return _PROGRAMS[key]


def consists_of(value, inside=()):
    """Return all that a value is made of, as something that can be compared; an object of another kind is itself."""
    if id(value) in inside:  # a function that refers to itself
        return "again", inside.index(id(value))
    within = functools.partial(consists_of, inside=(*inside, id(value)))
    if isinstance(value, Experiment):
        return Experiment, *(within(getattr(value, name)) for name in _USED_OF_AN_EXPERIMENT)
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.str, value.shape, hashlib.blake2b(value.tobytes()).digest()
    if isinstance(value, tuple | list):
        return type(value), *map(within, value)
    if isinstance(value, dict | types.MappingProxyType):
        return dict, *((name, within(of)) for name, of in value.items())
    if isinstance(value, functools.partial):
        return functools.partial, within(value.func), within(value.args), within(value.keywords)
    if isinstance(value, types.FunctionType):
        cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
        return value.__code__, id(value.__globals__), *map(within, (cells, value.__defaults__, value.__kwdefaults__))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # such as a network
        fields = (field.name for field in dataclasses.fields(value) if field.name not in ("parent", "name"))
        return type(value), *((name, within(getattr(value, name, None))) for name in fields)
    return value
