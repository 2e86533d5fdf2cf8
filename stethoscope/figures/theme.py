"""Shared style of figures: colours for light and dark backgrounds, layout, and number formatting.

Colours set in Python do not follow a theme switch in the browser. Therefore all colours have a contrast of at least 3
on both backgrounds, backgrounds are transparent, and heatmaps fade to transparent at the null instead of white.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from stethoscope.formatting import pretty

BLUE = "#1f83c4"  # base (Okabe-Ito blue, one step lighter)
ORANGE = "#e0751a"  # edited, picked (Okabe-Ito vermilion, one step lighter)
GRAY = "#7d8894"
FAINT = "rgba(125, 136, 148, 0.28)"
BAND = "rgba(125, 136, 148, 0.20)"
MODEBAR = 30  # pixels above the plot for plotly's buttons, so that they do not cover cells or bars
SERIES = (BLUE, ORANGE, "#16a085", "#c46fa0", "#8f7ad6", "#988714", "#d1495b", "#4f9d4f", "#5b8fa8", "#b07a4f")


COLORBAR = {"thickness": 8, "outlinewidth": 0, "len": 0.9, "tickfont": {"color": GRAY, "size": 11}}


_FOREIGN_TAG = re.compile(r"<(?=[a-zA-Z/!])(?!/?(?:b|i|br|sub|sup|extra)>)")  # ours are these


def text_only(figure: go.Figure) -> go.Figure:
    """Return `figure` with unknown HTML tags in labels shown as text.

    Plotly renders a subset of HTML, including links, and a label can contain a name from a file. A figure without such
    names is returned unchanged.
    """
    drawn = figure.to_dict()
    literal = _literal(drawn)
    return figure if literal is drawn else go.Figure(literal)


def _literal(value: Any) -> Any:
    """Return `value` unchanged if no string in it has an unknown tag, otherwise an escaped copy."""
    match value:
        case str():
            return _FOREIGN_TAG.sub("&lt;", value) if _FOREIGN_TAG.search(value) else value
        case dict():
            changed = {name: _literal(item) for name, item in value.items()}
            return changed if any(changed[name] is not value[name] for name in value) else value
        case np.ndarray() if value.dtype.kind in "OU":
            items = value.tolist()
            literal = _literal(items)
            return value if literal is items else np.array(literal, dtype=object)
        case list() | tuple():
            items = [_literal(item) for item in value]
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        case _:
            return value


def series_colour(index: int) -> str:
    """Return the colour of the `index`-th curve or arm (they repeat after ten)."""
    return SERIES[index % len(SERIES)]


def two_lines(name: str) -> str:
    """Return a subject's name for an axis: long names are broken near the middle, so that the plot fits on narrow
    screens."""
    words = pretty(name).split(" ")
    if len(words) == 1 or len(name) < 14:
        return " ".join(words)
    cut = min(range(1, len(words)), key=lambda i: abs(len(" ".join(words[:i])) - len(" ".join(words[i:]))))
    return " ".join(words[:cut]) + "<br>" + " ".join(words[cut:])


def apply_layout(figure: go.Figure, *, height: int, x_title: str = "", y_title: str = "") -> go.Figure:
    """Apply the common layout to `figure` (height in pixels, plus space for plotly's buttons) and return it.

    It replaces existing settings, because merging takes plotly three times as long.
    """
    figure.update_layout(
        height=height + MODEBAR - 8,
        margin={"l": 8, "r": 8, "t": MODEBAR, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 13, "color": GRAY},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GRAY, "activecolor": BLUE},
        dragmode=False,
        hoverlabel={"align": "left", "font": {"size": 12}},
        legend={
            "orientation": "h",
            "yanchor": "bottom",
            "y": 1.01,
            "x": 0,
            "title": None,
            "traceorder": "normal",
            "font": {"color": GRAY},
        },
        overwrite=True,
    )
    axis = {
        "tickfont": {"color": GRAY, "size": 12},
        "gridcolor": FAINT,
        "linecolor": FAINT,
        "zeroline": False,
        "automargin": True,
    }
    figure.update_xaxes(title={"text": x_title, "font": {"color": GRAY, "size": 12}}, **axis, overwrite=True)
    figure.update_yaxes(title={"text": y_title, "font": {"color": GRAY, "size": 12}}, **axis, overwrite=True)
    return figure


def layer_axis(figure: go.Figure, n_layers: int, *, fixed: bool = False) -> None:
    """Put every layer on the x axis, with half a step of space at both ends; `fixed` forbids zooming."""
    figure.update_xaxes(tickmode="array", tickvals=list(range(n_layers)), range=[-0.5, n_layers - 0.5], showgrid=False)
    if fixed:
        figure.update_xaxes(fixedrange=True)


def name_columns(figure: go.Figure, layers: Iterable[int], text: str, n_rows: int) -> None:
    """Write `text`, the reason why they are empty, vertically into the columns of `layers` of a figure with `n_rows`
    rows."""
    for layer in sorted(layers):
        figure.add_annotation(
            x=layer, y=(n_rows - 1) / 2, text=text, textangle=-90, showarrow=False, font={"color": GRAY}
        )


def empty_note(figure: go.Figure, text: str) -> None:
    """Write the reason into the middle of an empty figure."""
    middle = {"x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper"}
    figure.add_annotation(text=text, showarrow=False, font={"color": GRAY}, **middle)


def row_axis(figure: go.Figure, labels: Sequence[str], *, fixed: bool = False) -> None:
    """Put `labels` on the y axis from top to bottom, at 0, 1, ...; `fixed` forbids zooming."""
    rows = len(labels)
    figure.update_yaxes(
        tickmode="array", tickvals=list(range(rows)), ticktext=list(labels), range=[rows - 0.5, -0.5], showgrid=False
    )
    if fixed:
        figure.update_yaxes(fixedrange=True)
