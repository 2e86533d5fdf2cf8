"""Fragments that may be redrawn beside others."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import streamlit as st

P = ParamSpec("P")


def fragment(*, run_every: float | None = None) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Make a function a Streamlit fragment that stands in a container of its own each time it is drawn.

    The browser may clear a fragment too much when two of them end at the same time. Alone in its container it comes
    back in its place at its next turn; among others it would take the place of what stands behind it.

    Args:
        run_every: seconds between redrawings; None redraws only on what a person does.
    """

    def decorate(draw: Callable[P, None]) -> Callable[P, None]:
        inner = st.fragment(draw, run_every=run_every)

        @wraps(draw)
        def alone(*args: P.args, **kwargs: P.kwargs) -> None:
            with st.container():
                inner(*args, **kwargs)

        return alone

    return decorate
