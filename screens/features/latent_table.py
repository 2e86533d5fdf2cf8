"""Table of latents on the Features page, and the documents on which the chosen one fires."""

import pandas as pd
import streamlit as st

from screens.shared import jobs, mirror, ui, watch
from stethoscope.figures.latents import strip_html
from stethoscope.formatting import pretty
from stethoscope.records import LatentExamplesSpec, LatentsSpec
from stethoscope.results import LatentExample, LatentExamplesResult, LatentRow, LatentsResult

FLAGS = ("selected", "dense", "passing")
COLUMNS = {
    "latent": st.column_config.NumberColumn("latent", format="%d", pinned=True),
    "effect": st.column_config.NumberColumn("effect, points", format="%+.2f", help="p_j − q_j"),
    "domain_rate": st.column_config.NumberColumn(
        "subject, %", format="%.2f", help="p_j: share of subject tokens on which it fires"
    ),
    "control_rate": st.column_config.NumberColumn(
        "control, %", format="%.2f", help="q_j: share of control tokens on which it fires"
    ),
    "auroc": st.column_config.NumberColumn(
        "AUROC", format="%.3f", help="AUROC of the firing rate, subject against control"
    ),
    "p": st.column_config.NumberColumn("p", format="%.2g", help="two-sided Mann-Whitney, corrected for ties"),
    "q_value": st.column_config.NumberColumn("q-value", format="%.2g", help="Benjamini-Hochberg over live latents"),
    "mass": st.column_config.NumberColumn("mass", format="%.3f", help="mean activation × ‖W_dec‖ per subject token"),
}


def choose(latent: int) -> None:
    """Show the examples of `latent`; chart and table get new keys, which clears their selections."""
    st.session_state["latent"] = latent
    st.session_state["latent_picks"] += 1


def matching(rows: tuple[LatentRow, ...], search: str, level: float) -> list[LatentRow]:
    """Return the rows matching `search`: latents by number, or those with all given flags (see FLAGS)."""
    words = search.replace(",", " ").lower().split()
    numbers = {int(word) for word in words if word.isdecimal()}
    flags = [word for word in words if not word.isdecimal()]

    def holds(row: LatentRow, flag: str) -> bool:
        has = {"selected": row.selected, "dense": row.dense, "passing": row.q_value <= level}
        return any(holding for name, holding in has.items() if name.startswith(flag))

    return [row for row in rows if (not numbers or row.latent in numbers) and all(holds(row, flag) for flag in flags)]


def table(result: LatentsResult, level: float) -> None:
    """Draw the table of latents, largest effect first; a click on a row shows its examples."""
    with ui.card("Latents, largest effect first", key="latents"):
        st.text_input(
            "Search",
            placeholder=f"latent numbers, or {', '.join(FLAGS)}",
            **mirror.mirror("latent_search", "latent-search", "value"),
        )
        rows = matching(result.rows, st.session_state["latent_search"], level)
        if not rows:
            st.caption("No live latent matches the search.")
            return
        frame = pd.DataFrame([row.model_dump() for row in rows])
        frame[["effect", "domain_rate", "control_rate"]] *= 100
        key = f"latents-table-{st.session_state['latent_picks']}"

        def take_row() -> None:
            chosen = st.session_state[key]["selection"]["rows"]
            if chosen:
                choose(rows[chosen[0]].latent)

        ui.table(
            frame,
            height=320,
            key=key,
            column_config=COLUMNS,
            column_order=(*COLUMNS, "dense", "selected"),
            on_select=take_row,
            selection_mode="single-row",
            alt=f"{len(rows)} latents with effect, rates, AUROC, p and q-value",
        )


def examples(result: LatentsResult, spec: LatentsSpec) -> None:
    """Draw the strongest documents of the chosen latent, of subject and control corpus."""
    with ui.card("Where a latent fires", key="examples"):
        with st.container(horizontal=True, vertical_alignment="bottom"):
            st.number_input(
                "Latent", 0, result.d_sae - 1, step=1, width=150, **mirror.mirror("latent", "latent-number", "value")
            )
            latent = int(st.session_state["latent"])
            if result.link:
                st.link_button(f"Neuronpedia page of latent {latent}", result.link.format(latent=latent))
        asked = LatentExamplesSpec(diagnosis=spec.diagnosis, subject=spec.subject, layer=spec.layer, latent=latent)
        view = jobs.ask("examples", asked, title=f"Examples of latent {latent}")
        watch.standing(view, "examples", "Show examples", stopped="Stopped.")
        if isinstance(view.result, LatentExamplesResult) and not view.stale:
            _strips(view.result)


def _strips(found: LatentExamplesResult) -> None:
    full = max((max(example.activations) for example in found.examples), default=1.0)
    left, right = st.columns(2)
    for column, corpus, role in ((left, found.subject, "subject"), (right, found.control, "control")):
        with column, st.container(key=f"strips-{role}"):
            st.markdown(f"**{ui.escape(pretty(corpus).capitalize())}** ({role})")
            of_corpus = [example for example in found.examples if example.corpus == corpus]
            if not of_corpus:
                st.caption("Fires in none of these documents.")
            for example in of_corpus:
                _strip(example, full)
    st.caption("Strongest documents by peak activation; tint and hover give each token's activation, bold the peak.")


def _strip(example: LatentExample, full: float) -> None:
    fires = sum(activation > 0 for activation in example.activations)
    st.caption(f"peak {max(example.activations):.2f} · fires on {fires} of {len(example.tokens)} tokens")
    st.html(strip_html(example, full))
