"""A training step here against the same step in PyTorch, on the cores of this machine.

    pip install -e '.[benchmark]'
    python benchmarks/train_step.py --rounds=10 --output=FILE.json [--cases=resnet32_128] [--jax-python=PATH]

The step: uint8 images and partners are normalised and mixed with UniMix factors, ResNet, Bayias, gradient, SGD with
momentum and weight decay, float32; `_augmented` crops and flips the images in it, too, `_evaluate` predicts only.
`benchmarks/torch_step.py` has it in plain PyTorch, as the default layout, channels_last, and compiled; here it runs as
this project's loop runs it ("ours": CPU kernels, where the machine can run them), and where it helps to know with
XLA's own operations ("xla"). The digits' network has one core here in every case, as its config says.

Every variant is a process of its own that waits until it is told to take a few steps; they take turns, and a ratio is
of two slots of one round (`slots.py`); above 1 this project is faster. Half an hour in all. By case, FILE.json has

    variants    by name: wall and cpu (seconds a step, median), images_per_second, peak_mib, compile_seconds, slots
    pytorch     the best variant of PyTorch in this run; ours: the backend of the layers that is compared with it
    ratio       min, median, max of its wall time by ours; cpu_ratio of CPU time
    ratios      the same for every other variant of this project
    itself      of resnet32_128: ours by a second process of ours, which is the error of all of this
"""

import argparse
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import slots

HERE = pathlib.Path(__file__).resolve().parent
ALL = ("default", "channels_last", "compiled", "compiled_channels_last")


class Case(NamedTuple):
    """A network and a batch that are timed."""

    network: str
    batch: int
    what: str = "step"
    size: int = 32
    channels: int = 3
    classes: int = 10
    pytorch: tuple[str, ...] = ("channels_last",)
    backends: tuple[str, ...] = ()  # of the layers, beside the one that the loop chooses
    threads: tuple[int, ...] = (1, 2)
    share: float = 1.0  # of the rounds


def cases() -> dict[str, Case]:
    """Return every case by name, without its threads."""
    photographs = {"size": 224, "classes": 1000, "pytorch": ALL[:3], "backends": ("xla",)}
    found = [
        Case("resnet32", 128, pytorch=ALL, backends=("xla",)),
        Case("resnet32", 128, "augmented"),
        Case("resnet32", 500, "evaluate", pytorch=ALL[:3]),
        Case("resnet10", 16, **photographs),
        Case("resnet50", 16, **photographs),
        Case("resnet8", 32, size=8, channels=1, pytorch=ALL[:3], backends=("xla",)),  # the digits
        *(Case("resnet32", batch, threads=(2,), share=0.5) for batch in (16, 32, 64, 256, 512)),
        *(Case(f"resnet{depth}", 128, threads=(2,), share=0.5) for depth in (20, 56, 110)),
    ]
    return {f"{c.network}_{c.batch}" + ("" if c.what == "step" else f"_{c.what}"): c for c in found}


