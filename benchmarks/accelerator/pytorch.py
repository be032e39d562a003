"""The same step in PyTorch on the same device: `torch_step.py` in a process of its own."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import NamedTuple

WORKER = pathlib.Path(__file__).resolve().parents[1] / "torch_step.py"


class Variant(NamedTuple):
    """A way to run the step."""

    variant: str
    dtype: str = "float32"
    tf32: str = "yes"

    @property
    def name(self) -> str:
        float32 = "float32, TF32" if self.tf32 == "yes" else "float32, no TF32"
        return f"pytorch {self.variant} ({float32 if self.dtype == 'float32' else self.dtype})"


EAGER = Variant("default")  # as the authors write it
GRAPHS = (Variant("graph_channels_last"), Variant("graph_channels_last", "bfloat16"))
OTHERS = (
    Variant("default", tf32="no"),
    Variant("channels_last"),
    Variant("channels_last", "bfloat16"),
    Variant("graph"),
    Variant("reduced_channels_last"),
    Variant("reduced_channels_last", "bfloat16"),
    Variant("compiled_channels_last"),
    Variant("graph_channels_last", tf32="no"),
)


def timed(variant: Variant, shape: dict, python: str, device: str, steps: int, limit: float) -> dict:
    """Return the rate over three slots of so many steps; the worker is killed after `limit` seconds."""
    options = {**shape, **variant._asdict(), "device": device, "what": "augmented", "threads": os.cpu_count() or 1}
    command = [python or sys.executable, str(WORKER), *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(command, input=f"{steps}\n" * 3, capture_output=True, text=True, timeout=limit)
    lines = done.stdout.splitlines()
    if done.returncode or len(lines) != 4:
        raise RuntimeError(f"the worker ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    slots = [json.loads(line) for line in lines[1:]]
    rate = statistics.median(slot["wall"] for slot in slots)
    return {
        "ms_a_step": 1e3 * rate,
        "steps_a_second": 1 / rate,
        "images_a_second": shape["batch"] / rate,
        "slots_ms": [1e3 * slot["wall"] for slot in slots],
        "value": slots[-1]["value"],
        **json.loads(lines[0].removeprefix("READY")),
    }
