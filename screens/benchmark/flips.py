"""Browser of changed answers (flips): problems on which an arm and the reference differ, with both answers."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import streamlit as st

from screens.shared import mirror, session, ui
from screens.shared.fragment import fragment
from stethoscope.figures import flips, maths
from stethoscope.figures.flips import GOLDS, KINDS, METRICS, Flip
from stethoscope.formatting import pretty
from stethoscope.records import GoldReading, GradeStatus
from stethoscope.results import BenchItem, BenchResult

PER_PAGE = 8
EVERY_SUBJECT = "all subjects"
AT_RISK = {
    GoldReading.DOUBTFUL: "lm-eval reads it in part or as another number: exact_match can accept a wrong answer.",
    GoldReading.UNREAD: "lm-eval cannot read it: only the same text is an exact match.",
}
TONES: dict[GradeStatus, Literal["green", "red"]] = {
    GradeStatus.CORRECT: "green",
    GradeStatus.INCORRECT: "red",
}  # unscored answers are gray


def _filters(result: BenchResult, arms: Sequence[str]) -> list[Flip]:
    """Draw the filters and return the matching flips."""
    chosen = st.session_state
    chosen["flip_arm"] = chosen.get("flip_arm") if chosen.get("flip_arm") in arms else arms[0]
    subjects = [EVERY_SUBJECT, *dict.fromkeys(item.subject for item in result.items)]
    for name, values in (
        ("flip_metric", METRICS),
        ("flip_kind", KINDS),
        ("flip_subject", subjects),
        ("flip_golds", GOLDS),
    ):
        if chosen.get(name) not in values:
            chosen[name] = values[0]
    chosen.setdefault("flip_search", "")
    one, two, three, five, four = st.columns([1.5, 1.2, 1.1, 1, 1.4])
    one.selectbox("Arm", arms, **mirror.mirror("flip_arm", "flip-arm"))
    two.selectbox("Subject", subjects, format_func=pretty, **mirror.mirror("flip_subject", "flip-subject"))
    three.selectbox("Score", METRICS, format_func=pretty, **mirror.mirror("flip_metric", "flip-metric"))
    answered = flips.pairs(result, chosen["flip_arm"])
    of_golds = Counter(flip.golds for flip in answered)
    of_golds["all golds"] = len(answered)
    five.selectbox(
        "Gold answers",
        GOLDS,
        format_func=lambda golds: f"{golds} ({of_golds[golds]})",
        **mirror.mirror("flip_golds", "flip-golds"),
        help="At risk: lm-eval cannot read the gold answer, or reads it in part or as another number.",
    )
    four.text_input("Search in problems and answers", **mirror.mirror("flip_search", "flip-search", "value"))
    subject = None if chosen["flip_subject"] == EVERY_SUBJECT else chosen["flip_subject"]
    everything = flips.chosen(
        answered,
        kind="all",
        metric=chosen["flip_metric"],
        golds=chosen["flip_golds"],
        subject=subject,
        search=chosen["flip_search"],
    )
    counted = flips.counts(everything, chosen["flip_metric"])
    st.segmented_control(
        "Outcome",
        KINDS,
        format_func=lambda kind: f"{kind} ({counted[kind]})",
        required=True,
        **mirror.mirror("flip_kind", "flip-kind", "default"),
    )
    return flips.chosen(everything, kind=chosen["flip_kind"], metric=chosen["flip_metric"])


def _go(problem_id: str) -> None:
    st.session_state["flip_at"] = problem_id


def _list(found: Sequence[Flip], at: int) -> None:
    """Draw the page of the list with the `at`-th flip, and the navigation."""
    ids = [flip.problem_id for flip in found]
    page = at // PER_PAGE
    shown = found[page * PER_PAGE : (page + 1) * PER_PAGE]
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="flip-steps"):
        st.button(
            "Previous",
            key="flip-previous",
            disabled=at == 0,
            on_click=_go,
            args=(ids[max(at - 1, 0)],),
            shortcut="alt+p",
        )
        st.button(
            "Next",
            key="flip-next",
            disabled=at + 1 == len(ids),
            on_click=_go,
            args=(ids[min(at + 1, len(ids) - 1)],),
            shortcut="alt+n",
        )
        st.caption(f"{at + 1} of {len(ids)}", width="content")
    labels = {flip.problem_id: f"{pretty(flip.base.subject)}: {_snippet(flip.base.problem)}" for flip in shown}
    st.radio(
        "Problem",
        list(labels),
        format_func=lambda problem_id: ui.escape(labels[problem_id]),
        label_visibility="collapsed",
        **mirror.mirror("flip_at", f"flip-list-{page}"),
    )
    last = (len(ids) - 1) // PER_PAGE
    if last:
        with st.container(horizontal=True, vertical_alignment="center", gap="small", key="flip-pages"):
            st.button(
                "‹ Page",
                key="flip-page-back",
                disabled=page == 0,
                on_click=_go,
                type="tertiary",
                args=(ids[max(page - 1, 0) * PER_PAGE],),
            )
            st.caption(f"page {page + 1} of {last + 1}", width="content")
            st.button(
                "Page ›",
                key="flip-page-on",
                disabled=page == last,
                on_click=_go,
                type="tertiary",
                args=(ids[min(page + 1, last) * PER_PAGE],),
            )


def _snippet(text: str, length: int = 64) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _grade(item: BenchItem) -> None:
    with st.container(horizontal=True, gap="small"):
        for name in METRICS:
            if (status := getattr(item.grade, name)) is None:  # older answers have no strict grade
                continue
            st.badge(f"{pretty(name)}: {pretty(status.value)}", color=TONES.get(status, "gray"))
        for said, text in (
            (item.truncated, "truncated"),
            (item.repetitive, "looping"),
            (not item.grade.marked, "no marker sentence"),
        ):
            if said:
                st.badge(text, color="orange")


def _answer(item: BenchItem, diverges_at: int | None, key: str) -> None:
    """Draw one answer: grades, extracted answer, and the escaped text."""
    with st.container(border=True, key=key):
        st.markdown(f"**{ui.escape(item.arm)}**")
        _grade(item)
        read = ui.escape(item.grade.answer) if item.grade.answer else "nothing"
        st.markdown(f"Extracted answer: {read} ({item.n_tokens} tokens)")
        st.html(flips.answer_html(item.completion, diverges_at))


def _detail(flip: Flip) -> None:
    with st.container(key="flip-problem"):
        st.markdown(maths.markdown(flip.base.problem))
        st.markdown(f"**Gold:** {maths.markdown(flip.base.gold)}")
        if flip.golds == "at risk" and (gold := flip.base.grade.gold) is not None:
            st.badge("gold answer at risk", color="orange")
            st.caption(f"{AT_RISK[gold]} As written: {ui.escape(flip.base.gold)}")
    left, right = st.columns(2)
    with left:
        _answer(flip.base, flip.arm.diverges_at, "flip-base")
    with right:
        _answer(flip.arm, flip.arm.diverges_at, "flip-arm-answer")
    same = "The two answers are identical." if flip.arm.diverges_at is None else ("Marked: the first different token.")
    st.caption(
        f"{same} Problem {flip.problem_id} · {ui.escape(pretty(flip.base.subject))}. Shortcuts: Alt+P (previous), "
        "Alt+N (next)."
    )


@fragment()
def browser(result: BenchResult) -> None:
    """Draw the browser; the current flip is stored in the session and in the URL."""
    reference = result.spec.arms[0].name
    arms = [name for name in dict.fromkeys(item.arm for item in result.items) if name != reference]
    if not arms:
        st.caption("No arm except the reference has finished a block yet.")
        return
    found = _filters(result, arms)
    if not found:
        st.caption(
            "No matching problems. Choose another outcome, subject, metric or kind of gold answer, or clear the search."
        )
        return
    ids = [flip.problem_id for flip in found]
    if st.session_state.get("flip_at") not in ids:
        st.session_state["flip_at"] = ids[0]
    at = ids.index(st.session_state["flip_at"])
    left, right = st.columns([1, 2.4], gap="medium")
    with left:
        _list(found, at)
    with right:
        _detail(found[at])
    ui.csv_button("Changed answers as CSV", [flips.row(flip) for flip in found], "flips.csv", "flips-csv")
    session.link(**st.query_params.to_dict() | {"flip": ids[at], "arm": st.session_state["flip_arm"]})
