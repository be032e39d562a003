"""The run: from a config to predictions and measures. State lives here, and only here."""

import contextlib
import functools
import inspect
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax import priors, timings, workdir
from unimix_jax.batch import Batch, Picks, Predictions
from unimix_jax.data import loading, sampling, sources
from unimix_jax.data.splits import Splits
from unimix_jax.errors import Interrupted, RanAway, UserError, one_of
from unimix_jax.measures import metrics
from unimix_jax.methods import method as methods
from unimix_jax.models import assembly, layers, resnet, weights
from unimix_jax.training import checkpoints, optim, parallel, prediction, progress, record, steps

_log = logging.getLogger(__name__)


class Run(NamedTuple):
    """What stays the same from the first step to the last."""

    config: Any
    directory: pathlib.Path
    splits: Splits
    sets: sampling.ByClass
    method: methods.Method
    network: nn.Module
    recipe: steps.Recipe
    image_shape: tuple[int, int, int]
    variables: dict  # of the network before the first step
    reading: loading.Reading | None  # of photographs
    devices: list
    steps: int  # of all stages
    steps_per_epoch: int
    clock: timings.Clock
    identity: str = ""  # of the run, which its checkpoints name; "" for any


def run(
    config,
    directory: str | os.PathLike,
    stopped: threading.Event | None = None,
    clock: timings.Clock | None = None,
) -> dict:
    """Train as the config says, or go on where an earlier call stopped; return what metrics.json holds.

    Args:
      config: of `settings.default()`, checked by `settings.check`.
      directory: the run directory; made if needed.
      stopped: of `interrupts.caught`; once set, the run saves and leaves.
      clock: told how long each part took.

    Raises:
      UserError: a mistake in config or data, or a directory of another run; nothing is compiled before.
      RanAway: the loss is not finite; the last sound checkpoint stays.
      Failure: a worker process that reads images has ended, or a checkpoint could not be written; the last sound
        checkpoint stays.
      OSError: another file of the run could not be written.
      Interrupted: `stopped` was set, and the state is saved.
    """
    directory, stopped, clock = workdir.create(directory), stopped or threading.Event(), clock or timings.Clock()
    with workdir.locked(directory), progress.logging_to(directory):
        about = record.earlier(config, directory)
        if about.get("state") == "complete" and (result := _result(directory, about, config)):
            _log.info("%s is complete", directory)
            return result
        if not about and _has_checkpoints(directory):
            raise UserError(
                f"{directory} has checkpoints but no {workdir.RUN}, which says what they were trained on; restore it "
                "or give a new --workdir"
            )
        begun_at = time.monotonic()
        with clock.part("set-up"):
            this = prepare(config, directory, clock, stopped)
        begun_from = weights.digest(config.init) if config.init and not _has_checkpoints(directory) else None
        environment = parallel.environment(this.devices, config.parallel.how, this.network.kernels)
        with clock.part("data"):
            about = record.begin(
                about,
                config,
                this.splits,
                this.method.test_prior,
                environment,
                begun_from,
                saved=_has_checkpoints(directory),
            )
        this = this._replace(identity=about["id"])
        _log.info("run directory: %s", directory)
        workdir.write_json(directory / workdir.CONFIG, record.plain(config))
        workdir.write_json(directory / workdir.RUN, about)
        try:
            if stopped.is_set():
                raise Interrupted(f"before the first step; --workdir={directory} goes on")
            with _opened_checkpoints(this) as manager:
                with clock.part("set-up"):
                    state = starting_state(this, manager)
                _, scores, chosen = train(this, state, manager, stopped)
                with clock.part("evaluation"):
                    result = finish(this, scores, chosen)
        except Exception:
            with contextlib.suppress(OSError):  # of a full disk: what stopped the run is what is to be told
                workdir.write_json(directory / workdir.RUN, {**about, "state": "stopped"})
            raise
        about |= {
            "state": "complete",
            "seconds": round(time.monotonic() - begun_at, 1),
            "peak_memory_mib": record.peak_memory_mib(),
            "unreadable": record.count_unreadable(directory),
            "outputs": workdir.output_digests(directory),
        }
        workdir.write_json(directory / workdir.RUN, about)
        return result


