"""ResNet-50 on 1 to 256 chips, on paper: which of computing, memory, all-reduces and loading bounds a step.

    python benchmarks/scaling.py            # writes the tables between the marks of docs/scaling.md
    python benchmarks/scaling.py --print

Bytes are counted on the shapes of the real network and, for what devices add over each other, on the traced step of
training; operations and memory traffic are XLA's counts of the compiled step (`compiled.py`, `results/`); speeds of
chips are their vendors'; images a second are those of `loading.py` in docs/photographs.md. Nothing is trained, and
nothing is timed on an accelerator.
"""

import argparse
import functools
import json
import math
import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "scaling.md"
SIZE = 224  # pixels of a side
COUNTS = (1, 8, 64, 256)  # chips
BATCH = 512  # of the recipe of iNaturalist 2018
SHARE = 128  # images a chip, where the batch grows with the chips
# Seconds of one all-reduce of a few kilobytes. An assumption: no vendor publishes it, and it differs by network.
WAIT = 10e-6
# Bytes of the update for a parameter in float32: parameter, momentum and gradient are each written and read once.
UPDATE_BYTES = 24


class Chip(NamedTuple):
    """What a vendor says of a chip and its host; rates are a second, of one chip."""

    flops: float  # dense bfloat16
    memory: float  # bytes to and from its memory
    link: float  # bytes that it sends to chips of its node, or of its slice
    node: int  # chips that such links join
    network: float  # bytes that it sends to other nodes
    vcpus: int | None  # hardware threads of its host
    counts: tuple[str, str]  # file and case of XLA's counts


CHIPS = {
    "H100": Chip(
        # NVIDIA H100 Tensor Core GPU data sheet, SXM (nvidia.com/en-us/data-center/h100, 2024): 1,979 TFLOP/s bfloat16
        # "with sparsity", half of it dense; 3.35 TB/s; NVLink 900 GB/s, both directions together, among 8 of a node.
        flops=989.5e12,
        memory=3.35e12,
        link=450e9,
        node=8,
        # A NIC of 400 Gb/s a GPU: node with 8 H100 SXM and 8 such NICs, MLCommons inference v3.1, systems/
        # XE9680_H100_SXM_80GBx8_TRT.json (2023). Cloud machines may have less: A3 Mega of Compute Engine has 200 Gb/s
        # a GPU (docs.cloud.google.com/compute/docs/gpus/gpu-network-bandwidth: 1,800 Gb/s with 8 + 1 NICs, 2025).
        network=50e9,
        # The same node: 2 x 52 cores, two threads each; A3 of Compute Engine has 208 vCPUs as well
        # (docs.cloud.google.com/compute/docs/accelerator-optimized-machines, 2025).
        vcpus=26,
        counts=("compiled_h100.json", "h100_resnet50_bfloat16_step_accelerator"),
    ),
    "v5e": Chip(
        # docs.cloud.google.com/tpu/docs/v5e (seen November 2026): 197 TFLOP/s, 819 GB/s, 400 GB/s between chips in
        # both directions together, a torus of up to 256; ct5lp-hightpu-4t: 112 vCPUs for 4 chips.
        flops=197e12,
        memory=819e9,
        link=200e9,
        node=256,
        network=math.nan,
        vcpus=28,
        counts=("compiled_tpu.json", "v5e_4x4_resnet50_bfloat16_step_xla"),
    ),
    "v6e": Chip(
        # docs.cloud.google.com/tpu/docs/v6e (seen November 2026): 918 TFLOP/s, 1,638 GB/s, 800 GB/s between chips in
        # both directions together, a torus of up to 256. The page's vCPUs were not at hand.
        flops=918e12,
        memory=1638e9,
        link=400e9,
        node=256,
        network=math.nan,
        vcpus=None,
        # XLA's counts for v5e: the step has not been compiled for v6e.
        counts=("compiled_tpu.json", "v5e_4x4_resnet50_bfloat16_step_xla"),
    ),
}


class DataSet(NamedTuple):
    """A data set, as far as a step's bytes and its loading depend on it."""

    classes: int
    images: int  # of training
    files: str  # the row of docs/photographs.md whose files are nearest


# ImageNet's photographs are 500 x 375 on average; iNaturalist's are up to 800 pixels wide and high.
DATA = {
    "ImageNet-LT": DataSet(1000, 115_846, "the same at 500 x 375"),
    "iNaturalist 2018": DataSet(8142, 437_513, "the same at 1000 x 750"),
}


class Shapes(NamedTuple):
    """Numbers of a network."""

    parameters: int
    channels: int  # that are normalised by statistics of the batch
    normalisations: int

    def all_reduced(self) -> int:
        """Return the bytes that devices add over each other in a step.

        In float32: every gradient; of each normalised channel two sums forwards, two backwards, and its two running
        statistics; four sums of loss and accuracy.
        """
        return 4 * self.parameters + 3 * 2 * 4 * self.channels + 4 * 4


