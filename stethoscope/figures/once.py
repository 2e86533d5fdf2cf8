"""Cache of figures, because every click redraws the page and most figures stay the same."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from threading import Lock
from typing import ParamSpec
from weakref import ReferenceType, ref

import plotly.graph_objects as go

from stethoscope.records import Record

P = ParamSpec("P")
KEPT = 64  # figures; a heatmap of 34 layers takes about 0.1 MB


def once(draw: Callable[P, go.Figure]) -> Callable[P, go.Figure]:
    """Decorate `draw` to return the cached figure for the same arguments (the last `KEPT` are kept); do not modify the
    figures.

    Records (immutable results and rows) are compared by identity, other arguments by equality. No record is kept alive,
    because a benchmark's result contains all answers.
    """
    kept: OrderedDict[Hashable, tuple[list[ReferenceType[Record]], go.Figure]] = OrderedDict()
    lock = Lock()

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> go.Figure:
        records: list[ReferenceType[Record]] = []
        key = _key([*args, *sorted(kwargs.items())], records)
        with lock:
            found = kept.get(key)
            if found is not None and all(record() is not None for record in found[0]):  # its id has not been reused
                kept.move_to_end(key)
                return found[1]
        figure = draw(*args, **kwargs)
        with lock:
            kept[key] = (records, figure)
            kept.move_to_end(key)
            if len(kept) > KEPT:
                kept.popitem(last=False)
        return figure

    return drawn


def _key(value: object, records: list[ReferenceType[Record]]) -> Hashable:
    """Return the key of `value`; add records that are identified by their id to `records`."""
    match value:
        case Record():
            records.append(ref(value))
            return (Record, id(value))
        case list() | tuple():
            return (type(value), *(_key(item, records) for item in value))
        case set() | frozenset() | range():
            return (type(value), *sorted(value))
        case dict():
            return (dict, *((name, _key(item, records)) for name, item in value.items()))
        case _:
            assert isinstance(value, Hashable), f"a figure's argument is a {type(value).__name__}, which has no key"
            return (type(value), value)
