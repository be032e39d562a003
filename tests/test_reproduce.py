"""The tables of the paper from runs: which runs they need, how these are done, and what the tables say."""

import json
import threading

import numpy as np
import pytest

from benchmarks.reproduce import __main__ as command
from benchmarks.reproduce import document, figures, items, parts, published, runner, runs, store, tables
from benchmarks.reproduce.runs import Run
from unimix_jax import errors, storage
from unimix_jax.data import sampling
from unimix_jax.methods.recipes import RECIPES
from unimix_jax.metrics.predictions import read_predictions
from unimix_jax.training import loop, manifest

FIELDS = ("network=stem", "epochs=1", "eval_every=0", "parallel.devices=1")
ERM = [Run("digits", "digits", 20, "erm", seed) for seed in range(3)]


@pytest.mark.parametrize("scale", runs.SCALES)
def test_every_run_of_every_table_has_a_config(scale):
    wanted = {run for item in items.ITEMS.values() for run in item.runs(scale, 1)}
    assert len({store.path_of(run) for run in wanted}) == len(wanted)
    of_methods = {(run.method, run.variant): run for run in wanted}
    of_data = {(run.data, run.imbalance): run for run in wanted}
    for run in {*of_methods.values(), *of_data.values()}:
        config = runs.command(run).config
        assert (config.method.name, config.data.imbalance, config.seed) == (run.method, run.imbalance, 0)


def test_tables_ask_for_what_the_paper_shows():
    methods = {run.method for run in items.ITEMS["d1"].runs("paper", 3)}
    assert methods == set(published.D1["cifar10"]) == set(published.D1["cifar100"])
    d2 = items.ITEMS["d2"].runs("paper", 1)
    assert {(run.data, run.imbalance) for run in d2} == {("cifar100", 10), ("cifar100", 100)}
    priors = {runs.command(run).config.test_prior for run in d2 if run.method == "bayias"}
    assert priors == {"uniform", "imbalance:100", "imbalance:10", "imbalance:0.1", "imbalance:0.01"}
    assert {run.imbalance for run in items.ITEMS["d3"].runs("paper", 1)} == {10, 50, 100}
    main = items.ITEMS["main"].runs("paper", 1)
    assert {(run.method, run.imbalance) for run in main} == {(m, i) for m in RECIPES for i in (10, 50, 100, 200)}
    assert [run.method for run in main[:7]] == [*items.D1_METHODS]


