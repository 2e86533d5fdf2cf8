"""Layer strengths: table, presets, bulk changes, and a small figure."""

import pandas as pd
import streamlit as st

from screens.shared import edit_recipe, jobs, session, ui
from stethoscope.figures.strengths import caption, effective
from stethoscope.recipes import strengths
from stethoscope.records import EditRecipe, LayerAlpha
from stethoscope.results import DiagnosisResult

COLUMNS = {"attention": "attention", "mlp": "MLP"}


def keep(wanted: dict[int, LayerAlpha]) -> None:
    """Pick the layers of `wanted` with their strengths; the table is recreated, because it applies edits by
    position."""
    st.session_state["layer_alpha"] |= {str(layer): [alpha.attention, alpha.mlp] for layer, alpha in wanted.items()}
    st.session_state["strength_edits"] = st.session_state.get("strength_edits", 0) + 1
    if list(wanted) != list(st.session_state["layers"]):
        session.set_layers(wanted)


def _best() -> tuple[int, ...] | None:
    """Return the layers with a score, best first; None before a diagnosis."""
    result = jobs.look("diagnosis").result
    return result.order.get(st.session_state["subject"]) if isinstance(result, DiagnosisResult) else None


def presets(n_layers: int) -> None:
    """Draw one button per preset; presets that need a layer order require a diagnosis."""
    now, order, n = edit_recipe.picked(), _best(), int(st.session_state["top_n"])
    reason = session.too_few(order, n)
    best = order or ()
    everything = strengths.uniform(range(n_layers))
    with st.container(horizontal=True, key="presets", gap="small"):
        for label, key, wanted, why, off in (
            ("All layers", "all", everything, None, False),
            (f"Top {n}", "top", strengths.uniform(best[:n]), reason, reason is not None),
            (f"Bottom {n}", "bottom", strengths.uniform(best[-n:]), reason, reason is not None),
            ("Attention only", "attention", strengths.only(now, "attention"), None, not now),
            ("MLP only", "mlp", strengths.only(now, "mlp"), None, not now),
            (
                "LiNeS ramp",
                "ramp",
                strengths.ramp(now or everything, n_layers),
                "Strength increases with depth from 0 to 1: shallow layers change less (LiNeS, arXiv 2410.17146).",
                False,
            ),
            ("Reset strengths", "reset", strengths.uniform(now), None, not now),
        ):
            st.button(label, key=f"preset-{key}", on_click=keep, args=(wanted,), help=why, disabled=off)


def _bulk(action: str) -> None:
    value, part = float(st.session_state["bulk-value"]), st.session_state["bulk-part"]
    change = strengths.assigned if action == "set" else strengths.multiplied
    keep(change(edit_recipe.picked(), value, part))


def bulk() -> None:
    """Draw one number and two buttons that set or multiply the strengths of all picked layers."""
    with st.container(horizontal=True, vertical_alignment="bottom", key="bulk", gap="small"):
        st.number_input("Value", -2.0, 2.0, 0.5, step=0.1, key="bulk-value", width=120)
        st.selectbox(
            "Part",
            ["both", *COLUMNS],
            format_func=lambda part: str(COLUMNS.get(part, part)),
            key="bulk-part",
            width=140,
        )
        st.button("Set all picked", key="bulk-set", on_click=_bulk, args=("set",))
        st.button("Multiply all picked", key="bulk-multiply", on_click=_bulk, args=("multiply",))


def _fold(key: str, layers: list[int]) -> None:
    """Copy the table's edits to the session and give the table a new key."""
    wanted = {layer: alpha.model_dump() for layer, alpha in edit_recipe.picked().items()}
    for row, cells in st.session_state[key]["edited_rows"].items():
        wanted[layers[int(row)]] |= {part: float(cells[part]) for part in COLUMNS if cells.get(part) is not None}
    keep({layer: LayerAlpha(**values) for layer, values in wanted.items()})


def table() -> None:
    """Draw the strengths of the picked layers as an editable table."""
    now = edit_recipe.picked()
    frame = pd.DataFrame([alpha.model_dump() for alpha in now.values()], index=pd.Index(list(now), name="layer"))
    key = f"strengths-{st.session_state.get('strength_edits', 0)}-{len(now)}"
    number = {
        part: st.column_config.NumberColumn(name, min_value=-2.0, max_value=2.0, step=0.05, format="%.2f")
        for part, name in COLUMNS.items()
    }
    number["_index"] = st.column_config.NumberColumn("layer", disabled=True)
    st.data_editor(
        frame,
        key=key,
        column_config=number,
        on_change=_fold,
        args=(key, list(now)),
        width=360,
        alt="Strength of each picked layer, attention and MLP",
    )


def draw(recipe: EditRecipe, n_layers: int) -> None:
    """Draw presets, the figure of effective strengths, and the table in an expander."""
    presets(n_layers)
    if recipe.layers:
        rows = [
            {"layer": layer, "attention": recipe.alpha(layer, "attention"), "mlp": recipe.alpha(layer, "mlp")}
            for layer in range(n_layers)
        ]
        ui.chart(effective(recipe, n_layers), key="strengths", caption=caption(recipe), rows=rows)
        with st.expander("Layer strengths (multiplied by the master alpha)"):
            bulk()
            table()
