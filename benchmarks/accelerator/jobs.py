"""The jobs of each part, in the order of their worth, and the summary of their results."""

import argparse
import functools
import importlib.util
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from accelerator import carried, ceilings, experiments, parity, pytorch
from accelerator.results import PARTS, SUMMARY, Job, Recorder
from benchmarks.reproduce.items import D1_METHODS
from benchmarks.reproduce.runner import missing
from benchmarks.reproduce.runs import SCALES, Run, of_methods
from unimix_jax.training import runtime
from unimix_jax.training.devices import local_devices

COMPILE = 45.0  # seconds that a program of ResNet-32 may take
# Of (dtype, precision of float32 products): tolerances of logits and loss, and of the update's norm. Between backends
# of one CPU ResNet-32 has 4e-7 and 3e-4 in float32 (an input of relu at its rounding changes sign), .009 and .06 in
# bfloat16: some eight and four times that. TF32 keeps two bits more than bfloat16, so a quarter is expected of it. An
# operation left out or a wrong layer gives about 1.
TOLERANCES = {
    ("float32", "highest"): (1e-5, 2e-3),
    ("float32", "default"): (1e-2, 6e-2),
    ("bfloat16", "default"): (4e-2, 0.25),
}
DTYPES = ("float32", "bfloat16")
SCAN, ONE, EPOCHS = "steps {} in a loop", "steps {} one by one", "run unimix_bayias seed 0 {}"
REPLICATES = 8  # seeds in one program
SEEDS = f"steps bfloat16 in a loop, {REPLICATES} replicates"
RESULTS = "results"  # folder of a file a run, which belongs into the project's folder of that name
MACHINE, PHOTOGRAPHS = "memory and launches", "photographs bfloat16"


class Session(NamedTuple):
    """What the jobs of a call share."""

    options: argparse.Namespace
    scale: experiments.Scale
    recorder: Recorder
    folder: pathlib.Path  # of temporary files
    cache: pathlib.Path  # of compiled programs

    @property
    def random(self) -> str:
        """The folder of random images."""
        return str(self.folder / "random")

    @property
    def images(self) -> str:
        """The folder of CIFAR-10's images; "" if they are not there."""
        unpacked = self.folder / "images"
        return self.options.data or (str(unpacked) if unpacked.exists() else "")

    def carried(self, name: str) -> pathlib.Path | None:
        """Return a file of the prepared folder, None if it is not there."""
        path = self.options.prepared and self.options.prepared / name
        return path if path and path.exists() else None

    def result(self, name: str, key: str) -> float | None:
        return self.recorder.results.get(name, {}).get(key)

    def on_gpu(self) -> bool:
        return local_devices(1)[0].platform == "gpu"


def of(session: Session, parts: Iterable[str]) -> Iterator[Job]:
    """Yield the jobs of some parts. A job is made when the ones before are done: its time may depend on theirs."""
    makers = dict(zip(PARTS, (_machine, _parity, _rates, _runs, _photographs, _variants, _table), strict=True))
    for part in PARTS:
        if part in parts:
            for job in makers[part](session):
                yield job._replace(seconds=min(job.seconds, 1.0)) if session.options.small else job


def _machine(session: Session) -> Iterator[Job]:
    scale = session.scale
    yield Job("unpack", 20, functools.partial(_unpack, session))
    yield Job("environment", 15, ceilings.environment)
    yield Job("products", 20, lambda: ceilings.products(scale.matrices))
    yield Job(MACHINE, 20, lambda: ceilings.memory_and_launches(scale.memory_gib, scale.kernels))


def _unpack(session: Session) -> dict:
    """Unpack what was carried: compiled programs and images."""
    programs, images = session.carried(carried.PROGRAMS), session.carried(carried.IMAGES)
    count = carried.unpack_programs(programs, session.cache) if programs else 0
    if images and not session.options.data and session.scale.needs_data:
        carried.unpack_images(images, session.folder / "images")
    return {"compiled_programs": count, "images": str(session.options.data or images or "none")}


