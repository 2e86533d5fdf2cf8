"""E-values of a running benchmark, which stay valid after every block.

e = 2^(g+l) Beta(g + 1/2, l + 1/2) / Beta(1/2, 1/2) over g problems gained and l lost. At any time, P(e >= 20) is at
most 1/20 if there is no difference. One dot per arm and subject, on a logarithmic axis.
"""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from stethoscope.figures.theme import FAINT, GRAY, ORANGE, apply_layout, row_axis
from stethoscope.formatting import pretty
from stethoscope.judging.verdicts import sizes_text
from stethoscope.results import BenchResult, ComparisonRow

EVIDENCE = 20.0
LEAST, MOST = 0.05, 1e6  # ends of the axis; values beyond are drawn at the ends
FADED = "rgba(125, 136, 148, 0.55)"


def e_values(result: BenchResult, arms: Sequence[str]) -> go.Figure:
    """Return the figure: `arms` from top to bottom, with evidence right of the line at 20."""
    rank = {arm: index for index, arm in enumerate(arms)}
    rows = [row for row in result.comparisons if row.arm in rank]
    figure = go.Figure(
        go.Scatter(
            x=[min(max(row.e_value, LEAST), MOST) for row in rows],
            y=[rank[row.arm] for row in rows],
            mode="markers",
            marker={
                "size": 9,
                "symbol": ["diamond" if row.e_value >= EVIDENCE else "circle" for row in rows],
                "color": [ORANGE if row.e_value >= EVIDENCE else FADED for row in rows],
            },
            text=[describe(row) for row in rows],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    apply_layout(figure, height=24 * len(rank) + 70, x_title="e-value · evidence from 20 on →")
    shown = [LEAST * 2, 2 * EVIDENCE, *(min(max(row.e_value, LEAST), MOST) for row in rows)]
    figure.update_xaxes(
        type="log",
        range=[math.log10(min(shown)) - 0.1, math.log10(max(shown)) + 0.1],
        tickvals=[0.1, 1, 20, 1000, 1e6],
        ticktext=["0.1", "1", "20", "1000", "10⁶"],
        gridcolor=FAINT,
    )
    row_axis(figure, list(arms))
    figure.add_vline(x=EVIDENCE, line={"color": GRAY, "width": 1.5, "dash": "dash"})
    return figure


def describe(row: ComparisonRow) -> str:
    """Return the hover text of one dot: the direction of the evidence, and the number of problems."""
    side = "gains" if row.n10 > row.n01 else "losses" if row.n10 < row.n01 else "neither side"
    return (
        f"<b>{row.arm} − {row.reference} · {pretty(row.subject)}</b><br>e = {row.e_value:.3g}, for {side}<br>"
        f"gained {row.n10}, lost {row.n01} of n = {row.n11 + row.n10 + row.n01 + row.n00}"
    )


def caption(result: BenchResult) -> str:
    """Return the caption: what can be concluded while the run continues, and what cannot."""
    shown = [row for row in result.comparisons if row.e_value >= EVIDENCE]
    names = ", ".join(
        f"{row.arm} · {pretty(row.subject)} ({'better' if row.n10 > row.n01 else 'worse'})" for row in shown
    )
    n = sizes_text(row.n for row in result.arms)
    return (
        "E-values stay valid at every look: without a real difference, the chance of ever reaching 20 is at most 5% "
        f"(for each subject separately, not corrected over subjects). n = {n} per subject so far. "
        f"{names + '.' if names else 'No e-value has reached 20 yet.'}"
    )
