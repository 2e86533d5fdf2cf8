"""Energy retention against its null: the share of the task vector that the span of a subject's top latents keeps.

A random subspace of rank r keeps r/d on average, so the headline is enrichment = retention / (r/d) with its z and
percentile. One figure shows a layer over k, with the null's band, the Eckart-Young ceiling and spans of the same rank
that are independent of the subject; the other shows every matrix of every layer, centred on enrichment 1. Cells that
lie within two standard deviations of chance are paler and carry a dot.
"""

import math
from collections.abc import Collection, Sequence

import plotly.graph_objects as go

from stethoscope.figures.once import once
from stethoscope.figures.specificity import diverging_scale
from stethoscope.figures.theme import BAND, BLUE, COLORBAR, GRAY, ORANGE, SERIES, apply_layout, empty_note, row_axis
from stethoscope.formatting import number, percent, pretty, signed
from stethoscope.recipes.files import layers_text
from stethoscope.results import EnergyCell, EnergyResult

ROWS = ("all", "o_proj", "down_proj", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # writers before readers
CLEAR_Z = 2.0
REFERENCES = (
    ("components", "principal components", SERIES[2], "dashdot"),
    ("control", "control latents", SERIES[3], "dot"),
    ("encoder", "encoder directions", SERIES[4], "dot"),
    ("random_mean", "random live latents", SERIES[5], "solid"),
)
DEFINITION = (
    "retention = ‖Qᵀ G τ‖² / ‖G τ‖², readers ‖τ G Q‖² / ‖τ G‖²",
    "enrichment = retention / (r/d)",
)


def is_chance(cell: EnergyCell) -> bool:
    """Return whether the retention is within two standard deviations of a random subspace's, or cannot be distinguished
    from it."""
    return cell.z is None or abs(cell.z) < CLEAR_Z


def describe_energy(cell: EnergyCell) -> str:
    """Return the hover text of `cell`: everything that is known about it."""
    name = "whole layer" if cell.matrix == "all" else cell.matrix
    lines = [
        f"<b>layer {cell.layer} · {name}</b>" + (" (approximate: attention writes in between)" * cell.approximate),
        f"retention {percent(cell.retention)} · null {percent(cell.null_mean)} ± {percent(cell.null_sd)} (sd)",
        f"rank {cell.rank} of d = {cell.d} (r/d = {percent(cell.rank / cell.d)}), {_latents(cell)}",
        f"enrichment {number(cell.enrichment, 2)} · z {signed(cell.z, 1)} · percentile {shown_percentile(cell)}",
        f"ceiling {percent(cell.ceiling)} · principal components {percent(cell.components)}",
        f"random latents {percent(cell.random_mean)} ({percent(cell.random_low)} to {percent(cell.random_high)})",
        f"control latents {percent(cell.control)} · encoder {percent(cell.encoder)}",
        f"angles: mean cos² {number(cell.principal_cos2, 3)}, null {number(cell.principal_null, 3)}",
        f"functional energy kept {percent(cell.functional_share)} · radial {percent(cell.radial_share, 2)}",
        f"realised: cosine {number(cell.realised_cosine, 3)}, norm ratio {number(cell.realised_norm_ratio, 3)}",
        *(f"<i>{line}</i>" for line in DEFINITION),
    ]
    return "<br>".join(lines)


def shown_percentile(cell: EnergyCell) -> str:
    """Return the percentile as text: never a flat 0 or 100, which no finite null supports."""
    if cell.percentile is None:
        return "–"
    shown = 100 * cell.percentile
    return "> 99.9" if shown > 99.9 else "< 0.1" if shown < 0.1 else f"{shown:.1f}"


def headline(cell: EnergyCell) -> str:
    """Return a sentence comparing the retention of `cell` with a random subspace of the same rank."""
    if cell.retention is None:
        return f"Layer {cell.layer}: undefined ({_undefined(cell)})."
    verdict = "no different from chance" if is_chance(cell) else "above chance" if (cell.z or 0) > 0 else "below chance"
    return (
        f"Layer {cell.layer}: {cell.rank} of {cell.d} dimensions keep {percent(cell.retention)}; a random subspace "
        f"of the same rank keeps {percent(cell.null_mean)} ± {percent(cell.null_sd)} (sd). Enrichment "
        f"{number(cell.enrichment, 2)}, z {signed(cell.z, 1)}, percentile {shown_percentile(cell)}: {verdict}."
    )


def layer_cells(result: EnergyResult, layer: int) -> list[EnergyCell]:
    """Return the rows of a whole layer, by k."""
    return sorted((cell for cell in result.layers if cell.layer == layer), key=lambda cell: cell.k)


@once
def retention_curves(result: EnergyResult, layer: int, k: int | None = None) -> go.Figure:
    """Return one layer's retention against k with null, ceiling and the references of the same rank."""
    cells = [cell for cell in layer_cells(result, layer) if cell.retention is not None]
    figure = go.Figure()
    null = [cell for cell in cells if cell.null_mean is not None and cell.null_sd is not None]
    low = [max((cell.null_mean or 0) - 2 * (cell.null_sd or 0), 0) for cell in null]
    high = [(cell.null_mean or 0) + 2 * (cell.null_sd or 0) for cell in null]
    _add_band(figure, null, low, high, "null ± 2 sd", BAND)
    drawn = [cell for cell in cells if cell.random_low is not None]
    low, high = [cell.random_low or 0 for cell in drawn], [cell.random_high or 0 for cell in drawn]
    _add_band(figure, drawn, low, high, "", "rgba(152, 135, 20, 0.22)")
    for field, name, colour, dash in REFERENCES:
        known = [cell for cell in cells if getattr(cell, field) is not None]
        if known:
            values = [getattr(cell, field) for cell in known]
            _add_line(figure, known, values, name, {"color": colour, "width": 1.5, "dash": dash})
    _add_line(figure, cells, [cell.ceiling for cell in cells], "ceiling", {"color": GRAY, "width": 1.5, "dash": "dash"})
    figure.add_trace(
        go.Scatter(
            x=[cell.k for cell in cells],
            y=[100 * (cell.retention or 0) for cell in cells],
            mode="lines+markers",
            name="selected latents",
            line={"color": BLUE, "width": 2.5},
            marker={"size": 7},
            text=[describe_energy(cell) for cell in cells],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    apply_layout(figure, height=380, x_title="k latents (log scale)", y_title="energy kept, %")
    figure.update_xaxes(type="log", tickmode="array", tickvals=list(result.k), ticktext=[str(k) for k in result.k])
    figure.update_yaxes(rangemode="tozero")
    if not cells:
        reasons = ", ".join(dict.fromkeys(_undefined(cell) for cell in layer_cells(result, layer)))
        empty_note(figure, f"layer {layer}: {reasons}")
    if k is not None:
        figure.add_vline(x=k, line={"color": GRAY, "width": 1, "dash": "dot"})
    return figure


def _add_band(
    figure: go.Figure, cells: Sequence[EnergyCell], low: Sequence[float], high: Sequence[float], name: str, fill: str
) -> None:
    common = {"x": [cell.k for cell in cells], "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    figure.add_trace(go.Scatter(y=[100 * value for value in low], showlegend=False, **common))
    bound = [100 * value for value in high]
    figure.add_trace(go.Scatter(y=bound, fill="tonexty", fillcolor=fill, name=name, showlegend=bool(name), **common))


def _add_line(
    figure: go.Figure, cells: Sequence[EnergyCell], values: Sequence[float | None], name: str, line: dict[str, object]
) -> None:
    figure.add_trace(
        go.Scatter(
            x=[cell.k for cell in cells],
            y=[None if value is None else 100 * value for value in values],
            mode="lines",
            name=name,
            line=line,
            hovertemplate=f"{name}: %{{y:.1f}}% at k = %{{x}}<extra></extra>",
        )
    )


@once
def enrichment_heatmap(result: EnergyResult, k: int, picked: Collection[int]) -> go.Figure:
    """Return enrichment of every matrix (and of whole layers) at `k`, on a log scale centred on 1."""
    cells = {(cell.matrix, cell.layer): cell for cell in (*result.layers, *result.cells) if cell.k == k}
    there = dict.fromkeys(cell.matrix for cell in cells.values())
    rows = [row for row in ROWS if row in there] + [row for row in there if row not in ROWS]
    logs = [_log2(cell.enrichment) for cell in cells.values() if cell.enrichment]
    limit = max([math.log2(1.25), *(abs(value) for value in logs)])
    figure = go.Figure()
    for weak in (False, True):
        shown = {
            place: cell for place, cell in cells.items() if cell.enrichment is not None and is_chance(cell) == weak
        }
        figure.add_trace(_strength(result, rows, shown, limit, weak))
    weak_cells = [cell for cell in cells.values() if cell.enrichment is not None and is_chance(cell)]
    figure.add_trace(
        go.Scatter(
            x=[cell.layer for cell in weak_cells],
            y=[rows.index(cell.matrix) for cell in weak_cells],
            mode="markers",
            marker={"symbol": "circle", "size": 4, "color": GRAY},
            hoverinfo="skip",
        )
    )
    apply_layout(figure, height=max(38 * len(rows) + 62, 140), x_title="layer")
    ticks = list(range(0, result.n_layers, 1 + result.n_layers // 20))
    figure.update_layout(showlegend=False)
    figure.update_xaxes(tickmode="array", tickvals=ticks, range=[-0.5, result.n_layers - 0.5], showgrid=False)
    row_axis(figure, ["<b>layer</b>" if row == "all" else row for row in rows])
    _name_gaps(figure, result, rows, cells)
    for layer in sorted(picked):
        corners = {"x0": layer - 0.48, "x1": layer + 0.48, "y0": -0.48, "y1": len(rows) - 0.52}
        figure.add_shape(type="rect", line={"color": ORANGE, "width": 2}, **corners)
    return figure


def _strength(
    result: EnergyResult, rows: Sequence[str], shown: dict[tuple[str, int], EnergyCell], limit: float, weak: bool
) -> go.Heatmap:
    """Draw the cells that cannot be distinguished from chance (`weak`, pale) or the others."""
    columns = range(result.n_layers)
    grid = [[shown.get((row, layer)) for layer in columns] for row in rows]
    ticks = [-limit, -limit / 2, 0.0, limit / 2, limit]
    return go.Heatmap(
        x=list(columns),
        y=list(range(len(rows))),
        z=[[None if cell is None else max(_log2(cell.enrichment), -limit) for cell in line] for line in grid],
        text=[["" if cell is None else describe_energy(cell) for cell in line] for line in grid],
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=False,
        zmin=-limit,
        zmax=limit,
        colorscale=diverging_scale(-limit, limit, 0.0),
        opacity=0.5 if weak else 1.0,
        showscale=not weak,
        colorbar={
            **COLORBAR,
            "tickvals": ticks,
            "ticktext": [f"{2**tick:.2g}×" for tick in ticks],
        },
        xgap=2,
        ygap=3,
    )


def _name_gaps(
    figure: go.Figure, result: EnergyResult, rows: Sequence[str], cells: dict[tuple[str, int], EnergyCell]
) -> None:
    """Write into each empty stretch of a column why it is empty."""
    for layer in range(result.n_layers):
        stretch: list[int] = []
        reasons = [_gap(cells.get((row, layer))) for row in rows]
        for row, reason in enumerate(reasons):
            if reason is None:
                continue
            stretch.append(row)
            if row + 1 == len(rows) or reasons[row + 1] != reason:
                middle = (stretch[0] + stretch[-1]) / 2
                angle = -90 if len(stretch) > 1 else 0
                font = {"color": GRAY, "size": 11}
                figure.add_annotation(x=layer, y=middle, text=reason, textangle=angle, showarrow=False, font=font)
                stretch = []


def _gap(cell: EnergyCell | None) -> str | None:
    if cell is None:
        return "no SAE"
    return None if cell.enrichment is not None else "no latents" if cell.rank == 0 else "no change"


def _undefined(cell: EnergyCell) -> str:
    return "no live latent fires more on the subject" if cell.rank == 0 else "unchanged by the task vector"


def geometry_rows(result: EnergyResult, k: int) -> list[dict[str, float | int | str | None]]:
    """Return a table row for each layer with values: shares (in %), angles and functional energy of the span."""

    def share(value: float | None) -> float | None:
        return None if value is None else 100 * value

    return [
        {
            "layer": cell.layer,
            "kept, %": share(cell.retention),
            "chance, %": share(cell.null_mean),
            "enrichment": cell.enrichment,
            "z": cell.z,
            "percentile": shown_percentile(cell),
            "function, %": share(cell.functional_share),
            "cos²": cell.principal_cos2,
            "cos² chance": cell.principal_null,
            "radial, %": share(cell.radial_share),
            "realised cos": cell.realised_cosine,
            "norm ratio": cell.realised_norm_ratio,
        }
        for cell in result.layers
        if cell.k == k and cell.retention is not None
    ]


def left_out(result: EnergyResult, k: int) -> str:
    """Return a sentence naming the layers without a row in `geometry_rows`, and why; "" if all have one."""
    layers: dict[str, list[int]] = {}
    for cell in result.layers:
        if cell.k == k and cell.retention is None:
            layers.setdefault(_undefined(cell), []).append(cell.layer)
    named = [f"{layers_text(where)} ({why})" for why, where in layers.items()]
    return f"Without a row: {', '.join(named)}." if named else ""


def caption(result: EnergyResult, k: int) -> str:
    """Return the caption: definition of the shares, rank and d, and how the null is drawn."""
    cells = [cell for cell in result.layers if cell.k == k]
    ranks = sorted({cell.rank for cell in cells})
    rank = "–" if not ranks else str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    d = cells[0].d if cells else result.d_model
    chance = percent(ranks[-1] / d) if ranks else "–"
    dropped = max((cell.n_dropped or 0 for cell in cells), default=0)
    short = min((cell.n_latents for cell in cells if cell.n_latents is not None), default=k)
    notes = f" Up to {dropped} latents per layer are linearly dependent and add no dimension." if dropped else ""
    notes += f" Some layers have only {short} live latents." if short < k else ""
    return (
        f"Share of the energy of task vector {result.task_vector} kept by the span of the top {k} "
        f"{pretty(result.subject)} latents ({result.site} SAEs, control {pretty(result.control)}; "
        f"{'scaled by the norm weights' if result.fold_gains else 'unscaled weights'}). Rank r = {rank} of d = "
        f"{d}, so chance is r/d = {chance}; gray: a random subspace of that rank; dashed: the maximum for any "
        f"subspace.{notes}"
    )


def heatmap_caption(result: EnergyResult, k: int) -> str:
    """Return the caption of the heatmap: the number of cells that differ from chance, and how the others are drawn."""
    cells = [cell for cell in result.cells if cell.k == k and cell.enrichment is not None]
    if not cells:
        return f"At k = {k}, task vector {result.task_vector} changes no matrix that has an SAE with live latents."
    weak = sum(is_chance(cell) for cell in cells)
    low, high = min(cell.enrichment or 0 for cell in cells), max(cell.enrichment or 0 for cell in cells)
    return (
        f"Enrichment = retention / (r/d) at k = {k}, 1 is chance (log scale; blue above, orange below); "
        f"{number(low, 2)} to {number(high, 2)} over {len(cells)} matrices. Pale with a dot ({weak} of "
        f"{len(cells)}): within 2 sd of a random subspace. Matrices that read the residual stream use the SAE of the "
        "previous layer. This is exact for q, k and v, and approximate for gate and up, because attention writes in "
        "between."
    )


def _latents(cell: EnergyCell) -> str:
    found = "" if cell.n_latents in (None, cell.k) else f", {cell.n_latents} found"
    return f"k = {cell.k} latents{found}" + (f", {cell.n_dropped} dependent" if cell.n_dropped else "")


def _log2(value: float | None) -> float:
    return math.log2(value) if value else -math.inf
