"""Forest plot of a benchmark: one panel per subject and one row per arm, with paired differences from the reference.

Differences are in percentage points; right of zero is better than the reference. The shaded band is the non-inferiority
margin. Separate accuracy bars are not drawn, because overlap of their intervals is not the test. Subjects have Newcombe
intervals and a filled marker if Holm's p is below .05. The first panel shows the totals with bootstrap intervals.
"""

from collections.abc import Sequence
from typing import Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from stethoscope.figures.once import once
from stethoscope.figures.theme import BAND, BLUE, FAINT, GRAY, ORANGE, SERIES, apply_layout, row_axis
from stethoscope.formatting import pretty, shown_p, signed
from stethoscope.judging.arms import Group, group_of, swept_alphas
from stethoscope.judging.verdicts import SMOKE_TEST, SMOKE_TEST_BELOW, pairs_text, shown_verdict, sizes_text
from stethoscope.records import BenchArm
from stethoscope.results import BenchResult, ComparisonRow, TotalRow

CANNOT = "x-thin-open"  # not an open circle: it could not be significant
SIGNIFICANT = 0.05  # strictly below, as in a verdict
TOTALS = "all subjects"
FADED = 0.45
RECIPES = (ORANGE, *SERIES[5:9], SERIES[3])
CONTROLS: dict[Group, str] = {"base": BLUE, "other layers": GRAY, "filtered": SERIES[4], "fine-tune": SERIES[2]}
CONTROL_WORDS: dict[Group, str] = {
    "other layers": "gray: other layers",
    "filtered": "violet: part of the edit",
    "fine-tune": "green: full fine-tune",
}
ROW, PANEL_TITLE = 22, 56  # pixels
Order = Literal["as planned", "by difference"]


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
            *([f"only {pairs_text(row)}"] if row.cannot_be_significant else []),
            f"<b>{shown_verdict(row)}</b>",
        )
    )


def describe_total(row: TotalRow) -> str:
    """Return the hover text of a total: type of mean, difference, interval and n."""
    over = {"macro": "mean over subjects (macro)", "micro": "mean over problems (micro)"}[row.kind]
    return "<br>".join(
        (
            f"<b>{row.arm} − {row.reference} · {over}</b>",
            f"{signed(100 * row.difference, 1)} points, "
            f"95% CI [{signed(100 * row.ci_low, 1)}, {signed(100 * row.ci_high, 1)}] (stratified paired bootstrap)",
            f"n = {row.n}",
        )
    )


def arms_in_order(result: BenchResult, order: Order = "as planned") -> tuple[str, ...]:
    """Return the compared arms, as planned or with the largest macro difference first."""
    planned = tuple(dict.fromkeys(row.arm for row in result.comparisons))
    macro = {row.arm: row.difference for row in result.totals if row.kind == "macro"}
    if order == "as planned" or not macro:
        return planned
    return tuple(sorted(planned, key=lambda arm: -macro.get(arm, 0.0)))


