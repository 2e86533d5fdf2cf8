"""A frozen prediction keeps its first time, and cannot be changed or deleted unnoticed."""

import sqlite3
import time
from pathlib import Path

import pytest

from stethoscope.records import (
    BenchArm,
    BenchSpec,
    DiagnoseSpec,
    EditRecipe,
    ModelRef,
    Prediction,
    ProblemsRef,
    SaeRef,
    TaskVectorRef,
)
from stethoscope.store.ids import content_id
from stethoscope.store.runs import RunStore

MODEL = ModelRef(id="embedded:base")
PROBLEMS = ProblemsRef(problems="p", controls="c", shots="s", subjects=("algebra",), control_names=("facts",))


def prediction(layer: int) -> Prediction:
    return Prediction(
        recipe=EditRecipe(model=MODEL, task_vector=TaskVectorRef(name="math", tuned="t"), layers={layer: 1.0}),  # type: ignore[arg-type]
        diagnosis=DiagnoseSpec(model=MODEL, saes=SaeRef(location="s"), problems=PROBLEMS, control="facts"),
        subject="algebra",
        picked="hand",
        scores=(0.25,),
    )


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def execute(store: RunStore, *statements: str) -> None:
    opened = sqlite3.connect(store.root / "runs.sqlite3")
    with opened:
        for statement in statements:
            opened.execute(statement)
    opened.close()


def test_freezing_again_keeps_the_first_time(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    first = store.put_prediction(prediction(3))
    monkeypatch.setattr(time, "time", lambda: 2000.0)
    assert store.put_prediction(prediction(3)) == first == content_id(prediction(3))
    second = store.put_prediction(prediction(4))
    listed = RunStore(store.root).list_predictions()
    assert [(stored.prediction_id, stored.created_at) for stored in listed] == [(second, 2000.0), (first, 1000.0)]
    assert listed[1].prediction == prediction(3)


def started(store: RunStore, seed: int) -> int:
    """Start a benchmark and return its place in the store's sequence."""
    problems = BenchSpec(
        model=MODEL, problems=PROBLEMS, arms=(BenchArm(name="base"),), subjects=("algebra",), seed=seed
    )
    run_id = store.start_run(problems)
    return store.get_run(run_id).sequence


def test_what_came_first_is_told_by_the_store_and_not_by_a_clock(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 5000.0)
    first = started(store, 1)
    monkeypatch.setattr(time, "time", lambda: 1000.0)  # the clock steps back
    store.put_prediction(prediction(3))
    second = started(store, 2)
    monkeypatch.setattr(time, "time", lambda: 500.0)
    store.put_prediction(prediction(4))
    store.put_prediction(prediction(3))  # keeps its place
    later, earlier = store.list_predictions()
    assert (earlier.prediction, later.prediction) == (prediction(3), prediction(4))
    assert first <= earlier.runs_before < second <= later.runs_before
    assert [run.sequence for run in store.list_runs("bench")] == [second, first], "newest first"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE predictions SET created_at = 1",
        "UPDATE predictions SET runs_before = 0",
        "UPDATE predictions SET body = '{}'",
        "DELETE FROM predictions",
    ],
)
def test_the_table_refuses_changes(store: RunStore, change: str) -> None:
    store.put_prediction(prediction(3))
    before = store.list_predictions()
    with pytest.raises(sqlite3.IntegrityError, match="frozen prediction"):
        execute(store, change)
    assert store.list_predictions() == before


@pytest.mark.parametrize(
    "change",
    ["body = replace(body, '0.25', '0.75')", "body = '{}'", "body = 'not json'", "created_at = 1.0", "runs_before = 7"],
)
def test_a_damaged_prediction_is_left_out_and_can_be_frozen_anew(store: RunStore, change: str) -> None:
    store.put_prediction(prediction(3))
    other = store.put_prediction(prediction(4))
    damaged = content_id(prediction(3))
    execute(
        store, "DROP TRIGGER predictions_stay", f"UPDATE predictions SET {change} WHERE prediction_id = '{damaged}'"
    )
    assert [stored.prediction_id for stored in store.list_predictions()] == [other]
    again = time.time()
    assert store.put_prediction(prediction(3)) == damaged
    found = {stored.prediction_id: stored.created_at for stored in store.list_predictions()}
    assert found[damaged] >= again, "it gets a new time"
