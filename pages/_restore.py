"""From ids back to a view: a reload, a shared link and "open again" all come in here.

A link only ever shows what is stored or running; it starts no benchmark, no load and no download.
"""

from typing import Any

import streamlit as st

from pages import _jobs
from stethoscope.errors import StoreError
from stethoscope.records import (
    BenchSpec,
    CompareTextSpec,
    DiagnoseSpec,
    EditRecipe,
    EnergySpec,
    NormMatchedArm,
    ProbeSpec,
    ProjectedArm,
)

SLOTS = {"DiagnoseSpec": "diagnosis", "EnergySpec": "energy", "CompareTextSpec": "compare", "BenchSpec": "bench"}
SCREEN = {"DiagnoseSpec": "diagnose", "EnergySpec": "diagnose", "CompareTextSpec": "edit", "BenchSpec": "benchmark"}


def from_address() -> None:
    """Once per session, restore what the address names: ?recipe=, ?run= and ?job=."""
    if st.session_state.get("restored"):
        return
    st.session_state["restored"] = True
    parameters = st.query_params.to_dict()
    front = _jobs.front()
    if recipe_id := parameters.get("recipe"):
        take_recipe(front.store.get_recipe(recipe_id))
    if run_id := parameters.get("run"):
        open_run(front.store.get_run(run_id))
    if (job_id := parameters.get("job")) and (job := front.snapshot(job_id)) is not None and job.kind in SLOTS:
        _jobs.hold(SLOTS[job.kind], job=job_id)


def open_run(run: Any) -> str:
    """Put a stored run on show and return the name of its page; raise `StoreError` when it has no result."""
    spec = run.spec
    kind = type(spec).__name__
    if run.result_id is None:
        raise StoreError(f"run {run.run_id} has no result", got=run.state, next_step="Open a finished run.")
    if isinstance(spec, DiagnoseSpec):
        take_diagnosis(spec)
    elif isinstance(spec, EnergySpec):
        take_diagnosis(spec.diagnosis)
        st.session_state.update(subject=spec.subject, task_vector=spec.task_vector.name)
    elif isinstance(spec, CompareTextSpec | ProbeSpec):
        take_recipe(spec.recipe)
    elif isinstance(spec, BenchSpec):
        edits = [arm.recipe for arm in spec.arms if arm.recipe is not None]
        if edits:
            take_recipe(edits[0])
        st.session_state.update(bench_subjects=list(spec.subjects), bench_n=spec.n)
    if kind in SLOTS:
        _jobs.hold(SLOTS[kind], run=run.run_id, spec=spec)
    return SCREEN.get(kind, "setup")


def take_diagnosis(spec: DiagnoseSpec) -> None:
    """Set the Diagnose page to `spec`."""
    st.session_state.update(control=spec.control, score=spec.score, top_k=spec.top_k)


def take_recipe(recipe: EditRecipe) -> None:
    """Set the layers, strengths, arm and task vector of the session to those of `recipe`."""
    st.session_state.update(
        layers=sorted(recipe.layers),
        layer_alpha={str(layer): [alpha.attention, alpha.mlp] for layer, alpha in recipe.layers.items()},
        alpha=recipe.master_alpha,
        task_vector=recipe.task_vector.name,
        arm=recipe.arm.kind,
    )
    if isinstance(recipe.arm, ProjectedArm | NormMatchedArm):
        st.session_state.update(subject=recipe.arm.subject, edit_k=recipe.arm.top_k)
        take_diagnosis(recipe.arm.diagnosis)
