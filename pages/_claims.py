"""What may be claimed: the verdict in words to copy, and the choice of layers against equal-size random draws."""

import streamlit as st

from pages import _ui
from stethoscope.figures import predictions
from stethoscope.results import BenchResult


def draw(result: BenchResult) -> None:
    """Draw the claims about layers of every arm that has controls."""
    for index, arm in enumerate(dict.fromkeys(claim.arm for claim in result.layer_claims)):
        rows = [claim for claim in result.layer_claims if claim.arm == arm]
        with _ui.card(f"Is it these layers? {_ui.escape(arm)} against other layers", key=f"claims-{index}-card"):
            figure = predictions.against_controls(rows, result.spec.margin)
            note = predictions.caption(rows, result.spec.margin)
            _ui.chart(figure, key=f"claims-{index}", caption=note, rows=rows)
            if not any(row.control == "random" for row in rows):
                st.caption("A claim about the choice of layers needs at least two random draws among the arms.")
