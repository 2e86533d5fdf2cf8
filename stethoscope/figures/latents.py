"""Latents of one layer: effect against density with one dot per latent, and the tokens on which a latent fires.

Right: dense (fires on many control tokens); up: specific to the subject. Filled blue: the firing rate distinguishes
subject and control at the chosen false discovery rate; gray: it does not; hollow: dense; orange ring: selected for the
score.

A layer has up to 262,144 latents, most of which overlap. With more than `MOST_DOTS`, latents of one kind in the same
cell of a grid share a dot at the position of the one with the largest effect. The grid is as fine as `MOST_DOTS`
allows. The selected latents and the current one have their own dots. A figure thus stays below 1 MB.
"""

import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from stethoscope.figures.text import STYLE
from stethoscope.figures.theme import BLUE, GRAY, ORANGE, apply_layout
from stethoscope.formatting import percent, pretty, shown_p, signed
from stethoscope.results import LatentExample, LatentRow, LatentsResult

MOST_DOTS = 1500  # about 0.6 MB with their texts
GRIDS = (400, 300, 200, 150, 100, 75, 50, 35, 25, 15)  # cells per side; the coarsest gives at most 900 dots of 4 kinds
WINDOW_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Dot:
    """A latent, and the number of latents that its dot represents, including itself."""

    row: LatentRow
    stands_for: int = 1


def describe_latent(row: LatentRow) -> str:
    """Return the hover text of `row`: rates, effect, AUROC, p, q-value and the definition."""
    flags = [name for name, holds in (("dense", row.dense), ("selected", row.selected)) if holds]
    return "<br>".join(
        (
            f"<b>latent {row.latent}</b>{' · ' + ', '.join(flags) if flags else ''}",
            f"effect {signed(100 * row.effect, 2)} points · fires on {percent(row.domain_rate)} of subject tokens, "
            f"{percent(row.control_rate, 2)} of control tokens",
            f"AUROC {row.auroc:.3f} · Mann-Whitney p {shown_p(row.p)} · q {shown_p(row.q_value)}",
            "<i>effect = p_j − q_j, mean share of a document's tokens on which it fires</i>",
        )
    )


def density_floor(rows: Sequence[LatentRow]) -> float:
    """Return where a control rate of 0 is drawn on the log axis: half the smallest rate above 0."""
    above = [row.control_rate for row in rows if row.control_rate > 0]
    return min(above, default=0.01) / 2


def effect_against_density(result: LatentsResult, level: float, latent: int | None = None) -> go.Figure:
    """Return one dot per live latent: effect in points against control rate in percent (log scale).

    `level` is the false discovery rate; `latent`, if any, is marked.
    """
    floor = density_floor(result.rows)
    figure = go.Figure()
    dots = dots_of(result.rows, level, latent)
    groups = (
        (f"q > {percent(level, 0)}", GRAY, "circle", False, False),
        (f"q ≤ {percent(level, 0)}", BLUE, "circle", True, False),
        (f"dense, q > {percent(level, 0)}", GRAY, "circle-open", False, True),
        (f"dense, q ≤ {percent(level, 0)}", BLUE, "circle-open", True, True),
    )
    for name, colour, symbol, passes, dense in groups:
        of_kind = [dot for dot in dots if (dot.row.q_value <= level) == passes and dot.row.dense == dense]
        marker = {"color": colour, "symbol": symbol, "size": 7, "opacity": 0.9 if passes else 0.5}
        _add_dots(figure, of_kind, floor, name, marker)
    ring = {"color": ORANGE, "symbol": "circle-open", "size": 13, "line": {"width": 2}}
    _add_dots(figure, [dot for dot in dots if dot.row.selected], floor, "selected", ring)
    chosen = [dot for dot in dots if dot.row.latent == latent]
    mark = {"color": ORANGE, "symbol": "cross-thin-open", "size": 20, "line": {"width": 2}}
    _add_dots(figure, chosen, floor, f"latent {latent}", mark)
    apply_layout(
        figure, height=430, x_title="fires on control tokens, % (log scale)", y_title="effect, points of firing rate"
    )
    values, names = _ticks(result.rows, floor)
    figure.update_xaxes(type="log", tickmode="array", tickvals=values, ticktext=names)
    figure.update_yaxes(zeroline=True, zerolinecolor=GRAY, zerolinewidth=1)
    return figure


def _ticks(rows: Sequence[LatentRow], floor: float) -> tuple[list[float], list[str]]:
    """Return powers of ten in percent with labels, and 0 at the position of zero rates."""
    values: list[float] = []
    if any(row.control_rate == 0 for row in rows):
        values.append(100 * floor)
    top = max((row.control_rate for row in rows), default=1.0)
    first = math.ceil(math.log10(100 * floor) + 0.2)
    values += [10.0**power for power in range(first, math.ceil(math.log10(max(100 * top, 1e-9))) + 1)]
    return values, ["0" if value == 100 * floor else f"{value:g}" for value in values]


