"""Picking layers: heatmap, pills, buttons and one subject's strip, which are redrawn with every pick."""

import streamlit as st

from screens.diagnose import energy, prediction, shift_click, stability
from screens.shared import jobs, mirror, session, ui
from screens.shared.fragment import fragment
from stethoscope.errors import RecipeError
from stethoscope.figures import picking, specificity
from stethoscope.formatting import pretty
from stethoscope.judging import predictions
from stethoscope.records import DiagnoseSpec
from stethoscope.results import DiagnosisResult

HOW_TO = (
    "Click to select or deselect a layer; Shift-click selects a range; drag with the box tool to add a range. "
    "With the keyboard, use the pills below."
)


def take_selection() -> None:
    """Convert the chart's selection to picked layers."""
    event = st.session_state.get(f"heatmap-{st.session_state['picks']}")
    if (pick := picking.picked_after(event, st.session_state["layers"])) is not None:
        session.set_layers(pick.layers, anchor=pick.anchor)


def take_reach(layer: int) -> None:
    """Pick all layers from the one clicked last to the one that was shift-clicked."""
    pick = picking.picked_up_to(layer, st.session_state["layers"], st.session_state["anchor"])
    session.set_layers(pick.layers, anchor=pick.anchor)


def pick_some(kind: str, order: tuple[int, ...], n_layers: int) -> None:
    """Pick top, bottom or random layers, as many as set next to the buttons."""
    n, seed = int(st.session_state["top_n"]), int(st.session_state["pick_seed"])
    if kind == "random":
        session.set_layers(predictions.random_pick(n_layers, n, seed), seed=seed)
    else:
        session.set_layers(order[:n] if kind == "top" else order[-n:])


def row(result: DiagnosisResult, subject: str) -> None:
    """Draw the buttons for picking several layers, undo and clear."""
    order, n = result.order.get(subject, ()), int(st.session_state["top_n"])
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="pick-row"):
        st.number_input("n", 1, result.n_layers, step=1, width=100, **mirror.mirror("top_n", "top-n", "value"))
        for kind in ("top", "bottom", "random"):
            reason = None if kind == "random" else session.too_few(order, n)
            st.button(
                f"{kind.capitalize()} {n}",
                key=f"pick-{kind}",
                on_click=pick_some,
                help=reason,
                args=(kind, order, result.n_layers),
                disabled=reason is not None,
            )
        st.number_input("Random seed", 0, 9999, step=1, width=130, **mirror.mirror("pick_seed", "pick-seed", "value"))
        st.button(
            "Undo",
            key="pick-undo",
            type="tertiary",
            on_click=session.undo_pick,
            shortcut="alt+z",
            disabled=not st.session_state["past_layers"],
        )
        st.button("Clear", key="pick-none", type="tertiary", on_click=session.set_layers, args=((),))
        ui.link_to("edit", "Edit these layers", disabled=not st.session_state["layers"])


def take_linked(n_layers: int) -> None:
    """Pick the layers of a link; a stored diagnosis can be shown before its model is loaded."""
    try:
        session.take_linked_layers(n_layers)
    except RecipeError as error:
        st.session_state["link_error"] = error
        st.rerun()


def _other(spec: DiagnoseSpec | None) -> list[DiagnosisResult]:
    """The same diagnosis against the other control corpus, if available."""
    view = jobs.View() if spec is None else stability.other_control(spec)
    return [view.result] if isinstance(view.result, DiagnosisResult) and not view.stale else []


@fragment()
def draw(result: DiagnosisResult, spec: DiagnoseSpec | None, address: dict[str, str | None]) -> None:
    """Draw everything that changes with a pick; `spec` is that of `result` (None: out of date), `address` the page's
    link."""
    with ui.guarded():
        take_linked(result.n_layers)
        subject, layers = st.session_state["subject"], st.session_state["layers"]
        with ui.card("Specificity by subject and layer"):
            ui.chart(
                specificity.heatmap(result, layers, subject),
                key="heatmap",
                caption=specificity.caption(result, subject),
                rows=result.cells,
                more={"Latents": result.latents},
                note=f"{specificity.DEFINITION_NOTE} {HOW_TO}",
                figure_key=f"heatmap-{st.session_state['picks']}",
                on_select=take_selection,
            )
            shift_click.listen(take_reach)
            session.layer_pills("Picked layers", result.n_layers, "layer-pills")
            row(result, subject)
        with ui.card(f"{pretty(subject).capitalize()}: score by layer with its interval"):
            both = [result, *_other(spec)]
            rows = [
                {"control": one.control, **cell.model_dump()}
                for one in both
                for cell in one.cells
                if cell.subject == subject
            ]
            ui.chart(
                specificity.strip(result, subject, layers, *both[1:]),
                key="strip",
                caption=specificity.strip_caption(result, subject, *both[1:]),
                rows=rows,
            )
        prediction.draw(result, spec)
        energy.draw(result)
        seed = st.session_state["picked_seed"]
        picked = {"layers": ",".join(map(str, layers)), "seed": None if seed is None else str(seed)}
        session.link(**address, subject=subject, **picked)
