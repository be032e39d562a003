"""Every method on the long-tailed digits over several seeds, and the README's table of them.

    python benchmarks/digits_table.py

runs what is not yet there under runs/digits_table (stop it and start it again as you like), in one
process, and writes the table between the markers in README.md. With --seeds, --methods=erm,mixup or --epochs
(a quick look, in a directory of its own) the table is printed only.
"""

import argparse
import pathlib
import sys
import time

import numpy as np

from unimix_jax import errors, storage
from unimix_jax.config import parse
from unimix_jax.methods.recipes import RECIPES
from unimix_jax.report import tables
from unimix_jax.training import runtime
from unimix_jax.training.run import run

ROOT = pathlib.Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- digits table -->", "<!-- end of digits table -->"
SEEDS = 5
MEASURES = {"accuracy": "accuracy", "few": "rarest third", "ece": "ECE", "mce": "MCE"}


def measures(name: str, seed: int, directory: pathlib.Path, epochs: int | None) -> list[float]:
    """Run a method with a seed, or read the run that is there; return its test measures in per cent."""
    argv = ["digits_table", f"--config=digits_lt.py:method={name}", f"--config.seed={seed}", "--config.eval_every=0"]
    argv += [f"--config.epochs={epochs}"] if epochs else []
    name_of_run = f"{seed}-{epochs}-epochs" if epochs else str(seed)
    try:
        result = run(parse(argv).config, directory / name / name_of_run)
    except errors.NonFiniteError:
        return [np.nan] * len(MEASURES)
    return [100 * result["test"][measure] for measure in MEASURES]


def markdown(values: dict[str, np.ndarray]) -> str:
    """Lay out [seeds, measures] of each method as mean and standard deviation."""
    rows = [["method", *MEASURES.values()]]
    for name, found in values.items():
        spread = found.std(axis=0, ddof=1) if len(found) > 1 else np.zeros(found.shape[1])
        rows.append([f"`{name}`", *(f"{m:.1f} ± {s:.1f}" for m, s in zip(found.mean(axis=0), spread, strict=True))])
    return tables.markdown_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--methods", default=",".join(RECIPES))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--workdir", type=pathlib.Path, default=ROOT / "runs" / "digits_table")
    given = parser.parse_args()
    runtime.prepare_runtime(1)  # as configs/digits_lt.py
    started, values = time.monotonic(), {}
    for name in given.methods.split(","):
        values[name] = np.array([measures(name, seed, given.workdir, given.epochs) for seed in range(given.seeds)])
        print(f"{time.monotonic() - started:6.0f} s  {name:<26}{values[name].mean(axis=0).round(1)}", flush=True)
    table = markdown(values)
    print(table)
    if (given.methods, given.seeds, given.epochs) == (",".join(RECIPES), SEEDS, None):
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        before, after = readme.split(BEGIN)[0], readme.split(END)[1]
        storage.write_whole(ROOT / "README.md", f"{before}{BEGIN}\n{table}\n{END}{after}")


if __name__ == "__main__":
    try:
        main()
    except errors.UserError as error:
        sys.exit(f"error: {error}")