def _result(directory: pathlib.Path, about: dict, config) -> dict | None:
    """Return what metrics.json of a finished run holds, and say what was changed since; None if a result is gone.

    A result that is gone is written anew from the last checkpoint; one that was changed is moved aside then, else it
    stays as it is. Measures that are damaged are moved aside and taken anew, of the predictions if these say it all.
    """
    changed, gone = workdir.changed_outputs(directory, about)
    needed = (workdir.METRICS, workdir.predictions_file("test"))  # of runs before results had digests, too
    gone = sorted({*gone, *(name for name in needed if not (directory / name).exists())})
    result, why = None, f"{_are(gone)} gone"
    if not gone:
        try:
            result = workdir.read_results(directory / workdir.METRICS)
        except UserError:
            why = f"{workdir.METRICS} is damaged"
            changed = sorted({*changed, workdir.METRICS})
    if result is None:
        # What a post-hoc method chose stands in no other file.
        of_predictions = changed == [workdir.METRICS] and not gone and config.method.posthoc.name == "none"
        source = "the predictions" if of_predictions else "the last checkpoint"
        _log.warning("%s: %s; the results are written anew from %s", directory, why, source)
        for name in changed:
            aside = workdir.unused(directory / f"{name}.changed")
            _log.warning("%s was changed after the run was finished; it is moved to %s", name, aside.name)
            (directory / name).rename(aside)
        return _measured_anew(directory, config) if of_predictions else None
    if changed:
        _log.warning(
            "%s changed in %s after the run was finished; what the run itself wrote is written anew from the last "
            "checkpoint if you move the changed file away and start again",
            _are(changed, "was", "were"),
            directory,
        )
    return result


def _measured_anew(directory: pathlib.Path, config) -> dict:
    """Write metrics.json of a finished run from its other files; return what it holds."""
    paths = {split: directory / workdir.predictions_file(split) for split in ("validation", "test")}
    found = {split: workdir.read_predictions(path) for split, path in paths.items() if path.exists()}
    result = {split: metrics.summary(predictions) for split, predictions in found.items()}
    return _written(result, directory, config)


def _written(result: dict, directory: pathlib.Path, config) -> dict:
    """Write the measures of a run's splits, the one watched first, and the best of its evaluations; return both."""
    watched = next(split for split in result if split != "posthoc")
    records = [r for r in workdir.read_metrics(directory / workdir.METRICS_LINES) if r.get("split") == watched]
    if config.eval_every:
        result["best"] = max(records, key=lambda r: r["accuracy"]) | {"evaluations": len(records)}
    workdir.write_json(directory / workdir.METRICS, result)
    return result


def _are(names: list[str], one: str = "is", several: str = "are") -> str:
    return f"{', '.join(names)} {one if len(names) == 1 else several}"


@contextlib.contextmanager
def _opened_checkpoints(this: Run):
    """Open the run's checkpoints, and count the time of it."""
    where, keep = this.directory / workdir.CHECKPOINTS, this.config.checkpoint.keep
    with contextlib.ExitStack() as stack:
        with this.clock.part("checkpoints"):
            manager = stack.enter_context(checkpoints.opened(where, keep))
        yield manager
        with this.clock.part("checkpoints"):
            stack.close()


