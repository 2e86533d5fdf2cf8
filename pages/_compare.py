"""The lower half of Edit: one prompt, two models, streaming; then tokens tinted by KL."""

import random

import streamlit as st

from pages import _jobs, _session, _status, _ui, _watch
from stethoscope.errors import CorpusError
from stethoscope.figures import text
from stethoscope.figures.theme import pretty
from stethoscope.minerva.problems import load_problems
from stethoscope.records import CompareTextSpec, EditRecipe
from stethoscope.results import TextComparison


@st.cache_data(show_spinner=False)
def dev_problems(location: str, subject: str) -> list[str]:
    """Return the dev problems of `subject` in a seeded order."""
    chosen = [problem.problem for problem in load_problems(location, "dev") if problem.subject == subject]
    random.Random(0).shuffle(chosen)
    return chosen[:100]


def prompt_from_controls() -> tuple[str, bool]:
    """Draw the choice of a prompt; return it and whether it is put behind the shots."""
    profile = _session.profile()
    st.session_state.setdefault("prompt_kind", "a problem")
    st.session_state.setdefault("free_text", "Problem:\nWhat is 12 + 7?\n\nSolution:")
    st.segmented_control(
        "Prompt", ["a problem", "free text"], required=True, **_session.mirror("prompt_kind", "prompt-kind")
    )
    if st.session_state["prompt_kind"] == "free text":
        st.text_area("Text, given as it is", height=120, **_session.mirror("free_text", "free-text"))
        return st.session_state["free_text"], False
    left, right = st.columns([1, 3])
    st.session_state.setdefault("prompt_subject", profile.problems.subjects[0])
    left.selectbox("Subject", [*profile.problems.subjects], format_func=pretty,
                   **_session.mirror("prompt_subject", "prompt-subject"))  # fmt: skip
    try:
        problems = dev_problems(profile.problems.problems, st.session_state["prompt_subject"])
    except CorpusError as error:
        _ui.banner(error)
        return "", True
    if st.session_state.get("problem") not in problems:
        st.session_state["problem"] = problems[0] if problems else ""
    right.selectbox(
        "Problem (dev split, put behind the shots)", problems, **_session.mirror("problem", "prompt-problem")
    )
    return st.session_state["problem"] or "", True


def streaming(job: object) -> None:
    """Draw the text that has come so far."""
    written = getattr(job, "text", {})
    for column, name in zip(st.columns(2), ("base", "edited"), strict=True):
        with column, st.container(border=True, key=f"text-{name}-live"):
            st.markdown(f"**{name}**")
            st.html(text.plain_html(written.get(name, "") or "…"))


def finished(result: TextComparison) -> None:
    """Draw the texts; tokens are tinted by KL, the first difference is underlined, hover shows both predictions."""
    for index, pair in enumerate(result.pairs):
        columns = {"base": pair.base, "edited": pair.edited, "third": pair.third}
        shown = {name: column for name, column in columns.items() if column is not None}
        for place, (name, column) in zip(st.columns(len(shown)), shown.items(), strict=True):
            with place, st.container(border=True, key=f"text-{name}" + (f"-{index}" if index else "")):
                st.markdown(f"**{name}**")
                st.html(text.column_html(column))
        same = "The two texts are the same. " if pair.edited.first_difference is None else ""
        peak = max(pair.edited.kl, default=0.0)
        st.caption(
            f"{same}Tint: KL(edited ‖ base) at each token, full at {text.FULL_TINT_NATS:g} nats; the largest in the "
            f"edited text is {peak:.2f} nats. Underlined: the first token that differs. Hover shows the likeliest "
            "tokens of both models. n = 1 prompt, greedy."
        )


def draw(recipe: EditRecipe) -> _jobs.View:
    """Draw prompt, buttons and texts; return what is on show."""
    prompt, framed = prompt_from_controls()
    spec = CompareTextSpec(recipe=recipe, prompts=(prompt,), problems=_session.profile().problems, framed=framed)
    view = _jobs.look("compare")
    st.button("Write both", key="run-compare", type="primary", disabled=not prompt.strip() or view.active,
              on_click=_jobs.begin, args=("compare", spec), kwargs={"title": "Text", "interactive": True})  # fmt: skip
    if view.error:
        _ui.banner(view.error)
    elif view.active:
        _watch.watch(view, key="compare", draw=streaming, every=0.25)
        return view
    elif view.job is not None and view.job.state == "cancelled":
        st.caption("Stopped; this is what was written.")
        streaming(view.job)
        return view
    if isinstance(view.result, TextComparison):
        finished(view.result)
        if not recipe.layers:
            _status.show_certificate(view.result.certificate, recipe)
        stale = view.job is not None and view.run_id and _spec_of(view.run_id) != spec
        if stale:
            st.caption("The recipe or prompt has changed since; press “Write both” to write again.")
    else:
        st.caption("Nothing is written yet.")
    return view


def _spec_of(run_id: str) -> object:
    return _jobs.front().store.get_run(run_id).spec
