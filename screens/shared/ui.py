"""Shared page elements: headings, cards, charts with captions, downloads, empty states and error banners."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from screens.shared import mirror, opened
from stethoscope.errors import StethoscopeError, UserError
from stethoscope.figures.maths import escape as escape
from stethoscope.figures.tables import cell_of, text_of_cell, to_csv
from stethoscope.figures.theme import text_only
from stethoscope.formatting import pretty
from stethoscope.jobs.worker import describe_error
from stethoscope.records import Record

Rows = Sequence[Record | Mapping[str, object]]
PICTURES = ("PNG", "SVG")
PLOT_CONFIG = {"displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"]}
STYLE = """<style>
.block-container, [data-testid="stMainBlockContainer"] {padding-top: 4.1rem; max-width: 1280px}
.st-key-status {border-bottom: 1px solid rgba(125,136,148,.25); padding-bottom: .5rem}
.st-key-status [data-testid="stMarkdownContainer"], .st-key-status [data-testid="stCaptionContainer"] {margin-bottom: 0}
.st-key-status p {margin: 0}
[data-testid="stCaptionContainer"] p {line-height: 1.45}
[class*="-foot"].stHorizontalBlock, [class*="-foot"][class*="st-key-"] {flex-wrap: nowrap}
[class*="-foot"][class*="st-key-"] > [data-testid="stElementContainer"] {min-width: 0}
@media (max-width: 700px) {
  .st-key-forest-wide, .st-key-forest-partial-wide {overflow-x: auto}
  .st-key-forest-wide .st-key-forest, .st-key-forest-partial-wide .st-key-forest-partial {min-width: 820px}
  [class*="st-key-forest"][class*="-foot"] {position: sticky; left: 0; max-width: 82vw}
}
</style>"""


def path_of(screen: str) -> str:
    """Return the file of a screen, relative to app.py; its name is also the screen's address."""
    return f"screens/{screen}/{screen}.py"


def open_screen(screen: str) -> None:
    """Show another screen."""
    st.switch_page(path_of(screen))


def link_to(screen: str, label: str, *, disabled: bool = False) -> None:
    """Draw a link to the next step, on another screen."""
    st.page_link(path_of(screen), label=f"{label} →", disabled=disabled, width="content")


def heading(title: str, question: str) -> None:
    """Draw the page's title and its purpose."""
    st.title(title, anchor=False)
    st.caption(question)


def card(title: str, key: str | None = None) -> DeltaGenerator:
    """Return a thin-bordered container with a heading."""
    box = st.container(border=True, key=key)
    box.markdown(f"##### {escape(title)}")
    return box


def chart(
    figure: go.Figure,
    *,
    key: str,
    caption: str,
    rows: Rows,
    more: Mapping[str, Rows] | None = None,
    note: str = "",
    figure_key: str | None = None,
    on_select: Callable[[], None] | Literal["ignore"] = "ignore",
    selection_mode: Sequence[Literal["points", "box"]] = ("points", "box"),
) -> None:
    """Draw `figure` with its caption, which is also its text alternative, and a menu to save it as PNG, SVG or CSV.

    Args:
        key: prefix of the elements' keys and the saved files.
        rows: data of the figure for its CSV file.
        more: additional tables by the label of their button.
        note: additional caption line.
        figure_key: key of the plotly element; change it to clear a selection.
        on_select: callback for selections (the event is in the session under `figure_key`).
    """
    with st.container(key=key):
        st.plotly_chart(
            text_only(figure),
            key=figure_key or f"{key}-figure",
            on_select=on_select,
            selection_mode=selection_mode,
            config=plot_config(key),
            alt=caption,
        )
        with st.container(horizontal=True, gap="small", key=f"{key}-foot"):
            st.caption(escape(caption) + (f"  \n{escape(note)}" if note else ""), width="stretch")
            save_menu(key, rows, more or {})


def plot_config(name: str) -> dict[str, Any]:
    """Return plotly's settings; the camera saves `name` at double size with a transparent background."""
    picture = {"format": st.session_state["picture"].lower(), "filename": name, "scale": 2}
    return PLOT_CONFIG | {"toImageButtonOptions": picture}


