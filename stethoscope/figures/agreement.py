"""Agreement between scores and measured gains: a scatter plot, and Kendall's tau of every predictor.

Left: one point per layer, with the score on the x axis, the gain of injecting that layer alone on the y axis, and 95%
intervals on both. Right: a forest plot of Kendall's tau between each predictor and the gain; the gray band is a random
order. The caption states the finding from the same numbers.
"""

from collections.abc import Collection, Sequence

import plotly.graph_objects as go

from stethoscope.figures.theme import BAND, BLUE, GRAY, ORANGE, apply_layout, empty_note
from stethoscope.formatting import pretty, shown_p, signed
from stethoscope.judging.verdicts import gain_limits
from stethoscope.recipes.files import layers_text
from stethoscope.results import AgreementRow, GainCell, GainResult, PredictorCell
from stethoscope.results.gain import POOLED
from stethoscope.statistics import CANNOT_BE_SIGNIFICANT, SIGNIFICANCE

NAMES = {
    "mean_rate_difference": "specificity: mean rate difference",
    "specific_share": "specificity: specific share",
    "activation_mass": "specificity: activation mass",
    "log_ratio": "specificity: log-ratio",
    "first_order": "first-order effect",
    "relative_update": "relative update",
    "probe_auroc": "linear probe AUROC",
    "depth": "depth",
}


def name_of(predictor: str) -> str:
    """Return the display name of a predictor."""
    return NAMES.get(predictor, f"specificity: {pretty(predictor)}")


def subject_name(subject: str) -> str:
    """Return the display name of a subject; the pooled row is "all subjects"."""
    return "all subjects" if subject == POOLED else pretty(subject)


