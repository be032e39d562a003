"""The programs of training, compiled for an H100 and for slices of TPUs on a machine that has neither.

    python benchmarks/compiled.py --output=FILE.json [--case=h100_resnet32_float32_scan ...] [--text=FOLDER]

needs JAX's plugin for CUDA and libtpu (README.md says how to get them), no accelerator. The step is the one of the
loop, wrapped and compiled as the loop does it, with shapes in place of arrays. A minute or two a case, each in its own
process; `--list` names the cases. By case, FILE.json has

    launches             of one step: kernels, convolutions, copies; of a scan those of its body
    small_launches       those that read and write less than 100,000 bytes (the arrays that they get, if they use parts)
    kinds                launches by what they are
    collectives          all-reduces and others by name, of one step
    gigabytes            read and written by one step, as XLA counts them
    temporary_mib        memory beside arguments and results
    gigaflops            of one step on a device, as XLA counts the program before its changes
    compile_seconds      of the compiler alone

Times are not visible here, nor which program a library takes for a convolution. What XLA counts for a loop is its body
once. On a GPU launches are recorded into CUDA graphs after the text that is counted here.
"""

import argparse
import collections
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time
import types
from typing import NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
SMALL = 100_000  # bytes: less than a launch takes at the memory's speed
STEPS = 97  # of an epoch of CIFAR-10-LT in batches of 128
MARK = "RESULT "  # before the line in which a process hands over its numbers
_FREE = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "opt-barrier", "partition-id",
    "replica-id", "add-dependency", "domain",
}  # fmt: skip
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "c64": 8, "c128": 16, "token": 0, "bf16": 2}
_ENVIRONMENT = {
    "h100": {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"},
    "tpu": {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
    },
}


class Case(NamedTuple):
    """A program, and the devices that it is compiled for."""

    network: str
    dtype: str
    backend: str = "accelerator"  # of the layers
    steps: int = 1  # in one program
    batch: int = 128
    size: int = 32
    classes: int = 10
    replicates: int = 1  # seeds that are trained together
    evaluation: bool = False
    options: bool = True  # the project's options of the compiler
    topology: str = ""  # of TPUs; "" for an H100


def cases() -> dict[str, Case]:
    """Return every case by name."""
    named = {}
    for dtype in ("float32", "bfloat16"):
        for steps, form in ((1, "step"), (STEPS, "scan")):
            for backend in ("xla", "accelerator", "pallas"):
                named[f"h100_resnet32_{dtype}_{form}_{backend}"] = Case("resnet32", dtype, backend, steps)
        plain = Case("resnet32", dtype, steps=STEPS, options=False)
        named[f"h100_resnet32_{dtype}_scan_accelerator_no_options"] = plain
    photographs = Case("resnet50", "bfloat16", batch=256, size=224, classes=1000)
    for backend in ("xla", "accelerator", "pallas"):
        named[f"h100_resnet50_bfloat16_step_{backend}"] = photographs._replace(backend=backend)
        named[f"h100_resnet32_bfloat16_4seeds_{backend}"] = Case("resnet32", "bfloat16", backend, STEPS, replicates=4)
    named["h100_resnet32_float32_evaluation"] = Case("resnet32", "float32", batch=500, evaluation=True)
    for dtype in ("float32", "bfloat16"):
        for backend in ("xla", "accelerator"):
            for steps, form in ((1, "step"), (STEPS, "scan")):
                case = Case("resnet32", dtype, backend, steps, topology="v5e:2x2")
                named[f"v5e_2x2_resnet32_{dtype}_{form}_{backend}"] = case
    for chip in ("v5e", "v6e"):
        case = photographs._replace(backend="xla", batch=512, classes=8142, topology=f"{chip}:4x4")
        named[f"{chip}_4x4_resnet50_bfloat16_step_xla"] = case
    return named


class Instruction(NamedTuple):
    """A line of compiled HLO."""

    name: str
    operation: str
    bytes: int  # of its result
    line: str


def computations(hlo: str) -> tuple[dict[str, list[Instruction]], str]:
    """Return the instructions of each computation of compiled HLO, by name, and the name of the entry."""
    parsed, entry, current = {}, "", None
    for line in hlo.splitlines():
        if match := re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$", line):
            current = parsed.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?)\s([a-z][a-z0-9\-]*)\(", line)
            if match:
                current.append(Instruction(match[1], match[3], _bytes(match[2]), line))
    return parsed, entry


def _bytes(shape: str) -> int:
    """Return the bytes of a shape of HLO, or of a tuple of shapes."""
    total = 0
    for dtype, sizes in re.findall(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]", shape):
        bits = re.search(r"\d+", dtype)
        width = _BYTES.get(dtype, int(bits[0]) / 8 if bits else 0)
        total += int(width * math.prod(int(size) for size in sizes.split(",") if size))
    return total


class Launches(NamedTuple):
    """What one run of a computation launches."""

    kinds: collections.Counter
    small: int
    collectives: collections.Counter


def launches(parsed: dict[str, list[Instruction]], computation: str) -> Launches:
    """Count what a computation launches, with the computations that it calls.

    Args:
      parsed: of `computations`.
      computation: its name.

    Returns:
      The counts; a loop counts as often as it says.
    """
    kinds, collectives = collections.Counter(), collections.Counter()
    small = 0
    sizes = {instruction.name: instruction.bytes for instruction in parsed[computation]}
    for instruction in parsed[computation]:
        _, operation, size, line = instruction
        if operation in _FREE or operation.endswith("-done"):
            continue
        collective = next((kind for kind in _COLLECTIVES if operation.startswith(kind)), None)
        if collective:
            collectives[collective] += 1
        if operation in ("call", "while", "async-start"):
            callee = re.search(r"(?:to_apply|body|calls)=%?([\w.\-]+)", line)[1]
            times = trips(line) if operation == "while" else 1
            inner = launches(parsed, callee)
            kinds.update({kind: times * count for kind, count in inner.kinds.items()})
            collectives.update({kind: times * count for kind, count in inner.collectives.items()})
            small += times * inner.small
            continue
        kinds[_kind(operation, line)] += 1
        small += size + of_operands(instruction, sizes) < SMALL
    return Launches(kinds, small, collectives)


def _kind(operation: str, line: str) -> str:
    """Return what an instruction is in words: a library's convolution, a reduction, a product, an elementwise pass."""
    if operation == "custom-call":
        return re.search(r'custom_call_target="([^"]+)"', line)[1]
    if operation != "fusion":
        return operation.removesuffix("-start")
    backend = re.search(r'"kind":"([^"]+)"', line)
    of_metadata = re.search(r"kind=(k\w+)", line)[1]
    return f"fusion {of_metadata}" + (f" {backend[1]}" if backend else "")


def trips(line: str) -> int:
    """Return how often a loop runs; 1 if the compiler does not say."""
    count = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    return int(count[1]) if count else 1


def of_a_step(parsed: dict[str, list[Instruction]], entry: str, steps: int) -> Launches:
    """Count what one step launches: of a program of several, the body of the loop that takes so many."""
    if steps == 1:
        return launches(parsed, entry)
    loops = [each for instructions in parsed.values() for each in instructions if each.operation == "while"]
    of_steps = [loop for loop in loops if trips(loop.line) == steps]
    # The compiler for TPUs does not say how often a loop runs: there it is the only one outside of others.
    unsaid = [loop for loop in loops if loop in parsed[entry] and "known_trip_count" not in loop.line]
    of_steps = of_steps or unsaid
    if len(of_steps) != 1:
        raise ValueError(f"{len(of_steps)} loops of the program may run {steps} times")
    return launches(parsed, re.search(r"body=%?([\w.\-]+)", of_steps[0].line)[1])


def devices_of(case: Case) -> list:
    """Return the devices of a case, which exist for the compiler only."""
    from jax.experimental import topologies

    if case.topology:
        return topologies.get_topology_desc(platform="tpu", topology_name=case.topology).devices
    description = (HERE / "h100_sxm.txtpb").read_text()
    return topologies.get_topology_desc("", platform="cuda", target_config=description, topology="1x1x1").devices


def program(case: Case, devices: list):
    """Return the compiled function of a case, as the loop makes it, and the shapes of its arguments."""
    import functools

    import jax
    import jax.numpy as jnp
    import numpy as np

    from unimix_jax.data.types import Batch, BatchIndices
    from unimix_jax.methods import build as methods
    from unimix_jax.methods.recipes import RECIPES
    from unimix_jax.models import accelerator, networks, ops, pallas
    from unimix_jax.training import augmentations, loop, optim
    from unimix_jax.training.devices import AXIS, distribute
    from unimix_jax.training.step import StepConfig, StepInputs, TrainState, predict_step

    ops.register("accelerator", accelerator.IMPLEMENTATIONS)
    ops.register("pallas", pallas.implementations())
    shape_of, small = jax.ShapeDtypeStruct, case.size == 32
    counts = (5000 * 0.01 ** (np.arange(case.classes) / (case.classes - 1))).astype(int)
    prior = np.full(case.classes, 1 / case.classes)
    method = methods.build(
        RECIPES["unimix_bayias"], counts, name="", epochs=200, steps_per_epoch=STEPS, test_prior=prior
    )
    network = networks.build(case.network, case.classes, axis=AXIS, dtype=jnp.dtype(case.dtype))
    augment = [functools.partial(augmentations.flip, flip=True)]
    augment += [functools.partial(augmentations.crop, pad=4)] if small else []
    augment += [] if small else [functools.partial(augmentations.jitter, jitter=(0.4, 0.4, 0.4))]
    step_config = StepConfig(
        optim.sgd(momentum=0.9, weight_decay=2e-4),
        np.full(3, 0.47, np.float32),
        np.full(3, 0.25, np.float32),
        tuple(augment),
        unroll=False,
        ops=case.backend,
    )
    image = (case.size, case.size, 3)
    init = functools.partial(network.clone(axis=None).init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), shape_of((1, *image), jnp.float32))
    params, batch_stats = variables["params"], variables["batch_stats"]
    if case.evaluation:

        def predict(variables, images, *, axis):
            return predict_step(variables, images, network=network, config=step_config)

        compiled = distribute(predict, devices, split=(None, 0), split_result=True)
        return compiled, (variables, shape_of((case.batch, *image), np.uint8))
    state = TrainState(shape_of((), np.int32), params, batch_stats, jax.eval_shape(step_config.optimiser.init, params))
    experiment = types.SimpleNamespace(
        network=network,
        step_config=step_config,
        devices=devices,
        steps_per_dispatch=case.steps,
        on_device=small,
        config=types.SimpleNamespace(
            replicates=case.replicates, parallel=types.SimpleNamespace(spmd="shard_map", deterministic=False)
        ),
    )
    lead = (case.steps,) if case.steps > 1 else ()
    inputs = StepInputs(shape_of((), np.uint32), shape_of(lead, np.float32), shape_of((case.classes,), np.float32))
    numbers = shape_of((*lead, case.batch), np.int32)
    if not small:  # photographs come from the host
        images = shape_of((case.batch, *image), np.uint8)
        return loop.compiled_step(experiment, method.stages[0]), (
            state, Batch(images, numbers, numbers, images, numbers, numbers), inputs,
        )  # fmt: skip
    indices = BatchIndices(numbers, numbers, numbers, numbers)
    resident = shape_of((int(counts.sum()), *image), np.uint8), shape_of((int(counts.sum()),), np.int32)
    if case.replicates == 1:
        return loop.compiled_step(experiment, method.stages[0]), (state, indices, inputs, *resident)

    def of_seeds(tree):
        return jax.tree.map(lambda leaf: shape_of((case.replicates, *leaf.shape), leaf.dtype), tree)

    inputs = inputs._replace(seed=of_seeds(inputs.seed))
    arguments = of_seeds(state), of_seeds(indices), inputs, *resident
    return loop.compiled_step(experiment, method.stages[0]), arguments


