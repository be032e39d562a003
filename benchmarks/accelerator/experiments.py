"""Training steps, whole runs and photographs, by the programs of the project's own loop."""

import contextlib
import dataclasses
import itertools
import pathlib
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

from accelerator.carried import parsed
from benchmarks.reproduce import runs, store
from benchmarks.reproduce.runs import Run
from unimix_jax.training import input as training_input
from unimix_jax.training import loop, predict, runtime, setup, step, timings
from unimix_jax.training.devices import place_replicates
from unimix_jax.training.run import run as train


class Scale(NamedTuple):
    """The size of everything: that of the paper, or one that a CPU can rehearse in two minutes."""

    config: str
    overrides: tuple[str, ...]
    needs_data: bool
    epoch: int  # steps of an epoch
    timed: float  # seconds of a slot
    matrices: int  # rows and columns
    memory_gib: float
    kernels: int  # of the chain
    runs: str  # scale of the whole runs, of benchmarks/reproduce
    run_fields: tuple[str, ...]  # which they have beside
    worker_steps: int  # of PyTorch in a slot
    photographs: tuple[str, ...]  # overrides
    photograph: tuple[int, int, int]  # size, classes, test images
    torch: dict[str, Any]


FULL = Scale(
    config="cifar_lt.py:dataset=cifar10,imbalance=100",
    overrides=(),
    needs_data=True,
    epoch=97,
    timed=1.0,
    matrices=8192,
    memory_gib=4.0,
    kernels=500,
    runs="paper",
    run_fields=("parallel.devices=1",),
    worker_steps=200,
    photographs=("--config.network=resnet50", "--config.batch_size=256", "--config.eval_batch_size=256"),
    photograph=(224, 1000, 1024),
    torch={"network": "resnet32", "batch": 128, "size": 32, "channels": 3, "classes": 10},
)
SMALL = Scale(
    config="digits_lt.py:imbalance=20",
    overrides=("--config.epochs=1", "--config.batch_size=8", "--config.parallel.ops=accelerator"),
    needs_data=False,
    epoch=2,
    timed=0.01,
    matrices=256,
    memory_gib=1 / 256,
    kernels=20,
    runs="digits",
    run_fields=("epochs=1", "batch_size=8", "parallel.ops=accelerator", "parallel.devices=1"),
    worker_steps=2,
    photographs=("--config.network=resnet10", "--config.batch_size=4", "--config.eval_batch_size=4"),
    photograph=(16, 5, 8),
    torch={"network": "resnet8", "batch": 8, "size": 8, "channels": 1, "classes": 10},
)


def config_of(scale: Scale, data: str, *overrides: str, method: str = "unimix_bayias"):
    """Return the config of a run at this scale, on one device."""
    folder = (f"--config.data.dir={data}",) if scale.needs_data else ()
    common = ("--config.parallel.devices=1", *folder, *scale.overrides)
    return parsed(f"{scale.config},method={method}", *common, *overrides)


def experiment(
    scale: Scale, data: str, *, dtype: str = "float32", ops: str = "accelerator", steps: int = 1, replicates: int = 1
):
    """Return the experiment whose steps are timed: training images on the device, `steps` in a program."""
    overrides = (f"--config.dtype={dtype}", f"--config.parallel.ops={ops}", f"--config.steps_per_dispatch={steps}")
    overrides += (f"--config.replicates={replicates}",)
    return setup.prepare(config_of(scale, data, *overrides, "--config.data.on_device=True"), pathlib.Path("not-made"))


@contextlib.contextmanager
def compiler_options(options: dict | None) -> Iterator[None]:
    """Let programs be compiled with these options instead of the project's; None leaves the project's."""
    if options is None:
        yield
        return
    with mock.patch.object(runtime, "compiler_options", return_value=options):
        yield


