"""Time and memory of every measure, and of the same ones in torchmetrics and netcal where these are installed.

    python benchmarks/measures.py [--images=50000] [--classes=1000] [--threads=1]

One array of probabilities, float64 as softmax gives them, made before the clock starts. Each measure runs in a process
of its own, so that memory is its own: the most that the process held above the array. Run it in an environment with
the other libraries (they bring torch), and this project on the path.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np


def predicted(images: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of an over-confident model that is right every second time."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, images)
    logits = random.normal(0, 2, (images, classes))
    logits[np.arange(images), labels] += np.log(classes) + 1.5
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits, labels


def ours(classes: int) -> dict:
    from unimix_jax import metrics

    return dict(metrics.MEASURES)


def torchmetrics(classes: int) -> dict:
    import torch
    from torchmetrics.functional import classification as functional

    def converted(function, **options):
        # from_numpy shares the memory.
        return lambda p, y: float(function(torch.from_numpy(p), torch.from_numpy(y), num_classes=classes, **options))

    return {
        "accuracy": converted(functional.multiclass_accuracy, average="micro"),
        "top5": converted(functional.multiclass_accuracy, average="micro", top_k=5),
        "balanced_accuracy": converted(functional.multiclass_accuracy, average="macro"),
        "ece": converted(functional.multiclass_calibration_error, n_bins=15, norm="l1"),
        "mce": converted(functional.multiclass_calibration_error, n_bins=15, norm="max"),
    }


def netcal(classes: int) -> dict:
    from netcal.metrics import ECE, MCE  # its ACE is another one: of the most probable class only

    return {"ece": ECE(15).measure, "mce": MCE(15).measure}


LIBRARIES = {"unimix_jax": ours, "torchmetrics": torchmetrics, "netcal": netcal}


def timed(library: str, name: str, images: int, classes: int) -> dict:
    """Measure once in this process."""
    measure = LIBRARIES[library](classes)[name]
    probabilities, labels = predicted(images, classes)
    small = predicted(200, classes)
    measure(*small)  # imports and first calls
    before, clock = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    value = float(measure(probabilities, labels))
    seconds = time.perf_counter() - clock
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"value": value, "seconds": seconds, "mib": (after - before) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(timed(*given.one, given.images, given.classes)))
        return
    threads = {name: str(given.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    total = dict.fromkeys(LIBRARIES, 0.0)
    print(f"{given.images} x {given.classes}, {given.threads} thread(s); seconds, and MiB above the array")
    for name in ours(given.classes):
        for library, of in LIBRARIES.items():
            try:
                if name not in of(given.classes):
                    continue
            except ImportError:
                continue
            size = [f"--images={given.images}", f"--classes={given.classes}"]
            command = [sys.executable, __file__, *size, "--one", library, name]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **threads})
            if done.returncode:
                print(f"{name:<20}{library:<14}failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            found = json.loads(done.stdout)
            total[library] += found["seconds"]
            line = f"{name:<20}{library:<14}{found['value']:10.6f}{found['seconds']:9.2f} s{found['mib']:9.0f} MiB"
            print(line, flush=True)
    print(f"all of unimix_jax: {total['unimix_jax']:.1f} s")


if __name__ == "__main__":
    main()
