"""Energy on the Diagnose page: share of the task vector in the span of the subject's latents, compared with chance."""

import pandas as pd
import streamlit as st

from screens.shared import loaded_model, mirror, opened, session, ui, watch
from stethoscope.figures import energy
from stethoscope.formatting import pretty
from stethoscope.records import EnergySpec
from stethoscope.results import DiagnosisResult, EnergyResult

WEIGHTS = {True: "Folded", False: "Raw"}


def spec_from_session() -> EnergySpec:
    """Return the energy spec of the chosen subject and task vector."""
    chosen = st.session_state
    return EnergySpec(
        diagnosis=session.diagnosis(),
        task_vector=session.profile().task_vector(chosen["task_vector"]),
        subject=chosen["subject"],
        fold_gains=chosen["fold_gains"],
        **opened.settings("energy"),
    )


def draw(diagnosis: DiagnosisResult) -> None:
    """Compute the energy of the chosen subject and draw its curves, the enrichment of each matrix and the geometry."""
    if not loaded_model.has_task_vector("its energy in the latents' span", "energy"):
        return
    spec, subject = spec_from_session(), st.session_state["subject"]
    with ui.card("Energy of the task vector in the span of the subject's latents", key="energy"):
        view = watch.by_itself("energy", spec, title=f"Energy, {pretty(subject)}", button="Compute the energy")
        ui.opened_settings("energy")
        watch.standing(view, "energy", "Compute the energy")
        if isinstance(view.result, EnergyResult):
            best = diagnosis.order.get(subject, ())
            _show(view.result, [*st.session_state["layers"], *best])


def _show(result: EnergyResult, preferred: list[int]) -> None:
    """Draw `result`; the curves show the first of the `preferred` layers unless another one is chosen."""
    chosen = st.session_state
    layers = sorted({cell.layer for cell in result.layers})
    if not layers:
        st.caption("These SAEs match no matrix of this model.")
        return
    moved = {cell.layer for cell in result.layers if cell.retention is not None} or set(layers)
    first = next((layer for layer in preferred if layer in moved), min(moved))
    if chosen.get("energy_k") not in result.k:
        chosen["energy_k"] = result.k[len(result.k) // 2]
    if chosen.get("energy_first") != first or chosen.get("energy_layer") not in layers:
        chosen["energy_first"] = chosen["energy_layer"] = first
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.selectbox("Layer", layers, width=110, **mirror.mirror("energy_layer", "energy-layer"))
        st.segmented_control("k latents", result.k, required=True, **mirror.mirror("energy_k", "energy-k", "default"))
        st.segmented_control(
            "Matrices",
            list(WEIGHTS),
            format_func=WEIGHTS.__getitem__,
            required=True,
            help="Folded: scaled by the adjacent RMSNorm weight. Raw: unscaled.",
            **mirror.mirror("fold_gains", "energy-gains", "default"),
        )
    k, layer = chosen["energy_k"], chosen["energy_layer"]
    cell = next(cell for cell in result.layers if (cell.layer, cell.k) == (layer, k))
    st.markdown(f"**{ui.escape(energy.headline(cell))}**")
    left, right = st.columns(2)
    with left:
        figure = energy.retention_curves(result, layer, k)
        note = "Coloured lines: other spans of the same rank. Olive band: range of the random draws."
        more = {"All layers": result.layers, "Matrices": result.cells}
        rows = energy.layer_cells(result, layer)
        ui.chart(figure, key="retention", caption=energy.caption(result, k), rows=rows, more=more, note=note)
    with right:
        figure = energy.enrichment_heatmap(result, k, chosen["layers"])
        rows = [cell for cell in (*result.layers, *result.cells) if cell.k == k]
        ui.chart(figure, key="enrichment", caption=energy.heatmap_caption(result, k), rows=rows)
    _geometry(result, k)


def _geometry(result: EnergyResult, k: int) -> None:
    """Draw the table of the task vector's functional effect by layer."""
    rows, left_out = energy.geometry_rows(result, k), energy.left_out(result, k)
    if not rows:
        st.caption(ui.escape(left_out))
        return
    frame = pd.DataFrame(rows)
    left_out += " " * bool(left_out)
    digits = {"kept, %": 1, "chance, %": 1, "z": 1, "function, %": 1, "realised cos": 4, "norm ratio": 4}
    digits |= dict.fromkeys(("enrichment", "cos²", "cos² chance", "radial, %"), 2)
    columns = {name: st.column_config.NumberColumn(format=f"%.{digit}f") for name, digit in digits.items()}
    note = (
        f"k = {k}. {left_out}Function: share of mean ‖τx‖² over {result.n_tokens} tokens x of the subject that "
        "the projected edit keeps. cos²: mean over the principal angles between the span and the top singular "
        "directions. Radial: share along the weights, which a following norm removes. Realised: round(θ + τ) − θ in "
        "the model's dtype, with τ."
    )
    with st.container(key="geometry"):
        ui.table(frame, column_config=columns, key="geometry-table", alt=note)
        st.caption(ui.escape(note))
