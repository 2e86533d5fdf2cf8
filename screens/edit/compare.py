"""Text comparison on the Edit page: two or three models stream texts side by side, then tokens are tinted by KL."""

import streamlit as st

from screens.edit import prompt
from screens.shared import jobs, status, ui, watch
from stethoscope.figures import text
from stethoscope.records import EditRecipe
from stethoscope.results import TextComparison, TextPair

NAMES = ("base", "edited", "third")


def streaming(job: object) -> None:
    """Draw the text generated so far."""
    written = getattr(job, "text", {})
    names = [name for name in NAMES if name != "third" or "third" in written]
    for column, name in zip(st.columns(len(names)), names, strict=True):
        with column, st.container(border=True, key=f"text-{name}-live"):
            st.markdown(f"**{name}**")
            st.html(text.plain_html(written.get(name, "") or "…"))


def one_pair(pair: TextPair, index: int, third: str) -> None:
    """Draw the texts of one prompt; tokens are tinted by KL, the first difference is underlined."""
    shown = {name: column for name in NAMES if (column := getattr(pair, name)) is not None}
    for place, (name, column) in zip(st.columns(len(shown)), shown.items(), strict=True):
        with place, st.container(border=True, key=f"text-{name}" + (f"-{index}" if index else "")):
            st.markdown(f"**{third if name == 'third' else name}**")
            st.html(text.column_html(column))


def finished(result: TextComparison, third: str) -> None:
    """Draw the texts of all prompts, those that differ first, and the legend."""
    differing = [pair for pair in result.pairs if pair.edited.first_difference is not None]
    same = [pair for pair in result.pairs if pair.edited.first_difference is None]
    for index, pair in enumerate([*differing, *same]):
        if len(result.pairs) > 1:
            st.text(pair.prompt)
        one_pair(pair, index, third)
    peak = max((max(pair.edited.kl, default=0.0) for pair in result.pairs), default=0.0)
    st.caption(
        f"{len(differing)} of {len(result.pairs)} edited texts differ from the base’s. Tint: KL(edited ‖ base) at each "
        f"token, full at {text.FULL_TINT_NATS:g} nats; maximum {peak:.2f} nats. Underlined: the first different "
        f"token. Hover over a token to see the most likely tokens of both models. n = {len(result.pairs)} "
        f"prompt{'s' if len(result.pairs) > 1 else ''}, greedy."
    )


def draw(recipe: EditRecipe) -> jobs.View:
    """Draw prompt, buttons and texts; return the current view."""
    spec = prompt.spec_from_controls(recipe)
    view = jobs.look("compare")
    st.button(
        "Generate",
        key="run-compare",
        type="primary",
        disabled=spec is None or view.active,
        on_click=jobs.begin,
        args=("compare", spec),
        kwargs={"title": "Text", "interactive": True},
    )
    if view.error:
        ui.banner(view.error)
    elif view.active:
        watch.watch(view, key="compare", draw=streaming, every=0.25)
        return view
    elif view.job is not None and view.job.state == "cancelled":
        st.caption("Stopped; this is the output so far.")
        streaming(view.job)
        return view
    if isinstance(view.result, TextComparison):
        shown = jobs.front().store.get_run(view.run_id).spec if view.run_id else spec
        finished(view.result, _third_of(shown))
        if not recipe.layers:
            status.show_certificate(view.result.certificate, recipe)
        if shown != spec:
            st.caption("The recipe or prompt has changed; click “Generate” to update the output.")
    else:
        st.caption("No output yet.")
    return view


def _third_of(spec: object) -> str:
    third = getattr(spec, "third", None)
    return "" if third is None else prompt.THIRD["fine-tune" if third.edit_type.kind == "raw" else "projected"]
