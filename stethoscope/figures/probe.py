"""Likelihood check: change in likelihood of gold solutions under the edit, by subject.

Each row is the mean paired difference of the NLL per solution token (edited minus base, nats) with its 95% interval;
left of zero is better. Control corpora are hollow and gray; for these, right of zero means harm.
"""

import plotly.graph_objects as go

from stethoscope.figures.theme import FAINT, GRAY, ORANGE, apply_layout, two_lines
from stethoscope.formatting import pretty, signed
from stethoscope.results import ProbeResult, ProbeRow


def describe_probe(row: ProbeRow) -> str:
    """Return the hover text of `row`: both NLLs, their paired difference with interval, and n."""
    return "<br>".join(
        (
            f"<b>{pretty(row.subject)}</b>{' (control)' if row.is_control else ''}",
            f"edited − base {signed(row.difference, 4)} nats per token",
            f"95% CI [{signed(row.ci_low, 4)}, {signed(row.ci_high, 4)}]",
            f"base {row.base_nll:.4f}, edited {row.edited_nll:.4f} · n = {row.n} items",
            "<i>mean over items of the NLL per solution token, teacher-forced</i>",
        )
    )


def differences(result: ProbeResult) -> go.Figure:
    """Return one dot with interval per subject and control corpus; x is nats per token, zero is no change."""
    labels = [two_lines(row.subject) for row in result.rows]
    figure = go.Figure()
    for is_control, colour, name in ((False, ORANGE, "subjects"), (True, GRAY, "control")):
        rows = [row for row in result.rows if row.is_control == is_control]
        figure.add_trace(
            go.Scatter(
                x=[row.difference for row in rows],
                y=[two_lines(row.subject) for row in rows],
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [row.ci_high - row.difference for row in rows],
                    "arrayminus": [row.difference - row.ci_low for row in rows],
                    "color": colour,
                    "thickness": 1.6,
                    "width": 5,
                },
                mode="markers",
                marker={"size": 9, "color": colour, "symbol": "diamond-open" if is_control else "circle"},
                name=name,
                text=[describe_probe(row) for row in rows],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    apply_layout(figure, height=38 * len(labels) + 92, x_title="← better · edited − base, nats per token")
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], gridcolor=FAINT)
    figure.add_vline(x=0, line={"color": GRAY, "width": 1})
    return figure


def caption(result: ProbeResult) -> str:
    """Return the caption: the mean change on subjects and controls, n, and the definition."""
    subjects = [row.difference for row in result.rows if not row.is_control]
    controls = [row.difference for row in result.rows if row.is_control]
    means = [f"subjects {signed(sum(subjects) / len(subjects))}"] if subjects else []
    means += [f"control {signed(sum(controls) / len(controls))}"] if controls else []
    n = max((row.n for row in result.rows), default=0)
    return (
        f"Mean difference: {', '.join(means)} nats per token. n = {n} dev items per row, the same for every edit; "
        "paired 95% t-intervals. Left of zero: gold solutions became more likely. "
        f"Computed in {result.elapsed_s:.1f} s."
    )