def compiled(case: Case, text: pathlib.Path | None, more_options: dict) -> dict:
    """Compile a case and return its numbers; the compiled program is written to `text`, if one is named."""
    os.environ |= _ENVIRONMENT["tpu" if case.topology else "h100"] | {"JAX_PLATFORMS": "cpu"}
    import jax

    from unimix_jax.training import runtime

    # Which options a backend knows is asked of a device, which is not there: the first values are those of this XLA.
    options = {} if case.topology else {name: values[0] for name, values in runtime._GPU_OPTIONS.items()}
    options = (options if case.options else {}) | more_options
    runtime.compiler_options = lambda deterministic=False: options
    jax.config.update("jax_enable_compilation_cache", False)
    devices = devices_of(case)
    function, arguments = program(case, devices)
    begun = time.perf_counter()
    lowered = function.trace(*arguments).lower()
    lowered_at = time.perf_counter()
    executable = lowered.compile()
    seconds = time.perf_counter() - lowered_at
    hlo = executable.as_text()
    if text:
        text.write_text(hlo)
    parsed, entry = computations(hlo)
    of_step, memory = of_a_step(parsed, entry, case.steps), executable.memory_analysis()
    if case.topology:
        read_and_written = executable.cost_analysis()["bytes accessed"]
    else:
        (module,) = executable.runtime_executable().hlo_modules()
        read_and_written = cost_of(module)["bytes accessed"] + library_bytes(parsed)
    flops = cost_of(lowered.compiler_ir("hlo").as_hlo_module())["flops"]
    return {
        "device": f"{devices[0].device_kind} x {len(devices)}",
        "launches": sum(of_step.kinds.values()),
        "small_launches": of_step.small,
        "kinds": dict(of_step.kinds.most_common()),
        "collectives": dict(of_step.collectives.most_common()),
        "gigabytes": round(read_and_written / 1e9, 3),
        "temporary_mib": round(memory.temp_size_in_bytes / 2**20),
        "gigaflops": round(flops / 1e9, 1),
        "lower_seconds": round(lowered_at - begun, 1),
        "compile_seconds": round(seconds, 1),
        "options": options,
        "jax": jax.__version__,
    }


