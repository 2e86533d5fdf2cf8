"""What a number of problems can show, and what it costs: said before anything runs."""

import streamlit as st

from pages import _jobs, _ui
from stethoscope.figures.forest import SMOKE_TEST_BELOW
from stethoscope.figures.theme import pretty
from stethoscope.records import BenchPlanSpec, BenchSpec
from stethoscope.results import BenchPlanResult, BenchResult
from stethoscope.statistics import SIGNIFICANCE, detectable_difference, expected_found, n_for_margin

ABSTRACT_BASE, ABSTRACT_GAIN, ABSTRACT_CORRELATION = 0.296, 0.098, 0.45
POWER = 0.8
SUBJECTS_SHOWN = 4


def _base_accuracy() -> tuple[float, str]:
    """Return what share the base gets right, from the benchmark on show where there is one, and where it is from."""
    result = _jobs.look("bench").result
    if isinstance(result, BenchResult):
        rows = [row for row in result.arms if row.arm == result.spec.arms[0].name]
        n = sum(row.n for row in rows)
        if n and 0 < (right := sum(row.correct for row in rows) / n) < 1 - ABSTRACT_GAIN:
            return right, "as in the benchmark on show"
    return ABSTRACT_BASE, "as in the abstract"


def draw() -> None:
    """Draw what the chosen n can show: the detectable effect, the subjects found, and what a margin needs."""
    chosen = st.session_state
    n, subjects = int(chosen["bench_n"]), max(len(chosen["bench_subjects"]), 1)
    base, source = _base_accuracy()
    margin = float(chosen["bench_margin"]) / 100
    effect = detectable_difference(n, base, ABSTRACT_CORRELATION, power=POWER)
    found = expected_found(n, base, ABSTRACT_GAIN, ABSTRACT_CORRELATION, subjects=subjects)
    needed = n_for_margin(base, ABSTRACT_CORRELATION, margin)
    sees = (
        f"n = {n} per subject cannot see any gain." if effect is None
        else f"n = {n} per subject cannot see less than about {100 * effect:.0f} points."
    )  # fmt: skip
    with st.container(key="bench-power"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(f"**{sees}**", width="content")
            if n < SMOKE_TEST_BELOW:
                st.badge("smoke test", color="orange",
                         help=f"Below n = {SMOKE_TEST_BELOW} per subject most true gains stay unseen.")  # fmt: skip
        st.caption(
            f"{_expected(subjects, found)} “Not worse by more than {100 * margin:g} points” needs about n = {needed:,} "
            "where nothing changes. "
            f"Exact McNemar at {SIGNIFICANCE:g}, {100 * POWER:.0f}% power; base {100 * base:.0f}% right ({source}), "
            f"correlation of arms {ABSTRACT_CORRELATION:g}."
        )


def _expected(subjects: int, found: float) -> str:
    """Return in a sentence how many of `subjects` that all gain what the abstract reports would be found."""
    gain = f"{100 * ABSTRACT_GAIN:.1f} points"
    if subjects == 1:
        return f"If it truly gains {gain}, that is found with a chance of {100 * found:.0f}%."
    which = "both subjects" if subjects == 2 else f"all {subjects} subjects"
    return f"If {which} truly gain {gain}, about {found:.1f} of them are found after Holm."


def size(spec: BenchSpec) -> bool:
    """Draw how many answers `spec` asks for, how many are stored and how long the rest takes; return: can it run?"""
    if not spec.subjects or len(spec.arms) < 2:
        st.caption("Choose at least one subject, and one arm beside the base.")
        return False
    answers = len(spec.arms) * len(spec.subjects) * spec.n
    newest = next((f"{run.run_id} {run.state}" for run in _jobs.front().store.list_runs("bench", limit=1)), "")
    view = _jobs.ask("plan", BenchPlanSpec(bench=spec, after=newest), title="Counting stored answers")
    said = f"{len(spec.arms)} arms × {len(spec.subjects)} subjects × {spec.n} problems: {answers:,} answers"
    if view.error:
        _ui.banner(view.error)
        return False
    if not isinstance(view.result, BenchPlanResult) or view.stale:
        st.caption(f"{said}; looking which are stored …")
        return True
    plan = view.result
    stored = sum(plan.stored.values())
    said += f", {stored:,} of them in the store already." if stored else ", none of them in the store yet."
    if plan.answers_per_s and answers > stored:
        said += f" About {_span((answers - stored) / plan.answers_per_s)} at the {plan.answers_per_s:.1f} answers per "
        said += "second of earlier runs."
    st.caption(_ui.escape(said))
    return _large_enough(spec, plan)


def _large_enough(spec: BenchSpec, plan: BenchPlanResult) -> bool:
    short = {subject: has for subject, has in plan.available.items() if has < spec.n}
    if short:
        fewest_first = sorted(short, key=lambda subject: short[subject])
        few = ", ".join(f"{pretty(subject)} has {short[subject]}" for subject in fewest_first[:SUBJECTS_SHOWN])
        few += f" and {len(short) - SUBJECTS_SHOWN} more have too few" if len(short) > SUBJECTS_SHOWN else ""
        st.warning(f"n = {spec.n} is more than there are {spec.split} problems: {_ui.escape(few)}. Ask for fewer, or "
                   "leave these subjects out.")  # fmt: skip
    return not short


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
