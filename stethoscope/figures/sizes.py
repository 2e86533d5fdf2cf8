"""Size of the task vector relative to the weights by layer and matrix, and the effect of rounding.

The relative norm is the baseline for all specificity scores.
"""

from collections.abc import Collection

import plotly.graph_objects as go

from stethoscope.figures.theme import BLUE, FAINT, GRAY, ORANGE, apply_layout, layer_axis, row_axis
from stethoscope.formatting import percent
from stethoscope.recipes.files import shown_layers
from stethoscope.results import PreflightResult, TaskVectorRow

SHADES = [(0.0, "rgba(64, 160, 200, 0.03)"), (0.55, "rgba(64, 160, 200, 0.55)"), (1.0, "rgba(20, 112, 196, 1)")]


def relative_norms(row: TaskVectorRow, picked: Collection[int] = ()) -> go.Figure:
    """Return bars of ||tau_l|| / ||theta_l|| in percent by layer, picked layers in the colour of the edit.

    A dash marks layers that the task vector does not change.
    """
    norms = row.relative_norm_by_layer
    figure = go.Figure(
        go.Bar(
            x=list(range(len(norms))),
            y=[100 * norm if norm else None for norm in norms],
            width=0.62,
            marker={"color": [ORANGE if layer in picked else BLUE for layer in range(len(norms))]},
            hovertemplate="layer %{x}: %{y:.3f}%<br><i>‖τₗ‖ / ‖θₗ‖ over the edited matrices</i><extra></extra>",
        )
    )
    for layer in (layer for layer, norm in enumerate(norms) if not norm):
        figure.add_annotation(x=layer, y=0, text="–", yanchor="bottom", showarrow=False, font={"color": GRAY})
    apply_layout(figure, height=250, x_title="layer", y_title="‖τ‖ / ‖θ‖, %")
    layer_axis(figure, len(norms))
    figure.update_yaxes(rangemode="tozero")
    return figure


def caption(row: TaskVectorRow, picked: Collection[int] = ()) -> str:
    """Return the caption of the bars: definition, changed layers, range and colours."""
    norms = row.relative_norm_by_layer
    moved = {layer: norm for layer, norm in enumerate(norms) if norm}
    which = f"n = {len(norms)} layers" if len(moved) == len(norms) else f"none of {len(norms)} layers changes"
    if 0 < len(moved) < len(norms):
        which = f"{len(moved)} of {len(norms)} layers change ({shown_layers(moved)})"
    spread = f", {percent(min(moved.values()), 2)} to {percent(max(moved.values()), 2)}" if moved else ""
    colours = " Orange: the picked layers." if picked else ""
    return f"Task vector {row.name}: norm relative to the base weights, {which}{spread}.{colours}"


def matrix_norms(result: PreflightResult) -> go.Figure:
    """Return the layers x matrices heatmap of ||tau|| / ||theta|| in percent; with a dash for unchanged matrices."""
    names = list(dict.fromkeys(row.part for row in result.matrices))
    n_layers = len(result.layers)
    z: list[list[float | None]] = [[None] * n_layers for _ in names]
    still: list[tuple[int, int]] = []
    for row in result.matrices:
        assert row.layer is not None
        if row.moves and row.relative_norm is not None:
            z[names.index(row.part)][row.layer] = 100 * row.relative_norm
        else:
            still.append((row.layer, names.index(row.part)))
    figure = go.Figure(
        go.Heatmap(
            x=list(range(n_layers)),
            y=list(range(len(names))),
            z=z,
            zmin=0,
            zmax=max((value for values in z for value in values if value is not None), default=1.0) or 1.0,
            customdata=[[name] * n_layers for name in names],
            colorscale=SHADES,
            xgap=2,
            ygap=2,
            colorbar={"thickness": 8, "outlinewidth": 0, "tickfont": {"color": GRAY, "size": 11}, "ticksuffix": "%"},
            hovertemplate="layer %{x}, %{customdata}: %{z:.3f}%<br><i>‖τ‖ / ‖θ‖ of the matrix</i><extra></extra>",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=[layer for layer, _ in still],
            y=[row for _, row in still],
            mode="text",
            text=["–"] * len(still),
            textfont={"color": GRAY},
            hovertemplate="layer %{x}: unchanged<extra></extra>",
        )
    )
    apply_layout(figure, height=34 * len(names) + 62, x_title="layer")
    figure.update_layout(showlegend=False)
    layer_axis(figure, n_layers)
    row_axis(figure, names)
    return figure


def matrix_caption(result: PreflightResult) -> str:
    """Return the caption of the heatmap."""
    moved = sum(row.moves for row in result.matrices)
    return (
        f"Task vector {result.task_vector}: norm of each matrix relative to the base; {moved} of "
        f"{len(result.matrices)} matrices change (dash: unchanged)."
    )


def realised(result: PreflightResult) -> go.Figure:
    """Return, by layer, cosine and norm ratio of the realised delta round(theta + tau) - theta to tau.

    Unchanged layers have neither, so the lines have gaps there.
    """
    layers = result.layers
    x = [row.layer for row in layers]
    figure = go.Figure()
    for name, colour, symbol, values in (
        ("cosine", BLUE, "circle", [row.realised_cosine for row in layers]),
        ("norm ratio", ORANGE, "diamond", [row.realised_norm_ratio for row in layers]),
    ):
        figure.add_trace(
            go.Scatter(
                x=x,
                y=values,
                name=name,
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"size": 8, "symbol": symbol},
                hovertemplate=f"layer %{{x}}: {name} %{{y:.4f}}<br>"
                "<i>of round(θ + τ) − θ and τ, in the model's dtype</i><extra></extra>",
            )
        )
    figure.add_hline(y=1, line={"color": FAINT, "width": 1})
    apply_layout(figure, height=250, x_title="layer")
    layer_axis(figure, len(layers))
    return figure


def realised_caption(result: PreflightResult) -> str:
    """Return the caption: how well the model's dtype represents the delta."""
    cosines = [row.realised_cosine for row in result.layers if row.realised_cosine is not None]
    if not cosines:
        return "No layer changes."
    return (
        f"Rounding of the task vector to {result.dtype}, n = {len(cosines)} layers: cosine of the realised and "
        f"intended delta {min(cosines):.4f} to {max(cosines):.4f}."
    )
