"""Undo and redo of the recipe: the recipes of the controls in order, and the current position."""

import streamlit as st

from screens.shared import take
from stethoscope.recipes.files import parse_recipe
from stethoscope.records import EditRecipe

DEPTH = 50


def remember(recipe: EditRecipe) -> None:
    """Add `recipe` after the current one unless it is the same; undone recipes are dropped."""
    past: list[str] = st.session_state.setdefault("edits", [])
    at = st.session_state.setdefault("edit_at", -1)
    body = recipe.model_dump_json()
    if at >= 0 and past[at] == body:
        return
    past[at + 1 :] = [body]
    del past[:-DEPTH]
    st.session_state["edit_at"] = len(past) - 1


def _step(by: int) -> None:
    at = st.session_state["edit_at"] + by
    if 0 <= at < len(st.session_state["edits"]):
        st.session_state["edit_at"] = at
        take.take_recipe(parse_recipe(st.session_state["edits"][at].encode(), source="of the history"))


def buttons() -> None:
    """Draw Undo and Redo; Alt+Z and Alt+Shift+Z do the same."""
    at, past = st.session_state.get("edit_at", -1), st.session_state.get("edits", [])
    st.button("Undo", key="undo", type="tertiary", disabled=at < 1, on_click=_step, args=(-1,), shortcut="alt+z")
    st.button(
        "Redo",
        key="redo",
        type="tertiary",
        disabled=at >= len(past) - 1,
        on_click=_step,
        args=(1,),
        shortcut="alt+shift+z",
    )
