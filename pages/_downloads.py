"""A benchmark as files: every answer as CSV, and the whole result as JSON with the command line's field names."""

import streamlit as st

from pages import _ui
from stethoscope.results import BenchResult


def draw(result: BenchResult, name: str) -> None:
    """Offer the files of `result`; they are written only when they are asked for."""
    with st.container(horizontal=True, gap="small", key="bench-files"):
        _ui.csv_button("Answers as CSV", result.items, f"{name}_answers.csv", "bench-answers-csv")
        st.download_button("Result as JSON", lambda: result.model_dump_json(indent=2), f"{name}.json",
                           "application/json", key="bench-json", on_click="ignore")  # fmt: skip
