"""Evaluation of predictions: measures, temperature, test priors, and which inputs are missing for more."""

from typing import NamedTuple

import numpy as np

from unimix_jax import metrics, priors
from unimix_jax.data import longtail
from unimix_jax.errors import UserError
from unimix_jax.metrics import bootstrap, label_shift, per_example
from unimix_jax.metrics.calibration import calibrated, end_of_search, fit_bias_corrected, search_temperature
from unimix_jax.metrics.predictions import LOG_ZERO, Predictions, checked_predictions, checked_prior
from unimix_jax.theory import exact

_QUICK, _MANY = 500_000, 20_000_000  # costs of which 200 samples take seconds, and 20 take minutes
_FEW_VALIDATION, _FEW_TEST = 100, 50  # images, below which a temperature, a cut test set, is remarked on


class ModelOutputs(NamedTuple):
    """The outputs of one model that are evaluated."""

    name: str  # of the model in a report
    test: Predictions
    validation: Predictions | None = None
    # Of a run directory: name, config, run, metrics (dicts), lines (of metrics.jsonl), digests (of results), changed
    # and gone (names of results).
    about: dict | None = None
    seeds: dict[int, Predictions] | None = None  # test predictions of each replicate; `test` is their ensemble's


class _Source(NamedTuple):
    """Logits of the test images, and the prior that they stand for: the source prior of label shift."""

    logits: np.ndarray
    prior: np.ndarray


class Options(NamedTuple):
    """Options of an evaluation."""

    bins: int = metrics.BINS
    by: str = "auto"  # shots, thirds, or auto
    samples: int = bootstrap.SAMPLES  # of the bootstrap; 0 for no intervals
    classwise: bool = False  # intervals of SCE, ACE and TACE too
    # Correct the test predictions for: uniform, train, imbalance:R, a file, estimate, or a share of each class.
    test_prior: str | tuple[float, ...] = ""
    measures: tuple[str, ...] = ()  # a user's own, "module:function", beside those of their runs
    seed: int = 0  # of the bootstrap, and of which images stay in a cut test set


