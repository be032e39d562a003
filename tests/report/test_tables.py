import pytest

from unimix_jax import metrics
from unimix_jax.report import tables


def test_every_measure_and_group_has_its_words():
    assert set(tables.MEASURES) == {*metrics.MEASURES, "many", "medium", "few"}


def test_tables_as_text_and_markdown():
    rows = [["a", "b|c"], ["long name", "1.5"]]
    assert tables.table(rows).splitlines() == ["a          b|c", "--------------", "long name  1.5"]
    assert tables.markdown_table(rows) == "| a | b\\|c |\n| --- | ---: |\n| long name | 1.5 |"


def test_the_closing_table():
    test = {"accuracy": 0.5, "many": 1.0, "medium": 0.25, "few": None, "groups": "shots", "ece": 0.123, "mce": 1.0}
    text = tables.closing_table(
        {"test": test | {"images": 10}, "best": {"split": "test", "epoch": 3.0, "accuracy": 0.6}}
    )
    assert text.splitlines() == [
        "per cent           test  best test (epoch 3)",
        "--------------------------------------------",
        "accuracy           50.0                 60.0",
        "  many (shots)    100.0                    -",
        "  medium (shots)   25.0                    -",
        "  few (shots)         -                    -",
        "ECE                12.3                    -",
        "MCE               100.0                    -",
        "images               10                     ",
    ]


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"config": {}, "run": None}, {}),
        ({"config": {"seed": 3, "method": {"name": "erm"}}, "run": {"state": "complete"}}, {"method": "erm"}),
    ],
)
def test_facts_of_a_run_of_which_little_is_known(about, expected):
    facts = tables.run_facts(about)
    assert expected.items() <= facts.items()
    assert "None" not in " ".join(facts.values())
    assert all(isinstance(value, str) for value in facts.values())


def test_tables_say_that_logits_stand_for_another_prior_and_which_were_corrected():
    test = {"accuracy": 0.5, "ece": 0.1, "images": 9, "other_prior": "the logits stand for a uniform prior, ..."}
    # Both splits have it: it is said once.
    text = tables.closing_table({"test": test, "validation": test})
    assert text.splitlines()[-1] == "test: the logits stand for a uniform prior, ..."
    corrected = {"accuracy": 0.6, "images": 9, "for": "uniform", "logits": "calibrated on ..."}
    result = {"test": test, "validation": test, "corrected": corrected}
    found = tables.measures_table(result)
    assert found.rows[0][3:] == ["test, calibrated, corrected for uniform", "validation"]
    assert found.note == "Test: the logits stand for a uniform prior, .... Corrected: the logits are calibrated on ...."
    side = tables.side_by_side("t", [("a", test), ("b", corrected)], tables.PRINTED)
    assert side.note == "a: the logits stand for a uniform prior, .... b: the logits are calibrated on ...."
