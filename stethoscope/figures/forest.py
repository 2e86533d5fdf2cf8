"""Benchmarks: one dot per arm and subject, the paired difference to the reference with Newcombe's interval.

Differences are drawn in percentage points, right of zero is better than the reference; the dashed line is the
non-inferiority margin. Two accuracy bars side by side are never drawn: overlap of their intervals is not the test.
"""

from collections.abc import Sequence

import plotly.graph_objects as go

from stethoscope.figures.theme import (
    FAINT,
    GRAY,
    apply_layout,
    pretty,
    row_axis,
    series_colour,
    shown_p,
    signed,
    two_lines,
)
from stethoscope.results import BenchResult, ComparisonRow

SMOKE_TEST_BELOW = 100


def describe_comparison(row: ComparisonRow) -> str:
    """Return the hover text of `row`: difference, interval, the 2x2 table, tests and verdict."""
    n = row.n11 + row.n10 + row.n01 + row.n00
    return "<br>".join(
        (
            f"<b>{row.arm} − {row.reference} · {pretty(row.subject)}</b>",
            f"{signed(100 * row.difference, 1)} points, "
            f"95% CI [{signed(100 * row.ci_low, 1)}, {signed(100 * row.ci_high, 1)}] (Newcombe, paired)",
            f"gained {row.n10}, lost {row.n01}, both right {row.n11}, both wrong {row.n00} · n = {n}",
            f"exact McNemar p {shown_p(row.mcnemar_p)}, Holm p {shown_p(row.holm_p)}",
            f"<b>{row.verdict or 'no verdict'}</b>",
        )
    )


def paired_differences(result: BenchResult, subjects: Sequence[str], margin: float) -> go.Figure:
    """Return the forest plot: `subjects` from top to bottom, within each one row an arm; `margin` is a fraction."""
    arms = list(dict.fromkeys(row.arm for row in result.comparisons))
    step = 0.72 / max(len(arms), 1)
    rank = {subject: index for index, subject in enumerate(subjects)}
    figure = go.Figure()
    for index, arm in enumerate(arms):
        rows = [row for row in result.comparisons if row.arm == arm and row.subject in rank]
        colour = series_colour(index + 1)  # blue is the base, which is the zero line here
        figure.add_trace(
            go.Scatter(
                x=[100 * row.difference for row in rows],
                y=[rank[row.subject] + (index - (len(arms) - 1) / 2) * step for row in rows],
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [100 * (row.ci_high - row.difference) for row in rows],
                    "arrayminus": [100 * (row.difference - row.ci_low) for row in rows],
                    "color": colour,
                    "thickness": 1.6,
                    "width": 4,
                },
                mode="markers",
                marker={"size": 8, "color": colour},
                name=arm,
                text=[describe_comparison(row) for row in rows],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    height = max(34, 20 * len(arms)) * len(rank) + 110
    apply_layout(figure, height=height, x_title="arm − reference, points · better →")
    figure.update_layout(showlegend=True)
    row_axis(figure, [two_lines(subject) for subject in rank])
    for boundary in range(1, len(rank)):
        figure.add_hline(y=boundary - 0.5, line={"color": FAINT, "width": 1})
    figure.add_vline(x=0, line={"color": GRAY, "width": 1})
    figure.add_vline(x=-100 * margin, line={"color": GRAY, "width": 1, "dash": "dash"})
    return figure


def caption(result: BenchResult, margin: float) -> str:
    """Return what stands under the picture: n, the reference, the intervals, the margin and what is missing."""
    ns = sorted({row.n for row in result.arms})
    n = "no" if not ns else str(ns[0]) if len(ns) == 1 else f"{ns[0]} to {ns[-1]}"
    reference = next((row.reference for row in result.comparisons), "base")
    parts = [
        f"Paired differences to {reference}, n = {n} problems per subject, the same in every arm; Newcombe 95% "
        f"intervals; exact McNemar with Holm over subjects. Dashed: the margin of {100 * margin:g} points."
    ]
    if ns and ns[0] < SMOKE_TEST_BELOW:
        parts.append(f"Smoke test: below n = {SMOKE_TEST_BELOW} per subject most true gains stay unseen.")
    if not result.complete:
        parts.append("Stopped early: finished blocks only.")
    return " ".join(parts)
