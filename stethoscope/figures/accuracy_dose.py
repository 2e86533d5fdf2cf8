"""Accuracy at every master alpha of one recipe: a dose-response curve of answers rather than likelihood.

A point is an arm's accuracy. Its whisker is the 95% interval of the *paired difference* to the base (Newcombe for a
subject, bootstrap for the mean over subjects), drawn at the base's accuracy on the same problems: a whisker that does
not include the base's level shows a difference. Alpha 0 is the base and has no whisker.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from stethoscope.figures.theme import BLUE, FAINT, GRAY, ORANGE, apply_layout
from stethoscope.formatting import percent, pretty, signed
from stethoscope.results import ALL_SUBJECTS, BenchResult

FADED = 0.45
DASHES = ("dash", "dot", "dashdot")


class DosePoint(NamedTuple):
    """Accuracy at one alpha, the base's on the same problems, and the interval of their paired difference."""

    alpha: float
    n: int
    accuracy: float
    base: float
    ci_low: float | None
    ci_high: float | None


def points(result: BenchResult, alphas: Mapping[str, float], subject: str = ALL_SUBJECTS) -> list[DosePoint]:
    """Return the points of `subject` (by default the mean over subjects) by alpha.

    Args:
        alphas: master alpha of each arm in the sweep; 0 for the reference.
    """
    found = []
    if subject == ALL_SUBJECTS:
        macro = [row for row in result.totals if row.kind == "macro" and row.arm in alphas]
        for row in macro:
            found.append(
                DosePoint(alphas[row.arm], row.n, row.accuracy, row.reference_accuracy, row.ci_low, row.ci_high)
            )
        if macro:
            found.append(
                DosePoint(0.0, macro[0].n, macro[0].reference_accuracy, macro[0].reference_accuracy, None, None)
            )
        return sorted(found)
    for row in result.comparisons:
        if row.subject == subject and row.arm in alphas:
            n = row.n11 + row.n10 + row.n01 + row.n00
            base = (row.n11 + row.n01) / n
            found.append(DosePoint(alphas[row.arm], n, base + row.difference, base, row.ci_low, row.ci_high))
    if found:
        found.append(DosePoint(0.0, found[0].n, found[0].base, found[0].base, None, None))
    return sorted(found)


def curves(
    result: BenchResult, alphas: Mapping[str, float], *, subject: str = ALL_SUBJECTS, controls: Sequence[str] = ()
) -> go.Figure:
    """Return the curve of `subject` in orange with its intervals, each of `controls` in gray, and the base's level."""
    figure = go.Figure()
    shade = 1.0 if result.complete else FADED
    for index, name in enumerate((*controls, subject)):
        drawn = points(result, alphas, name)
        main = name == subject
        colour = ORANGE if main else GRAY
        whiskers = {
            "type": "data",
            "symmetric": False,
            "array": [0 if p.ci_high is None else 100 * (p.base + p.ci_high - p.accuracy) for p in drawn],
            "arrayminus": [0 if p.ci_low is None else 100 * (p.accuracy - p.base - p.ci_low) for p in drawn],
            "color": colour,
            "thickness": 1.6,
            "width": 4,
        }
        figure.add_trace(
            go.Scatter(
                x=[p.alpha for p in drawn],
                y=[100 * p.accuracy for p in drawn],
                error_y=whiskers if main else None,
                mode="lines+markers",
                opacity=shade,
                line={"color": colour, "width": 2, "dash": "solid" if main else DASHES[index % len(DASHES)]},
                marker={"size": 8 if main else 6, "symbol": "circle" if main else "diamond-open"},
                name=_label(name) + ("" if main else " (control)"),
                text=[describe(p, name) for p in drawn],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    apply_layout(figure, height=320, x_title="master alpha", y_title="accuracy (exact match), %")
    figure.update_layout(showlegend=True)
    known = points(result, alphas, subject)
    if known:
        figure.add_hline(
            y=100 * known[0].base,
            line={"color": BLUE, "width": 1.5, "dash": "dot"},
            annotation={"text": f"base {percent(known[0].base)}", "font": {"color": BLUE}},
            annotation_position="bottom right",
        )
        figure.update_xaxes(range=[-0.05, max(p.alpha for p in known) + 0.05], gridcolor=FAINT)
    return figure


def describe(point: DosePoint, subject: str) -> str:
    """Return the hover text of one point: alpha, accuracy, difference from the base with its interval, and n."""
    head = f"<b>{_label(subject)}</b> at alpha {point.alpha:g}" + (" (the base)" if point.ci_low is None else "")
    lines = [head, f"exact match {percent(point.accuracy)}"]
    if point.ci_low is not None and point.ci_high is not None:
        low, high = signed(100 * point.ci_low, 1), signed(100 * point.ci_high, 1)
        difference = signed(100 * (point.accuracy - point.base), 1)
        lines.append(f"{difference} points from the base, 95% CI [{low}, {high}] (paired)")
    return "<br>".join((*lines, f"n = {point.n} problems"))


def caption(result: BenchResult, alphas: Mapping[str, float], split: str, subject: str = ALL_SUBJECTS) -> str:
    """Return the caption: n, the meaning of whiskers, the highest point, and how to use it."""
    drawn = points(result, alphas, subject)
    if not drawn:
        return "No results yet: the first block is not finished."
    best = max(drawn, key=lambda p: p.accuracy)
    advice = (
        "Choose alpha here, on dev problems, and evaluate it on the test split."
        if split == "dev"
        else f"These are {split} problems; do not evaluate an alpha on the problems it was chosen on."
    )
    partial = "" if result.complete else "Partial: finished blocks only. "
    return (
        f"{partial}n = {drawn[0].n} {split} problems, the same at every alpha. Whiskers: 95% interval of the paired "
        f"difference from the base, drawn at the base's accuracy, for each alpha separately. Highest accuracy of "
        f"{_label(subject)} at alpha {best.alpha:g}: {percent(best.accuracy)}, base {percent(best.base)}. {advice}"
    )


def _label(subject: str) -> str:
    return "all subjects (macro)" if subject == ALL_SUBJECTS else pretty(subject)