def cost_of(module) -> dict:
    """Return what XLA counts of a module of HLO: flops, bytes. The plugin for CUDA cannot count without a device."""
    import jax
    from jaxlib import _jax

    return _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)


def library_bytes(parsed: dict[str, list[Instruction]]) -> int:
    """Return the bytes that calls of libraries read and write, which XLA does not count without a device."""
    return sum(
        of_operands(instruction, sizes) + instruction.bytes
        for instructions in parsed.values()
        for sizes in [{instruction.name: instruction.bytes for instruction in instructions}]
        for instruction in instructions
        if instruction.operation == "custom-call"
    )


def of_operands(instruction: Instruction, sizes: dict[str, int]) -> int:
    """Return the bytes of an instruction's operands, whose sizes are known by name."""
    arguments = instruction.line.partition(f" {instruction.operation}(")[2].partition(")")[0]
    return sum(sizes.get(operand, 0) for operand in re.findall(r"%([\w.\-]+)", arguments))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--case", action="append", help="may be repeated; all by default")
    parser.add_argument("--list", action="store_true", help="name the cases and leave")
    parser.add_argument("--text", type=pathlib.Path, help="folder for the compiled programs, as text")
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE, one more for the compiler")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        print("\n".join(cases()))
        return
    chosen = options.case or list(cases())
    if unknown := set(chosen) - set(cases()):
        parser.error(f"no case {min(unknown)!r}; there are {', '.join(cases())}")
    if options.worker:
        pairs = (option.partition("=")[::2] for option in options.option)
        more = {name: {"true": True, "false": False}.get(value, value) for name, value in pairs}
        text = options.text and options.text / f"{chosen[0]}.txt"
        print(MARK + json.dumps(compiled(cases()[chosen[0]], text, more)))
        return
    print(f"{'':<50}{'launches':>9}{'small':>7}{'GB':>8}{'MiB':>7}{'reduces':>8}{'s':>6}")
    results = json.loads(options.output.read_text()) if options.output and options.output.exists() else {}
    for name in chosen:
        command = [sys.executable, __file__, "--worker", f"--case={name}"]
        command += [f"--option={option}" for option in options.option]
        command += [f"--text={options.text}"] if options.text else []
        run = subprocess.run(command, capture_output=True, text=True)
        lines = [line for line in run.stdout.splitlines() if line.startswith(MARK)]
        if not lines:
            print(f"{name:<50}failed: {run.stderr.strip().rpartition(chr(10))[2][:300]}", flush=True)
            continue
        about = results[name] = json.loads(lines[0].removeprefix(MARK))
        print(
            f"{name:<50}{about['launches']:>9}{about['small_launches']:>7}{about['gigabytes']:>8.2f}"
            f"{about['temporary_mib']:>7}{sum(about['collectives'].values()):>8}{about['compile_seconds']:>6.0f}",
            flush=True,
        )
        if options.output:  # as it grows, so that a run that is stopped is not lost
            options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
