"""CSV export: no text is read as a formula, every text round-trips, numbers stay numbers."""

import csv
import io

from hypothesis import example, given
from hypothesis import strategies as st

from stethoscope.figures.tables import text_of_cell, to_csv
from stethoscope.records import LayerAlpha

DANGEROUS = tuple("=+-@\t\r\n＝＋－＠")


def cells(rows: list[dict[str, object]]) -> list[list[str]]:
    return list(csv.reader(io.StringIO(to_csv(rows), newline="")))


@given(st.lists(st.one_of(st.text(), st.sampled_from(DANGEROUS).flatmap(lambda c: st.text().map(lambda t: c + t)))))
@example(["-5", "'-5", "''-5", "+1.5", "-1+1", "-5\n", "-٣", "+.5"])
@example(["=1+1", "'=1", "''-1", "'", "-1", "@SUM(A1)", "\tx", "a=b", '"=1"', "＝1"])
def test_no_text_is_a_formula_and_every_text_comes_back(texts: list[str]) -> None:
    rows = [{"=name": text, "n": 1} for text in texts]
    for text, (cell, number) in zip(texts, cells(rows)[1:], strict=True):  # type: ignore[arg-type]
        assert not cell.startswith(DANGEROUS)
        assert text_of_cell(cell) == text
        assert number == "1"
    assert all(not name.startswith(DANGEROUS) for name in (cells(rows)[0] if rows else ()))


def test_numbers_stay_as_they_are() -> None:
    assert cells([{"a": -1, "b": -2.5e-9, "c": None, "d": True}])[1] == ["-1", "-2.5e-09", "", "True"]
    (_, row) = list(csv.reader(io.StringIO(to_csv([LayerAlpha(attention=-0.5)]))))
    assert row == ["-0.5", "1.0"]
