"""results/README.md, from all results that are there."""

import pathlib
import textwrap

from benchmarks.reproduce import figures, items, store, tables
from benchmarks.reproduce.runs import SCALES
from unimix_jax import storage
from unimix_jax.report.tables import markdown_table

README = "README.md"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
_HEAD = """# Results

Written by `python -m benchmarks.reproduce` from a file of results a run (config, machine, versions, commit, time,
all measures, recalls of the classes): `SCALE/DATA_lt_IMBALANCE/METHOD/SEED.json`. The claims of the paper beside
them: [docs/reproduction.md](../docs/reproduction.md).

Measures are of the test set and of the **last** epoch, never of the best one; mean ± standard deviation (divisor n - 1)
of the seeds of training, all on the same long-tailed images. The column "best epoch on test" shows the habit of many
codes: the highest test accuracy of all evaluations on the way. Groups of classes are those of the reports: many, medium
and few by images (above 100, 20 to 100, below 20), or thirds where one of these is empty.
"""


def text(results: pathlib.Path = store.RESULTS) -> str:
    """Return the document."""
    parts = [_HEAD]
    for scale in reversed(SCALES):
        sections = []
        for name, item in items.ITEMS.items():
            content = (
                tables.TABLES[name](scale, results) if name in tables.TABLES else figures.shown(scale, name, results)
            )
            if content:
                command = f"    python -m benchmarks.reproduce {name} --scale={scale}"
                sections.append("\n\n".join([f"### {item.title}", command, *content]))
        if sections:
            parts.append("\n\n".join([f"## Scale `{scale}`: {SCALES[scale].about}", times(scale, results), *sections]))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def short_table(results: pathlib.Path = store.RESULTS) -> str:
    """Return the table of the project's README: the methods of Table D1 at the largest scale that has all of them."""
    measures = ("accuracy", "many", "medium", "few", "ece", "brier")
    for scale in reversed(SCALES):
        data = next(iter(SCALES[scale].sets))
        groups = tables.grouped(scale, "d1", results)
        groups = {run: of_seeds for run, of_seeds in groups.items() if run.data == data}
        if {run.method for run in groups} == {*items.D1_METHODS}:
            rows = tables.rows_of_methods(groups, measures)
            name, imbalance = tables.NAMES[data], SCALES[scale].imbalance
            about = f"{name}, imbalance {imbalance}: {SCALES[scale].about}. Test measures of the last epoch, mean ± "
            about += "standard deviation of the seeds. More in [results/](results/README.md), from"
            command = f"    python -m benchmarks.reproduce d1 --scale={scale}" + (
                "" if data == "digits" else " --data=CIFAR"
            )
            return "\n\n".join([textwrap.fill(about, 119, break_on_hyphens=False), command, markdown_table(rows)])
    return "There are no results yet."


def with_short_table(readme: str, results: pathlib.Path = store.RESULTS) -> str:
    """Return the project's README with the table of today's results between its marks."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{short_table(results)}\n{END}{rest.split(END)[1]}"


def times(scale: str, results: pathlib.Path) -> str:
    """Return a sentence on the runs of a scale: how many, on what, how long."""
    of_scale = [storage.read_json(path) for path in sorted((results / scale).glob("*/*/*.json"))]
    machines = sorted({_machine(result) for result in of_scale})
    hours = sum(result.get("seconds") or 0 for result in of_scale if result["replicates"] == 1) / 3600
    lost = sum(result["state"] != store.COMPLETE for result in of_scale)
    ended = f"; {lost} of them ended with a loss that is not finite" if lost else ""
    return f"{len(of_scale)} runs on {'; '.join(machines)}{ended}; the sum of their times is {hours:.1f} hours."


def _machine(result: dict) -> str:
    hardware = result["hardware"]
    if hardware.get("device") == "cpu":
        threads = hardware.get("cpu_threads") or 1
        return f"{threads} core{'s' if threads > 1 else ''} of {hardware['processor']}"
    return f"{hardware.get('devices', 1)} x {hardware.get('device')}"


def write(
    scale: str, names: list[str], runs: pathlib.Path, results: pathlib.Path = store.RESULTS
) -> list[pathlib.Path]:
    """Draw the figures that are asked for, and write README.md.

    Args:
      scale: of the figures.
      names: of tables and figures.
      runs: folder of the run directories.
      results: folder of the results.

    Returns:
      The files that were written.
    """
    pictures = [path for name in names for path in figures.draw(scale, name, runs, results)]
    results.mkdir(parents=True, exist_ok=True)
    storage.write_whole(results / README, text(results))
    if results == store.RESULTS:
        path = store.ROOT / README
        storage.write_whole(path, with_short_table(path.read_text(encoding="utf-8")))
    return [*pictures, results / README]
