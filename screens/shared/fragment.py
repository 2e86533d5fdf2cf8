"""Fragments that can be redrawn independently."""

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec

import streamlit as st

from screens.shared import jobs, mirror

P = ParamSpec("P")
_inside: ContextVar[bool] = ContextVar("inside a fragment", default=False)


def fragment(*, run_every: float | None = None) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Make a function a Streamlit fragment in its own container.

    When two fragments end at the same time, the browser may clear too much of one. In its own container, it reappears
    in its place at the next rerun; otherwise it would replace the following elements.

    Within another fragment it is drawn as part of that one: if the outer one were interrupted, the browser would
    receive the inner elements without the preceding ones, which breaks the page.

    A job started by a fragment is watched by the page (`status.draw`), so the page is rerun once.

    Args:
        run_every: seconds between reruns; None reruns only on user actions.
    """

    def decorate(draw: Callable[P, None]) -> Callable[P, None]:
        @wraps(draw)
        def once(*args: P.args, **kwargs: P.kwargs) -> None:
            token = _inside.set(True)
            try:
                with mirror.drawing(whole=False):
                    draw(*args, **kwargs)
                    jobs.show_begun()
            finally:
                _inside.reset(token)

        inner = st.fragment(once, run_every=run_every)

        @wraps(draw)
        def alone(*args: P.args, **kwargs: P.kwargs) -> None:
            with st.container():
                (draw if _inside.get() else inner)(*args, **kwargs)

        return alone

    return decorate
