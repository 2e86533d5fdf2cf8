"""How large the task vector is against the weights, layer by layer: the baseline beside every specificity score."""

from collections.abc import Collection

import plotly.graph_objects as go

from stethoscope.figures.theme import BLUE, ORANGE, apply_layout, percent
from stethoscope.results import TaskVectorRow


def relative_norms(row: TaskVectorRow, picked: Collection[int] = ()) -> go.Figure:
    """Return bars of ||tau_l|| / ||theta_l|| in percent by layer; picked layers in the colour of the edit."""
    norms = row.relative_norm_by_layer
    figure = go.Figure(
        go.Bar(
            x=list(range(len(norms))),
            y=[100 * norm for norm in norms],
            width=0.62,
            marker={"color": [ORANGE if layer in picked else BLUE for layer in range(len(norms))]},
            hovertemplate="layer %{x}: %{y:.3f}%<br><i>‖τₗ‖ / ‖θₗ‖ over the edited matrices</i><extra></extra>",
        )
    )
    apply_layout(figure, height=250, x_title="layer", y_title="‖τ‖ / ‖θ‖, %")
    figure.update_xaxes(tickmode="array", tickvals=list(range(len(norms))), showgrid=False)
    figure.update_yaxes(rangemode="tozero")
    return figure


def caption(row: TaskVectorRow) -> str:
    """Return what stands under the bars: the definition, n layers, and the range."""
    norms = row.relative_norm_by_layer
    spread = f"{percent(min(norms), 2)} to {percent(max(norms), 2)}" if norms else "no layers"
    return f"Task vector {row.name}: norm relative to the base weights, n = {len(norms)} layers, {spread}."
