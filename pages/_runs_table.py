"""The table of runs: what each was about, in a few words, and the recipes that it used."""

from typing import Any

import pandas as pd
import streamlit as st

from stethoscope.errors import StethoscopeError
from stethoscope.figures.theme import pretty
from stethoscope.recipes import shown_layers
from stethoscope.records import BenchSpec, EditRecipe
from stethoscope.store.ids import content_id, short_id


def recipes_of(spec: Any) -> dict[str, EditRecipe]:
    """Return the recipes of a run's spec by arm name."""
    if isinstance(spec, BenchSpec):
        return {arm.name: arm.recipe for arm in spec.arms if arm.recipe is not None}
    recipe = getattr(spec, "recipe", None)
    return {"recipe": recipe} if isinstance(recipe, EditRecipe) else {}


def recipes_by_run(runs: list[Any]) -> dict[str, EditRecipe]:
    """Return every recipe of `runs` by run and arm; damaged rows, which the table names, have none to show."""
    found: dict[str, EditRecipe] = {}
    for run in runs:
        try:
            found |= {f"{run.run_id} · {name}": recipe for name, recipe in recipes_of(run.spec).items()}
        except StethoscopeError:
            continue
    return found


def summary(run: Any) -> str:
    """Return in a few words what the run was about; a damaged row says so."""
    try:
        spec = run.spec
    except StethoscopeError as error:
        return f"damaged: {error}"
    if isinstance(spec, BenchSpec):
        return f"{len(spec.arms)} arms, {len(spec.subjects)} subjects, n = {spec.n}"
    subject, control = getattr(spec, "subject", None), getattr(spec, "control", None)
    parts = [pretty(subject) if subject else "", f"against {pretty(control)}" if control else ""]
    for recipe in recipes_of(spec).values():
        parts += [
            f"layers {shown_layers(recipe.layers)}" if recipe.layers else "no layers",
            f"alpha {recipe.master_alpha:g}",
        ]
        parts += [pretty(recipe.arm.kind), f"recipe {short_id(content_id(recipe))}"]
    return ", ".join(part for part in parts if part) or run.kind


def table(runs: list[Any]) -> None:
    """Draw the history, pinned runs first."""
    rows = [
        {
            "pinned": run.pinned,
            "started": pd.to_datetime(run.created_at, unit="s", utc=True),
            "kind": pretty(run.kind),
            "about": run.title or summary(run),
            "state": run.state,
            "seconds": run.elapsed_s,
            "run": run.run_id,
        }
        for run in runs
    ]
    columns = {
        "pinned": st.column_config.CheckboxColumn("pinned", width="small"),
        "started": st.column_config.DatetimeColumn("started, UTC", format="YYYY-MM-DD HH:mm:ss"),
        "about": st.column_config.TextColumn("about", width="large"),
        "seconds": st.column_config.NumberColumn("seconds", format="%.1f"),
    }
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=columns, key="runs-table", alt="Stored runs")
