"""Build reports: on models, on a finished run, and on class distributions alone."""

import pathlib

from unimix_jax import __version__
from unimix_jax.errors import UserError
from unimix_jax.report import evaluation, files, tables
from unimix_jax.report.evaluation import ModelOutputs
from unimix_jax.report.sections import (
    class_distributions_section,
    of_many,
    of_one,
    paper_distributions_section,
    printed,
    remarks,
)
from unimix_jax.theory import closed_forms
from unimix_jax.training import rundir

_ABOUT = f"Report by unimix_jax {__version__}."


def write_report(
    inputs: list[ModelOutputs],
    output: files.Output | None,
    options: evaluation.Options | None = None,
    kinds: tuple[str, ...] = ("png", "pdf"),
    results: list[dict] | None = None,
) -> str:
    """Evaluate models and write the report.

    Args:
      inputs: of `files.read_all`.
      output: of `files.output`; with None nothing is written.
      options: of the evaluation; None for the defaults.
      kinds: of picture files, see `files.write`.
      results: of `evaluation.evaluate` for each model, if they were computed before; None to compute them.

    Returns:
      The tables of the report as text, for a terminal.
    """
    if results is None:
        results = [evaluation.evaluate(each, options or evaluation.Options()) for each in inputs]
    if output is not None:
        if len(inputs) == 1:
            sections, title = of_one(inputs[0], results[0], _class_distributions(inputs[0])), inputs[0].name
        else:
            sections, title = of_many(inputs, results), f"{len(inputs)} models side by side"
        digests = [(each.about or {}).get("digests") for each in inputs]
        files.write(output, title, _ABOUT, sections, results, kinds, digests)
    text = [
        "\n\n".join(filter(None, (table.title, tables.table(table.rows), table.note))) for table in printed(results)
    ]
    for word, kind in (("warning", "warnings"), ("missing", "missing")):
        text += ["\n".join(f"{word}: {line}" for line in remarks(results, kind))]
    text += [f"report: {output.html}" if output is not None else "report: none; --output=DIR writes one"]
    return "\n\n".join(filter(None, text))


def write_run_report(directory: pathlib.Path) -> pathlib.Path:
    """Write the report of a finished run into its directory if it has no report of its present results.

    Args:
      directory: of the run.

    Returns:
      The path of the HTML file.

    Raises:
      UserError: the report cannot be written.
    """
    output = files.output_of_run(directory)
    if not files.is_report_of(output, rundir.output_digests(directory)):
        write_report([files.read_run(directory)], output, kinds=("png",))
    return output.html


def write_class_distributions(path: str, classes_and_imbalance: tuple[int, float] | None, factor: dict) -> str:
    """Write the report on the class distributions of the paper's Fig. A1 alone.

    Args:
      path: of the folder, or of the .html file.
      classes_and_imbalance: K and largest class / smallest of one panel; None for all six of the paper.
      factor: alpha, class_exponent and wrap of UniMix.

    Returns:
      A line that names the report.

    Raises:
      UserError: the report cannot be written there.
    """
    from unimix_jax.report import class_distributions

    output = files.output(path)
    if output.others["json"].exists():
        raise UserError(f"{output.html} is a report on models, which this figure would replace; give another --output")
    if classes_and_imbalance is None:
        title = "Class distributions"
        section = paper_distributions_section(class_distributions.paper_panels(**factor), factor)
    else:
        classes, imbalance = classes_and_imbalance
        title = f"Class distributions: {classes} classes, imbalance {imbalance:g}"
        panels = class_distributions.panels(closed_forms.exponential_profile(classes, imbalance), **factor)
        section = class_distributions_section(panels, factor)
    files.write(output, title, _ABOUT, [section], [])
    return f"report: {output.html}"


def _class_distributions(outputs: ModelOutputs) -> tuple[list[dict], dict] | None:
    """Return the panels and the factor of a model's config, or of the paper if it has none; None without counts."""
    if outputs.test.counts is None:
        return None
    from unimix_jax.report import class_distributions

    factor = files.unimix_factor((outputs.about or {}).get("config", {}))
    panels = class_distributions.panels(outputs.test.counts, **factor)
    return None if panels is None else (panels, factor)
