"""Widgets linked to plain session keys, so that user input during a rerun is not lost.

Streamlit drops a keyed widget's value when the page changes, and one key holds one widget. So each widget is a mirror:
its value is copied into a plain session key (`alpha`, `layers`, ...) which every page reads, and which other widgets
may show, too. `persist_state="session"` would keep the value, but neither lets two widgets show it nor mends these
three faults of Streamlit 1.67, each reproduced in a test:

- A value that a page writes to a widget (`st.session_state[key] = ...`) overwrites what a person changed in it until
  the write arrives, in the browser alone: the server takes the person's value, the browser sends the former one again
  with the next click (tests/browser/test_typed_while_drawn.py). So a page writes as seldom as it can.
- What a drawing wrote is dropped when the drawing is cut off before the browser was sent it
  (tests/screens/test_cut_off.py). So it is written once more.
- A click is sent with the values of all widgets. One that the page has just written to, and that the browser still
  shows as before, counts as changed by the person (tests/browser/test_typed_while_drawn.py). So a widget that follows
  another one on its page is replaced instead of written to.
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
    """Note that the page is being drawn or, where not `whole`, a fragment by itself.

    A drawing that is cut off (by a click, or by `st.rerun`) does not reach the end of this: what it wrote may never
    have reached the browser, and stays in "unsure" to be written once more (see `mirror`).
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
    """Whether the whole page is being drawn, not one of its fragments by itself."""
    return _whole_page.get()


def mirror(name: str, key: str, default: str | None = None, *, linked: bool = False) -> dict[str, Any]:
    """Return the keyword arguments that tie the widget `key` to the plain session key `name`.

    Writing to a widget that the browser shows already undoes what a person changes in it until the write arrives. So a
    widget is written to only

    - where its value differs, or it is new;
    - where the drawing that wrote it was cut off, so that the browser may never have got the value;
    - where a person changed it right after such a write: the browser may show the one value or the other, and is told
      which one counts.

    Args:
        name: of the plain session key.
        key: of the widget.
        default: what this kind of widget calls its default. It counts where the browser draws the widget later than it
            was written (in a popover), or never got what was written. Boxes that name an option's place have none.
        linked: whether the page has another widget for `name`. What a person does next is sent with what this one
            showed before the other one changed it. So it is not written to, but replaced by one of a new key.
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
    """Return the key under which the linked widget `key` was drawn last."""
    times = st.session_state.get("replaced", {}).get(key, 0)
    return f"{key}-{times}" if times else key


def write(key: str, value: Any, *, differs: bool) -> None:
    """Write `value` to the widget `key` where it `differs`, or where the browser may not know it (see `mirror`)."""
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
    """Return the limits of the box that mirrors `name`; what was loaded may lie beyond what a box offers by itself."""
    value = st.session_state[name]
    return {"min_value": min(low, value), "max_value": max(high, value)}
