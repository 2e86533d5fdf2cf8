"""Layer specificity: the heatmap to pick layers on, and one subject's scores with their intervals.

Streamlit receives no clicks on plotly heatmaps, so transparent square markers on the cells carry (layer, subject) in
`customdata`, which `layers_from_selection` reads. Colour fades to transparent at the null: blue above, orange below. A
cell that is not shown to be specific (corrected p and interval) is paler and has a dot. A layer without an SAE or
without scorable latents is labelled and never interpolated.
"""

from collections.abc import Collection, Mapping, Sequence

import plotly.graph_objects as go

from stethoscope.figures.once import once
from stethoscope.figures.theme import (
    BLUE,
    COLORBAR,
    FAINT,
    GRAY,
    ORANGE,
    apply_layout,
    layer_axis,
    name_columns,
    row_axis,
    two_lines,
)
from stethoscope.formatting import percent, pretty, shown_p, signed
from stethoscope.results import DiagnosisResult, SpecificityCell

SHOWN, NOT_SHOWN = "specific (corrected p < .05)", "not shown to be specific"
DEFINITION_NOTE = "Our definition; the paper's formula is unavailable."


def describe_cell(cell: SpecificityCell, result: DiagnosisResult) -> str:
    """Return the hover text of `cell`: score, interval, p-values, n and the definition."""
    interval = f"[{signed(cell.ci_low)}, {signed(cell.ci_high)}]"
    return "<br>".join(
        (
            f"<b>layer {cell.layer} · {pretty(cell.subject)}</b>",
            f"{pretty(result.score)} {signed(cell.score)}, 95% CI {interval}",
            f"p {shown_p(cell.p)}, corrected over layers {shown_p(cell.p_adjusted)} · null {signed(result.null)}",
            f"<b>{SHOWN if cell.specific else NOT_SHOWN}</b>",
            f"n = {cell.n_documents} documents, and the same number of {pretty(result.control)}",
            f"k = {min(result.top_k, cell.n_live)} of {cell.n_live} live latents · {result.site}",
            f"ranks first in {percent(cell.p_top, 0)} of bootstrap draws",
            f"<i>{result.formula}</i>",
        )
    )


def diverging_scale(low: float, high: float, null: float) -> list[tuple[float, str]]:
    """Return a colour scale over [low, high] whose opacity increases equally on both sides of `null`."""
    span, reach = high - low, max(high - null, null - low)
    at_null = (null - low) / span
    below, above = (null - low) / reach, (high - null) / reach

    def tone(rgb: str, strength: float) -> str:
        return f"rgba({rgb}, {max(strength, 0.03):.3f})"

    blue, deep, orange = "64, 160, 200", "20, 112, 196", "224, 117, 26"
    stops = [(0.0, tone(orange, below)), (at_null, tone(orange, 0)), (at_null, tone(blue, 0))]
    stops += [((at_null + 1) / 2, tone(blue, above * 0.55)), (1.0, tone(deep, above))]
    return [(min(max(position, 0.0), 1.0), colour) for position, colour in stops]


@once
def heatmap(result: DiagnosisResult, picked: Collection[int], subject: str | None = None) -> go.Figure:
    """Return the subjects x layers heatmap with `picked` layers outlined and `subject`'s label set bold."""
    cells = {(cell.subject, cell.layer): cell for cell in result.cells if cell.score is not None}
    scores = [cell.score for cell in cells.values() if cell.score is not None]
    low, high = min([*scores, result.null]), max([*scores, result.null + 1e-9])
    figure = go.Figure([_strength(result, cells, (low, high), weak) for weak in (False, True)])
    shown = list(cells.values())
    rows = {name: row for row, name in enumerate(result.subjects)}
    figure.add_traces(_marks(result, shown, rows))
    apply_layout(figure, height=36 * len(result.subjects) + 62, x_title="layer")
    labels = [f"<b>{two_lines(name)}</b>" if name == subject else two_lines(name) for name in result.subjects]
    figure.update_layout(
        showlegend=False, clickmode="event+select", dragmode="pan", hoverdistance=60
    )  # "select" mutes clicks
    layer_axis(figure, result.n_layers, fixed=True)
    row_axis(figure, labels, fixed=True)
    _mark_columns(figure, result, picked, {cell.layer for cell in result.cells})
    return figure


