"""Paired differences between a choice of layers and its controls, one row per control."""

from collections.abc import Sequence

import plotly.graph_objects as go

from stethoscope.figures.once import once
from stethoscope.figures.theme import BLUE, GRAY, apply_layout, row_axis
from stethoscope.formatting import shown_p, signed
from stethoscope.judging.verdicts import shown_verdict
from stethoscope.results import LayerClaim

CONTROL_NAMES = {"random": "random layers", "bottom": "bottom layers", "last": "last layers", "all": "all layers"}


def describe(row: LayerClaim) -> str:
    """Return the comparison with one control as text."""
    what = f"the mean of {row.draws} random draws" if row.control == "random" else CONTROL_NAMES[row.control]
    return (
        f"{signed(100 * row.difference, 1)} points compared with {what}, 95% CI [{signed(100 * row.ci_low, 1)}, "
        f"{signed(100 * row.ci_high, 1)}], Holm p {shown_p(row.p_holm)}, n = {row.n}: {shown_verdict(row)}"
    )


@once
def against_controls(rows: Sequence[LayerClaim], margin: float) -> go.Figure:
    """Return the arm minus each control in points, right of zero is better; `margin` is a fraction."""
    figure = go.Figure(
        go.Scatter(
            x=[100 * row.difference for row in rows],
            y=list(range(len(rows))),
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * (row.ci_high - row.difference) for row in rows],
                "arrayminus": [100 * (row.difference - row.ci_low) for row in rows],
                "color": BLUE,
                "thickness": 1.6,
                "width": 4,
            },
            mode="markers",
            marker={"size": 9, "color": BLUE},
            text=[describe(row) for row in rows],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    )
    apply_layout(figure, height=34 * len(rows) + 74, x_title="these layers − the control’s, points")
    names = [CONTROL_NAMES[row.control] for row in rows]
    row_axis(figure, names)
    figure.add_vline(x=0, line={"color": GRAY, "width": 1})
    figure.add_vline(x=-100 * margin, line={"color": GRAY, "width": 1, "dash": "dash"})
    return figure


def caption(rows: Sequence[LayerClaim], margin: float) -> str:
    """Return the caption: all comparisons as text, and the type of intervals."""
    said = ". ".join(describe(row) for row in rows)
    return (
        f"{said}. Macro over subjects, the same problems in every arm; Student 95% intervals over problems (and "
        f"over draws for random layers); Holm correction over the controls. Dashed: the margin of {100 * margin:g} "
        "points."
    )
