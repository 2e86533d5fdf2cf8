"""Rank of a recipe among random sets of layers: sets as dots, the recipe as a diamond, unscaled and at equal edit norm.

Gains are in nats per solution token on the problems of the likelihood check; right is better. p is the share of sets,
including the recipe, that do at least as well.
"""

import plotly.graph_objects as go

from stethoscope.figures.theme import BLUE, GRAY, ORANGE, apply_layout, row_axis
from stethoscope.formatting import pretty, shown_p, signed
from stethoscope.recipes.files import layers_text
from stethoscope.results import RankedSet, RankResult
from stethoscope.results.gain import POOLED
from stethoscope.statistics import CANNOT_BE_SIGNIFICANT, smallest_rank_p

VERSIONS = ("unscaled", "same edit norm")
SPREAD = 0.62  # share of a row's height
STEPS = 7


def strip(result: RankResult, subject: str = POOLED) -> go.Figure:
    """Return the dots of all sets in two rows, and the recipe with its paired 95% interval in both."""
    figure = go.Figure()
    for row, version in enumerate(VERSIONS):
        known = [(found, gain) for found in result.sets if (gain := _gain(found, row, subject)) is not None]
        known.sort(key=lambda pair: pair[1])  # neighbours in x are separated in y
        figure.add_trace(
            go.Scatter(
                x=[gain for _, gain in known],
                y=[row + SPREAD * (place * 3 % STEPS / (STEPS - 1) - 0.5) for place in range(len(known))],
                mode="markers",
                marker={"size": 7, "color": GRAY, "opacity": 0.75},
                name="random sets",
                showlegend=row == 0,
                text=[_describe(found, gain, version) for found, gain in known],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    own = result.row(subject)
    figure.add_trace(
        go.Scatter(
            x=[own.gain] * 2,
            y=[0, 1],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [own.ci_high - own.gain] * 2,
                "arrayminus": [own.gain - own.ci_low] * 2,
                "color": ORANGE,
                "thickness": 1.8,
                "width": 5,
            },
            mode="markers",
            marker={"size": 12, "color": ORANGE, "symbol": "diamond"},
            name="the recipe",
            text=[
                f"<b>the recipe, layers {_layers(result.layers)}</b><br>gain {signed(own.gain, 4)} nats per token<br>"
                f"{as_good} of {len(result.sets)} sets do as well or better, p {shown_p(p)}"
                for as_good, p in ((own.as_good, own.p), (own.as_good_matched, own.p_matched))
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    apply_layout(figure, height=250, x_title="gain, nats per solution token · better →")
    row_axis(figure, VERSIONS)
    figure.add_vline(x=0, line={"color": BLUE, "width": 1})
    figure.update_traces(cliponaxis=False)
    return figure


def caption(result: RankResult, subject: str = POOLED) -> str:
    """Return the caption: the sets, the number of problems, and both ranks with p values."""
    own, n_sets, size = result.row(subject), len(result.sets), len(result.layers)
    if result.exhaustive:
        which = f"all {n_sets} other sets of {size} layers that such an edit can change"
    elif result.complete:
        which = f"{n_sets} random sets of {size} layers (seed {result.spec.seed})"
    else:
        which = f"{n_sets} of {result.spec.n_sets} random sets so far"
    if 0 < len(result.movable) < result.n_layers:
        which += f" from {layers_text(result.movable)}"
    where = "all subjects" if subject == POOLED else pretty(subject)
    broken = sum(_gain(found, row, subject) is None for found in result.sets for row in range(2))
    unable = f", so the rank {CANNOT_BE_SIGNIFICANT}" if own.cannot_be_significant else ""
    parts = [
        f"Layers {_layers(result.layers)} compared with {which}; {where}, {own.n} {result.spec.split} problems: "
        f"{own.as_good} sets do as well or better unscaled (p {shown_p(own.p)}), {own.as_good_matched} at the "
        f"recipe's edit norm (p {shown_p(own.p_matched)}).",
        f"The smallest possible p is {smallest_rank_p(n_sets):.2g}{unable}.",
        "Bars: the recipe's paired 95% t-interval over problems; the blue line is the base.",
    ]
    if broken:
        parts.append(f"{broken} edits gave non-finite results and count as worse.")
    return " ".join(parts)


def _gain(found: RankedSet, row: int, subject: str) -> float | None:
    return (found.gains, found.matched)[row][subject]


def _layers(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))


def _describe(found: RankedSet, gain: float, version: str) -> str:
    scaled = "" if version == VERSIONS[0] else f", alpha scaled by {found.scale:.3g}"
    return (
        f"<b>layers {_layers(found.layers)}</b>, {version}<br>gain {signed(gain, 4)} nats per token<br>"
        f"edit norm {found.norm:.3g}{scaled}"
    )
