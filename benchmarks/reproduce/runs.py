"""The runs that the tables are made of: what each is, at which scale, and its command line."""

import os
from collections.abc import Iterable
from typing import NamedTuple

from unimix_jax.config import Command, parse
from unimix_jax.methods.recipes import RECIPES


class Scale(NamedTuple):
    """How large the runs of a scale are, and on which data."""

    about: str  # for people
    config: str  # file of the config
    fields: tuple[str, ...]  # of all its runs, NAME=VALUE
    sets: dict[str, str]  # name -> argument of the config file; the first is that of tables of one data set
    imbalances: tuple[int, ...]  # of the training images
    imbalance: int  # of tables of one imbalance
    seeds: int
    every_imbalance: bool = False  # whether the table of all recipes has all of them
    last_stage_epochs: int = 0  # of stages after the run; 0 for those of the recipe


SCALES = {
    "digits": Scale(
        about="ResNet-8, 100 epochs, 331 training images of 8 x 8 at imbalance 20, 500 test images",
        config="digits_lt.py",
        fields=(),
        sets={"digits": ""},
        imbalances=(10, 20, 50),
        imbalance=20,
        seeds=10,
    ),
    "small": Scale(
        about="ResNet-20, 20 epochs (the paper: ResNet-32, 200), the schedule shortened in proportion",
        config="cifar_lt.py",
        fields=("network=resnet20", "epochs=20", "eval_every=2"),
        sets={"cifar10": "dataset=cifar10,", "cifar100": "dataset=cifar100,"},
        imbalances=(10, 50, 100),
        imbalance=100,
        seeds=3,
        last_stage_epochs=1,
    ),
    "paper": Scale(
        about="ResNet-32, 200 epochs, batch 128, as published",
        config="cifar_lt.py",
        fields=(),
        sets={"cifar10": "dataset=cifar10,", "cifar100": "dataset=cifar100,"},
        imbalances=(10, 50, 100, 200),
        imbalance=100,
        seeds=3,
        every_imbalance=True,
    ),
}

TEST_IMBALANCES = (100.0, 10.0, 1.0, 0.1, 0.01)  # of the paper's Table D2
_MIXED = "method.stages.mixed"
_SHORT = ("network=resnet8", "epochs=10", "eval_every=0")  # for many seeds
# What a run changes of its recipe.
VARIANTS = {
    **{f"test_prior_{imbalance:g}": (f"test_prior=imbalance:{imbalance:g}",) for imbalance in TEST_IMBALANCES},
    "unwrapped": (f"{_MIXED}.mixer.wrap=False",),
    "constant_share": (f"{_MIXED}.mixer.name=benchmarks.reproduce.parts:constant_share",),
    "natural_partners": (f"{_MIXED}.pair_sampler.class_exponent=1.0",),
    "bfloat16": ("dtype=bfloat16",),
    "permuted": _SHORT,
    "independent": (*_SHORT, "method.stages.plain.sampler.name=benchmarks.reproduce.parts:independent"),
}
ORDERS = ("permuted", "independent")  # variants whose results have the rare images of each step


class Run(NamedTuple):
    """One run: its result is a file of `results`."""

    scale: str
    data: str
    imbalance: int
    method: str
    seed: int
    variant: str = ""

    @property
    def of_seeds(self) -> "Run":
        """The run without its seed, which names the group of runs that differ in the seed only."""
        return self._replace(seed=-1)

    @property
    def folder(self) -> str:
        """The folder of all seeds."""
        variant = f"--{self.variant}" if self.variant else ""
        return f"{self.scale}/{self.data}_lt_{self.imbalance}/{self.method}{variant}"


def of_methods(
    scale: str, methods: Iterable[str], seeds: int, data: Iterable[str] = (), imbalances: Iterable[int] = ()
) -> list[Run]:
    """Return the runs of methods, seed by seed: of the first data set and the usual imbalance unless others are said.

    Args:
      scale: a name in SCALES.
      methods: names of recipes; behind a "+" a variant.
      seeds: how many, from 0.
      data: names of data sets.
      imbalances: of the training images.
    """
    of_scale = SCALES[scale]
    data, imbalances = tuple(data) or (next(iter(of_scale.sets)),), tuple(imbalances) or (of_scale.imbalance,)
    return [
        Run(scale, name, imbalance, method, seed, variant)
        for seed in range(seeds)
        for name in data
        for imbalance in imbalances
        for method, _, variant in (each.partition("+") for each in methods)
    ]


def command(run: Run, data_dir: str | os.PathLike | None = None, replicates: int = 1, fields: Iterable[str] = ()):
    """Return the parsed command of a run, or of several seeds from its own.

    Args:
      run: the run.
      data_dir: folder of CIFAR's files; None for the usual one.
      replicates: seeds that one program trains.
      fields: other fields of the config, NAME=VALUE.

    Raises:
      UserError: the config is wrong.
    """
    scale = SCALES[run.scale]
    values = [*scale.fields, *VARIANTS.get(run.variant, ()), f"seed={run.seed}", "loggers=jsonl"]
    for name, stage in RECIPES[run.method]["stages"].items():
        if stage.get("begin") == 1.0 and scale.last_stage_epochs:
            values.append(f"method.stages.{name}.epochs={scale.last_stage_epochs}")
    if replicates > 1:
        values.append(f"replicates={replicates}")
    if data_dir and scale.config == "cifar_lt.py":
        values.append(f"data.dir={data_dir}")
    file = f"configs/{scale.config}:{scale.sets[run.data]}imbalance={run.imbalance},method={run.method}"
    parsed = parse(["reproduce", f"--config={file}", *(f"--config.{value}" for value in (*values, *fields))])
    assert isinstance(parsed, Command)
    return parsed