def _error(values: Sequence[float], lows: Sequence[float | None], highs: Sequence[float | None], colour: str) -> dict:
    """Return plotly's asymmetric error bars; none if a bound is missing."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [0 if high is None else high - value for value, high in zip(values, highs, strict=True)],
        "arrayminus": [0 if low is None else value - low for value, low in zip(values, lows, strict=True)],
        "color": colour,
        "thickness": 1.4,
        "width": 3,
    }


def describe_layer(score: PredictorCell, gain: GainCell) -> str:
    """Return the hover text of one layer: both numbers with their intervals, and n."""
    return "<br>".join(
        (
            f"<b>layer {gain.layer} · {subject_name(gain.subject)}</b>",
            f"gain {signed(gain.gain, 4)} nats per token",
            f"95% CI [{signed(gain.ci_low, 4)}, {signed(gain.ci_high, 4)}] · n = {gain.n} problems",
            f"{name_of(score.predictor)} {signed(score.value)} [{signed(score.ci_low)}, {signed(score.ci_high)}]",
            "<i>gain: NLL of gold solutions, base − edited, only this layer edited</i>",
        )
    )


def scatter(result: GainResult, subject: str, picked: Collection[int]) -> go.Figure:
    """Return score against measured gain for `subject` ("all": pooled), one labelled point per layer with both."""
    gains = {cell.layer: cell for cell in result.cells if cell.subject == subject and cell.gain is not None}
    scores = {c.layer: c for c in result.predictors if c.subject == subject and c.predictor == result.score}
    figure = go.Figure()
    for is_picked, colour, name in ((False, BLUE, "other layers"), (True, ORANGE, "picked layers")):
        layers = [
            layer
            for layer, cell in sorted(scores.items())
            if cell.value is not None and layer in gains and (layer in picked) == is_picked
        ]
        if not layers:
            continue
        x = [scores[layer].value or 0.0 for layer in layers]
        y = [gains[layer].gain or 0.0 for layer in layers]
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                error_x=_error(
                    x, [scores[layer].ci_low for layer in layers], [scores[layer].ci_high for layer in layers], colour
                ),
                error_y=_error(
                    y, [gains[layer].ci_low for layer in layers], [gains[layer].ci_high for layer in layers], colour
                ),
                mode="markers+text",
                marker={"size": 9, "color": colour},
                text=[f"<b>{layer}</b>" for layer in layers],
                textposition=["bottom left" if layer % 2 else "top right" for layer in layers],  # neighbours apart
                textfont={"color": colour, "size": 13},
                name=name,
                hovertext=[describe_layer(scores[layer], gains[layer]) for layer in layers],
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
    if not figure.data:
        empty_note(figure, "no layer has both a score and a gain")
    apply_layout(
        figure,
        height=380,
        x_title=f"{pretty(result.score)}, {subject_name(subject)}",
        y_title="measured gain, nats per token",
    )
    figure.add_hline(y=0, line={"color": GRAY, "width": 1})
    figure.update_layout(showlegend=bool(picked))
    return figure


def _rows(result: GainResult, subject: str) -> list[AgreementRow]:
    return [row for row in result.agreement if row.subject == subject]


def describe_agreement(row: AgreementRow) -> str:
    """Return the hover text of one predictor: tau with its interval, p against a random order, and the layers used."""
    head = f"<b>{name_of(row.predictor)} · {subject_name(row.subject)}</b>"
    if row.kendall_tau is None:
        return f"{head}<br>{_without_tau(row)}"
    return "<br>".join(
        (
            head,
            f"Kendall τ {signed(row.kendall_tau, 2)} over {row.n_layers} layers",
            f"95% CI [{signed(row.ci_low, 2)}, {signed(row.ci_high, 2)}], resampling documents and problems together",
            f"p {shown_p(row.p)} against a random order "
            f"(95% of which lie in [{signed(row.null_low, 2)}, {signed(row.null_high, 2)}])",
            *([CANNOT_BE_SIGNIFICANT] if row.cannot_be_significant else []),
        )
    )


def forest(result: GainResult, subject: str) -> go.Figure:
    """Return Kendall's tau of every predictor with the gain of `subject`, and a random order as a gray band."""
    rows = _rows(result, subject)
    figure = go.Figure()
    for is_score, colour in ((False, BLUE), (True, ORANGE)):
        shown = [row for row in rows if row.kendall_tau is not None and (row.predictor == result.score) == is_score]
        taus = [row.kendall_tau or 0.0 for row in shown]
        figure.add_trace(
            go.Scatter(
                x=taus,
                y=[name_of(row.predictor) for row in shown],
                error_x=_error(taus, [row.ci_low for row in shown], [row.ci_high for row in shown], colour),
                mode="markers",
                marker={
                    "size": 9,
                    "color": colour,
                    "symbol": ["x-thin-open" if row.cannot_be_significant else "circle" for row in shown],
                },
                hovertext=[describe_agreement(row) for row in shown],
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
    bands = [(row.null_low, row.null_high) for row in rows if row.null_low is not None and row.null_high is not None]
    if bands:
        low, high = min(low for low, _ in bands), max(high for _, high in bands)
        figure.add_vrect(x0=low, x1=high, fillcolor=BAND, line_width=0, layer="below")
    for row in rows:
        if row.kendall_tau is None:
            figure.add_annotation(
                x=0,
                y=name_of(row.predictor),
                text=_without_tau(row),
                showarrow=False,
                font={"color": GRAY, "size": 12},
            )
    apply_layout(figure, height=380, x_title="Kendall τ with the gain · better →")
    names = [_broken(name_of(row.predictor)) for row in rows]
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=[name_of(row.predictor) for row in rows][::-1],
        tickmode="array",
        tickvals=[name_of(row.predictor) for row in rows],
        ticktext=names,
    )
    figure.update_xaxes(range=[-1.08, 1.08])
    figure.add_vline(x=0, line={"color": GRAY, "width": 1})
    figure.update_layout(showlegend=False)
    return figure


def _without_tau(row: AgreementRow) -> str:
    """Return why there is no tau: fewer than three layers, or equal values."""
    if row.n_layers > 2:
        return "same value in every layer"
    return f"a value in {row.n_layers} layer{'s' if row.n_layers > 1 else ''} only" if row.n_layers else "no value"


def _broken(name: str) -> str:
    return name.replace(": ", ":<br>", 1)


def verdict(result: GainResult, subject: str) -> str:
    """Return a sentence saying whether the score ranks the layers by gain, and better than depth."""
    rows = {row.predictor: row for row in _rows(result, subject)}
    score, depth = rows[result.score], rows["depth"]
    label = pretty(result.score)
    if score.n_layers < 3:
        return (
            f"{label.capitalize()} has a value in only {score.n_layers} of the changed layers, too few to tell "
            "whether it ranks them."
        )
    if score.kendall_tau is None or score.p is None:
        return f"{label.capitalize()} has the same value in all layers."
    tau = f"(τ {signed(score.kendall_tau, 2)}, p {shown_p(score.p)})"
    if score.cannot_be_significant:
        heard = (
            f"{score.n_layers} layers are too few to tell whether {label} predicts which ones help: "
            f"{CANNOT_BE_SIGNIFICANT} {tau}"
        )
    elif score.p >= SIGNIFICANCE:
        heard = f"{label.capitalize()} does not predict which layers help better than chance {tau}"
    else:
        heard = (
            f"{label.capitalize()} predicts which layers help {tau}"
            if score.kendall_tau > 0
            else f"{label.capitalize()} ranks the layers in the opposite order of their gain {tau}"
        )
    if depth.kendall_tau is None:
        return f"{heard}."
    if score.cannot_be_significant:
        return f"{heard}; depth has τ {signed(depth.kendall_tau, 2)}."
    better = "better" if score.kendall_tau > abs(depth.kendall_tau) else "no better"
    return f"{heard}, and is {better} than layer depth (τ {signed(depth.kendall_tau, 2)})."


def caption(result: GainResult, subject: str) -> str:
    """Return the caption of both figures: the finding, the best predictor, n, and the definitions."""
    known = [row for row in _rows(result, subject) if row.kendall_tau is not None]
    best = max(known, key=lambda row: row.kendall_tau or 0.0, default=None)
    n = next(cell.n for cell in result.cells if cell.subject == subject)
    parts = [verdict(result, subject)]
    if best is not None and best.predictor != result.score:
        parts.append(f"Best predictor: {name_of(best.predictor)} (τ {signed(best.kendall_tau, 2)}).")
    parts += gain_limits(result, subject)
    if without := _without_score(result, subject):
        parts.append(f"Not shown because they have no score: {layers_text(without)}.")
    parts.append(
        f"n = {n} {result.split} problems, {result.n_layers - len(result.idle)} layers injected one at a time "
        f"({pretty(result.task_vector)}, alpha {result.alpha:g}), {result.n_documents} documents; 95% intervals. "
        "Gain: decrease of the NLL per token of gold solutions, paired."
    )
    harm = _harm(result)
    return " ".join([*parts, harm] if harm else parts)


def _without_score(result: GainResult, subject: str) -> list[int]:
    """Return the layers with a gain but without a value of the score under test."""
    rows = [row for row in result.predictors if (row.predictor, row.subject) == (result.score, subject)]
    scored = {row.layer for row in rows if row.value is not None}
    cells = [cell for cell in result.cells if cell.subject == subject and cell.gain is not None]
    return [cell.layer for cell in cells if cell.layer not in scored]


def _harm(result: GainResult) -> str:
    """Return a sentence naming the layers that make control text significantly less likely; empty without control
    corpora."""
    cells = [cell for cell in result.cells if cell.is_control]
    if not cells:
        return ""
    harmful = [cell for cell in cells if cell.ci_high is not None and cell.ci_high < 0]
    if not harmful:
        return "No layer makes control text significantly less likely."
    worst = min(harmful, key=lambda cell: cell.gain or 0.0)
    layers = ", ".join(map(str, sorted({cell.layer for cell in harmful})))
    return (
        f"Control text becomes less likely in layers {layers} (at worst {signed(worst.gain, 4)} nats per token, "
        f"layer {worst.layer})."
    )


def sets_caption(result: GainResult, subject: str) -> str:
    """Return the caption of the forest plot: its intervals, and the rank of the score's top layers among random
    sets."""
    rows = [row for row in result.sets if row.subject == subject]
    top = next((row for row in rows if row.kind == "top" and row.predictor == result.score), None)
    last = next((row for row in rows if row.kind == "last"), None)
    parts = ["Intervals resample documents and problems together. Gray band: 95% of random layer orders."]
    for row, name in ((top, f"top {result.top_n} by {pretty(result.score)}"), (last, f"last {result.top_n}")):
        if row is not None:
            layers = ", ".join(map(str, row.layers))
            parts.append(
                f"Injected together, the {name} ({layers}) gain {signed(row.gain, 4)}; "
                f"{row.as_good} of {row.n_random} random sets do as well (p {shown_p(row.p)}"
                f"{f'; {CANNOT_BE_SIGNIFICANT}' if row.cannot_be_significant else ''})."
            )
    return " ".join(parts)
