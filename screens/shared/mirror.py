"""Widgets linked to plain session keys, so that user input during a rerun is not lost.

Streamlit drops a keyed widget's value when the page changes, and one key holds one widget. So each widget is a mirror:
its value is copied into a plain session key (`alpha`, `layers`, ...), which every page reads and other widgets may show
as well. `persist_state="session"` would keep the value, but does not let two widgets share it, and does not fix three
bugs of Streamlit 1.67, each reproduced in a test:

- A value that a page writes to a widget (`st.session_state[key] = ...`) overwrites changes that the user makes before
  the write arrives, but only in the browser: the server uses the user's value, and the browser sends the old one with
  the next click (tests/browser/test_typed_while_drawn.py). So a page writes as rarely as possible.
- A written value is lost if the script run is interrupted before the value is sent to the browser
  (tests/screens/test_cut_off.py). So it is written again.
- A click sends the values of all widgets. If the page has just written to a widget and the browser still shows the old
  value, Streamlit takes it as changed by the user (tests/browser/test_typed_while_drawn.py). So a widget that follows
  another one on the same page is replaced instead of written to.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import streamlit as st

_whole_page: ContextVar[bool] = ContextVar("the whole page is drawn", default=False)
_written: ContextVar[set[str] | None] = ContextVar("widgets that this drawing has written", default=None)


@contextmanager
def drawing(*, whole: bool = True) -> Generator[None]:
    """Context of a run that draws the whole page or, if not `whole`, a single fragment.

    An interrupted run (by a click, or by `st.rerun`) does not reach the end of the context. The values that it wrote
    may not have reached the browser, so they stay in "unsure" and are written again (see `mirror`).
    """
    if whole_page():
        yield
        return
    chosen, written = st.session_state, set[str]()
    tokens = _whole_page.set(whole), _written.set(written)
    if whole:
        chosen["awaited"] = []  # jobs under way, noted as they are drawn
    try:
        yield
        chosen["unsure"] = sorted(_kept("unsure") - written)
    finally:
        _whole_page.reset(tokens[0])
        _written.reset(tokens[1])


def whole_page() -> bool:
    """Return whether the whole page is being drawn, not a single fragment."""
    return _whole_page.get()


def mirror(name: str, key: str, default: str | None = None, *, linked: bool = False) -> dict[str, Any]:
    """Return the keyword arguments that link the widget `key` to the plain session key `name`.

    Writing to a widget that the browser already shows undoes changes that the user makes before the write arrives. So a
    widget is written to only

    - if its value differs, or it is new;
    - if the run that wrote it was interrupted, so that the browser may not have received the value;
    - if the user changed it right after such a write: the browser may show either value, so the valid one is sent
      again.

    Args:
        name: plain session key.
        key: key of the widget.
        default: name of the widget's parameter for its default. The default is used if the browser draws the widget
            later than it was written (in a popover), or did not receive the write. Select boxes, whose default is an
            index, have none.
        linked: whether the page has another widget for `name`. The user's next action would be sent with the old value
            of this widget, so it is replaced by a widget with a new key instead of written to.
    """
    chosen, plain = st.session_state, key
    if linked:
        if (shown := newest(key)) in chosen and chosen[shown] != chosen[name]:
            chosen["replaced"] = chosen.get("replaced", {}) | {key: chosen.get("replaced", {}).get(key, 0) + 1}
        key = newest(key)
    write(key, chosen[name], differs=key not in chosen or chosen[key] != chosen[name])
    starts = {} if default is None else {default: chosen[name]}
    return {"key": key, "on_change": _copy, "args": (name, key, plain)} | starts


def newest(key: str) -> str:
    """Return the current key of the linked widget `key`."""
    times = st.session_state.get("replaced", {}).get(key, 0)
    return f"{key}-{times}" if times else key


def write(key: str, value: Any, *, differs: bool) -> None:
    """Write `value` to the widget `key` if it `differs`, or if the browser may not have it (see `mirror`)."""
    unsure, over = _kept("unsure"), _kept("written_over")
    if not differs and key not in unsure:
        st.session_state["written_over"] = sorted(over - {key})
        return
    if key in st.session_state:
        st.session_state["written_over"] = sorted(over | {key})
    st.session_state["unsure"] = sorted(unsure | {key})
    if (written := _written.get()) is not None:
        written.add(key)
    st.session_state[key] = value


def _kept(name: str) -> set[str]:
    return set(st.session_state.get(name, []))


def _copy(name: str, key: str, plain: str) -> None:
    if key != newest(plain):
        return
    if (value := st.session_state.get(key)) is not None:
        st.session_state[name] = round(value, 4) if isinstance(value, float) else value  # 0.35, not 7 * 0.05
    if key in _kept("written_over"):
        st.session_state["unsure"] = sorted(_kept("unsure") | {key})


def bounds(name: str, low: float, high: float) -> dict[str, Any]:
    """Return the limits of the number input for `name`, extended if a loaded value is outside the usual range."""
    value = st.session_state[name]
    return {"min_value": min(low, value), "max_value": max(high, value)}
