"""The latents of one layer: effect against density, one dot a latent, and the tokens on which one fires.

Right is dense (fires on many control tokens), up is the subject's own. Filled blue: the firing rate tells subject from
control at the chosen false discovery rate; gray: it does not; hollow: dense; an orange ring: selected for the score.
"""

import html
import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from stethoscope.figures.text import STYLE
from stethoscope.figures.theme import BLUE, GRAY, ORANGE, apply_layout, percent, pretty, shown_p, signed
from stethoscope.results import LatentExample, LatentRow, LatentsResult

MANY_DOTS = 3000  # above this the browser draws dots on a canvas
WINDOW_TOKENS = 48


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
    """Return one dot a live latent: effect in points against control rate in percent (log scale).

    `level` is the false discovery rate; `latent`, if any, is marked.
    """
    floor = density_floor(result.rows)
    figure = go.Figure()
    groups = (
        (f"q > {percent(level, 0)}", GRAY, "circle", False, False),
        (f"q ≤ {percent(level, 0)}", BLUE, "circle", True, False),
        (f"dense, q > {percent(level, 0)}", GRAY, "circle-open", False, True),
        (f"dense, q ≤ {percent(level, 0)}", BLUE, "circle-open", True, True),
    )
    for name, colour, symbol, passes, dense in groups:
        rows = [row for row in result.rows if (row.q_value <= level) == passes and row.dense == dense]
        marker = {"color": colour, "symbol": symbol, "size": 7, "opacity": 0.9 if passes else 0.5}
        _add_dots(figure, rows, floor, name, marker, len(result.rows))
    ring = {"color": ORANGE, "symbol": "circle-open", "size": 13, "line": {"width": 2}}
    _add_dots(figure, [row for row in result.rows if row.selected], floor, "selected", ring, len(result.rows))
    chosen = [row for row in result.rows if row.latent == latent]
    mark = {"color": ORANGE, "symbol": "cross-thin-open", "size": 20, "line": {"width": 2}}
    _add_dots(figure, chosen, floor, f"latent {latent}", mark, len(result.rows))
    apply_layout(
        figure, height=430, x_title="fires on control tokens, % (log scale)", y_title="effect, points of firing rate"
    )
    values, names = _ticks(result.rows, floor)
    figure.update_xaxes(type="log", tickmode="array", tickvals=values, ticktext=names)
    figure.update_yaxes(zeroline=True, zerolinecolor=GRAY, zerolinewidth=1)
    return figure


def _ticks(rows: Sequence[LatentRow], floor: float) -> tuple[list[float], list[str]]:
    """Return powers of ten in percent and their names, and a 0 where rates of 0 are drawn."""
    values: list[float] = []
    if any(row.control_rate == 0 for row in rows):
        values.append(100 * floor)
    top = max((row.control_rate for row in rows), default=1.0)
    first = math.ceil(math.log10(100 * floor) + 0.2)
    values += [10.0**power for power in range(first, math.ceil(math.log10(max(100 * top, 1e-9))) + 1)]
    return values, ["0" if value == 100 * floor else f"{value:g}" for value in values]


def _add_dots(
    figure: go.Figure, rows: Sequence[LatentRow], floor: float, name: str, marker: Mapping[str, object], n: int
) -> None:
    if not rows:
        return
    kind = go.Scattergl if n > MANY_DOTS else go.Scatter
    figure.add_trace(
        kind(
            x=[100 * max(row.control_rate, floor) for row in rows],
            y=[100 * row.effect for row in rows],
            mode="markers",
            name=name,
            marker=dict(marker),
            text=[describe_latent(row) for row in rows],
            customdata=[[row.latent] for row in rows],
            hovertemplate="%{text}<extra></extra>",
            unselected={"marker": {"opacity": 0.9}},
        )
    )


def caption(result: LatentsResult, level: float) -> str:
    """Return what stands under the picture: how many latents pass, n, and the definitions."""
    passing = [row for row in result.rows if row.q_value <= level]
    more = sum(row.effect > 0 for row in passing)
    subject, control = pretty(result.subject), pretty(result.control)
    return (
        f"Layer {result.layer}, {subject} against {control}, n = {result.n_documents} documents each: "
        f"{len(result.rows)} of {result.d_sae} latents are live; {len(passing)} pass a false discovery rate of "
        f"{percent(level, 0)}, {more} of them firing more on {subject}. Two-sided Mann-Whitney on the firing rate of "
        "each document, Benjamini-Hochberg over the live latents. Hollow: dense; ringed: selected for the layer score."
    )


def latent_from_selection(event: object) -> int | None:
    """Return the latent of a plotly selection event (as Streamlit hands it over), None where it names none."""
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

    Every token goes through `html.escape`: a document never becomes markup.
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