def evaluate(outputs: ModelOutputs, options: Options = Options()) -> dict:  # noqa: B008, an immutable tuple
    """Compute everything that the predictions allow.

    Args:
      outputs: at least test logits. Labels give the measures, counts the groups and cut test sets, validation
        predictions the temperature and a calibrated estimate of the test prior.
      options: see `Options`.

    Returns:
      What report.json holds of one model: name, images, classes, class_names, options; test and validation (the
      summaries, in test with `intervals` and `by_chance`), seeds (the summary of each replicate by its seed),
      temperature, test_at_temperature, corrected, cut_tests, estimates (by method), test_share, counts, each where it
      can be had; corrected_logits: which logits a correction for a prior begins with; missing: a sentence for each
      thing that cannot; warnings: what a reader should know.

    Raises:
      UserError: predictions that do not fit together, or an unknown test prior.
    """
    test = checked_predictions(outputs.test, f"{outputs.name} (test)")
    validation = (
        None if outputs.validation is None else checked_predictions(outputs.validation, f"{outputs.name} (validation)")
    )
    classes = test.logits.shape[1]
    if validation is not None and (validation.labels is None or validation.logits.shape[1] != classes):
        raise UserError(f"the validation predictions of {outputs.name} must have labels and {classes} classes")
    measured = {"bins": options.bins, "by": options.by}
    own = _own_measures(outputs, options)
    names = (*metrics.MEASURES, *own)
    result: dict = {"name": outputs.name, "images": len(test.logits), "classes": classes}
    result["class_names"] = list(test.class_names or map(str, range(classes)))
    result["options"] = options._asdict()
    result["missing"] = _missing(outputs, test, validation, options)
    calibration = None
    if validation is not None:
        validation = validation._replace(counts=test.counts)
        result["validation"] = metrics.summary(validation, names=names, **measured)
        result["temperature"] = search_temperature(validation.logits, validation.labels)
        calibration = fit_bias_corrected(validation.logits, validation.labels, test.logits_prior)
    if test.counts is not None:
        result["counts"] = test.counts.tolist()
    if test.labels is not None:
        result["test_share"] = (np.bincount(test.labels, minlength=classes) / len(test.labels)).tolist()
        result["test"] = metrics.summary(test, names=names, **measured)
        if options.samples:
            with_interval = bootstrap.ALL if options.classwise else bootstrap.DEFAULT
            with_interval += tuple(name for name in own if metrics.traits_of(name).interval)
            intervals = bootstrap.bootstrap(
                test, names=with_interval, samples=options.samples, seed=options.seed, **measured
            )
            result["test"]["intervals"] = {name: list(ends) for name, ends in intervals.items()}
            chance = {"samples": min(options.samples, 200), "seed": options.seed, "bins": options.bins}
            result["test"]["by_chance"] = bootstrap.expected_if_calibrated(test, **chance)
        if outputs.seeds:
            each = {s: checked_predictions(p, f"{outputs.name} (seed {s})") for s, p in outputs.seeds.items()}
            result["seeds"] = {str(s): metrics.summary(p, names=names, **measured) for s, p in each.items()}
        if "temperature" in result:
            # Divided by a temperature the logits stand for no prior that is known.
            cooled = test._replace(logits=test.logits / result["temperature"], logits_prior=None)
            result["test_at_temperature"] = metrics.summary(cooled, names=names, **measured)
    labelled = None if validation is None else (validation.logits, validation.labels)
    estimator = {"validation": labelled, "calibration": calibration, "logits_prior": test.logits_prior}
    source, words = _source(test, validation, calibration)
    if source is not None:
        result["corrected_logits"] = words
    result["estimates"] = {}
    for method in label_shift.METHODS if labelled is not None else ("em",) if source is not None else ():
        samples = _estimate_samples(options.samples, *test.logits.shape)
        estimate = label_shift.estimate_prior(
            test.logits, **estimator, method=method, samples=samples, seed=options.seed
        )
        ends = {"low": estimate.low.tolist(), "high": estimate.high.tolist()} if samples else {}
        values = {"samples": samples, "prior": estimate.prior.tolist(), "warnings": list(estimate.warnings)}
        result["estimates"][method] = values | ends
    if options.test_prior:
        result["corrected"] = _corrected(outputs.name, test, result, source, options, names)
    if test.labels is not None and test.counts is not None and all(result["test_share"]):
        result["cut_tests"] = _cut_tests(test, estimator, source, options)
    result["warnings"] = [*_changed(outputs.about or {}), *_warnings(result, test, validation)]
    return result


def _own_measures(outputs: ModelOutputs, options: Options) -> tuple[str, ...]:
    """Return the user's measures of an evaluation, by name: those that are asked for, and those of the run's config."""
    of_run = ((outputs.about or {}).get("config") or {}).get("measures", ())
    return tuple(dict.fromkeys((*options.measures, *of_run)))


def _changed(about: dict) -> list[str]:
    """Return a sentence for each result of a run that was changed or removed after the run."""
    changed = [
        f"{name} was changed after the run was finished: the run did not write it so"
        for name in about.get("changed", ())
    ]
    return changed + [f"{name} of the run is gone; its command writes it anew" for name in about.get("gone", ())]


def _warnings(result: dict, test: Predictions, validation: Predictions | None) -> list[str]:
    """Return sentences that a reader should know before trusting the numbers."""
    lines = []
    for split, predictions in (("test", test), ("validation", validation)):
        if predictions is not None:
            lines += _zeros(split, predictions)
    validation = result.get("validation")
    if validation and validation["images"] < _FEW_VALIDATION:
        lines.append(f"the temperature rests on {validation['images']} validation images: it is uncertain")
    if validation and validation["accuracy"] == 1:
        lines.append("all validation images are right, so the temperature has no lower limit: it is too small")
    if "temperature" in result and (sentence := end_of_search(result["temperature"])):
        lines.append(sentence)
    for method, estimate in result["estimates"].items():
        lines += [f"do not trust the test prior by {method.upper()}: {warning}" for warning in estimate["warnings"]]
    cut = [row for row in result.get("cut_tests", ()) if row["images"] < _FEW_TEST]
    if cut:
        sizes = ", ".join(f"{row['images']} at {row['imbalance']:g}" for row in cut)
        lines.append(f"test sets cut to another imbalance have very few images ({sizes}): their figures say little")
    return lines


