"""Diagnose: which layers carry the skill? Specificity heatmap to pick layers on, and energy retention."""

import streamlit as st

from pages import _energy, _gain, _jobs, _session, _status, _ui, _watch
from stethoscope.figures import specificity
from stethoscope.figures.theme import pretty
from stethoscope.records import SCORE_NAMES, DiagnoseSpec
from stethoscope.results import DiagnosisResult


def spec_from_controls() -> DiagnoseSpec:
    """Draw the controls and return the diagnosis that they describe."""
    profile = _session.profile()
    first, second, third, fourth = st.columns([2, 2, 2, 1.4])
    first.selectbox(
        "Subject", profile.problems.subjects, format_func=pretty, **_session.mirror("subject", "subject-select")
    )
    second.selectbox(
        "Control corpus",
        profile.problems.control_names,
        format_func=pretty,
        **_session.mirror("control", "control-select"),
    )
    third.selectbox("Score", SCORE_NAMES, format_func=pretty, **_session.mirror("score", "score-select"))
    fourth.number_input(
        "Latents k", 1, 512, step=1, help="Latents selected per layer and subject", **_session.mirror("top_k", "top-k")
    )
    chosen = st.session_state
    return profile.diagnose_spec(control=chosen["control"], score=chosen["score"], top_k=int(chosen["top_k"]))


def take_click() -> None:
    """Toggle the layers of the chart's selection."""
    clicked = set(specificity.layers_from_selection(st.session_state.get(f"heatmap-{st.session_state['picks']}")))
    if clicked:
        picked = set(st.session_state["layers"])
        _session.set_layers(picked ^ clicked if len(clicked) == 1 else picked | clicked)


def pick_best(order: tuple[int, ...]) -> None:
    """Pick the best layers of the subject."""
    _session.set_layers(order[: int(st.session_state["top_n"])])


@st.fragment
def picker(result: DiagnosisResult) -> None:
    """Draw heatmap, pills and strip; the pills are the one source of truth, and the keyboard way."""
    with _ui.guarded():
        subject = st.session_state["subject"]
        caption = specificity.caption(result, subject)
        with _ui.card("Specificity by subject and layer"):
            _ui.chart(
                specificity.heatmap(result, st.session_state["layers"], subject),
                key="heatmap",
                caption=caption,
                rows=result.cells,
                more={"Latents": result.latents},
                note=specificity.DEFINITION_NOTE,
                figure_key=f"heatmap-{st.session_state['picks']}",
                on_select=take_click,
            )
            _session.layer_pills("Picked layers: click cells above, or choose here", result.n_layers, "layer-pills")
            with st.container(horizontal=True, vertical_alignment="bottom", key="pick-row"):
                order = result.order.get(subject, ())
                st.number_input("Best n", 1, result.n_layers, step=1, width=110, **_session.mirror("top_n", "top-n"))
                st.button(f"Pick for {pretty(subject)}", key="pick-top", on_click=pick_best, args=(order,))
                st.button("Clear", key="pick-none", type="tertiary", on_click=_session.set_layers,
                          args=((),))  # fmt: skip
        with _ui.card(f"{pretty(subject).capitalize()}: score by layer with its interval"):
            figure = specificity.strip(result, subject, st.session_state["layers"])
            note = specificity.strip_caption(result, subject)
            rows = [cell for cell in result.cells if cell.subject == subject]
            _ui.chart(figure, key="strip", caption=note, rows=rows)
        _energy.draw(result)
        _gain.draw()


def main() -> None:
    """Draw the page."""
    _ui.heading("Diagnose", "Which layers carry the skill? Click a cell to pick its layer; the box tool picks a range.")
    spec = spec_from_controls()
    view = _jobs.ask("diagnosis", spec, title="Diagnosis")
    st.session_state["diagnosis_run"] = view.run_id
    _status.show_base()
    _status.recorded(view)
    if view.error:
        _ui.banner(view.error)
        st.button("Try again", key="diagnose-again", on_click=_jobs.forget, args=("diagnosis",))
    elif view.active:
        _watch.watch(view, key="diagnosis")
    elif view.stopped:
        _ui.empty("The diagnosis was stopped.", "Listen again", "diagnose-again", lambda: _jobs.forget("diagnosis"))
    if isinstance(view.result, DiagnosisResult):
        picker(view.result)
    _session.link(run=view.run_id, job=view.job.job_id if view.active else None)


_session.run_page(main)
