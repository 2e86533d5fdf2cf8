"""Stability of the layer order: one row per variant (score, k, control corpus), one column per layer; cells show ranks.

A column with a single shade is a layer whose rank does not depend on the variant. Kendall's tau with the reference
order is shown at the end of each row. The best rank has the strongest shade. A layer without a score is empty, and one
without an SAE is labelled.
"""

from collections.abc import Iterator, Mapping, Sequence

import plotly.graph_objects as go

from stethoscope.figures.once import once
from stethoscope.figures.theme import GRAY, apply_layout, layer_axis, name_columns, row_axis
from stethoscope.formatting import pretty, signed
from stethoscope.results import StabilityResult, StabilityRow

KINDS = {"score": "scores", "k": "k", "control": "control corpora"}
SCALE = [
    (0.0, "#0f62b0"),
    (0.35, "#3f78a8"),
    (1.0, "#6f7a86"),
]  # opaque, so that white text is legible on any background


def label(row: StabilityRow) -> str:
    """Return the label of a variant's row."""
    return {"score": pretty(row.variant), "k": f"k = {row.variant}", "control": f"against {pretty(row.variant)}"}[
        row.kind
    ]


def is_reference(result: StabilityResult, row: StabilityRow) -> bool:
    """Whether the row is that of the reference diagnosis."""
    return row.variant == {"score": result.score, "k": str(result.top_k), "control": result.control}[row.kind]


def ranks(result: StabilityResult, row: StabilityRow) -> list[int | None]:
    """Return the rank of every layer of the model, 1 = highest score; None without a score or an SAE."""
    scored = {layer for layer, score in zip(result.layers, row.scores, strict=True) if score is not None}
    ranked = [layer for layer in row.order if layer in scored]  # older runs also list layers without a score
    rank_of = {layer: rank for rank, layer in enumerate(ranked, start=1)}
    return [rank_of.get(layer) for layer in range(result.n_layers)]


@once
def rank_heatmap(result: StabilityResult, subject: str) -> go.Figure:
    """Return `subject`'s ranks, variants x layers, with tau at each row; the reference's labels are bold."""
    rows = [row for row in result.rows if row.subject == subject]
    table = [ranks(result, row) for row in rows]
    figure = go.Figure(
        go.Heatmap(
            x=list(range(result.n_layers)),
            y=list(range(len(rows))),
            z=table,
            zmin=1,
            zmax=max(len(result.layers), 2),
            colorscale=SCALE,
            showscale=False,
            xgap=2,
            ygap=2,
            text=[["" if rank is None else str(rank) for rank in of_row] for of_row in table],
            texttemplate="%{text}",
            textfont={"size": 11, "color": "white"},
            customdata=[list(_hover(result, row)) for row in rows],
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
        )
    )
    apply_layout(figure, height=26 * len(rows) + 62, x_title="layer")
    names = [f"<b>{label(row)}</b>" if is_reference(result, row) else label(row) for row in rows]
    layer_axis(figure, result.n_layers, fixed=True)
    row_axis(figure, names, fixed=True)
    name_columns(figure, set(range(result.n_layers)) - set(result.layers), "no SAE", len(rows))
    for position, row in enumerate(rows):
        figure.add_annotation(
            x=1.0,
            xref="paper",
            xanchor="left",
            xshift=6,
            y=position,
            text=f"\N{GREEK SMALL LETTER TAU} {signed(row.kendall_tau, 2)}",
            showarrow=False,
            font={"color": GRAY, "size": 12},
        )
    for position in range(1, len(rows)):
        if rows[position].kind != rows[position - 1].kind:
            figure.add_hline(y=position - 0.5, line={"color": GRAY, "width": 1})
    figure.update_layout(margin_r=72)
    return figure


def _hover(result: StabilityResult, row: StabilityRow) -> Iterator[str]:
    """Yield the hover text of each cell of a row."""
    score_of = dict(zip(result.layers, row.scores, strict=True))
    of = len([score for score in row.scores if score is not None])
    for layer, rank in enumerate(ranks(result, row)):
        if rank is None:
            yield f"<b>layer {layer} · {label(row)}</b><br>{'no score' if layer in score_of else 'no SAE'}"
            continue
        yield (
            f"<b>layer {layer} · {label(row)}</b><br>rank {rank} of {of}, score {signed(score_of[layer])}<br>"
            f"Kendall's tau-b of the row with the reference {signed(row.kendall_tau, 2)}"
        )


def caption(result: StabilityResult, subject: str) -> str:
    """Return the caption: definition, reference, and the range of tau of each kind of variant."""
    rows = [row for row in result.rows if row.subject == subject]
    parts = [text for kind, name in KINDS.items() if (text := _range(result, rows, kind, name))]
    return (
        f"Rank of each layer for {pretty(subject)} (1 = highest score). Kendall's tau-b with the reference "
        f"({pretty(result.score)}, k = {result.top_k}, against {pretty(result.control)}; in bold), "
        f"over n = {len(result.layers)} layers: {'; '.join(parts) or 'no other variant'}."
    )


def _range(result: StabilityResult, rows: Sequence[StabilityRow], kind: str, name: str) -> str:
    others = [row for row in rows if row.kind == kind and not is_reference(result, row)]
    taus = [row.kendall_tau for row in others if row.kendall_tau is not None]
    if not others:
        return ""
    if not taus:
        return f"across {name} undefined"
    span = signed(taus[0], 2) if len(taus) == 1 else f"{signed(min(taus), 2)} to {signed(max(taus), 2)}"
    return f"across {name} {span}"


def numbers(result: StabilityResult, subject: str) -> list[Mapping[str, object]]:
    """Return the data of the figure, one row per cell: kind, variant, tau, layer, score, rank."""
    return [
        {
            "subject": subject,
            "kind": row.kind,
            "variant": row.variant,
            "kendall_tau": row.kendall_tau,
            "layer": layer,
            "score": score,
            "rank": ranks(result, row)[layer],
        }
        for row in result.rows
        if row.subject == subject
        for layer, score in zip(result.layers, row.scores, strict=True)
    ]