def prepare(
    config,
    directory: pathlib.Path | None,
    clock: timings.Clock | None = None,
    stopped: threading.Event | None = None,
) -> Run:
    """Load the data and resolve every name of the config; all of a user's mistakes come out here."""
    clock = clock or timings.Clock()
    with clock.part("data"):
        splits = sources.load(config.data)
        reading = None if splits.train.images is not None else _reading(config.data)
        if reading is not None and reading.skip_unreadable:
            splits = record.without_unreadable(splits, reading, directory, stopped)
    counts, sets = splits.counts, sampling.sorted_by_class(splits.train.labels)
    steps_per_epoch = sampling.steps_per_epoch(len(splits.train.labels), config.batch_size)
    method = methods.build(
        config.method.to_dict(),
        counts,
        name=config.method.name,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        rules={"order": sampling.ORDERS, "partners": sampling.PARTNERS},
        test_prior=priors.read_test_prior(config.test_prior, counts),
        logit_scale=layers.LOGIT_SCALES[one_of("head (config.method.head)", config.method.head, layers.HEADS)],
    )
    if config.test_prior != "uniform" and not any("test_prior" in stage.loss.keywords for stage in method.stages):
        _log.warning(
            "no loss of %s takes a test prior: training is as without; evaluate --test_prior=%s corrects predictions",
            method.name,
            config.test_prior,
        )
    devices = parallel.local_devices(config.parallel.devices)
    parallel.check_batch(config.batch_size, len(devices), config.accumulate)
    one_of("network (config.network)", config.network, resnet.NETWORKS)  # before native programs are tried, for seconds
    axis = parallel.AXIS if config.parallel.batch_norm == "global" else None
    network = resnet.build(
        config.network,
        len(counts),
        head=method.head,
        axis=axis,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        kernels=parallel.kernels(devices, config.parallel.native),
    )
    recipe = steps.Recipe(
        optim.sgd(config.optim.momentum, config.optim.weight_decay),
        splits.train.mean,
        splits.train.std,
        config.data.pad,
        config.data.flip,
        tuple(config.data.jitter),
        config.accumulate,
        unroll=parallel.is_cpu(devices),
    )
    shape = splits.train.images.shape[1:] if reading is None else (reading.size, reading.size, 3)
    method = _with_inner_mixing(method, sets, shape, config, len(devices))
    variables = resnet.initialise(network, shape, config.seed)
    if others := variables.keys() - {"params", "batch_stats"}:
        raise UserError(
            f"network {config.network} keeps variables in the collection {min(others)!r}; training carries params and "
            "batch_stats only"
        )
    if config.init and not _has_checkpoints(directory):
        variables = weights.begun_from(config.init, variables)
    return Run(
        config,
        directory,
        splits,
        sets,
        method,
        network,
        recipe,
        shape,
        variables,
        reading,
        devices,
        method.stages[-1].last,
        steps_per_epoch,
        clock,
    )