def _parity(session: Session) -> Iterator[Job]:
    scale = session.scale
    _random_images(session)
    reference = session.carried(carried.REFERENCE)
    if session.options.small:
        reference = session.folder / carried.REFERENCE
        yield Job("reference", 30, lambda: parity.make_reference(scale, session.random, reference))
    if reference is None:
        session.recorder.leave_out(
            "parity", "no reference was carried: --prepare makes it, --prepared names its folder"
        )
        return

    def work(dtype: str, precision: str) -> dict:
        arrays = parity.read_reference(reference)
        value = parity.computed(
            scale, session.random, dtype=dtype, precision=precision, ops="accelerator", variables=arrays
        )
        return parity.compared(value, arrays, TOLERANCES[dtype, precision])

    for dtype, precision in TOLERANCES:
        yield Job(f"parity {dtype} {precision}", COMPILE + 15, functools.partial(work, dtype, precision))


def _random_images(session: Session) -> None:
    """Write the random images of parity and rates, if they are not there."""
    if session.scale.needs_data and not pathlib.Path(session.random).exists():
        carried.random_images(pathlib.Path(session.random))


def _rates(session: Session) -> Iterator[Job]:
    """Yield what the goals are about; `_variants` has the others."""
    _random_images(session)
    for dtype in DTYPES:
        yield _steps(session, SCAN.format(dtype), dtype=dtype, steps=session.scale.epoch)
        yield _steps(session, ONE.format(dtype), dtype=dtype)
        if dtype == "float32":
            yield from _pytorch(session, pytorch.EAGER, pytorch.GRAPHS[0])
    yield from _pytorch(session, *pytorch.GRAPHS[1:])


def _variants(session: Session) -> Iterator[Job]:
    _random_images(session)
    epoch = session.scale.epoch
    loop = functools.partial(_steps, session, steps=epoch)
    count = 2 if session.options.small else REPLICATES
    yield loop(SEEDS.replace(f"{REPLICATES} replicates", f"{count} replicates"), dtype="bfloat16", replicates=count)
    yield loop("steps float32 in a loop, without the project's compiler options", options={})
    yield loop("steps float32 in a loop, XLA's layers", ops="xla")
    yield from _pytorch(session, *pytorch.OTHERS[:3])
    yield loop("steps bfloat16 in a loop, XLA's layers", dtype="bfloat16", ops="xla")
    if session.on_gpu():
        for dtype in DTYPES:
            yield loop(f"steps {dtype} in a loop, kernels of Pallas", dtype=dtype, ops="pallas")
        ours = runtime.compiler_options()
        graphs = f"{ours.get('xla_gpu_enable_command_buffer', 'FUSION')},WHILE"
        yield loop(
            "steps float32 in a loop, all in one graph", options={**ours, "xla_gpu_enable_command_buffer": graphs}
        )
        fused = {**ours, "xla_gpu_experimental_enable_conv_fusion": True}
        yield loop("steps float32 in a loop, fused convolutions", options=fused)
    else:
        session.recorder.leave_out("variants of graphs and fusion", "the device is no GPU")
    yield _steps(session, "steps float32 one by one, without the project's compiler options", options={})
    yield from _pytorch(session, *pytorch.OTHERS[3:])


def _steps(session: Session, name: str, *, options: dict | None = None, **about) -> Job:
    """Return the job that times our steps."""

    def work() -> dict:
        experiment = experiments.experiment(session.scale, session.random, **about)
        result = experiments.Steps(experiment, options).timed(session.scale.timed)
        memory = session.result(MACHINE, "memory_gb_s")
        return result | experiments.share_of_memory_speed(result, memory)

    return Job(name, COMPILE + 10, work)


def _pytorch(session: Session, *variants: pytorch.Variant) -> Iterator[Job]:
    """Yield the jobs that time PyTorch's steps; a CPU has no graphs."""
    python, gpu = session.options.torch_python, session.on_gpu()
    for variant in variants:
        if not python and importlib.util.find_spec("torch") is None:
            session.recorder.leave_out(variant.name, "PyTorch is not here")
        elif not gpu and (variant.variant not in ("default", "channels_last") or variant.tf32 == "no"):
            session.recorder.leave_out(variant.name, "the device is no GPU")
        else:
            seconds = 100.0 if variant.variant.startswith(("compiled", "reduced")) else 30.0
            yield Job(variant.name, seconds, functools.partial(_pytorch_timed, session, variant, python, gpu))


def _pytorch_timed(session: Session, variant: pytorch.Variant, python: str, gpu: bool) -> dict:
    device, steps = "cuda" if gpu else "cpu", session.scale.worker_steps
    return pytorch.timed(variant, session.scale.torch, python, device, steps, limit=session.recorder.left())


