"""Energy retention against its null: what the span of a subject's top latents keeps of the task vector.

A random subspace of rank r keeps r/d on average, so the headline is enrichment = retention / (r/d), and both pictures
draw the null with two standard deviations, and the Eckart-Young ceiling: the best that any subspace of that rank keeps.
"""

from collections.abc import Collection, Sequence

import plotly.graph_objects as go

from stethoscope.figures.theme import (
    BAND,
    BLUE,
    GRAY,
    ORANGE,
    apply_layout,
    percent,
    pretty,
    series_colour,
    signed,
)
from stethoscope.results import EnergyCell, EnergyResult


def describe_energy(cell: EnergyCell) -> str:
    """Return the hover text of `cell`: retention beside null and ceiling, rank and enrichment."""
    enrichment = "–" if cell.enrichment is None else f"{cell.enrichment:.2f}"
    return "<br>".join(
        (
            f"<b>layer {cell.layer} · {pretty(cell.matrix)}</b>",
            f"retention {percent(cell.retention)} · null {percent(cell.null_mean)} ± {percent(cell.null_sd)} (sd)",
            f"rank {cell.rank} of d = {cell.d} (r/d = {percent(cell.rank / cell.d)}), k = {cell.k} latents",
            f"enrichment {enrichment} · z {signed(cell.z, 1)} · ceiling {percent(cell.ceiling)}",
            "<i>retention = ‖Qᵀ G τ‖² / ‖G τ‖²; enrichment = retention / (r/d)</i>",
        )
    )


def retention_curves(result: EnergyResult, layers: Sequence[int], k: int | None = None) -> go.Figure:
    """Return retention against k, one curve per layer in `layers`, with the null band and each layer's ceiling."""
    figure = go.Figure()
    shown = [[cell for cell in result.layers if cell.layer == layer and cell.retention is not None] for layer in layers]
    shown = [sorted(cells, key=lambda cell: cell.k) for cells in shown if cells]
    if shown:
        _add_null_band(figure, shown)
    for index, cells in enumerate(shown):
        colour = series_colour(index)
        ks = [cell.k for cell in cells]
        figure.add_trace(
            go.Scatter(
                x=ks,
                y=[100 * (cell.retention or 0) for cell in cells],
                mode="lines+markers",
                name=f"layer {cells[0].layer}",
                line={"color": colour, "width": 2},
                marker={"size": 7},
                text=[describe_energy(cell) for cell in cells],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    for index, cells in enumerate(shown):
        figure.add_trace(
            go.Scatter(
                x=[cell.k for cell in cells],
                y=[None if cell.ceiling is None else 100 * cell.ceiling for cell in cells],
                mode="lines",
                name="ceiling",
                showlegend=index == 0,
                line={"color": series_colour(index), "width": 1, "dash": "dash"},
                opacity=0.7,
                hoverinfo="skip",
            )
        )
    apply_layout(figure, height=320, x_title="k latents (log scale)", y_title="energy kept, %")
    figure.update_xaxes(type="log", tickmode="array", tickvals=list(result.k), ticktext=[str(k) for k in result.k])
    figure.update_yaxes(rangemode="tozero")
    if k is not None:
        figure.add_vline(x=k, line={"color": GRAY, "width": 1, "dash": "dot"})
    return figure


def _add_null_band(figure: go.Figure, shown: Sequence[Sequence[EnergyCell]]) -> None:
    """Draw, at each k, the lowest to the highest null mean -+ 2 sd of the shown layers."""
    by_k: dict[int, list[EnergyCell]] = {}
    for cells in shown:
        for cell in cells:
            if cell.null_mean is not None and cell.null_sd is not None:
                by_k.setdefault(cell.k, []).append(cell)
    ks = sorted(by_k)
    low = [100 * min((c.null_mean or 0) - 2 * (c.null_sd or 0) for c in by_k[k]) for k in ks]
    high = [100 * max((c.null_mean or 0) + 2 * (c.null_sd or 0) for c in by_k[k]) for k in ks]
    common = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    figure.add_trace(go.Scatter(x=ks, y=[max(value, 0) for value in low], showlegend=False, **common))
    figure.add_trace(go.Scatter(x=ks, y=high, fill="tonexty", fillcolor=BAND, name="null ± 2 sd", **common))


def enrichment_bars(result: EnergyResult, k: int, picked: Collection[int]) -> go.Figure:
    """Return enrichment by layer at `k`; 1 is chance, and the gray mark spans the null's two standard deviations."""
    cells = [cell for cell in result.layers if cell.k == k and cell.enrichment is not None]
    figure = go.Figure(
        go.Bar(
            x=[cell.layer for cell in cells],
            y=[cell.enrichment for cell in cells],
            marker={"color": [ORANGE if cell.layer in picked else BLUE for cell in cells]},
            width=0.62,
            name="enrichment",
            text=[describe_energy(cell) for cell in cells],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
            customdata=[[cell.layer, cell.subject] for cell in cells],
        )
    )
    spread = [2 * (cell.null_sd or 0) / cell.null_mean if cell.null_mean else 0 for cell in cells]
    figure.add_trace(
        go.Scatter(
            x=[cell.layer for cell in cells],
            y=[1.0] * len(cells),
            mode="markers",
            marker={"size": 1, "color": GRAY},
            error_y={"type": "data", "array": spread, "color": GRAY, "thickness": 1.6, "width": 6},
            name="null ± 2 sd",
            hoverinfo="skip",
        )
    )
    apply_layout(figure, height=320, x_title="layer", y_title="enrichment (1 = chance)")
    figure.update_layout(showlegend=False)
    figure.update_xaxes(
        tickmode="array", tickvals=list(range(result.n_layers)), range=[-0.5, result.n_layers - 0.5], showgrid=False
    )
    figure.update_yaxes(rangemode="tozero")
    figure.add_hline(y=1, line={"color": GRAY, "width": 1, "dash": "dot"})
    for layer in sorted(set(range(result.n_layers)) - {cell.layer for cell in cells}):
        figure.add_annotation(
            x=layer, y=0.02, yref="paper", text="no SAE", textangle=-90, showarrow=False, font={"color": GRAY}
        )
    return figure


def caption(result: EnergyResult, k: int) -> str:
    """Return what stands under the pictures: what is kept of what, rank against d, and how the null is drawn."""
    ranks = sorted({cell.rank for cell in result.layers if cell.k == k})
    rank = "–" if not ranks else str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    chance = percent(ranks[-1] / result.d_model) if ranks else "–"
    return (
        f"Share of the energy of task vector {result.task_vector} kept by the span of the top {k} "
        f"{pretty(result.subject)} latents ({result.site} SAEs, control {pretty(result.control)}). Rank r = {rank} of "
        f"d = {result.d_model}, so chance is r/d = {chance}. Gray: a random subspace of that rank; "
        "dashed: the most that any subspace keeps."
    )
