"""Measure what is around the step: starting, the digits job part by part, the loop, the sampler.

python benchmarks/start.py [--rounds=5] [--output=FILE.json]

answers    import unimix_jax, --help, a mistake in the config: wall seconds of a new process, median of the rounds
digits     the whole digits job in an empty compile cache, then again, by --timings; and how many programs
           the second start added to the cache, which keeps every one that is compiled
loop       images/s of the loop on 12,406 images of 32 x 32 (CIFAR-10-LT-100's counts), crops and flips, over those of
           its compiled step alone on batches that lie ready; ResNet-32, batch 128, pairs of 20 steps
arrays     pairs of 32 x 32 images gathered a second, one thread
sampler    ms a step for 437,513 images of 8,142 classes (iNaturalist 2018's counts), batch 512, partners by class
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

DIGITS = ["-m", "unimix_jax.main", "--config=configs/digits_lt.py"]
ROOT = pathlib.Path(__file__).resolve().parents[1]


def process(*argv: str, **environment: str) -> tuple[float, str]:
    """Run Python in the repository; return seconds and what it printed."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    return time.perf_counter() - begun, done.stdout + done.stderr


def answers(rounds: int) -> dict:
    """Time the commands that must end at once."""
    asked = {
        "python, nothing": ["-c", ""],
        "import unimix_jax": ["-c", "import unimix_jax"],
        "--help": [*DIGITS[:2], "--help"],
        "a mistake": [*DIGITS, "--config.epochs=0"],
        "a name that is not there": [*DIGITS, "--config.data.imbalence=10"],
    }
    seconds = {name: [process(*argv)[0] for _ in range(rounds + 1)][1:] for name, argv in asked.items()}
    return {name: statistics.median(each) for name, each in seconds.items()}


def digits() -> dict:
    """Run the digits job twice with one compile cache, and take its timings apart."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = pathlib.Path(folder, "cache")
        for name in ("first start", "second start"):
            before = set(cache.rglob("*"))
            seconds, text = process(
                *DIGITS, f"--workdir={folder}/{name}", "--timings", JAX_COMPILATION_CACHE_DIR=str(cache)
            )
            if "in all" not in text:
                raise RuntimeError(f"the digits job did not end: {text[-500:]}")
            table = [line.split() for line in text.rpartition("report:")[2].splitlines() if line.endswith(" s")]
            parts = {" ".join(words[:-2]): float(words[-2]) for words in table}
            added = {path.name for path in set(cache.rglob("*")) - before if path.is_file() and path.stat().st_size}
            programs = sorted(name for name in added if not name.endswith("-atime"))
            found[name] = {"seconds": seconds, "parts": parts, "programs added to the cache": len(programs)}
    return found


def loop(rounds: int) -> dict:
    """Compare the loop with its own step, pair by pair."""
    from unimix_jax.config import parse
    from unimix_jax.data import loading
    from unimix_jax.training import input as training_input
    from unimix_jax.training import loop, rundir, runtime
    from unimix_jax.training.devices import replicate
    from unimix_jax.training.setup import prepare
    from unimix_jax.training.step import StepInputs, first_state

    runtime.prepare_runtime()
    import jax

    random, taken = np.random.default_rng(0), 20
    counts = [int(5000 * 0.01 ** (c / 9)) for c in range(10)]
    labels = np.repeat(np.arange(10), counts)
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "images.npz")
        images = random.integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
        np.savez(
            file, train_images=images, train_labels=labels, test_images=images[:20], test_labels=np.arange(20) % 10
        )
        argv = ["main", "--config=arrays.py", f"--config.data.file={file}", "--config.network=resnet32"]
        argv += [f"--config.log_every={taken + 1}", "--config.eval_every=0", "--config.batch_size=128"]
        experiment = prepare(parse(argv).config, pathlib.Path("unwritten"))
        stage = experiment.method.stages[0]._replace(last=taken + 1)
        experiment = dataclasses.replace(experiment, method=experiment.method._replace(stages=(stage,)))
        step = loop.compiled_step(experiment, stage)
        numbers = StepInputs(np.uint32(0), np.float32(0.01), stage.class_weight)
        made = loading.prefetch(training_input.dispatches(experiment, 0))
        ready = [batch for _, _, batch in itertools.islice(made, 4)]
        made.close()

        def fresh():
            return replicate(first_state(experiment.variables, experiment.step_config.optimiser), experiment.devices)

        def alone() -> float:
            state, before, begun = step(fresh(), ready[0], numbers)[0], None, time.perf_counter()
            for i in range(taken):
                state, sums = step(state, ready[i % 4], numbers)
                jax.block_until_ready(before)
                before = sums
            jax.block_until_ready(state)
            return taken * 128 / (time.perf_counter() - begun)

        def in_loop(directory: pathlib.Path) -> float:
            directory.mkdir()
            with loop.checkpoints.opened(directory / "checkpoints", 2) as manager:
                loop.train(dataclasses.replace(experiment, directory=directory), fresh(), manager, threading.Event())
            records = rundir.read_metrics(directory / rundir.METRICS_LINES)
            return next(r["images_per_second"] for r in records if "images_per_second" in r)

        alone()
        pairs = [(alone(), in_loop(pathlib.Path(folder, str(i)))) for i in range(rounds)]
    ratios = [b / a for a, b in pairs]
    return {
        "step alone, images/s": statistics.median(a for a, _ in pairs),
        "loop, images/s": statistics.median(b for _, b in pairs),
        "ratio": {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)},
    }


def arrays(rounds: int) -> dict:
    """Time the gathering of a step's pairs from an array of CIFAR's size."""
    from unimix_jax.data import loading, sampling

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (50_000, 32, 32, 3), np.uint8)
    labels = random.integers(0, 10, 50_000).astype(np.int32)
    picked = [
        sampling.BatchIndices(
            random.integers(0, 50_000, 128), np.arange(128), random.integers(0, 50_000, 128), np.arange(128)
        )
        for _ in range(1000)
    ]
    rates = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for indices in picked:
            loading.gather(images, labels, indices)
        rates.append(1000 * 128 / (time.perf_counter() - begun))
    return {"pairs/s": statistics.median(rates)}


def sampler(rounds: int) -> dict:
    """Time the choice of a step's images and partners at iNaturalist's size."""
    from unimix_jax.data import pairs, sampling

    weights = np.geomspace(500, 1, 8142)
    counts = np.maximum(2, (weights / weights.sum() * 437_513).astype(int))
    counts[0] += 437_513 - counts.sum()
    class_index = sampling.sorted_by_class(np.repeat(np.arange(8142), counts))
    partners = functools.partial(pairs.by_class, class_exponent=-1.0)
    times = []
    for i in range(rounds):
        begun = time.perf_counter()
        for step in range(100):
            sampling.indices(class_index, seed=0, step=100 * i + step, batch_size=512, pair_sampler=partners)
        times.append(10 * (time.perf_counter() - begun))
    return {"ms a step": statistics.median(times)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    found = {
        "answers": answers(options.rounds),
        "digits": digits(),
        "arrays": arrays(options.rounds),
        "sampler": sampler(options.rounds),
        "loop": loop(options.rounds),
    }
    print(json.dumps(found, indent=1))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