class Steps:
    """A compiled program of training steps with its state and some of its inputs."""

    def __init__(self, experiment: setup.Experiment, options: dict | None = None, dispatches: int = 3):
        self.experiment = experiment
        parts = list(itertools.islice(training_input.dispatches(experiment, 0), dispatches))
        stage, self.count = parts[0].stage, len(parts[0].steps)
        rate = loop.learning_rate(experiment, stage)
        seed, weight = loop.seeds_and_weights(experiment, stage)
        self.inputs = []
        for part in parts:
            rates = np.array([rate(number) for number in part.steps], np.float32)
            rates = rates if experiment.steps_per_dispatch > 1 else rates[0]
            self.inputs.append((part.batch, step.StepInputs(seed, rates, weight)))
        self.resident = training_input.resident(experiment)
        replicates = experiment.config.replicates
        first = step.first_state(experiment.variables, experiment.step_config.optimiser, replicates)
        self.state = place_replicates(first, experiment.devices, replicates)
        begun = time.perf_counter()
        with compiler_options(options):
            lowered = loop.compiled_step(experiment, stage).lower(self.state, *self.inputs[0], *self.resident)
            self.program = lowered.compile()
        self.compile_seconds = time.perf_counter() - begun

    def take(self, dispatch: int) -> dict:
        """Take the steps of a dispatch; return their sums."""
        inputs = self.inputs[dispatch % len(self.inputs)]
        self.state, sums = self.program(self.state, *inputs, *self.resident)
        return sums

    def timed(self, seconds: float) -> dict:
        """Return the rate over three slots of about so many seconds, with two dispatches in flight as in the loop."""

        def slot(dispatches: int) -> float:
            begun, before = time.perf_counter(), None
            for number in range(dispatches):
                sums = self.take(number)
                jax.block_until_ready(before)
                before = sums
            jax.block_until_ready(self.state)
            return (time.perf_counter() - begun) / dispatches / self.count

        slot(1)
        dispatches = max(1, round(seconds / (slot(1) * self.count)))
        slots = [slot(dispatches) for _ in range(3)]
        rate, config = statistics.median(slots), self.experiment.config
        loss = float(np.ravel(self.take(0)["loss"][0])[-1])
        return {
            "ms_a_step": 1e3 * rate,
            "steps_a_second": 1 / rate,
            "images_a_second": config.batch_size * config.replicates / rate,
            "replicates": config.replicates,
            "slots_ms": [1e3 * each for each in slots],
            "steps_in_a_program": self.count,
            "compile_seconds": self.compile_seconds,
            "peak_device_memory_mib": runtime.peak_device_memory_mib(self.experiment.devices),
            "passed": bool(np.isfinite(loss)),  # of the last step
            **(self.cost() if self.count == 1 else {}),  # a loop counts as one step there
        }

    def cost(self) -> dict:
        """Return the bytes and operations of the program as XLA counts them."""
        analysis = self.program.cost_analysis() or {}
        return {"bytes": analysis.get("bytes accessed"), "flop": analysis.get("flops")}


def whole_run(run: Run, fields: tuple[str, ...], data: str, folder: pathlib.Path, results: pathlib.Path) -> dict:
    """Train by the project's command in this process; write the run's result, and return seconds, accuracy and ECE.

    Args:
      run: of the list of benchmarks/reproduce.
      fields: other fields of its config, NAME=VALUE.
      data: folder of CIFAR's files.
      folder: of the run directories.
      results: folder of the results, as that of the project.
    """
    config = runs.command(run, data or None, fields=fields).config
    clock, begun = timings.Clock(), time.perf_counter()
    directory = folder / run.folder / str(run.seed)
    train(config, directory, clock=clock)
    seconds = time.perf_counter() - begun
    clock.table()  # counts the time until now
    result = store.write(run, directory, results)
    return {
        "seconds": seconds,
        "seconds_warm": seconds - clock.seconds.get("compile", 0.0),  # compilation, or loading what is compiled
        "parts": clock.seconds,
        "epochs": config.epochs,
        **{name: result["test"][name] for name in ("accuracy", "ece", "mce", "nll")},
        "peak_device_memory_mib": result["peak_device_memory_mib"],
    }


def share_of_memory_speed(result: dict, memory_gb_s: float | None) -> dict:
    """Return the time that the bytes of a step take at the memory's speed, as a share of the step's time."""
    if not memory_gb_s or not result.get("bytes"):
        return {}
    return {"share_of_memory_speed": result["bytes"] / 1e9 / memory_gb_s / (result["ms_a_step"] / 1e3)}


def photographs(scale: Scale, folder: pathlib.Path, memory_gb_s: float | None) -> dict:
    """Train and evaluate ResNet-50 at 224 x 224 in bfloat16 on images that are on the device."""
    size, classes, tests = scale.photograph
    path, random = folder / "photographs.npz", np.random.RandomState(0)

    def images(count: int) -> dict:
        pixels = np.frombuffer(random.bytes(count * size * size * 3), np.uint8).reshape(count, size, size, 3)
        return {"images": pixels, "labels": np.arange(count, dtype=np.int32) % classes}

    splits = {"train": images(classes), "test": images(tests)}
    np.savez(path, **{f"{name}_{key}": value for name, split in splits.items() for key, value in split.items()})
    overrides = ("--config.dtype=bfloat16", "--config.steps_per_dispatch=1", "--config.data.on_device=True")
    overrides = (*scale.photographs, *overrides, "--config.parallel.devices=1", "--config.data.pad=0")
    config = parsed("arrays.py", f"--config.data.file={path}", *overrides)
    experiment = setup.prepare(config, folder / "photographs")
    steps = Steps(experiment, dispatches=1)
    result = steps.timed(scale.timed)
    result |= share_of_memory_speed(result, memory_gb_s)
    predictions = predict.predictor(experiment)
    begun = time.perf_counter()
    predictions(steps.state, ("test",))  # compiles, and leaves the images on the device
    result["evaluation_compile_seconds"] = time.perf_counter() - begun
    begun = time.perf_counter()
    predictions(steps.state, ("test",))
    return result | {"evaluation_images_a_second": tests / (time.perf_counter() - begun)}


def with_variables(experiment: setup.Experiment, variables: dict) -> setup.Experiment:
    """Return the experiment that begins with these variables."""
    return dataclasses.replace(experiment, variables=variables)
