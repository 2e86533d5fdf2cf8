"""Dose-response curve of the likelihood check, with the current alpha marked.

Each curve is a mean paired difference of the NLL per solution token (edited minus base, nats) with its 95% ribbon;
below zero is better. Control corpora are gray; for these, above zero means harm. All curves meet in (0, 0), the base.
"""

import plotly.graph_objects as go

from stethoscope.figures.theme import FAINT, GRAY, ORANGE, apply_layout
from stethoscope.formatting import pretty, signed
from stethoscope.results import ALL_SUBJECTS, DoseResult, DoseRow

RIBBON = {ORANGE: "rgba(224, 117, 26, 0.18)", GRAY: "rgba(125, 136, 148, 0.16)"}
DASHES = ("solid", "dash", "dot", "dashdot")


def curves(result: DoseResult, *, alpha: float, subject: str = ALL_SUBJECTS) -> go.Figure:
    """Return the curve of `subject` (by default of all subjects) and of each control; `alpha` is marked."""
    figure = go.Figure()
    controls = list(dict.fromkeys(row.subject for row in result.rows if row.is_control))
    for index, name in enumerate((*controls, subject)):
        rows = [row for row in result.rows if row.subject == name]
        colour = ORANGE if name == subject else GRAY
        x = [row.alpha for row in rows]
        figure.add_trace(
            go.Scatter(
                x=[*x, *x[::-1]],
                y=[*(row.ci_high for row in rows), *(row.ci_low for row in rows[::-1])],
                mode="lines",
                fill="toself",
                fillcolor=RIBBON[colour],
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
            )
        )
        figure.add_trace(
            go.Scatter(
                x=x,
                y=[row.difference for row in rows],
                mode="lines+markers",
                line={"color": colour, "width": 2, "dash": "solid" if name == subject else DASHES[index % len(DASHES)]},
                marker={"size": 6, "symbol": "circle" if name == subject else "diamond-open"},
                name=_label(name) + (" (control)" if name != subject else ""),
                text=[describe(row) for row in rows],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    apply_layout(figure, height=320, x_title="master alpha", y_title="edited − base, nats per token")
    figure.update_xaxes(range=[min(result.alphas) - 0.04, max(result.alphas) + 0.04], gridcolor=FAINT)
    figure.add_hline(y=0, line={"color": GRAY, "width": 1})
    figure.add_vline(
        x=alpha,
        line={"color": ORANGE, "width": 1.5, "dash": "dot"},
        annotation={"text": f"alpha {alpha:g}"},
        annotation_position="bottom right",
    )
    return figure


def describe(row: DoseRow) -> str:
    """Return the hover text of one point: alpha, difference, interval and n."""
    return "<br>".join(
        (
            f"<b>{_label(row.subject)}</b> at alpha {row.alpha:g}",
            f"edited − base {signed(row.difference, 4)} nats per token",
            f"95% CI [{signed(row.ci_low, 4)}, {signed(row.ci_high, 4)}]",
            f"n = {row.n} items, teacher-forced",
        )
    )


def caption(result: DoseResult, subject: str = ALL_SUBJECTS) -> str:
    """Return the caption: n, the best alpha by the mean, and that it is based on dev items."""
    rows = [row for row in result.rows if row.subject == subject]
    controls = [row for row in result.rows if row.is_control]
    best = min(rows, key=lambda row: row.difference)
    known = len({row.alpha for row in rows})
    so_far = "" if known == len(result.alphas) else f"So far {known} of {len(result.alphas)} alphas. "
    n = f"n = {best.n} dev items" + (f", {controls[0].n} of each control" if controls else "")
    return (
        f"{so_far}{n}, the same at every alpha. Below zero is better. Ribbons: paired 95% t-intervals, for each "
        f"alpha separately. Lowest mean of {_label(subject)} at alpha {best.alpha:g}: {signed(best.difference)} nats "
        "per token. Choose alpha here, on dev items, and evaluate it on the test split."
    )


def _label(subject: str) -> str:
    return "all subjects" if subject == ALL_SUBJECTS else pretty(subject)
