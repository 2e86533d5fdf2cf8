"""Runs: what did we find? The history, open again, pin, and everything as a file."""

from typing import Any

import pandas as pd
import streamlit as st

from pages import _jobs, _restore, _session, _status, _ui
from stethoscope.errors import StethoscopeError
from stethoscope.figures.theme import pretty
from stethoscope.records import BenchSpec, EditRecipe

KINDS = ("diagnose", "energy", "compare_text", "bench", "export")
TABLES = ("cells", "latents", "layers", "rows", "arms", "comparisons", "totals", "items")


def recipes_of(spec: Any) -> dict[str, EditRecipe]:
    """Return the recipes of a run's spec by arm name."""
    if isinstance(spec, BenchSpec):
        return {arm.name: arm.recipe for arm in spec.arms if arm.recipe is not None}
    recipe = getattr(spec, "recipe", None)
    return {"recipe": recipe} if isinstance(recipe, EditRecipe) else {}


def summary(run: Any) -> str:
    """Return in a few words what the run was about; a damaged row says so."""
    try:
        spec = run.spec
    except StethoscopeError as error:
        return f"damaged: {error}"
    if isinstance(spec, BenchSpec):
        return f"{len(spec.arms)} arms, {len(spec.subjects)} subjects, n = {spec.n}"
    subject, control = getattr(spec, "subject", None), getattr(spec, "control", None)
    layers = next((", ".join(map(str, recipe.layers)) for recipe in recipes_of(spec).values()), "")
    parts = [pretty(subject) if subject else "", f"against {pretty(control)}" if control else ""]
    return ", ".join(part for part in [*parts, f"layers {layers}" if layers else ""] if part) or run.kind


def table(runs: list[Any]) -> None:
    """Draw the history, pinned runs first."""
    rows = [
        {
            "pinned": run.pinned,
            "started": pd.to_datetime(run.created_at, unit="s", utc=True),
            "kind": pretty(run.kind),
            "about": run.title or summary(run),
            "state": run.state,
            "seconds": run.elapsed_s,
            "run": run.run_id,
        }
        for run in runs
    ]
    columns = {
        "pinned": st.column_config.CheckboxColumn("pinned", width="small"),
        "started": st.column_config.DatetimeColumn("started", format="YYYY-MM-DD HH:mm:ss"),
        "about": st.column_config.TextColumn("about", width="large"),
        "seconds": st.column_config.NumberColumn("seconds", format="%.1f"),
    }
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=columns, key="runs-table", alt="Stored runs")


def open_again(run: Any) -> None:
    """Put the run on show and remember which page to go to."""
    try:
        st.session_state["go"] = _restore.open_run(run)
    except StethoscopeError as error:
        st.session_state["runs-error"] = str(error)


def detail(run: Any) -> None:
    """Draw one run: open again, pin, downloads."""
    store = _jobs.front().store
    st.caption(_ui.escape(f"{run.run_id} · {summary(run)} · {run.state}" + (f" · {run.error}" if run.error else "")))
    with st.container(horizontal=True):
        st.button("Open again", key="open-run", type="primary", disabled=run.result_id is None, on_click=open_again,
                  args=(run,))  # fmt: skip
        st.button("Unpin" if run.pinned else "Pin", key="pin-run", on_click=store.set_pinned,
                  args=(run.run_id, not run.pinned))  # fmt: skip
        for name, recipe in recipes_of(run.spec).items():
            st.download_button(f"Recipe: {name}", recipe.model_dump_json(indent=2), "recipe.json",
                               "application/json", key=f"recipe-{name}", on_click="ignore")  # fmt: skip
        if run.result_id is not None:
            result = store.load_result(run.run_id)
            st.download_button("Result JSON", result.model_dump_json(indent=2), f"{run.run_id}.json",
                               "application/json", key="result-json", on_click="ignore")  # fmt: skip
            for name in TABLES:
                if rows := getattr(result, name, ()):
                    _ui.csv_button(f"{name.capitalize()} CSV", rows, f"{run.run_id}_{name}.csv", f"{name}-csv")


def main() -> None:
    """Draw the page."""
    _ui.heading("Runs", "What did we find? Every finished run, with its spec, can be opened again and downloaded.")
    _status.show_base()
    if page := st.session_state.pop("go", None):
        st.switch_page(f"pages/{page}.py")
    if message := st.session_state.pop("runs-error", None):
        _ui.banner(message)
    kind = st.segmented_control("Kind", KINDS, format_func=pretty, key="runs-kind")
    runs = sorted(_jobs.front().store.list_runs(kind), key=lambda run: not run.pinned)
    if not runs:
        _ui.empty("No run is stored yet.", "Start with a diagnosis", "runs-start",
                  lambda: st.session_state.update(go="diagnose"))  # fmt: skip
        if page := st.session_state.pop("go", None):
            st.switch_page(f"pages/{page}.py")
        return
    with _ui.card("History"):
        table(runs)
    with _ui.card("One run", key="run-detail"):
        by_id = {run.run_id: run for run in runs}
        chosen = st.selectbox("Run", list(by_id), key="run-select",
                              format_func=lambda run_id: f"{run_id} · {pretty(by_id[run_id].kind)}")  # fmt: skip
        detail(by_id[chosen])


_session.run_page(main)
