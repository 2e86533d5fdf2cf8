"""Downloads of a benchmark: HTML report, answers as CSV, and result as JSON."""

import streamlit as st

from screens.shared import benchmarks, ui
from stethoscope.results import BenchResult


def draw(result: BenchResult, run_id: str | None) -> None:
    """Offer the files of `result`; they are created on request."""
    name = run_id or "benchmark"
    with st.container(horizontal=True, gap="small", key="bench-files"):
        if run_id:
            benchmarks.report(run_id, "bench-report")
        ui.csv_button("Answers as CSV", result.items, f"{name}_answers.csv", "bench-answers-csv")
        st.download_button(
            "Result as JSON",
            lambda: result.model_dump_json(indent=2),
            f"{name}.json",
            "application/json",
            key="bench-json",
            on_click="ignore",
        )
