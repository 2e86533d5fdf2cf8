"""Figures that are drawn once: a page is drawn again with every click, and most of its figures are the same then."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from threading import Lock
from typing import ParamSpec

import plotly.graph_objects as go

from stethoscope.records import Record

P = ParamSpec("P")
KEPT = 64  # figures; a heatmap of 34 layers takes about 0.1 MB


def once(draw: Callable[P, go.Figure]) -> Callable[P, go.Figure]:
    """Make `draw` return the figure that it drew for the same arguments before, of the last `KEPT`; change none.

    Records (results and their rows, which never change) are the same where they are one object, other arguments where
    they are equal.
    """
    kept: OrderedDict[Hashable, tuple[object, go.Figure]] = OrderedDict()
    lock = Lock()

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> go.Figure:
        key = (tuple(map(_key, args)), tuple((name, _key(value)) for name, value in sorted(kwargs.items())))
        with lock:
            if key in kept:
                kept.move_to_end(key)
                return kept[key][1]
        figure = draw(*args, **kwargs)
        with lock:
            kept[key] = ((args, kwargs), figure)  # with the arguments: no other object gets the id of one of them
            if len(kept) > KEPT:
                kept.popitem(last=False)
        return figure

    return drawn


def _key(value: object) -> Hashable:
    match value:
        case Record():
            return (Record, id(value))
        case list() | tuple():
            return (type(value), *map(_key, value))
        case set() | frozenset() | range():
            return (type(value), *sorted(value))
        case dict():
            return (dict, *((name, _key(item)) for name, item in value.items()))
        case _:
            assert isinstance(value, Hashable), f"a figure's argument is a {type(value).__name__}, which has no key"
            return (type(value), value)
