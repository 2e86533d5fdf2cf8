"""The Runs page: report, resume, two benchmarks side by side, and runs that can no longer be read."""

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from fake_front import FakeFront, bench, first_block
from streamlit.testing.v1 import AppTest

from screens.runs.table import picked
from stethoscope.profiles import MINI
from stethoscope.records import BenchArm, BenchSpec, EditRecipe
from stethoscope.store.schema import connection, insert

Open = Callable[..., AppTest]


def a_spec(**more: Any) -> BenchSpec:
    recipe = EditRecipe(model=MINI.model, task_vector=MINI.task_vectors[0], layers={3: 1.0}, master_alpha=0.5)  # type: ignore[dict-item]
    arms = (BenchArm(name="base"), BenchArm(name="recipe", recipe=recipe))
    return BenchSpec(model=MINI.model, problems=MINI.problems, arms=arms, subjects=("algebra",), n=4, **more)


def stored(front: FakeFront, spec: BenchSpec, state: Any = "done") -> str:
    run_id = front.store.start_run(spec)
    result = bench(spec) if state == "done" else first_block(spec)
    front.store.finish_run(run_id, state=state, result=result, elapsed_s=1.0)
    return run_id


def test_the_report_is_written_only_when_asked_for(
    front: FakeFront, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    import streamlit as st

    offered: dict[str, Any] = {}
    plain = st.download_button

    def kept(label: str, data: Any, *more: Any, **options: Any) -> bool:
        offered[str(options.get("key"))] = data
        return plain(label, data, *more, **options)

    monkeypatch.setattr(st, "download_button", kept)
    run_id = stored(front, a_spec())
    app = open_page("runs")
    app.selectbox(key="run-select").set_value(run_id).run()
    assert not app.exception
    assert callable(offered["run-report"])
    assert f"<h1>Benchmark {run_id}</h1>" in offered["run-report"]()


def test_a_paused_benchmark_goes_on_and_a_finished_one_does_not(front: FakeFront, open_page: Open) -> None:
    done, spec = stored(front, a_spec()), a_spec(seed=1)
    paused = stored(front, spec, "paused")
    app = open_page("runs")
    app.selectbox(key="run-select").set_value(done).run()
    assert "resume-run" not in [button.key for button in app.button]
    app.selectbox(key="run-select").set_value(paused).run()
    app.button(key="resume-run").click().run()
    assert not app.exception
    assert front.submitted.count(spec) == 1


def test_a_result_of_another_version_is_a_sentence_and_the_page_goes_on(front: FakeFront, open_page: Open) -> None:
    run_id = stored(front, a_spec())
    blob = front.store.blobs.put_json({"kind": "BenchResult", "data": {"old": 1}})
    with connection(front.store.database, write=True) as opened:
        row = opened.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        fields = {name: row[name] for name in row.keys() if name != "digest"} | {"result_id": blob}  # noqa: SIM118
        insert(opened, "runs", fields, "OR REPLACE")
    app = open_page("runs")
    app.selectbox(key="run-select").set_value(run_id).run()
    assert not app.exception
    assert any("is not in the format of this version" in error.value for error in app.error)
    assert any("Differences between two recipes" in element.value for element in app.markdown)


def test_a_damaged_row_is_named_and_the_page_goes_on(front: FakeFront, open_page: Open) -> None:
    run_id, whole = stored(front, a_spec()), stored(front, a_spec(seed=1))
    with sqlite3.connect(front.store.database) as database:
        database.execute("UPDATE runs SET created_at = 'soon' WHERE run_id = ?", (run_id,))
    app = open_page("runs")
    app.selectbox(key="run-select").set_value(run_id).run()
    assert not app.exception
    assert any(f"run {run_id} is damaged" in error.value.replace("\\", "") for error in app.error)
    app.selectbox(key="run-select").set_value(whole).run()
    assert not app.error


def test_two_benchmarks_stand_side_by_side_and_are_paired_on_shared_problems(front: FakeFront, open_page: Open) -> None:
    app = open_page("runs")
    assert not app.exception
    stored(front, a_spec())
    app = open_page("runs")
    assert "so far there is one" in said(app)
    other = a_spec()
    weaker = other.arms[1].recipe.model_copy(update={"master_alpha": 0.25})  # type: ignore[union-attr]
    stored(front, other.model_copy(update={"arms": (other.arms[0], BenchArm(name="recipe", recipe=weaker))}))
    app = open_page("runs")
    assert not app.exception
    assert "run B − run A, on shared problems only." in said(app)
    assert "no verdict" not in said(app).lower()
    recipes, *_ = [frame.value for frame in app.dataframe if "before" in frame.value]
    assert recipes[["field", "before", "now"]].values.tolist() == [["master_alpha", "0.5", "0.25"]]
    assert "used the same problems and settings" in said(app)


def test_runs_that_differ_in_more_than_the_recipe_are_not_paired(front: FakeFront, open_page: Open) -> None:
    stored(front, a_spec())
    stored(front, a_spec(max_new_tokens=99))
    app = open_page("runs")
    assert not app.exception
    assert any("not comparable" in warning.value and "Different limits" in warning.value for warning in app.warning)
    (settings,) = [frame.value for frame in app.dataframe if "setting" in frame.value]
    assert settings["setting"].tolist() == ["max_new_tokens"]
    assert "on shared problems only" not in said(app)


def said(app: AppTest) -> str:
    return " ".join(caption.value for caption in app.caption)


def test_a_benchmark_opens_though_no_slider_can_show_its_alpha(front: FakeFront, open_page: Open) -> None:
    spec = a_spec()
    strong = spec.arms[1].recipe.model_copy(update={"master_alpha": 2.0})  # type: ignore[union-attr]
    arms = (spec.arms[0], BenchArm(name="twice", recipe=strong))
    app = open_page("benchmark", query={"run": stored(front, spec.model_copy(update={"arms": arms}))})
    assert not app.exception
    assert not app.error
    assert app.get("plotly_chart")
    assert app.session_state["layers"] == []


def test_a_click_on_a_row_selects_its_run(front: FakeFront, open_page: Open) -> None:
    for seed in range(3):
        stored(front, a_spec(seed=seed))
    runs = front.store.list_runs()
    assert [picked(rows, runs) for rows in ([0], [2], [], [7])] == [runs[0].run_id, runs[2].run_id, None, None]
    app = open_page("runs")
    assert app.dataframe(key="runs-table").proto.selection_mode, "rows can be clicked"