def dots_of(rows: Sequence[LatentRow], level: float, latent: int | None) -> list[Dot]:
    """Return the dots to draw: one per latent, or at most `MOST_DOTS` plus those with their own dots."""
    if len(rows) <= MOST_DOTS:
        return [Dot(row) for row in rows]
    own = np.array([row.selected or row.latent == latent for row in rows])
    effect = np.array([row.effect for row in rows])
    kind = np.array([2 * (row.q_value <= level) + row.dense for row in rows])
    floor = density_floor(rows)
    places = [_unit(np.log([max(row.control_rate, floor) for row in rows])), _unit(effect)]

    def cells_of(n_cells: int) -> np.ndarray:
        across, up = (np.minimum((place * n_cells).astype(np.int64), n_cells - 1) for place in places)
        return np.where(own, -1 - np.arange(len(rows)), (kind * n_cells + across) * n_cells + up)

    cells = next(cells for cells in map(cells_of, GRIDS) if len(np.unique(cells)) <= MOST_DOTS + own.sum())
    size = Counter(cells.tolist())
    largest = np.argsort(-np.abs(effect), kind="stable")
    first = largest[np.sort(np.unique(cells[largest], return_index=True)[1])]  # of each cell
    return [Dot(rows[i], size[int(cells[i])]) for i in np.sort(first)]


def _unit(values: np.ndarray) -> np.ndarray:
    """Return values between the smallest (0) and the largest (1)."""
    span = values.max() - values.min()
    return (values - values.min()) / span if span else np.zeros_like(values)


def _add_dots(figure: go.Figure, dots: Sequence[Dot], floor: float, name: str, marker: Mapping[str, object]) -> None:
    if not dots:
        return
    figure.add_trace(
        go.Scatter(
            x=[100 * max(dot.row.control_rate, floor) for dot in dots],
            y=[100 * dot.row.effect for dot in dots],
            mode="markers",
            name=name,
            marker=dict(marker),
            text=[_describe(dot) for dot in dots],
            customdata=[[dot.row.latent, dot.stands_for] for dot in dots],
            hovertemplate="%{text}<extra></extra>",
            unselected={"marker": {"opacity": 0.9}},
        )
    )


def _describe(dot: Dot) -> str:
    text = describe_latent(dot.row)
    return text if dot.stands_for == 1 else f"{text}<br>{dot.stands_for - 1} more latents overlap with this dot"


def caption(result: LatentsResult, level: float) -> str:
    """Return the caption: the number of latents that pass, n, and the definitions."""
    passing = [row for row in result.rows if row.q_value <= level]
    more = sum(row.effect > 0 for row in passing)
    subject, control = pretty(result.subject), pretty(result.control)
    return (
        f"Layer {result.layer}, {subject} against {control}, n = {result.n_documents} documents each: "
        f"{len(result.rows)} of {result.d_sae} latents are live; {len(passing)} pass a false discovery rate of "
        f"{percent(level, 0)}, {more} of them fire more on {subject}. Two-sided Mann-Whitney on the firing rate of "
        "each document, Benjamini-Hochberg over the live latents. Hollow: dense; ringed: selected for the layer score."
        + (" Overlapping latents share a dot." if len(result.rows) > MOST_DOTS else "")
    )


def latent_from_selection(event: object) -> int | None:
    """Return the latent of a plotly selection event (as passed by Streamlit); None if it contains none."""
    selection = event.get("selection", {}) if isinstance(event, Mapping) else {}
    points = selection.get("points", []) if isinstance(selection, Mapping) else []
    for point in points:
        data = point.get("customdata")
        data = list(data.values()) if isinstance(data, Mapping) else data
        if data:
            return int(data[0])
    return None


def strip_html(example: LatentExample, full: float) -> str:
    """Return the tokens around the strongest one as an escaped HTML block, tinted by activation, strongest at `full`.

    Every token is escaped with `html.escape`, so that a document never becomes markup.
    """
    peak = max(range(len(example.activations)), key=lambda i: example.activations[i])
    start, end = max(peak - WINDOW_TOKENS, 0), min(peak + WINDOW_TOKENS + 1, len(example.tokens))
    spans = ["… "] if start else []
    for index in range(start, end):
        token, activation = example.tokens[index], example.activations[index]
        text = html.escape(token.replace("\n", "↵\n"))
        if activation > 0:
            strength = 0.12 + 0.5 * min(activation / full, 1.0)
            bold = ";font-weight:600" if index == peak else ""
            text = (
                f'<span style="background:rgba(31,131,196,{strength:.2f});border-radius:3px{bold}" '
                f'title="activation {activation:.3f}">{text}</span>'
            )
        spans.append(text)
    return f'<div style="{STYLE}">{"".join(spans)}{" …" if end < len(example.tokens) else ""}</div>'
