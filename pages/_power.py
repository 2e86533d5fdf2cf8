"""What a number of problems can show, and what it costs: said before anything runs."""

import streamlit as st

from pages import _ui
from stethoscope.figures.forest import SMOKE_TEST_BELOW
from stethoscope.records import BenchSpec


def draw() -> None:
    """Draw what the chosen n can show."""
    n = int(st.session_state["bench_n"])
    if n < SMOKE_TEST_BELOW:
        st.badge("smoke test", color="orange", help=f"Below n = {SMOKE_TEST_BELOW} most true gains stay unseen.")


def size(spec: BenchSpec) -> bool:
    """Draw how many answers `spec` asks for; return whether it can be run."""
    answers = len(spec.arms) * len(spec.subjects) * spec.n
    st.caption(
        _ui.escape(f"{len(spec.arms)} arms, {len(spec.subjects)} subjects, n = {spec.n} each: {answers:,} answers.")
    )
    return bool(spec.subjects) and len(spec.arms) > 1
