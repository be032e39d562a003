"""What a report's CSV file holds is no formula and moves no terminal, and its numbers are numbers."""

import csv
import io

import pytest

from unimix_jax.report.sections import csv_rows


def cells(name):
    """The CSV rows of a model and a class of that name, as they are read again."""
    result = {
        "name": name,
        "class_names": [name, "b"],
        "test": {"accuracy": 0.5, "ece": -0.25, "class_accuracy": [1.0, None], "intervals": {"ece": [-1e-9, 2.0]}},
        "estimates": {},
    }
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(csv_rows([result]))
    return list(csv.DictReader(io.StringIO(lines.getvalue(), newline="")))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("=1+1", "'=1+1"),
        ("+a", "'+a"),
        ("-a", "'-a"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\uff1d1", "'\uff1d1"),
        ("  =1", "  '=1"),
        ('"=1', "\"'=1"),
        ("'=1", "''=1"),  # not the same as that of =1
        ("cat;=1", "cat;'=1"),
        ("\t=1", "\\t=1"),
        ("\r\n=1", "\\r\\n=1"),
        ("\x1b[2Ja\x00", "\\x1b[2Ja\\x00"),
        ("a\ud800", "a\\ud800"),
        ("-1", "-1"),
        ("+1.5e-3", "+1.5e-3"),
        ("-1+1", "'-1+1"),
        ("a = b, c-d @ e", "a = b, c-d @ e"),
        ("'tis", "'tis"),
        ("\u732b", "\u732b"),
    ],
)
def test_names_are_harmless_in_a_spreadsheet(name, expected):
    rows = cells(name)
    assert {row["run"] for row in rows} == {expected}
    assert [row["class"] for row in rows] == ["", "", expected, "b"]


def test_numbers_stay_numbers():
    rows = {(row["measure"], row["class"]): row for row in cells("a")}
    ece = rows["ece", ""]
    assert (float(ece["value"]), float(ece["low"]), float(ece["high"])) == (-0.25, -1e-9, 2.0)
    assert rows["class_accuracy", "b"]["value"] == ""