def _with_inner_mixing(
    method: methods.Method, sets: sampling.ByClass, image_shape: tuple[int, int, int], config, devices: int
) -> methods.Method:
    """Mark the stages that mix inside of the network, from what their mixers return.

    Raises:
      UserError: such a stage has partners from outside of the batch, or the batch goes through the network in parts.
    """
    stages = []
    for stage in method.stages:
        if steps.mixes_inside(stage, image_shape, config.batch_size // devices):
            where = f"stage {stage.name!r} of method {method.name!r}"
            if config.accumulate > 1:
                raise UserError(
                    f"{where} mixes inside of the network, where a part of the batch does not see its partners: set "
                    "config.accumulate to 1"
                )
            if "table" in inspect.signature(stage.partners).parameters:  # of neighbours, wherever they are
                raise UserError(_OUTSIDE.format(where))
            picks_at = functools.partial(
                sampling.picks,
                sets,
                seed=config.seed,
                batch_size=config.batch_size,
                order=stage.order,
                partners=stage.partners,
            )
            _picks_in_batch(picks_at, where, step=stage.first)
            stage = stage._replace(mixes_inside=True)
        stages.append(stage)
    return method._replace(stages=tuple(stages))


_OUTSIDE = (
    "{} mixes inside of the network, where only partners of the same batch are found: partners must be permutation, "
    "in_batch, or a rule that returns for each partner, as its view, the place in the batch where it stands"
)


def _picks_in_batch(picks_at: Callable, where: str, *, step: int) -> Picks:
    """Return the picks of a step whose partners must stand in the batch, where their views say."""
    picks = picks_at(step=step)
    slots, size = np.asarray(picks.partner_view), len(picks.index)
    if not ((slots >= 0) & (slots < size)).all() or (picks.index[slots] != picks.partner).any():
        raise UserError(_OUTSIDE.format(where))
    return picks


def _reading(data) -> loading.Reading:
    fields = ("image_size", "resize", "min_area", "skip_unreadable", "threads", "workers", "max_megapixels")
    return loading.Reading(*(data[field] for field in fields))


def _has_checkpoints(directory: pathlib.Path | None) -> bool:
    return directory is not None and any((directory / workdir.CHECKPOINTS).glob("[0-9]*"))


def _function(bound: Callable | None) -> Callable | None:
    return getattr(bound, "func", bound)


def starting_state(this: Run, manager) -> steps.TrainState:
    """Return the state to go on from, on the devices: the newest sound checkpoint's, or a fresh one."""
    state = steps.first_state(this.variables, this.recipe.optimiser)
    _describe(this, sum(leaf.size for leaf in jax.tree.leaves(state.params)))
    restored = checkpoints.restore_newest(manager, this.directory / workdir.CHECKPOINTS, state, this.identity)
    if restored is not None:
        state = restored
        _log.info("resuming at step %d of %d", state.step, this.steps)
    workdir.cut_metrics(this.directory / workdir.METRICS_LINES, int(state.step))
    return parallel.replicate(state, this.devices)


def largest_and_smallest(counts: np.ndarray, names: tuple[str, ...], shown: int = 3) -> str:
    """Say which classes have the most images and which the fewest, with their numbers.

    Args:
      counts: int[K].
      names: K.
      shown: how many of each, at most.
    """
    order = np.argsort(-counts, kind="stable").tolist()
    shown = min(shown, len(order) // 2)
    most, fewest = (", ".join(f"{names[c]} ({counts[c]})" for c in some) for some in (order[:shown], order[-shown:]))
    return f"most {most}; fewest {fewest}"


def _describe(this: Run, parameters: int) -> None:
    splits, devices = this.splits, len(this.devices)
    height, width, channels = this.image_shape
    _log.info(
        "images: %s; %d x %d pixels, %d channel%s; %d classes",
        ", ".join(
            f"{len(source.labels)} {name}" for name, source in {"training": splits.train, **splits.evaluated}.items()
        ),
        height,
        width,
        channels,
        "s" if channels > 1 else "",
        len(splits.counts),
    )
    _log.info("training images of a class: %s", largest_and_smallest(splits.counts, splits.train.class_names))
    for name, source in splits.evaluated.items():
        missing = np.setdiff1d(np.arange(len(splits.counts)), source.labels)
        if len(missing):
            some = ", ".join(source.class_names[c] for c in missing[:3]) + (", ..." if len(missing) > 3 else "")
            _log.info("%d classes have no %s image: %s", len(missing), name, some)
    _log.info("held out: %s", splits.held_out or "nothing, the data has its own splits")
    _log.info(
        "%s by %s: %d parameters, from %s; %d steps of %d images on %d device%s, %s layers",
        this.config.network,
        this.method.name,
        parameters,
        this.config.init or f"random weights (seed {this.config.seed})",
        this.steps,
        this.config.batch_size,
        devices,
        "s" if devices > 1 else "",
        this.network.kernels,
    )
    if this.config.parallel.cores not in (0, assembly.threads()):
        _log.info(
            "config.parallel.cores is %d, but XLA has %d threads here: the command sets them when it starts, and "
            "$PJRT_NPROC or $NPROC go before it",
            this.config.parallel.cores,
            assembly.threads(),
        )
    if this.splits.validation is None and this.config.eval_every:
        _log.info("there is no validation split: evaluations on the way are on the test split")


def train(
    this: Run, state: steps.TrainState, manager, stopped: threading.Event
) -> tuple[steps.TrainState, dict[str, prediction.Scores], dict]:
    """Take the steps that are left, with records, evaluations and checkpoints at their times.

    Args:
      state: on the devices; donated: do not use it afterwards.
      manager: of `checkpoints.opened`.
      stopped: set from outside to save after the step that runs, and leave.

    Returns:
      The last state, the scores of each evaluated split after it, and what was chosen post hoc.
    """
    config, first = this.config, int(state.step)
    predict, programs, stage = prediction.predictor(this), {}, None
    resident = _resident(this)
    batches = loading.prefetch(_batches(this, first))
    bars, clock = progress.steps_bar(first, this.steps), this.clock
    with clock.part("steps"), bars as (bar, show), contextlib.closing(batches):

        def keep(line):
            workdir.append_metrics(this.directory / workdir.METRICS_LINES, line)
            show(line)

        before, since, begun_at = None, first, time.monotonic()
        for step, (now, batch) in enumerate(batches, start=first + 1):
            if now is not stage:
                stage, rate = now, learning_rate(this, now)
                state = state if step - 1 > stage.first else begun(this, stage, state)
            fresh = stage.program not in programs
            if fresh:
                programs[stage.program] = compiled_step(this, stage)
            numbers = steps.Numbers(np.uint32(config.seed), np.float32(rate(step - 1)), stage.class_weight)
            with clock.part("compile" if fresh else "steps"):
                state, sums = programs[stage.program](state, batch, numbers, *resident)
            jax.block_until_ready(before)  # at most two steps in flight: each has its own buffers
            before = sums
            bar.update()

            stopping = stopped.is_set()
            due = _due(this, step, stopping)
            line = {"step": step, "epoch": round(step / this.steps_per_epoch, 4)}
            where = f"step {step} (stage {stage.name!r}, learning rate {rate(step - 1):g})"
            if any(due):
                means = {name: float(total) / float(weight) for name, (total, weight) in jax.device_get(sums).items()}
                _check_finite(manager, where, loss=means["loss"], state=state if due.evaluate or due.save else ())
            if due.record:
                seconds = time.monotonic() - begun_at
                per_second = None if fresh else round(config.batch_size * (step - since) / seconds, 1)
                about = {"stage": stage.name, "learning_rate": rate(step - 1), "images_per_second": per_second}
                keep(line | means | about)
            if due.evaluate:
                scores, chosen = predict(state, due.evaluate)
                _check_finite(manager, where, logits=[score.logits for score in scores.values()])
            for name in due.evaluate:
                watched = ("accuracy", "ece", "nll")
                values = metrics.summary(Predictions(scores[name].logits, scores[name].labels), names=watched)
                keep(line | {"split": name} | {measure: values[measure] for measure in watched})
            if due.save:
                # After the records of this step: a resumed run keeps them and begins behind them.
                with clock.part("checkpoints"):
                    checkpoints.save(manager, step, state, this.identity)
                if stopping and step < this.steps:
                    raise Interrupted(f"at step {step} of {this.steps}, saved; --workdir={this.directory} goes on")
            if fresh or any(due):
                # The rate is of steps only, without compilation, evaluation and saving.
                jax.block_until_ready(sums)
                since, begun_at = step, time.monotonic()
    if first == this.steps:
        scores, chosen = predict(state, tuple(this.splits.evaluated))
    return state, scores, chosen


def _check_finite(manager, where: str, **named) -> None:
    """Stop a run whose numbers, trees of arrays by name, are no longer finite."""
    for name, tree in named.items():
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(tree))):
            newest = manager.latest_step()
            kept = "there is no checkpoint yet" if newest is None else f"the checkpoint of step {newest} is kept"
            raise RanAway(f"the {name} is not finite at {where}; {kept}")