def save_menu(key: str, rows: Rows, more: Mapping[str, Rows]) -> None:
    """Draw the menu for saving a figure: image format, and numbers as CSV."""
    with st.popover("Save", type="tertiary", key=f"{key}-save"):
        st.segmented_control(
            "Image format (saved by the camera icon above the chart)",
            PICTURES,
            required=True,
            **mirror.mirror("picture", f"{key}-picture", "default", linked=True),
        )
        csv_button("Numbers as CSV", rows, f"{key}.csv", f"{key}-csv")
        for label, others in more.items():
            csv_button(f"{label} as CSV", others, f"{key}_{label.lower().replace(' ', '_')}.csv", f"{key}-{label}-csv")


def csv_button(label: str, rows: Rows, file_name: str, key: str) -> None:
    """Offer `rows` as a CSV file, created on request."""
    st.download_button(label, lambda: to_csv(rows), file_name, "text/csv", key=key, on_click="ignore")


def table(rows: pd.DataFrame | Sequence[Mapping[str, object]], *, key: str, alt: str, **options: Any) -> None:
    """Draw `rows` as a table whose CSV export contains no spreadsheet formulas.

    Text in the toolbar's CSV is escaped as in all other CSV files; the screen shows the original text.

    Args:
        options: options of `st.dataframe`.
    """
    frame = pd.DataFrame(rows)
    text = frame.select_dtypes(exclude=["number", "bool", "datetimetz"])  # a layer has up to 262,144 rows of numbers
    cells, drawn = text.map(_toolbar_cell), frame
    if not cells.equals(text):
        guarded = frame.copy()
        guarded[text.columns] = cells
        drawn = guarded.style.format(_shown, na_rep="None")
    st.dataframe(drawn, hide_index=True, key=key, alt=alt, **options)


def _toolbar_cell(value: object) -> object:
    return cell_of(value.replace("\r", " ") if isinstance(value, str) else value)  # the toolbar does not quote a CR


def _shown(value: object) -> str:
    """Return a cell as Streamlit draws it, without the escaping apostrophe."""
    if isinstance(value, str):
        return text_of_cell(value)
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def banner(error: object) -> None:
    """Draw what went wrong, what was found, what was expected, the next step, and details to copy."""
    what = str(getattr(error, "what", None) or error)
    named = (("Got", "got"), ("Expected", "expected"), ("Next step", "next_step"))
    lines = [f"{label}: {value}" for label, name in named if (value := getattr(error, name, None))]
    st.error("  \n".join([f"**{escape(what)}**", *map(escape, lines)]))
    detail = getattr(error, "detail", None)
    with st.expander("Details to copy"):
        st.code(detail or "\n".join([what, *lines]), language=None)


def missing(error: UserError) -> None:
    """Draw, as information, what the profile must contain for this card or page."""
    st.info(escape(str(error)), icon=":material/info:")


def store_button(label: str, *, key: str, write: Callable[..., object], args: Sequence[object], **options: Any) -> None:
    """Draw a button that writes to the store with `write(*args)`; if that fails, a banner shows why.

    Args:
        options: options of `st.button`.
    """
    failed = f"{key}-failed"

    def act() -> None:
        st.session_state.pop(failed, None)
        try:
            write(*args)
        except StethoscopeError as error:
            st.session_state[failed] = describe_error(error)

    st.button(label, key=key, on_click=act, **options)
    if (error := st.session_state.get(failed)) is not None:
        banner(error)


def empty(text: str, button: str, key: str, action: Callable[[], None] | None = None) -> bool:
    """Draw an empty state: what is missing, and a button with `action`; return whether it was clicked."""
    with st.container(border=True):
        st.caption(escape(text))
        return st.button(escape(button), key=key, type="primary", on_click=action)


@contextmanager
def guarded() -> Iterator[None]:
    """Show an exception of a page as a banner; the app continues."""
    try:
        yield
    except StethoscopeError as error:
        banner(error)
    except Exception as error:  # noqa: BLE001 -- last resort of a page: a banner instead of a traceback
        banner(describe_error(error))


def opened_settings(kind: str) -> None:
    """Draw the settings of an opened run of `kind`, with a button that restores the profile's settings."""
    if not (own := opened.settings(kind)):
        return
    named = ", ".join(f"{pretty(name)} {_listed(value)}" for name, value in own.items())
    with st.container(horizontal=True, vertical_alignment="center", key=f"{kind}-settings"):
        st.caption(escape(f"Settings of the opened run: {named}."), width="content")
        st.button("Use the profile's settings", key=f"{kind}-own", type="tertiary", on_click=opened.drop, args=(kind,))


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