def shapes(network: str, classes: int, size: int = SIZE) -> Shapes:
    """Return the numbers of a network by the shapes of its variables."""
    import jax
    import jax.numpy as jnp

    from unimix_jax.models import networks

    init = functools.partial(networks.build(network, classes).init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    statistics = jax.tree.leaves(variables["batch_stats"])
    return Shapes(
        sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        sum(leaf.size for leaf in statistics) // 2,
        len(statistics) // 2,
    )


def traced_all_reduces(network: str, classes: int, size: int = SIZE, devices: int = 8) -> tuple[int, int]:
    """Return the bytes and the number of arrays that the real step adds over devices, from its trace.

    Args:
      network: its name.
      classes: of its head.
      size: of the images.
      devices: that share the batch; they need not be there.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AbstractMesh
    from jax.sharding import PartitionSpec as P

    from unimix_jax.data.types import Batch
    from unimix_jax.methods import build
    from unimix_jax.methods.recipes import RECIPES
    from unimix_jax.models import networks
    from unimix_jax.training import optim, step
    from unimix_jax.training.devices import AXIS

    shape = jax.ShapeDtypeStruct
    prior = np.full(classes, 1 / classes)
    method = build.build(
        RECIPES["unimix_bayias"], np.full(classes, 100), name="", epochs=1, steps_per_epoch=1, test_prior=prior
    )
    module = networks.build(network, classes, axis=AXIS, dtype=jnp.bfloat16)
    config = step.StepConfig(optim.sgd(momentum=0.9, weight_decay=1e-4), np.full(3, 0.5), np.full(3, 0.25))
    init = functools.partial(module.clone(axis=None).init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), shape((1, size, size, 3), jnp.float32))
    state = jax.eval_shape(functools.partial(step.first_state, optimiser=config.optimiser), variables)
    images, numbers = shape((2 * devices, size, size, 3), np.uint8), shape((2 * devices,), np.int32)
    batch = Batch(images, numbers, numbers, images, numbers, numbers)
    inputs = step.StepInputs(shape((), np.uint32), shape((), np.float32), shape((classes,), np.float32))
    share = functools.partial(step.train_step, stage=method.stages[0], network=module, config=config, axis=AXIS)
    whole = jax.shard_map(
        share,
        mesh=AbstractMesh((devices,), (AXIS,)),
        in_specs=(P(), P(AXIS), P()),
        out_specs=P(),
        check_vma=False,
    )
    added = [
        operand.aval
        for equation in _equations(jax.make_jaxpr(whole)(state, batch, inputs).jaxpr)
        if equation.primitive.name == "psum"
        for operand in equation.invars
    ]
    return sum(array.size * array.dtype.itemsize for array in added), len(added)


def _equations(program):
    """Yield the equations of a traced program, with those of the programs that it calls."""
    for equation in program.eqns:
        yield equation
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, list | tuple) else (parameter,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)


def all_reduce_seconds(chip: Chip, chips: int, size: int) -> float:
    """Return the least time to add `size` bytes over chips: each sends twice what it has not, within and between nodes.

    Among nodes the sums of a node are added in shares, so that all of its chips send.
    """
    inner = min(chips, chip.node)
    nodes = chips // inner
    seconds = 2 * (inner - 1) / inner * size / chip.link
    return seconds + (2 * (nodes - 1) / nodes * size / inner / chip.network if nodes > 1 else 0)


def compiled(chip: Chip) -> tuple[float, float]:
    """Return the operations and the bytes of an image, without the update, by XLA's counts of the compiled step."""
    file, case = chip.counts
    record = json.loads((ROOT / "results" / file).read_text())[case]
    # The cases of compiled.py: 256 images on one H100 and 1,000 classes; 512 on sixteen TPUs and 8,142.
    images, classes = (256, 1000) if file == "compiled_h100.json" else (32, 8142)
    update = UPDATE_BYTES * _RESNET50[classes].parameters
    return record["gigaflops"] * 1e9 / images, (record["gigabytes"] * 1e9 - update) / images


def view_rates() -> dict[str, float]:
    """Return the images that one thread of two prepares in a second, by the row of docs/photographs.md."""
    rows = re.findall(
        r"^\| ([^|]+?)(?:, about [^|]*)? \| [\d,]+(?: images/s)? \| [\d,]+ \| ([\d,]+) \|$",
        (ROOT / "docs" / "photographs.md").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    return {name: int(rate.replace(",", "")) / 2 for name, rate in rows}


class Terms(NamedTuple):
    """Seconds of a step, each if nothing else took time."""

    computing: float
    memory: float
    gradients: float  # all-reduce
    statistics: float  # all-reduces that wait for each other
    loading: float  # nan where the host is not known

    def step(self) -> float:
        """Return the least time of a step: gradients may travel while the chip computes, statistics may not."""
        device = max(self.computing, self.memory, self.gradients) + self.statistics
        return max(device, self.loading) if self.loading == self.loading else device

    def bound(self) -> str:
        """Return the name of the largest term."""
        known = {name: seconds for name, seconds in self._asdict().items() if seconds == seconds}
        return max(known, key=known.get)


def terms(chip: Chip, chips: int, batch: int, data: DataSet, views: int = 2) -> Terms:
    """Return the terms of a step.

    Args:
      chip: of `CHIPS`.
      chips: that share the batch.
      batch: images of a step.
      data: of `DATA`.
      views: photographs that are decoded for an image of the batch: 2 where each gets a partner.
    """
    network = _RESNET50[data.classes]
    operations, traffic = compiled(chip)
    share = batch / chips
    rate = view_rates()[data.files]
    return Terms(
        share * operations / chip.flops,
        (share * traffic + UPDATE_BYTES * network.parameters) / chip.memory,
        all_reduce_seconds(chip, chips, network.all_reduced()) if chips > 1 else 0.0,
        2 * network.normalisations * WAIT if chips > 1 else 0.0,
        share * views / (chip.vcpus * rate) if chip.vcpus else math.nan,
    )


class _Networks(dict):
    """Shapes of ResNet-50 by the number of classes, computed once."""

    def __missing__(self, classes: int) -> Shapes:
        self[classes] = shapes("resnet50", classes)
        return self[classes]


_RESNET50 = _Networks()


def _table(rows: list[list[str]]) -> str:
    from unimix_jax.report import tables

    return tables.markdown_table(rows)


def _number(value: float, digits: int = 2) -> str:
    """Return a number with so many significant digits, "-" for nan."""
    if value != value:
        return "-"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{round(value, digits - 1 - math.floor(math.log10(abs(value)))):,.{decimals}f}"


def bytes_table() -> str:
    """Return the table of what a step moves."""
    megabytes = {
        "gradients": lambda network: f"{4 * network.parameters / 1e6:.1f}",
        "statistics of normalisations, added over chips": lambda network: f"{24 * network.channels / 1e6:.2f}",
        "all-reduced in a step": lambda network: f"{network.all_reduced() / 1e6:.1f}",
        "a checkpoint": lambda network: f"{(8 * network.parameters + 8 * network.channels) / 1e6:.0f}",
        f"images of a batch of {BATCH} with partners": lambda network: f"{2 * BATCH * 3 * SIZE**2 / 1e6:.0f}",
    }
    networks = [_RESNET50[data.classes] for data in DATA.values()]
    rows = [["", *DATA], ["parameters", *(f"{network.parameters:,}" for network in networks)]]
    rows += [[f"{what}, MB", *map(text_of, networks)] for what, text_of in megabytes.items()]
    rows.append(["all-reduces that wait for each other", *(str(2 * network.normalisations) for network in networks)])
    rows.append([f"steps of an epoch, batch {BATCH}", *(f"{-(-data.images // BATCH):,}" for data in DATA.values())])
    return _table(rows)


def step_table(batch_of) -> str:
    """Return the table of the terms of a step; two values in a cell are those of both data sets.

    Args:
      batch_of: (chips) -> images of a step.
    """
    head = ["chips", "images a chip", "computing", "memory", "gradients", "statistics", "loading", "largest"]
    rows = [[*head, "images/s at most"]]
    for name, chip in CHIPS.items():
        for chips in COUNTS:
            batch = batch_of(chips)
            both = [terms(chip, chips, batch, data) for data in DATA.values()]
            columns = [[_number(1e3 * seconds) for seconds in column] for column in zip(*both, strict=True)]
            columns += [[each.bound() for each in both], [_number(batch / each.step()) for each in both]]
            rows.append([f"{chips} {name}", f"{batch // chips}", *(" / ".join(dict.fromkeys(c)) for c in columns)])
    return _table(rows)


def loading_table() -> str:
    """Return the table of the host's threads that keep a chip busy."""
    kinds = [f"{name}, {what}" for name in DATA for what in ("no partners", "partners")]
    rows = [["", *kinds, "its host has"]]
    for name, chip in CHIPS.items():
        cells = []
        for data in DATA.values():
            alone = terms(chip, 1, SHARE, data)._replace(loading=math.nan).step()
            cells += [_number(views * SHARE / alone / view_rates()[data.files]) for views in (1, 2)]
        rows.append([name, *cells, str(chip.vcpus or "-")])
    return _table(rows)


def tables() -> dict[str, str]:
    """Return each table by the name in its mark."""
    return {
        "bytes": bytes_table(),
        "batch": step_table(lambda chips: BATCH),
        "share": step_table(lambda chips: SHARE * chips),
        "loading": loading_table(),
    }


def with_tables(document: str, new: dict[str, str]) -> str:
    """Return the text of the document with its tables replaced."""
    for name, table in new.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, after = document.split(begin)[0], document.split(end)[1]
        document = f"{before}{begin}\n{table}\n{end}{after}"
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="print the tables, write nothing")
    options = parser.parse_args()
    for data in DATA.values():
        counted, traced = _RESNET50[data.classes].all_reduced(), traced_all_reduces("resnet50", data.classes)[0]
        if counted != traced:
            raise SystemExit(f"the step of {data.classes} classes adds {traced} bytes, not {counted}")
    new = tables()
    if options.print:
        print("\n\n".join(new.values()))
        return
    from unimix_jax import storage

    storage.write_whole(DOCUMENT, with_tables(DOCUMENT.read_text(encoding="utf-8"), new))


if __name__ == "__main__":
    main()
