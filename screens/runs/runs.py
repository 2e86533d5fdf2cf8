"""Runs page: list of runs, reopen, pin, and downloads."""

from collections.abc import Sequence

import streamlit as st

from screens import links
from screens.runs import side_by_side
from screens.runs.table import recipes_by_run, summary, table
from screens.shared import benchmarks, edit_recipe, jobs, session, status, ui
from stethoscope.errors import StethoscopeError
from stethoscope.formatting import pretty
from stethoscope.records import BenchSpec, Record
from stethoscope.store.history import RESUMABLE, RunRecord, recipes_of
from stethoscope.store.settings import get_settings
from stethoscope.use_cases import KEPT_KINDS

OF_LAYERS = ("cells", "latents", "layers", "predictors", "agreement")
TABLES = (*OF_LAYERS, "rows", "sets", "arms", "comparisons", "totals", "items")


def open_again(run: RunRecord) -> None:
    """Show the run on its screen; if that is not possible, the next rerun shows why."""
    try:
        ui.open_screen(links.open_run(run))
    except StethoscopeError as error:
        st.session_state["link_error"] = error
        st.rerun()


def _files(run: RunRecord) -> None:
    """Draw the buttons of a run's recipes, result and report, and Resume if it is unfinished."""
    newest = next(other for other in jobs.front().store.list_runs(run.kind) if other.spec_id == run.spec_id)
    if isinstance(run.spec, BenchSpec) and run.state in RESUMABLE and newest.run_id == run.run_id:
        said = "Generates only the missing answers and gives the same numbers as an uninterrupted run."
        if st.button("Resume", key="resume-run", help=said):
            benchmarks.start(run.spec)
            ui.open_screen("benchmark")
    for name, recipe in recipes_of(run.spec).items():
        st.download_button(
            f"Recipe: {ui.escape(name)}",
            recipe.model_dump_json(indent=2),
            "recipe.json",
            "application/json",
            key=f"recipe-{name}",
            on_click="ignore",
        )
    if run.result_id is None:
        return
    result = jobs.load_result(jobs.front().store, run.run_id)
    if run.kind == "bench":
        benchmarks.report(run.run_id, "run-report")
    st.download_button(
        "Result JSON",
        lambda: result.model_dump_json(indent=2),
        f"{run.run_id}.json",
        "application/json",
        key="result-json",
        on_click="ignore",
    )
    for name in TABLES:
        rows = getattr(result, name, ())
        if rows and isinstance(rows[0], Record):  # the layers of some results are numbers
            ui.csv_button(f"{name.capitalize()} CSV", rows, f"{run.run_id}_{name}.csv", f"{name}-csv")


def detail(run: RunRecord) -> None:
    """Draw one run: open again, pin, resume and downloads, or an error if it cannot be read."""
    store = jobs.front().store
    st.caption(ui.escape(f"{run.run_id} · {summary(run)} · {run.state}" + (f" · {run.error}" if run.error else "")))
    with ui.guarded():
        if (settings := get_settings(store.database, run.run_id)) is not None:
            st.caption(ui.escape(f"Computed with {settings.in_words}"))
    with st.container(horizontal=True):
        if st.button("Open again", key="open-run", type="primary", disabled=run.result_id is None):
            open_again(run)
        ui.store_button(
            "Unpin" if run.pinned else "Pin", key="pin-run", write=store.set_pinned, args=(run.run_id, not run.pinned)
        )
        with ui.guarded():
            _files(run)


def compare(runs: Sequence[RunRecord]) -> None:
    """Draw the differences between the recipes of two runs."""
    recipes = recipes_by_run(runs)
    if len(recipes) < 2:
        st.caption("This needs two recipes. Generate texts or run benchmarks first.")
        return
    names = list(recipes)
    left, right = st.columns(2)
    before = left.selectbox("From", names, index=1, key="diff-before")
    after = right.selectbox("To", names, key="diff-after")
    edit_recipe.changes(recipes[before], recipes[after])


def _by_default(run: RunRecord, kind: str | None) -> bool:
    """Whether a run is listed by default: not if it was stopped or failed, or is an automatic curve of the Edit
    page."""
    listed = run.result_id is not None or run.state in ("running", "damaged", *RESUMABLE)
    return listed and (run.kind != "dose" or kind == "dose")


def main() -> None:
    """Draw the page."""
    ui.heading("Runs", "Finished runs with their settings. Open a run again, compare two, or download results.")
    status.show_base()
    session.link()
    kind = st.segmented_control("Kind", KEPT_KINDS, format_func=pretty, key="runs-kind")
    everything = st.toggle("Include stopped and failed runs and dose curves", key="runs-all")
    runs = sorted(jobs.front().store.list_runs(kind), key=lambda run: not run.pinned)
    runs = [run for run in runs if everything or _by_default(run, kind)]
    if not runs:
        if ui.empty("No stored runs yet.", "Start with a diagnosis", "runs-start"):
            ui.open_screen("diagnose")
        return
    with ui.card("History"):
        table(runs, select=lambda run_id: st.session_state.update({"run-select": run_id}))
    with ui.card("One run", key="run-detail"):
        by_id = {run.run_id: run for run in runs}
        chosen = st.selectbox(
            "Run", list(by_id), key="run-select", format_func=lambda run_id: f"{run_id} · {pretty(by_id[run_id].kind)}"
        )
        detail(by_id[chosen])
    with ui.card("Two benchmarks side by side", key="runs-pair"), ui.guarded():
        side_by_side.draw(runs)
    with ui.card("Differences between two recipes", key="runs-diff"):
        compare(runs)


main()
