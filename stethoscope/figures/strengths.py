"""Effective alpha of attention and MLP in each layer of a recipe."""

import plotly.graph_objects as go

from stethoscope.figures.theme import BLUE, GRAY, ORANGE, apply_layout
from stethoscope.records import EditRecipe


def effective(recipe: EditRecipe, n_layers: int) -> go.Figure:
    """Return bars of master alpha times each layer's own strength; the dotted line is the full task vector."""
    figure = go.Figure()
    layers = range(n_layers)
    for name, colour, values in (
        ("attention", BLUE, [recipe.alpha(layer, "attention") for layer in layers]),
        ("MLP", ORANGE, [recipe.alpha(layer, "mlp") for layer in layers]),
    ):
        figure.add_trace(
            go.Bar(
                x=list(layers),
                y=values,
                name=name,
                marker={"color": colour},
                hovertemplate=f"layer %{{x}} {name}: %{{y:.3g}}<extra></extra>",
            )
        )
    apply_layout(figure, height=170, x_title="layer", y_title="effective alpha")
    figure.update_layout(showlegend=True, bargap=0.35, bargroupgap=0.05)
    every = max(1, n_layers // 17)
    figure.update_xaxes(
        tickmode="array", tickvals=list(range(0, n_layers, every)), range=[-0.5, n_layers - 0.5], showgrid=False
    )
    figure.update_yaxes(rangemode="tozero")
    figure.add_hline(y=1, line={"color": GRAY, "width": 1, "dash": "dot"})
    return figure


def caption(recipe: EditRecipe) -> str:
    """Return the caption of the bars."""
    return (
        f"Effective alpha = master alpha ({recipe.master_alpha:g}) × each layer’s own strength, in "
        f"{len(recipe.layers)} layer{'s' if len(recipe.layers) > 1 else ''}; 0 is the base, "
        "the dotted line the full task vector."
    )