def learning_rate(this: Run, stage: methods.Stage) -> Callable[[int], float]:
    """Return the learning rate of a stage as a function of the step."""
    schedule = dict(stage.schedule)
    if schedule["name"] == "cosine":
        return optim.cosine(schedule["learning_rate"], stage.first, stage.last, this.steps_per_epoch)
    return optim.learning_rate(this.config.optim, this.config.epochs, this.steps_per_epoch)


def begun(this: Run, stage: methods.Stage, state: steps.TrainState) -> steps.TrainState:
    """Return the state with which a stage begins: a new classifier, an optimiser without memory, where it says so."""
    if stage.reinitialise:
        draw = 1 + this.method.stages.index(stage)
        drawn = resnet.initialise(this.network, this.image_shape, this.config.seed, draw)["params"]
        state = state._replace(params={**state.params, "head": drawn["head"]})
    if stage.restart:
        state = state._replace(opt_state=this.recipe.optimiser.init(jax.device_get(state.params)))
    return parallel.replicate(state, this.devices)


class Due(NamedTuple):
    """What is to be done after a step."""

    record: bool
    evaluate: tuple[str, ...]  # names of splits
    save: bool


def _due(this: Run, step: int, stopping: bool) -> Due:
    config, last, splits = this.config, step == this.steps, tuple(this.splits.evaluated)

    def every(period: int) -> bool:
        return period > 0 and step % period == 0

    evaluate = splits if last else splits[:1] if every(config.eval_every * this.steps_per_epoch) else ()
    save = last or stopping or every(config.checkpoint.every * this.steps_per_epoch)
    return Due(last or every(config.log_every), evaluate, save)