def _strength(
    result: DiagnosisResult,
    cells: Mapping[tuple[str, int], SpecificityCell],
    limits: tuple[float, float],
    weak: bool,
) -> go.Heatmap:
    """Return the trace of the cells that are not shown to be specific (`weak`, pale) or of the others."""
    low, high = limits
    return go.Heatmap(
        x=list(range(result.n_layers)),
        y=list(range(len(result.subjects))),
        z=[[_score(cells.get((name, layer)), weak) for layer in range(result.n_layers)] for name in result.subjects],
        zmin=low,
        zmax=high,
        colorscale=diverging_scale(low, high, result.null),
        opacity=0.5 if weak else 1.0,
        showscale=not weak,
        colorbar={
            **COLORBAR,
            "nticks": 5,
        },
        xgap=3,
        ygap=3,
        hoverinfo="skip",
    )


def _marks(result: DiagnosisResult, shown: Sequence[SpecificityCell], rows: Mapping[str, int]) -> list[go.Scatter]:
    """Return a dot on each weak cell, and the transparent squares for clicks and hover."""
    weak_cells = [cell for cell in shown if not cell.specific]
    dots = go.Scatter(
        x=[cell.layer for cell in weak_cells],
        y=[rows[cell.subject] for cell in weak_cells],
        mode="markers",
        marker={"symbol": "circle", "size": 4, "color": GRAY},
        hoverinfo="skip",
    )
    squares = go.Scatter(
        x=[cell.layer for cell in shown],
        y=[rows[cell.subject] for cell in shown],
        customdata=[[cell.layer, cell.subject] for cell in shown],
        mode="markers",
        marker={"symbol": "square", "size": 24, "color": "rgba(0,0,0,0)"},
        selected={"marker": {"opacity": 0}},
        unselected={"marker": {"opacity": 0}},
        text=[describe_cell(cell, result) for cell in shown],
        hovertemplate="%{text}<extra></extra>",
    )
    return [dots, squares]


def _score(cell: SpecificityCell | None, weak: bool) -> float | None:
    """Score of `cell` if it has the requested strength, else None (drawn empty)."""
    return cell.score if cell is not None and cell.specific != weak else None


def _mark_columns(
    figure: go.Figure, result: DiagnosisResult, picked: Collection[int], listened: Collection[int]
) -> None:
    """Outline the picked layers, and label empty columns and cells with the reason."""
    bottom = len(result.subjects) - 0.5
    for layer in sorted(picked):
        figure.add_shape(
            type="rect",
            x0=layer - 0.48,
            x1=layer + 0.48,
            y0=-0.48,
            y1=bottom - 0.02,
            line={"color": ORANGE, "width": 2},
        )
    name_columns(figure, set(range(result.n_layers)) - set(listened), "no SAE", len(result.subjects))
    for cell in result.cells:
        if cell.score is None:
            row, font = result.subjects.index(cell.subject), {"color": GRAY, "size": 11}
            figure.add_annotation(x=cell.layer, y=row, text="no score", showarrow=False, font=font)


@once
def strip(
    result: DiagnosisResult, subject: str, picked: Collection[int], other: DiagnosisResult | None = None
) -> go.Figure:
    """Return `subject`'s score by layer with its 95% interval, the null as a line and picked layers shaded.

    `other`, the same diagnosis against another control corpus, is shown as open diamonds.
    """
    figure = go.Figure()
    shift = 0.0 if other is None else 0.14
    cells = [cell for cell in result.cells if cell.subject == subject]
    for weak, name in ((False, SHOWN), (True, NOT_SHOWN)):
        chosen = [cell for cell in cells if cell.specific != weak]
        figure.add_trace(_interval_marks(result, chosen, name, -shift, weak=weak))
    if other is not None:
        cells = [cell for cell in other.cells if cell.subject == subject]
        marks = _interval_marks(other, cells, f"against {pretty(other.control)}", shift, weak=True)
        figure.add_trace(marks.update(marker={"symbol": "diamond-open", "color": ORANGE}, opacity=0.75))
    apply_layout(figure, height=230, x_title="layer", y_title=pretty(result.score))
    layer_axis(figure, result.n_layers)
    figure.add_hline(y=result.null, line={"color": GRAY, "width": 1, "dash": "dot"})
    for layer in sorted(picked):
        figure.add_vrect(x0=layer - 0.45, x1=layer + 0.45, fillcolor=ORANGE, opacity=0.13, line_width=0, layer="below")
    figure.update_layout(showlegend=True, plot_bgcolor="rgba(0,0,0,0)")
    figure.update_yaxes(gridcolor=FAINT)
    return figure


