"""Verdict text of the current benchmark, to copy."""

import streamlit as st

from screens.benchmark import claims
from screens.shared import ui
from stethoscope.judging.verdicts import referee_text
from stethoscope.results import BenchResult


def draw(result: BenchResult) -> None:
    """Draw the paragraphs about `result`, including its recipe's rank if available, and a text version to copy."""
    paragraphs = referee_text(result, claims.ranked(result.spec))
    with ui.card("Summary", key="bench-words"):
        for paragraph in paragraphs:
            st.markdown(ui.escape(paragraph))
        with st.popover("Copy", type="tertiary", key="bench-words-copy"):
            st.code("\n\n".join(paragraphs), language=None, wrap_lines=True)