@pytest.fixture(scope="module")
def done(tmp_path_factory, request):
    """Two replicates of erm, then mislas of one seed; the folders of results and of runs."""
    for name in ("quick_compilation", "stem"):
        request.getfixturevalue(name)
    root = tmp_path_factory.mktemp("reproduce")
    wanted = [*ERM[:2], Run("digits", "digits", 20, "mislas", 0)]
    folders = {"folder": root / "runs", "results": root / "results"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(runs.SCALES, "digits", runs.SCALES["digits"]._replace(last_stage_epochs=1))
        assert not runner.take(wanted, stop_requested=threading.Event(), replicates=True, fields=FIELDS, **folders)
    return root


@pytest.mark.slow
def test_a_result_has_what_the_run_measured(done):
    for seed in (0, 1):
        result = store.read(ERM[seed], done / "results")
        folder = done / "runs" / ERM[seed].folder / "0_to_1" / "seeds" / str(seed)
        own = storage.read_json(folder / "metrics.json")["test"]
        assert result["test"]["accuracy"] == own["accuracy"]
        assert result["test"]["class_accuracy"] == pytest.approx(own["class_accuracy"])
        assert result["run"] == ERM[seed]._asdict()
        assert (result["state"], result["replicates"], result["hardware"]["device"]) == ("complete", 2, "cpu")
        assert result["config"]["epochs"] == 1
        assert "dir" not in result["config"]["data"]
        rows = {row["imbalance"]: row["variants"]["as it is"]["accuracy"] for row in result["cut_tests"]}
        assert rows[1.0] == own["accuracy"]
        predictions = read_predictions(folder / "predictions.npz")
        assert rows[1.0] == (predictions.logits.argmax(1) == predictions.labels).mean()


@pytest.mark.slow
def test_a_result_of_two_stages_has_the_first_one_too(done):
    result = store.read(Run("digits", "digits", 20, "mislas", 0), done / "results")
    first = storage.read_json(
        done / "runs" / "digits" / "digits_lt_20" / "mislas" / "0" / "stages" / "mixed" / "metrics.json"
    )
    assert result["stages"]["mixed"]["ece"] == pytest.approx(first["test"]["ece"])
    assert result["stages"]["mixed"]["nll"] != result["test"]["nll"]


@pytest.mark.slow
def test_what_was_done_is_not_done_again(done, monkeypatch):
    before = {path: path.read_bytes() for path in (done / "results").glob("digits/**/*.json")}
    monkeypatch.setattr(runner, "_train", lambda *_: pytest.fail("it trains again"))
    assert runner.take(ERM[:2], done / "runs", threading.Event(), results=done / "results", fields=FIELDS) == 0
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation", "stem")
def test_a_run_that_is_stopped_goes_on_and_one_in_use_is_left_out(tmp_path, monkeypatch, capsys):
    from unimix_jax.training import loggers, rundir

    stop, folders = threading.Event(), (tmp_path / "runs", tmp_path / "results")

    def take(event):
        return runner.take(ERM[:1], folders[0], event, results=folders[1], fields=FIELDS)

    with monkeypatch.context() as patch:
        patch.setattr(loggers.Loggers, "update", lambda self, steps: stop.set())
        assert take(stop) == 1
    assert "stopped at step 1 of 11, saved" in capsys.readouterr().out
    with rundir.locked(folders[0] / ERM[0].folder / "0"):
        assert take(threading.Event()) == 1
    assert "is in use by process" in capsys.readouterr().out
    assert take(threading.Event()) == 0
    assert store.read(ERM[0], folders[1])["starts"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation", "stem")
def test_a_loss_that_is_not_finite_is_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_is_finite", lambda tree: False)
    assert runner.take(ERM[:1], tmp_path, threading.Event(), results=tmp_path / "results", fields=FIELDS) == 0
    result = store.read(ERM[0], tmp_path / "results")
    assert result["state"] == "not finite"
    assert "test" not in result
    assert tables.seeds([result, result | {"state": "complete"}]) == "2, 1 not finite"
    assert np.isnan(store.values_of([result], "accuracy")).all()


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Return a function that does the runs of three seeds of erm as one program, with outcomes in place of training.

    It returns how many results are missing, and the names of the directories that were trained in. The outcome of a
    directory is "complete" unless the test says another.
    """

    def take(wanted=ERM, outcomes=(), **options):
        names = []

        def train(command, directory, stop_requested):
            directory.mkdir(parents=True, exist_ok=True)
            storage.write_json(directory / "config.json", manifest.plain(command.config))
            names.append(directory.name)
            state = dict(outcomes).get(directory.name, "complete")
            if state == "stopped":
                stop_requested.set()
            storage.write_json(directory / "run.json", {"state": "complete" if state == "complete" else "stopped"})
            return state

        def write(run, directory, results):
            config = storage.read_json(directory / "config.json")
            result = store.about(run, {}, config, "complete") | {"test": {"accuracy": 1.0, "ece": 0.0, "nll": 0.0}}
            store.save(run, result, results)
            return result

        with monkeypatch.context() as patch:
            patch.setattr(runner, "_train", train)
            patch.setattr(store, "write", write)
            options = {"replicates": True, "results": tmp_path / "results"} | options
            return runner.take(wanted, tmp_path / "runs", threading.Event(), **options), names

    take.folder = tmp_path
    return take


def states(folder):
    return [(store.read(run, folder / "results") or {"state": "missing"})["state"] for run in ERM]


def test_seeds_of_which_one_is_not_finite_are_trained_one_by_one(trained):
    outcomes = {"0_to_2": "not finite", "1": "not finite", "2": "stopped"}
    assert trained(outcomes=outcomes) == (1, ["0_to_2", "0", "1", "2"])
    assert states(trained.folder) == ["complete", "not finite", "missing"]
    assert trained() == (0, ["2"])  # and stay alone
    assert [store.read(run, trained.folder / "results")["replicates"] for run in ERM] == [1, 1, 1]


def test_seeds_that_another_process_trains_are_all_left_to_it(trained):
    assert trained(outcomes={"0_to_2": "in use"}) == (3, ["0_to_2"])
    # While it writes its results, which are of a complete run, those that are not there yet are no new work.
    assert trained() == (0, ["0_to_2"])
    store.path_of(ERM[2], trained.folder / "results").unlink()
    assert trained() == (0, ["0_to_2"])


def test_seeds_that_were_stopped_go_on_together_when_more_are_asked_for(trained):
    assert trained(ERM[:2], {"0_to_1": "stopped"}) == (2, ["0_to_1"])
    assert trained() == (0, ["0_to_1", "2"])
    assert [store.read(run, trained.folder / "results")["replicates"] for run in ERM] == [2, 2, 1]


def test_a_result_of_another_config_is_done_again_beside_its_run(trained, capsys):
    results = trained.folder / "results"
    assert trained(ERM[:1], fields=("epochs=7",)) == (0, ["0"])
    stored = store.path_of(ERM[0], results).read_text()
    assert runner.reasons(ERM[:2], results) == {
        ERM[0]: "of another config: epochs was 7, is 100",
        ERM[1]: "missing",
    }
    assert command.main(["d1", "--method=erm", "--seeds=1", "--list", f"--results={results}"]) == 0
    assert "erm/0: of another config: epochs was 7, is 100" in capsys.readouterr().out
    assert trained(ERM[:1], {"0-2": "stopped"}) == (1, ["0-2"])
    assert "its result is of another config: epochs was 7, is 100" in capsys.readouterr().out
    assert store.path_of(ERM[0], results).read_text() == stored  # until the new one is there
    assert trained(ERM[:1]) == (0, ["0-2"])
    assert storage.read_json(trained.folder / "runs" / ERM[0].folder / "0" / "config.json")["epochs"] == 7
    path = trained.folder / "runs" / ERM[0].folder / "0-2" / "predictions.npz"
    path.touch()
    of_result = store.read(ERM[0], results)["config"]
    assert figures._predictions_path(ERM[0].folder, of_result, trained.folder / "runs") == path


def test_a_result_may_differ_in_the_machine_and_lack_new_fields():
    config = runner._config(ERM[0], ())
    older = {name: value for name, value in config.items() if name != "remat"}
    assert store.fault({"state": "complete", "config": older}, config) == ""
    assert store.fault({"state": "complete", "config": config | {"remat": True}}, config) == ""
    assert store.fault({"state": "complete", "config": config | {"gone": 1}}, config).endswith(
        "gone was 1, is not there"
    )
    assert store.fault({"state": "complete", "config": config | {"eval_every": 9}}, config) != ""


@pytest.mark.parametrize("method", ["mislas", "crt", "unimix"])
def test_a_stage_after_the_run_needs_the_measures_of_the_one_before(method):
    config = runner._config(ERM[0]._replace(method=method), ())
    result = {"state": "complete", "config": config}
    alone = store.fault(result, config)
    assert alone == ("" if method == "unimix" else "without the measures of its first stage")
    assert store.fault(result | {"stages": {"plain": {}}}, config) == ""
    assert store.fault(result | {"state": "not finite"}, config) == ""


def test_results_of_today_s_recipes_are_done():
    chosen = [Run(scale, data, imbalance, "erm", 0) for scale, data, imbalance in (
        ("digits", "digits", 20), ("small", "cifar10", 100))]  # fmt: skip
    assert runner.missing(chosen) == []


def made_up(run, accuracy, **more):
    test = {name: accuracy / 10 for name in ("ace", "tace", "sce", "ece", "mce", "brier", "nll")}
    test |= {name: accuracy for name in ("accuracy", "many", "medium", "few")}
    rows = [
        {"imbalance": imbalance, "variants": {name: {"accuracy": accuracy / (1 + i)} for i, name in enumerate(names)}}
        for imbalance in runs.TEST_IMBALANCES
        for names in (("as it is", "known prior", "EM"),)
    ]
    result = {"run": run._asdict(), "state": "complete", "config": {}, "hardware": {"device": "cpu", "processor": "p"}}
    result |= {"replicates": 1, "seconds": 3600, "test": test, "cut_tests": rows, "best_on_test": {"accuracy": 0.9}}
    result |= {"data": {"train": {"counts": [100, 10, 1]}}, "stages": {"mixed": test | {"accuracy": 0.25}}}
    return result | more


def rows_of(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {row[0]: row[1:] for row in cells}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Made-up results at the paper's scale, two seeds; accuracies .5 and .6."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "write_whole", lambda path, text: path.write_text(text))
        for item in ("d1", "d2", "d3", "main"):
            for run in items.ITEMS[item].runs("paper", 2):
                if item != "main" or run.imbalance == 100:
                    store.save(run, made_up(run, 0.5 + 0.1 * run.seed), folder)
    return folder


def test_a_table_shows_mean_deviation_and_the_difference_from_the_paper(results):
    texts = tables.d1("paper", results)
    ours, beside = (rows_of(texts[i]) for i in (1, 3))
    assert ours["`erm`"][0] == "2"
    deviation = np.std([50, 60], ddof=1)
    assert ours["`erm`"][ours["method"].index("accuracy, %")] == f"55.0 ± {deviation:.1f}"
    assert ours["`erm`"][-1] == "90.0 ± 0.0"  # best epoch
    assert beside["`erm`"][:3] == ["5.42", f"5.50 ± {deviation / 10:.2f}", "+0.08"]


def test_tables_of_test_priors_and_stages(results):
    texts = tables.d2("paper", results)
    rows = rows_of(texts[1])
    assert rows["`erm`, as it is"][1:] == [f"55.0 ± {np.std([50, 60], ddof=1):.1f}"] * 5
    assert rows["`erm`, corrected: known prior"][1].startswith("27.5 ±")
    assert rows["`bayias`, trained for each prior"][0] == "2"
    assert rows["the paper's `bayias`"][1:] == ["71.89", "63.36", "60.02", "58.20", "62.32"]
    two = [line.split("|") for line in tables.d3("paper", results)[1].splitlines()]
    first, second = (next(row for row in two if row[1:3] == [" `mislas` ", f" {stage} "]) for stage in (1, 2))
    assert (first[4].strip(), second[6].strip()) == ("25.0 ± 0.0", "63.2 / 1.73")
    assert second[4].strip().startswith("55.0 ±")


def test_the_table_of_all_recipes_stands_beside_published_accuracies(results):
    texts = tables.main("paper", results)
    rows = rows_of(texts[1])
    assert len(rows) == len(RECIPES) + 2
    assert rows["`unimix_bayias`"][rows["method"].index("CIFAR-10-LT-100")].endswith("(82.8, -27.8)")
    assert rows["`focal`"][rows["method"].index("CIFAR-10-LT-100")].endswith("(70.4?, -15.4)")
    others = tables._other_codes(tables._by_set(tables.grouped("paper", "main", results)))
    assert "| `cb` | CIFAR-10-LT-100 | 55.0 ± 7.1 | 70.5 | - | - | - |" in others[1]


@pytest.mark.parametrize(("name", "column"), [("d1", 1), ("d3", 2), ("main", 1)])
def test_seeds_that_are_not_finite_are_counted_apart(tmp_path, name, column):
    for run in (Run("paper", "cifar100", 100, "mislas" if name == "d3" else "erm", seed) for seed in (0, 1, 2)):
        lost = {"state": "not finite", "test": None, "stages": {}} if run.seed == 1 else {}
        store.save(run, made_up(run, 0.5, **lost), tmp_path)
    text = next(part for part in tables.TABLES[name]("paper", tmp_path) if part.startswith("| method"))
    cells = [cell.strip() for cell in text.splitlines()[2].strip("|").split("|")]
    assert cells[column].endswith("3, 1 not finite")
    assert any(cell.startswith("50.0 ± 0.0") for cell in text.split("|") for cell in [cell.strip()])


def test_the_order_of_images_without_a_complete_run_has_no_numbers(tmp_path):
    for variant in runs.ORDERS:
        run = Run("digits", "digits", 20, "bayias", 0, variant)
        store.save(run, made_up(run, 0.5, state="not finite", test=None), tmp_path)
    rows = [line.split("|")[2:] for line in tables.order("digits", tmp_path)[1].splitlines()[2:]]
    assert len(rows) == 2
    for row in rows:
        assert [cell.strip() for cell in row] == ["1, 1 not finite", *["-"] * 6, ""]


def test_the_distributions_of_the_factor_are_those_of_pairs_that_are_counted():
    """By a slow, obvious sum over all pairs of images; un-wrapped, and with a constant share."""
    counts = np.array([5, 3, 1])
    labels = np.repeat([0, 1, 2], counts)
    for variant in ("constant_share", "natural_partners"):
        run = Run("paper", "cifar10", 100, "unimix_bayias", 0, variant)
        exponent = 1.0 if variant == "natural_partners" else -1.0
        chances = (counts**exponent / (counts**exponent).sum() / counts)[labels]
        law, rarer, unequal = np.zeros(3), 0.0, 0.0
        for a in labels:
            for b, chance in zip(labels, chances, strict=True):
                from unimix_jax.theory import exact

                first = exact.preference(counts[a], counts[b], alpha=0.5)
                if variant == "constant_share":
                    first = 0.5 if a == b else float(counts[a] < counts[b])
                law[a] += chance / 9 * first
                law[b] += chance / 9 * (1 - first)
                if counts[a] != counts[b]:
                    unequal += chance / 9
                    rarer += chance / 9 * (first if counts[a] < counts[b] else 1 - first)
        shares, share = tables.dominant_label(run, counts)
        np.testing.assert_allclose(shares, law, rtol=1e-12)
        assert share == pytest.approx(rarer / unequal)
    assert tables.dominant_label(Run("paper", "cifar10", 100, "bayias", 0), counts) == (
        pytest.approx([5 / 9, 3 / 9, 1 / 9]),
        None,
    )


def test_rare_images_of_each_step_are_those_of_its_batch():
    run = Run("digits", "digits", 20, "bayias", 3, "permuted")
    rare = store.rare_images(runs.command(run).config)
    assert len(rare) == 10 * 11
    counts = np.array(store.sources.load(runs.command(run).config.data).counts)
    few = np.sort(counts)[:3].sum()
    for epoch in range(10):  # each image once; the last batch is filled from the front of the epoch
        assert few <= sum(rare[11 * epoch : 11 * (epoch + 1)]) <= few + 21


def test_independent_draws_are_uniform_and_differ_by_step():
    index = sampling.sorted_by_class(np.repeat([0, 1], [90, 10]))
    drawn = np.stack([parts.independent(index, seed=1, step=step, batch_size=50) for step in range(400)])
    frequency = np.bincount(drawn.ravel(), minlength=100) / 200
    assert abs(frequency - 1).max() < 0.35
    assert not (drawn[0] == drawn[1]).all()


def test_the_shared_mixer_gives_the_rare_image_the_larger_part():
    images = np.zeros((2, 1, 1, 1), np.float32), np.ones((2, 1, 1, 1), np.float32)
    mixed = parts.constant_share(None, *images, np.array([0, 1]), np.array([1, 0]), counts=np.array([30, 10]))
    np.testing.assert_allclose(mixed.weight, [0.25, 0.75])
    np.testing.assert_allclose(mixed.image.ravel(), [0.75, 0.25])


def test_the_document_is_that_of_the_results():
    path = store.RESULTS / document.README
    assert path.read_text(encoding="utf-8") == document.text(), "python -m benchmarks.reproduce writes it"
    readme = (store.ROOT / document.README).read_text(encoding="utf-8")
    assert readme == document.with_short_table(readme), "python -m benchmarks.reproduce writes its table"


def test_runs_are_listed_and_mistakes_are_said(tmp_path, capsys):
    assert command.main(["d1", "--method=erm", "--seeds=2", "--list", f"--results={tmp_path}"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"digits/digits_lt_20/erm/{seed}: missing" for seed in (0, 1)]
    argv = ["d1", "--scale=small", "--set=cifar10", "--seeds=1", f"--data={tmp_path}", f"--runs={tmp_path / 'runs'}"]
    assert command.main([*argv, f"--results={tmp_path}"]) == 2
    assert "cifar-10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["d1", "--method=bayes"], "(did you mean 'bayias'?); known: bayias, erm,"),
        (["d1", "--method=crt"], "unknown method of these tables at this scale 'crt'"),
        (["main", "--scale=small", "--set=cifar"], "'cifar' (did you mean 'cifar10'?); known: cifar10, cifar100"),
        (["d5"], "unknown table or figure 'd5'"),
        (["d1", "--seeds=0"], "--seeds is 0; it must be a number of seeds, at least 1"),
        (["d1", "--budget=0"], "--budget is 0; it must be a number of minutes above 0"),
    ],
)
def test_names_and_numbers_that_choose_nothing_are_mistakes(argv, sentence, capsys):
    assert command.main(argv) == 2
    assert sentence in capsys.readouterr().err


def test_errors_and_an_unfinished_list_have_their_exit_codes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(document, "text", lambda results: "tables")
    results = tmp_path / "new" / "results"  # which is not there yet
    assert command.main([f"--results={results}"]) == 0
    assert (results / "README.md").read_text() == "tables"
    monkeypatch.setattr(command, "_train", lambda *_: 3)
    assert command.main(["d1", f"--results={results}"]) == 75
    assert "stopped: 3 of 70 runs are missing; the same command goes on" in capsys.readouterr().err

    def fail(*_):
        raise errors.Failure("the worker has ended")

    monkeypatch.setattr(command, "_train", fail)
    assert command.main(["d1", f"--results={results}"]) == 74
    assert "error: the worker has ended" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert command.main([f"--results={tmp_path / 'file' / 'results'}"]) == 2


def test_the_best_epoch_is_that_of_the_seed():
    lines = [
        {"split": "test", "epoch": epoch, "accuracy_seed_3": accuracy, "ece_seed_3": 0.1, "nll_seed_3": 1.0}
        for epoch, accuracy in ((1, 0.5), (2, 0.7), (3, 0.6))
    ]
    assert store.best(lines, 3, 4) == {"epoch": 2, "accuracy": 0.7, "ece": 0.1, "nll": 1.0, "evaluations": 3}
    assert store.best(lines[:1], 3, 4) is None
    assert json.loads(json.dumps(store.rounded({"a": [0.123456789]}))) == {"a": [0.1234568]}
