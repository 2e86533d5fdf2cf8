"""What the benchmark on show allows one to say, in words to copy."""

import streamlit as st

from screens.benchmark import claims
from screens.shared import ui
from stethoscope.judging.verdicts import referee_text
from stethoscope.results import BenchResult


def draw(result: BenchResult) -> None:
    """Draw the paragraphs on `result`, with its recipe's rank where that is on show, and a copy as text."""
    paragraphs = referee_text(result, claims.ranked(result.spec))
    with ui.card("Summary", key="bench-words"):
        for paragraph in paragraphs:
            st.markdown(ui.escape(paragraph))
        with st.popover("Copy", type="tertiary", key="bench-words-copy"):
            st.code("\n\n".join(paragraphs), language=None, wrap_lines=True)
