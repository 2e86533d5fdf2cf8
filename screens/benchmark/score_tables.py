"""Tables of a benchmark in tabs."""

import streamlit as st

from screens.shared import benchmarks, ui
from stethoscope.figures.bench_tables import accuracies, differences, means
from stethoscope.results import BenchResult


def draw(result: BenchResult) -> None:
    """Draw the three tables in tabs."""
    verdicts, arms, sums = st.tabs(("Verdicts", "Answers by arm", "Totals"))
    for tab, rows, key, alt in (
        (verdicts, differences(result), "verdict-table", "Verdict by arm and subject"),
        (arms, accuracies(result), "arm-table", "Answers by arm and subject"),
        (sums, means(result), "total-table", "Macro and micro totals by arm"),
    ):
        with tab:
            ui.table(rows, key=key, alt=alt, column_config=benchmarks.POINTS)
    arms.caption(
        "exact match and math-verify are the two metrics of lm-evaluation-harness. marked: the answer contains the "
        "sentence that exact match reads. Unparsable answers and timeouts are unscored and count as wrong."
    )
