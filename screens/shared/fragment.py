"""Fragments that may be redrawn beside others."""

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec

import streamlit as st

from screens.shared import jobs, mirror

P = ParamSpec("P")
_inside: ContextVar[bool] = ContextVar("inside a fragment", default=False)


def fragment(*, run_every: float | None = None) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Make a function a Streamlit fragment that stands in a container of its own each time it is drawn.

    The browser may clear a fragment too much when two of them end at the same time. Alone in its container it comes
    back in its place at its next turn; among others it would take the place of what stands behind it.

    Inside another fragment it is drawn along with that one, and is none by itself: where the outer one is cut off, the
    browser would get the inner one's parts without those before them, which stops the whole page.

    A job that a fragment begins is watched by the page (`status.draw`), for which the page is drawn once more.

    Args:
        run_every: seconds between redrawings; None redraws only on what a person does.
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
