"""A figure is built once for the same arguments, and again for different ones."""

import gc
import weakref

import plotly.graph_objects as go
import pytest

from stethoscope.figures.once import KEPT, once
from stethoscope.records import ModelRef

drawn: list[tuple[object, ...]] = []


@once
def figure(*args: object, **options: object) -> go.Figure:
    drawn.append((*args, *options.values()))
    return go.Figure()


@pytest.fixture(autouse=True)
def nothing_drawn() -> None:
    drawn.clear()


def test_the_same_arguments_give_the_figure_that_was_drawn() -> None:
    record = ModelRef(id="one")
    first = figure(record, [1, 2], {3, 4}, subject="algebra")
    assert figure(record, [1, 2], {4, 3}, subject="algebra") is first
    assert len(drawn) == 1


def test_another_argument_or_another_record_is_drawn_anew() -> None:
    record = ModelRef(id="two")
    asked = [
        (record, [1, 2]),
        (record, [2, 1]),
        (record, (1, 2)),
        (record, [1]),
        (record, [1.5, 2]),
        (record, None),
        (ModelRef(id="two"), [1, 2]),
        ([record, record], [1, 2]),
    ]
    assert len({id(figure(*args)) for args in asked}) == len(asked)
    assert len({id(figure(*args)) for args in asked}) == len(asked) == len(drawn)


def test_a_record_that_is_gone_is_not_taken_for_its_successor() -> None:
    for number in range(2 * KEPT):
        figure(ModelRef(id=f"model {number}"))
        gc.collect(0)
    assert [args[0].id for args in drawn] == [f"model {number}" for number in range(2 * KEPT)]  # type: ignore[attr-defined]


def test_no_more_than_the_last_are_kept() -> None:
    first = figure("first")
    for number in range(KEPT - 1):
        figure(number)
    assert figure("first") is first
    for number in range(KEPT):
        figure("later", number)
    assert figure("first") is not first


def test_no_record_is_kept_alive_for_its_figure() -> None:
    @once
    def of_rows(*args: object, **options: object) -> go.Figure:
        return go.Figure()

    record, row = ModelRef(id="result"), ModelRef(id="row")
    gone = [weakref.ref(record), weakref.ref(row)]
    of_rows(record, rows=[row])
    del record, row
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
