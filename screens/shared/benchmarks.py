"""Shared functions for benchmarks: list, start, resume, and offer reports."""

import time
from functools import lru_cache

import streamlit as st

from screens.shared import jobs
from stethoscope.figures.bench_tables import DIFFERENCE
from stethoscope.judging.predictions import BenchRun
from stethoscope.records import BenchSpec

POINTS = {DIFFERENCE: st.column_config.NumberColumn(format="%+.1f")}


@lru_cache(maxsize=512)
def _parsed(spec_json: str) -> BenchSpec:
    return BenchSpec.model_validate_json(spec_json)


def bench_runs() -> list[BenchRun]:
    """Return all benchmarks of the store in any state, including deleted ones, without damaged rows."""
    runs = []
    for run in jobs.front().store.list_runs("bench", -1, deleted=True):
        try:
            runs.append(BenchRun(run.run_id, run.sequence, _parsed(run.spec_json)))
        except ValueError:  # pydantic's
            continue
    return runs


def clock(seconds: float) -> str:
    """Return a time (seconds since 1970) as text in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def start(spec: BenchSpec) -> None:
    """Start or continue `spec`; finished blocks come from the store."""
    st.session_state["bench_asked"] = spec.model_dump_json()
    jobs.begin("bench", spec, title="Benchmark")


def report(run_id: str, key: str) -> None:
    """Offer the report of the stored benchmark `run_id`; it contains plotly's bundle and is created on request."""

    def page() -> str:
        from stethoscope.report import of_run  # reads plotly's bundle: not part of a rerun

        return of_run(jobs.front().store, run_id)

    st.download_button(
        "Report as HTML",
        page,
        f"{run_id}.html",
        "text/html",
        key=key,
        on_click="ignore",
        help="One HTML file that needs no model, GPU or network.",
    )