@once
def paired_differences(
    result: BenchResult,
    subjects: Sequence[str],
    margin: float,
    *,
    arms: Sequence[str] | None = None,
    columns: int = 1,
) -> go.Figure:
    """Return the forest plot: one panel for the totals and one per subject, in `columns` columns, with one row per arm.

    Args:
        subjects: order of the panels; subjects without a comparison have none.
        margin: non-inferiority margin, a fraction.
        arms: the rows from top to bottom (all compared arms by default).
    """
    arms = arms_in_order(result) if arms is None else arms
    compared = {row.subject for row in result.comparisons}
    panels = [TOTALS] if result.totals else []
    panels += [subject for subject in subjects if subject in compared]
    columns = max(1, min(columns, len(panels)))
    lines = max(1, -(-len(panels) // columns))
    height = lines * (ROW * len(arms) + PANEL_TITLE)
    figure = make_subplots(
        rows=lines,
        cols=columns,
        shared_yaxes=True,
        horizontal_spacing=0.02,
        vertical_spacing=min(0.9 / max(lines - 1, 1), PANEL_TITLE / height) if lines > 1 else 0,
        subplot_titles=[f"<b>{pretty(panel)}</b>" for panel in panels],
        specs=[
            [{} if row * columns + column < len(panels) else None for column in range(columns)] for row in range(lines)
        ],
    )
    apply_layout(figure, height=height + 20)
    figure.update_layout(showlegend=False)
    figure.update_annotations(font={"size": 12, "color": GRAY})
    row_axis(figure, list(arms))
    figure.update_xaxes(matches="x", gridcolor=FAINT, ticksuffix="")
    figure.layout[
        "xaxis"
    ].matches = None  # the first axis cannot match itself (the browser's console would show a warning)
    shade = 1.0 if result.complete else FADED
    for index, panel in enumerate(panels):
        x, y = f"x{index + 1 if index else ''}", f"y{index + 1 if index else ''}"
        place = {"xref": x, "yref": f"{y} domain", "y0": 0, "y1": 1}
        figure.add_shape(type="rect", x0=-100 * margin, x1=0, fillcolor=BAND, line_width=0, layer="below", **place)
        figure.add_shape(type="line", x0=0, x1=0, line={"color": GRAY, "width": 1}, **place)
        traces = _totals(result, arms, shade) if panel == TOTALS else _subject(result, panel, arms, shade)
        figure.add_traces([trace.update(xaxis=x, yaxis=y) for trace in traces])
    for column in range(min(columns, len(panels))):
        lowest = max(index for index in range(len(panels)) if index % columns == column)
        title = {"text": "arm − reference, points", "font": {"color": GRAY, "size": 12}}
        figure.layout[f"xaxis{lowest + 1 if lowest else ''}"].title = title
    return figure


def _subject(result: BenchResult, subject: str, arms: Sequence[str], shade: float) -> list[go.Scatter]:
    rank = {arm: index for index, arm in enumerate(arms)}
    rows = [row for row in result.comparisons if row.subject == subject and row.arm in rank]
    marks = [
        "circle" if row.holm_p < SIGNIFICANT else CANNOT if row.cannot_be_significant else "circle-open" for row in rows
    ]
    text = [describe_comparison(row) for row in rows]
    return _by_colour(rows, colours(result.spec.arms), rank, marks, text, shade)


def _totals(result: BenchResult, arms: Sequence[str], shade: float) -> list[go.Scatter]:
    traces: list[go.Scatter] = []
    for kind, mark, shift in (("macro", "diamond", -0.14), ("micro", "diamond-open", 0.2)):
        rank = {arm: index + shift for index, arm in enumerate(arms)}
        rows = [row for row in result.totals if row.kind == kind and row.arm in rank]
        text = [describe_total(row) for row in rows]
        traces += _by_colour(rows, colours(result.spec.arms), rank, [mark] * len(rows), text, shade)
    return traces


def colours(chosen: Sequence[BenchArm]) -> dict[str, str]:
    """Return the colour of each arm: recipes have different colours, orange first; controls are coloured by role.

    Different strengths of one recipe count as one recipe and are orange.
    """
    sweep = swept_alphas(chosen)
    found, own = {}, 0
    for arm in chosen:
        group = group_of(arm)
        found[arm.name] = CONTROLS[group] if group in CONTROLS else RECIPES[own % len(RECIPES)]
        own += group == "recipe" and arm != chosen[0] and not sweep
    return found


def _legend(result: BenchResult) -> str:
    """Return a text legend of the colours of the compared arms."""
    compared = {row.arm for row in result.comparisons}
    groups = {group_of(arm) for arm in result.spec.arms if arm.name in compared}
    own = [arm for arm in result.spec.arms if arm.name in compared and group_of(arm) == "recipe"]
    several = len(own) > 1 and not swept_alphas(result.spec.arms)
    said = ["each recipe has its own colour" if several else "orange: the recipe"] if own else []
    said += [words for group, words in CONTROL_WORDS.items() if group in groups]
    return f" {'; '.join(said).capitalize()}." if len(groups) > 1 or several else ""


def _by_colour(
    rows: Sequence[ComparisonRow] | Sequence[TotalRow],
    colour_of: dict[str, str],
    rank: dict[str, float] | dict[str, int],
    marks: Sequence[str],
    text: Sequence[str],
    shade: float,
) -> list[go.Scatter]:
    """Return one trace per colour (error bars have a single colour), with recipes on top of controls."""
    traces = []
    drawn = {colour_of[row.arm] for row in rows}
    for colour in sorted(drawn, key=lambda colour: (colour in RECIPES, colour)):
        of = [index for index, row in enumerate(rows) if colour_of[row.arm] == colour]
        chosen = [rows[index] for index in of]
        traces.append(
            go.Scatter(
                x=[100 * row.difference for row in chosen],
                y=[rank[row.arm] for row in chosen],
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [100 * (row.ci_high - row.difference) for row in chosen],
                    "arrayminus": [100 * (row.difference - row.ci_low) for row in chosen],
                    "color": colour,
                    "thickness": 1.6,
                    "width": 3,
                },
                mode="markers",
                opacity=shade,
                marker={
                    "size": 8,
                    "color": colour,
                    "symbol": [marks[index] for index in of],
                    "line": {"width": 1.5, "color": colour},
                },
                text=[text[index] for index in of],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    return traces


def caption(result: BenchResult, margin: float) -> str:
    """Return the caption: n, the reference, the intervals, the margin and what is missing."""
    reference = next((row.reference for row in result.comparisons), "base")
    parts = [
        f"Paired differences to {reference}, n = {sizes_text(row.n for row in result.arms)} problems per subject, "
        f"the same in every arm; Newcombe 95% intervals. Filled circle: p < .05 (exact McNemar test, Holm-corrected "
        f"over subjects). Cross: too few discordant pairs, cannot be significant at this size. Shaded: the margin of "
        f"{100 * margin:g} points.{_legend(result)}"
    ]
    if result.spec.model.dtype == "bfloat16":
        parts.append(
            f"The weights are bfloat16: an answer can change with the batch size ({result.spec.batch_size} here), "
            "because rounding depends on the batch; benchmarks/batch_flips.py counts such answers."
        )
    if result.totals:
        parts.append("All subjects: macro (filled) and micro (open), bootstrap intervals.")
    if any(row.n < SMOKE_TEST_BELOW for row in result.arms):
        parts.append(SMOKE_TEST)
    if not result.complete:
        parts.append("Partial: finished blocks only. Do not use interim intervals to decide whether to stop.")
    return " ".join(parts)
