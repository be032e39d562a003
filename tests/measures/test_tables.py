import pytest

from unimix_jax.measures import metrics, tables


def test_every_measure_and_group_has_its_words():
    assert {key for key, *_ in tables.MEASURES} == {*metrics.MEASURES, "many", "medium", "few"}


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