def _runs(session: Session) -> Iterator[Job]:
    if not session.images and session.scale.needs_data:
        session.recorder.leave_out("whole runs", "no images of CIFAR-10 are here: --prepared or --data names them")
        return
    for dtype in DTYPES:
        yield _run(session, "unimix_bayias", 0, dtype)


def _run(session: Session, method: str, seed: int, dtype: str) -> Job:
    """Return the job of a run of the project's list, whose result is also written as the others are."""
    scale, of_scale = session.scale, SCALES[session.scale.runs]
    variant = "" if dtype == "float32" else dtype
    run = Run(scale.runs, next(iter(of_scale.sets)), of_scale.imbalance, method, seed, variant)
    name = EPOCHS.format(dtype).replace("unimix_bayias seed 0", f"{method} seed {seed}")
    # As long as a run that was done, or else by the rate of its steps; the method may be compiled anew.
    seconds = session.result(EPOCHS.format(dtype), "seconds")
    if seconds is None:
        rate = session.result(SCAN.format(dtype), "ms_a_step") or 2.5
        seconds = 200 * scale.epoch * rate / 1e3 + 10
    results = session.options.output / RESULTS
    work = functools.partial(
        experiments.whole_run, run, scale.run_fields, session.images, session.folder / "runs", results
    )
    return Job(name, 1.1 * seconds + COMPILE, work)


def _photographs(session: Session) -> Iterator[Job]:
    def work() -> dict:
        memory = session.result(MACHINE, "memory_gb_s")
        return experiments.photographs(session.scale, session.folder, memory)

    yield Job(PHOTOGRAPHS, 150, work)


def _table(session: Session) -> Iterator[Job]:
    """Yield the runs of the paper's Table D1 that have no result yet: all methods for a seed before the next one."""
    if not session.images and session.scale.needs_data:
        session.recorder.leave_out("the table", "no images of CIFAR-10 are here: --prepared or --data names them")
        return
    scale, seeds = session.scale.runs, 1 if session.options.small else SCALES[session.scale.runs].seeds
    wanted = of_methods(scale, D1_METHODS[::3] if session.options.small else D1_METHODS, seeds)
    for run in wanted if session.options.small else missing(wanted):
        job = _run(session, run.method, run.seed, "float32")
        if job.name not in session.recorder.results:
            yield job


def write_summary(recorder: Recorder, small: bool) -> None:
    """Write and print the goals with their values, but not those of a rehearsal, and what is missing."""
    summary = {} if small else {"goals": _goals(recorder)}
    summary["seconds"] = round(recorder.elapsed(), 1)
    for name, state in recorder.states.items():
        if state != "done":
            summary.setdefault(state, []).append(name)
    text = json.dumps(summary, indent=1)
    (recorder.folder / SUMMARY).write_text(text + "\n")
    print(text, flush=True)


def _goals(recorder: Recorder) -> dict:
    def value(name: str, key: str):
        return recorder.results.get(name, {}).get(key)

    def speed_by(other: pytorch.Variant):
        ours, theirs = value(SCAN.format(other.dtype), "ms_a_step"), value(other.name, "ms_a_step")
        return theirs / ours if ours and theirs else None

    goals = {}
    for dtype in DTYPES:
        seconds = value(EPOCHS.format(dtype), "seconds_warm")
        goals[f"200 epochs, {dtype}: seconds without compilation, below 25"] = seconds, seconds and seconds < 25
    for other, least in ((pytorch.EAGER, 5), *((graph, 1) for graph in pytorch.GRAPHS)):
        speed = speed_by(other)
        goals[f"our speed by that of {other.name}, above {least}"] = speed, speed and speed > least
    one, eight = value(SCAN.format("bfloat16"), "ms_a_step"), value(SEEDS, "ms_a_step")
    times = eight / one if one and eight else None
    goals[f"{REPLICATES} seeds, bfloat16: times the step of one, below 4"] = times, times and times < 4
    share = value(PHOTOGRAPHS, "share_of_memory_speed")
    goals["ResNet-50, bfloat16: share of the memory's speed, at least .7"] = share, share and share >= 0.7
    return {name: {"value": number, "met": met} for name, (number, met) in goals.items()}