def compiled_step(this: Run, stage: methods.Stage) -> Callable:
    """Return the step of a stage on this run's devices: (state, batch or picks, numbers, *resident arrays)."""
    step = functools.partial(steps.train_step, stage=stage, network=this.network, recipe=this.recipe)
    resident = this.config.data.residence == "device"

    def from_picks(state, picks, numbers, images, labels, *, axis):
        return step(state, loading.gather(images, labels, picks), numbers, axis=axis)

    return parallel.distribute(
        from_picks if resident else step,
        this.devices,
        this.config.parallel.how,
        split=(False, True, False, False, False) if resident else (False, True, False),
        donate=(0,),
    )


def _batches(this: Run, first: int) -> Iterator[tuple[methods.Stage, Any]]:
    """Make each step's stage and placed batch, from the step after `first`; runs in the prefetching thread."""
    config, train = this.config, this.splits.train
    table = functools.cache(functools.partial(_neighbours, this))
    for stage in this.method.stages:
        partners = stage.partners
        if _function(partners) is sampling.nearest:
            count = partners.keywords.get("neighbours", sampling.NEIGHBOURS)
            partners = functools.partial(partners, table=table(count))
        picks_at = functools.partial(
            sampling.picks,
            this.sets,
            seed=config.seed,
            batch_size=config.batch_size,
            order=stage.order,
            partners=partners,
        )
        if stage.mixes_inside:
            picks_at = functools.partial(_picks_in_batch, picks_at, f"stage {stage.name!r} of {this.method.name!r}")
        todo = range(max(first, stage.first), stage.last)
        if train.images is None:
            made = _read(this, partners, picks_at, todo)
        else:
            made = (picks_at(step=step) for step in todo)
            if config.data.residence == "host":
                made = (loading.gather(train.images, train.labels, picks) for picks in made)
        for batch in made:
            yield stage, parallel.place(batch, this.devices, config.parallel.how)


def _read(this: Run, partners: Callable | None, picks_at: Callable, todo: range) -> Iterator[Batch]:
    """Read the batches of some steps of a stage from files, and note what could not be read."""
    outside = partners is not None and _function(partners) not in sampling.SAME_BATCH
    views, seed = this.config.batch_size * (2 if outside else 1), this.config.seed
    made = loading.batches(this.splits.train, this.sets, picks_at, todo, views=views, seed=seed, reading=this.reading)
    for batch, unreadable in made:
        record.unreadable(this.directory, unreadable)
        yield batch


def _neighbours(this: Run, count: int) -> np.ndarray:
    """Find the nearest images of each one's class, for SMOTE; photographs are compared at 32 x 32."""
    images = this.splits.train.images
    if images is None:
        _log.info("comparing the %d training images with those of their class", len(this.splits.train.labels))
        images = loading.thumbnails(this.splits.train, this.reading)
    return sampling.neighbour_table(images, this.sets, count)


def _resident(this: Run) -> tuple:
    """Return the training images and labels on the devices, if the config wants them there."""
    if this.config.data.residence == "host":
        return ()
    return parallel.replicate((this.splits.train.images, this.splits.train.labels), this.devices)


def finish(this: Run, scores: dict[str, prediction.Scores], chosen: dict) -> dict:
    """Write the predictions and measures of the last state, and what was chosen post hoc; return the measures."""
    result = {"posthoc": {"name": this.config.method.posthoc.name, **chosen}} if chosen else {}
    for name, source in this.splits.evaluated.items():
        predictions = Predictions(
            scores[name].logits,
            scores[name].labels,
            this.splits.counts,
            this.method.logits_prior,
            source.class_names,
        )
        workdir.write_predictions(this.directory / workdir.predictions_file(name), predictions)
        result[name] = metrics.summary(predictions)
        if source.names is not None:
            workdir.write_list(this.directory / workdir.list_file(name), source.names, source.labels, scores[name].rows)
    return _written(result, this.directory, this.config)