def _estimate_samples(asked: int, images: int, classes: int) -> int:
    """Return the number of samples of an estimate's interval: 200, fewer if each takes long, 0 if 20 take minutes."""
    cost = images * classes + classes**3 // 100  # of EM, which looks at all logits, and of BBSE's linear systems
    return 0 if cost > _MANY else min(asked, 200, max(20, 200 * _QUICK // cost))


def _zeros(split: str, predictions: Predictions) -> list[str]:
    """Return a sentence about probabilities of 0, which have no logarithm, and about those of labels; [] if none."""
    # float32 keeps the logarithm of the smallest positive float to 6e-5.
    zero = np.abs(per_example.normalised(predictions.logits) - LOG_ZERO) < 1e-3
    if not zero.any():
        return []
    own = 0 if predictions.labels is None else int(zero[np.arange(len(zero)), predictions.labels].sum())
    return [
        f"{int(zero.sum())} of {zero.size} {split} probabilities are 0 and count as the smallest positive number "
        f"(1e-308); {own} of them are a label's, each of which costs {-LOG_ZERO:.0f} nats of NLL"
    ]


def _source(test: Predictions, validation: Predictions | None, calibration) -> tuple[_Source | None, str]:
    """Return the logits from which corrections start (None where their prior is not known), and what they are in words.

    Wherever there are validation predictions the logits are the calibrated ones, which stand for the validation images'
    prior whatever the model was trained for: a correction of over-confident logits would be too weak. (A temperature
    alone will not do: fitted on validation images of another prior than that of the logits, it makes up for both.)
    """
    if calibration is not None:
        words = (
            f"calibrated on the {len(validation.labels)} validation images by a temperature, "
            f"{calibration.temperature:.3g}, and a bias for each class"
        )
        if few := label_shift.few_images(validation.labels, test.logits.shape[1]):
            words += f" (uncertain, because {few})"
        return _Source(calibrated(test.logits, calibration), calibration.prior), words
    trained = None if test.logits_prior is None else _Source(test.logits, test.logits_prior)
    return trained, "the model's own, which are not calibrated, for there are no validation predictions"


def _corrected(name: str, test: Predictions, result: dict, source: _Source | None, options: Options, names) -> dict:
    """Return the measures of test predictions corrected for the prior that the user names."""
    if isinstance(options.test_prior, tuple):
        prior = checked_prior(options.test_prior, test.logits.shape[1], "test_prior", zeros=True)
    elif options.test_prior == "estimate":
        prior = np.array(result["estimates"]["em"]["prior"]) if source is not None else None
    else:
        counts = np.ones(test.logits.shape[1], np.int64) if test.counts is None else test.counts
        prior = priors.test_prior(options.test_prior, counts)
        if test.counts is None and (options.test_prior == "train" or options.test_prior.startswith("imbalance:")):
            raise UserError(f"test_prior={options.test_prior} needs the training images of each class: give --counts")
        if not prior.all():
            raise UserError(
                f"class {result['class_names'][int(prior.argmin())]} has no training image, so no logits can stand for "
                f"test_prior={options.test_prior}"
            )
    if source is None:
        raise UserError(
            f"{name} cannot be corrected for a test prior: its logits stand for no known prior (array 'logits_prior') "
            "and there are no validation predictions to calibrate them on"
        )
    values = {"for": _described(options.test_prior), "prior": prior.tolist(), "logits": result["corrected_logits"]}
    if test.labels is not None:
        # Only the shares that all are above 0 can be said of logits; the others make logits of -inf.
        logits, stated = label_shift.shift_prior(source.logits, source.prior, prior), prior if prior.all() else None
        shifted = test._replace(logits=logits, logits_prior=stated)
        values |= metrics.summary(shifted, names=names, bins=options.bins, by=options.by)
    return values


def _described(test_prior: str | tuple[float, ...]) -> str:
    """Return a test prior in words."""
    if isinstance(test_prior, tuple):
        return f"{len(test_prior)} shares"
    return "the prior estimated by EM" if test_prior == "estimate" else test_prior


def _cut_tests(test: Predictions, estimator: dict, source: _Source | None, options: Options) -> list[dict]:
    """Measure subsets of the test set with other imbalances: as they are, for the known prior, for estimated priors.

    All corrections start from the same logits, those of `_source`.

    Returns:
      A row for each imbalance: imbalance, images, and accuracy and ECE of each variant.

    Source: Table D2 of the paper's supplement; the estimated priors, which it leaves as future work, are ours.
    """
    rows = []
    for imbalance in label_shift.IMBALANCES:
        index = longtail.shifted_test_subset(test.labels, test.counts, imbalance, options.seed)
        part = Predictions(test.logits[index], test.labels[index])
        variants = {"as it is": part.logits}
        if source is not None:
            known = priors.test_prior(f"imbalance:{imbalance}", test.counts)
            variants["known prior"] = label_shift.shift_prior(source.logits[index], source.prior, known)
            for method in label_shift.METHODS if estimator["validation"] is not None else ("em",):
                prior = label_shift.estimate_prior(part.logits, **estimator, method=method, samples=0).prior
                variants[method.upper()] = label_shift.shift_prior(source.logits[index], source.prior, prior)
        row: dict = {"imbalance": imbalance, "images": len(index), "variants": {}}
        for name, logits in variants.items():
            values = metrics.summary(part._replace(logits=logits), names=("accuracy", "ece"), bins=options.bins)
            row["variants"][name] = {measure: values[measure] for measure in ("accuracy", "ece")}
        rows.append(row)
    return rows


def _missing(outputs: ModelOutputs, test: Predictions, validation: Predictions | None, options: Options) -> list[str]:
    """Return a sentence for each part that these arrays do not allow, with the input that would allow it."""
    lines = []
    if test.labels is None:
        lines.append("all measures and most pictures: they need an array 'labels' in the predictions")
        if options.test_prior:
            lines.append(
                f"the column corrected for {_described(options.test_prior)}: it shows measures, which need 'labels'"
            )
    if test.counts is None:
        lines.append(
            "many, medium and few, accuracy against class count, class distributions, cut test sets: the training "
            "images of each class are not known; give counts (in the command --counts=FILE) or an array 'counts'"
        )
    elif chosen := metrics.choose_groups(test.counts, options.by):
        by, groups = chosen
        present = np.bincount(test.labels, minlength=len(test.counts)) > 0 if test.labels is not None else None
        for group, members in groups.items():
            if not members.any():
                lines.append(f"the group {group!r}: by {by} it has no class (groups=thirds has one in each)")
            elif present is not None and not (members & present).any():
                lines.append(f"the group {group!r}: none of its classes has a test image")
    elif len(test.counts) < 3:
        lines.append("many, medium and few: two classes make no three groups")
    else:
        lines.append("many, medium and few: all classes have the same number of training images")
    if test.labels is not None and test.counts is not None and len(set(test.labels.tolist())) < len(test.counts):
        lines.append("test sets of another imbalance: a class has no test image, so none can be cut")
    if validation is None:
        how = "train with a validation split"
        if outputs.about is None:
            how = "give validation (in the command --validation=FILE.npz)"
        lines.append(
            f"temperature, and a calibrated estimate of the test prior: there are no validation predictions; {how}"
        )
        if test.logits_prior is None:
            lines.append(
                "correction for a test prior: the logits stand for no known prior; an array 'logits_prior' or "
                "validation predictions would give it"
            )
    if test.counts is not None and len(test.counts) > exact.MOST_CLASSES:
        lines.append(f"class distributions of mixed images: they are drawn for at most {exact.MOST_CLASSES:,} classes")
    estimated = validation is not None or test.logits_prior is not None
    if estimated and options.samples and not _estimate_samples(options.samples, *test.logits.shape):
        lines.append(
            "intervals of the estimated test prior: they take too long for this many logits; as a library, "
            "label_shift.estimate_prior has them"
        )
    if test.labels is not None and test.logits.shape[1] <= 5:
        lines.append(f"top-5 accuracy: with {test.logits.shape[1]} classes it says nothing")
    if outputs.about is None:
        how = "give the run (in the command --workdir=RUN) in the place of its predictions"
        lines.append(f"training curves and what was run: {how}")
    return lines
