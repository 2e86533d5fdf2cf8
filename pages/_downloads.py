"""A benchmark as files: a report to open anywhere, every answer as CSV, and the whole result as JSON."""

import streamlit as st

from pages import _jobs, _ui
from stethoscope.results import BenchResult


def draw(result: BenchResult, run_id: str | None) -> None:
    """Offer the files of `result`; they are written only when they are asked for."""
    name = run_id or "benchmark"
    with st.container(horizontal=True, gap="small", key="bench-files"):
        if run_id:
            report(run_id, "bench-report")
        _ui.csv_button("Answers as CSV", result.items, f"{name}_answers.csv", "bench-answers-csv")
        st.download_button("Result as JSON", lambda: result.model_dump_json(indent=2), f"{name}.json",
                           "application/json", key="bench-json", on_click="ignore")  # fmt: skip


def report(run_id: str, key: str) -> None:
    """Offer the report of the stored benchmark `run_id`; with plotly's bundle in it, written only when asked for."""

    def page() -> str:
        from stethoscope.report import of_run  # reads plotly's bundle: no part of a rerun

        return of_run(_jobs.front().store, run_id)

    st.download_button("Report as HTML", page, f"{run_id}.html", "text/html", key=key, on_click="ignore",
                       help="One file that opens without model, GPU or network.")  # fmt: skip
