"""What pages draw alike: headings, cards, charts with captions, downloads, empty states and error banners."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from stethoscope.errors import StethoscopeError
from stethoscope.figures.tables import to_csv
from stethoscope.jobs import describe_error
from stethoscope.records import Record

PLOT_CONFIG = {"displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"]}
STYLE = """<style>
.block-container, [data-testid="stMainBlockContainer"] {padding-top: 4.1rem; max-width: 1280px}
.st-key-status {border-bottom: 1px solid rgba(125,136,148,.25); padding-bottom: .5rem}
.st-key-status [data-testid="stMarkdownContainer"], .st-key-status [data-testid="stCaptionContainer"] {margin-bottom: 0}
.st-key-status p {margin: 0}
[data-testid="stCaptionContainer"] p {line-height: 1.45}
</style>"""


def heading(title: str, question: str) -> None:
    """Draw the page's title and the question that it answers."""
    st.title(title, anchor=False)
    st.caption(question)


def card(title: str, key: str | None = None) -> Any:
    """Return a thin-bordered container with a heading."""
    box = st.container(border=True, key=key)
    box.markdown(f"##### {title}")
    return box


def chart(figure: go.Figure, *, key: str, caption: str) -> None:
    """Draw `figure` with its caption, which is its text alternative, too."""
    with st.container(key=key):
        st.plotly_chart(figure, key=f"{key}-figure", config=PLOT_CONFIG, alt=caption)
        st.caption(escape(caption))


def escape(text: str) -> str:
    """Return `text` with markdown's special characters made literal."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]$<>~#|" else letter for letter in text)


def csv_button(label: str, rows: Sequence[Record], file_name: str, key: str) -> None:
    """Offer `rows` as a CSV file."""
    st.download_button(label, to_csv(rows), file_name, "text/csv", key=key, on_click="ignore")


def banner(error: object) -> None:
    """Show what went wrong, what was got, what was expected, the next step, and copyable detail."""
    what = str(getattr(error, "what", None) or error)
    lines = [f"**{escape(what)}**"]
    for label, name in (("Got", "got"), ("Expected", "expected"), ("Next step", "next_step")):
        if value := getattr(error, name, None):
            lines.append(f"{label}: {escape(str(value))}")
    st.error("  \n".join(lines))
    detail = getattr(error, "detail", None)
    with st.expander("Details to copy"):
        st.code(str(detail or error), language=None)


def empty(text: str, button: str, key: str, action: Callable[[], None]) -> None:
    """Draw an empty state: what is missing, and one button that mends it."""
    with st.container(border=True):
        st.caption(text)
        st.button(button, key=key, type="primary", on_click=action)


@contextmanager
def guarded() -> Iterator[None]:
    """Turn an exception of a page into a banner; the app goes on."""
    try:
        yield
    except StethoscopeError as error:
        banner(error)
    except Exception as error:  # noqa: BLE001 -- the page's last line of defence: a banner, never a traceback
        banner(describe_error(error))
