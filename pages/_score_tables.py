"""The numbers behind a benchmark's picture, behind tabs."""

import streamlit as st

from pages import _ui
from stethoscope.figures.bench_tables import DIFFERENCE, accuracies, differences, means
from stethoscope.results import BenchResult

POINTS = {DIFFERENCE: st.column_config.NumberColumn(format="%+.1f")}


def draw(result: BenchResult) -> None:
    """Draw the three tables behind tabs."""
    verdicts, arms, sums = st.tabs(("Verdicts", "Answers by arm", "Totals"))
    for tab, rows, key, alt in (
        (verdicts, differences(result), "verdict-table", "Verdict by arm and subject"),
        (arms, accuracies(result), "arm-table", "Answers by arm and subject"),
        (sums, means(result), "total-table", "Macro and micro totals by arm"),
    ):
        with tab:
            _ui.table(rows, key=key, alt=alt, column_config=POINTS)
    arms.caption("exact match and math-verify are lm-evaluation-harness’ two scores; marked: the sentence that exact "
                 "match reads is there; unparsable and timeouts have no score and count as wrong.")  # fmt: skip