def _interval_marks(
    result: DiagnosisResult, cells: Sequence[SpecificityCell], name: str, shift: float, *, weak: bool
) -> go.Scatter:
    """Return one marker with interval for each cell with a score, `shift` layers to the right."""
    shown = [cell for cell in cells if cell.score is not None]
    colour = GRAY if weak else BLUE
    return go.Scatter(
        x=[cell.layer + shift for cell in shown],
        y=[cell.score for cell in shown],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [(cell.ci_high or 0) - (cell.score or 0) for cell in shown],
            "arrayminus": [(cell.score or 0) - (cell.ci_low or 0) for cell in shown],
            "color": colour,
            "thickness": 1.4,
            "width": 4,
        },
        mode="markers",
        name=name,
        marker={"size": 8, "color": colour, "symbol": "circle-open" if weak else "circle"},
        text=[describe_cell(cell, result) for cell in shown],
        hovertemplate="%{text}<extra></extra>",
    )


def rank_confidence(result: DiagnosisResult, subject: str) -> str:
    """Return a sentence on the reliability of the order: how often the best layers rank first in bootstrap draws."""
    cells = [cell for cell in result.cells if cell.subject == subject and cell.p_top is not None]
    if not cells:
        return "No layer has a rank."
    first, *others = sorted(cells, key=lambda cell: -(cell.p_top or 0))
    said = f"Layer {first.layer} ranks first in {percent(first.p_top, 0)} of bootstrap draws"
    rivals = [f"layer {cell.layer} in {percent(cell.p_top, 0)}" for cell in others[:2] if (cell.p_top or 0) >= 0.05]
    return ", ".join([said, *rivals]) + "."


def strip_caption(result: DiagnosisResult, subject: str, other: DiagnosisResult | None = None) -> str:
    """Return the caption of the strip: definition, n, rank reliability, and the result with the other control
    corpus."""
    documents = max((cell.n_documents for cell in result.cells), default=0)
    said = (
        f"{pretty(subject)} against {pretty(result.control)}: {result.formula}. 95% bootstrap intervals over "
        f"n = {documents} documents; shaded: picked layers. {rank_confidence(result, subject)}"
    )
    if other is None:
        return said
    return f"{said} Open diamonds: against {pretty(other.control)}. There: {rank_confidence(other, subject)}"


def caption(result: DiagnosisResult, subject: str) -> str:
    """Return the caption: definition, n, how weak cells are drawn, and the best layers of `subject`."""
    documents = max((cell.n_documents for cell in result.cells), default=0)
    scored = {cell.layer for cell in result.cells if cell.subject == subject and cell.score is not None}
    best = [str(layer) for layer in result.order.get(subject, ()) if layer in scored]
    return (
        f"Score: {result.formula}{_sourced(result)}. "
        f"n = {documents} documents per subject and of {pretty(result.control)}; k = {result.top_k}; "
        "95% bootstrap intervals over documents, p values by label permutation, corrected over the layers of a "
        f"subject (step-down max-T). Pale with a dot: {NOT_SHOWN} (corrected p of .05 or more, or an interval that "
        f"includes the null, {signed(result.null)}). Best layers for {pretty(subject)}: "
        f"{', '.join(best[:4]) or 'none'}. {rank_confidence(result, subject)}"
    )


def _sourced(result: DiagnosisResult) -> str:
    """Return the source of the score in brackets (unknown in runs of older versions)."""
    return f" ({result.source})" if result.source else ""


def layers_from_selection(event: object) -> list[int]:
    """Return the layers in a plotly selection event (as passed by Streamlit), sorted, without duplicates.

    Points without `customdata` (other traces, box-only events) are skipped, because they contain no layer.
    """
    selection = event.get("selection", {}) if isinstance(event, Mapping) else {}
    points = selection.get("points", []) if isinstance(selection, Mapping) else []
    layers: set[int] = set()
    for point in points:
        data = point.get("customdata")
        if isinstance(data, Mapping):
            data = [data[key] for key in sorted(data)]
        if data:
            layers.add(int(data[0]))
    return sorted(layers)