def timed(case: Case, threads: int, rounds: int, options) -> dict:
    """Run one case and return what the file holds of it."""
    shape = {key: getattr(case, key) for key in ("network", "batch", "what", "size", "channels", "classes")}
    shape = [f"--{key}={value}" for key, value in (shape | {"threads": threads}).items()]

    def command(script: str, python: str | None, variant: str) -> list[str]:
        return [python or sys.executable, str(HERE / script), f"--variant={variant}", *shape]

    commands = {f"pytorch {name}": command("torch_step.py", options.torch_python, name) for name in case.pytorch}
    again = ("again",) if len(case.pytorch) == len(ALL) else ()
    for name in ("ours", *again, *case.backends):
        backend = name if name in case.backends else "auto"
        commands[name] = command("jax_step.py", options.jax_python, backend)
    found = slots.compare(commands, max(3, round(rounds * case.share)), seconds=1.0)
    variants = {}
    for name, slot in found.items():
        wall, cpu = (statistics.median(slot[what]) for what in ("wall", "cpu"))
        versions = {key: slot[key] for key in ("jax", "torch", "ops") if key in slot}
        variants[name] = {
            "wall": wall,
            "cpu": cpu,
            "images_per_second": case.batch / wall,
            "peak_mib": slot["peak_mib"],
            "compile_seconds": slot["compile_seconds"],
            "slots": {"wall": slot["wall"], "cpu": slot["cpu"], "steps": slot["steps_a_slot"]},
            **versions,
        }
    ours = found["ours"]["ops"]
    best = min((name for name in variants if name.startswith("pytorch")), key=lambda name: variants[name]["wall"])
    others = [name for name in variants if not name.startswith("pytorch") and name not in ("ours", "again")]
    result = {
        "pytorch": best,
        "ours": ours,
        "ratio": slots.ratios(found[best], found["ours"]),
        "cpu_ratio": slots.ratios(found[best], found["ours"], "cpu"),
        "ratios": {name: slots.ratios(found[best], found[name]) for name in others},
        "variants": variants,
    }
    return result | ({"itself": slots.ratios(found["again"], found["ours"])} if again else {})


def machine() -> dict:
    """Return what the figures depend on."""
    file = pathlib.Path("/proc/cpuinfo")
    text = file.read_text() if file.exists() else ""
    names = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("model name")]
    describe = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE)
    return {
        "cpu": (names or [platform.processor()])[0] + (", AVX-512" if "avx512f" in text else ""),
        "cores": cores(),
        "python": platform.python_version(),
        "kernel": platform.release().partition("-")[0],
        "commit": describe.stdout.strip(),
        "command": " ".join(["python", *sys.argv]),
    }


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def show(name: str, result: dict) -> None:
    """Print a case as a table."""
    print(f"\n{name}\n{'':<32}{'ms a step':>10}{'CPU':>10}{'images/s':>10}{'MiB':>8}{'compile s':>11}")
    for variant, about in result["variants"].items():
        print(
            f"{variant:<32}{1e3 * about['wall']:>10.1f}{1e3 * about['cpu']:>10.1f}{about['images_per_second']:>10.0f}"
            f"{about['peak_mib']:>8}{about['compile_seconds']:>11.1f}"
        )
    lines = {
        f"{result['pytorch']} / ours ({result['ours']})": result["ratio"],
        "the same, CPU time": result["cpu_ratio"],
    }
    lines |= {f"{result['pytorch']} / {backend}": ratio for backend, ratio in result["ratios"].items()}
    lines |= {"ours / a second of ours": result["itself"]} if "itself" in result else {}
    for what, ratio in lines.items():
        print(f"{what:<42}{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", default=10, type=int)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--cases", default="", help=f"of {', '.join(cases())}; all by default")
    parser.add_argument("--threads", default="1,2" if cores() > 1 else "1", help="1 or 2; both by default")
    parser.add_argument("--jax-python", help="the Python that has this project; this one by default")
    parser.add_argument("--torch-python", help="the Python that has PyTorch; this one by default")
    options = parser.parse_args()
    if not options.torch_python and importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is not here: pip install -e '.[benchmark]', or name a Python that has it, --torch-python")
    chosen = [name for name in options.cases.split(",") if name] or list(cases())
    if unknown := set(chosen) - set(cases()):
        parser.error(f"no case {min(unknown)!r}; there are {', '.join(cases())}")
    begun, results = time.monotonic(), {"machine": machine()}
    wanted = [int(number) for number in options.threads.split(",")]
    if not set(wanted) & {1, 2} or max(wanted) > cores():
        parser.error(f"--threads is {options.threads}; it must be 1 or 2 or 1,2, and there are {cores()} cores")
    for name in chosen:
        case = cases()[name]
        for threads in case.threads:
            if threads not in wanted:
                continue
            key = f"{name}_{threads}threads"
            results[key] = timed(case, threads, options.rounds, options)
            show(key, results[key])
            if options.output:  # as it grows, so that a run that is stopped is not lost
                options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{(time.monotonic() - begun) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
