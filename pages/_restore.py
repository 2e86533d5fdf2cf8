"""From ids back to a view: a reload, a shared link and "open again" all come in here.

A link only ever shows what is stored or running; it starts no benchmark, no load and no download.
"""

import re
from typing import Any

import streamlit as st

from pages import _jobs, _plan, _session, _ui
from pages._session import MAX_ALPHA
from stethoscope.errors import CorpusError, RecipeError, StethoscopeError, StoreError
from stethoscope.recipes import LINK_PREFIX, from_link
from stethoscope.records import (
    BenchSpec,
    CompareTextSpec,
    DiagnoseSpec,
    DoseSpec,
    EditRecipe,
    EnergySpec,
    ModelRef,
    NormMatchedArm,
    ProbeSpec,
    ProjectedArm,
    RandomSubspaceArm,
    StabilitySpec,
)

SLOTS = {
    "DiagnoseSpec": "diagnosis",
    "StabilitySpec": "stability",
    "EnergySpec": "energy",
    "CompareTextSpec": "compare",
    "DoseSpec": "dose",
    "BenchSpec": "bench",
}
SCREEN = {
    "DiagnoseSpec": "diagnose",
    "StabilitySpec": "diagnose",
    "EnergySpec": "diagnose",
    "CompareTextSpec": "edit",
    "DoseSpec": "edit",
    "BenchSpec": "benchmark",
}


def from_address() -> None:
    """Once per session, restore what the address names (layers, subject, recipe, run, job); a failure stays on show."""
    if not st.session_state.get("restored"):
        st.session_state["restored"] = True
        try:
            _follow()
        except StethoscopeError as error:
            st.session_state["link_error"] = error
    if error := st.session_state.get("link_error"):
        _ui.banner(error)
        st.button("Dismiss", key="dismiss-link", on_click=st.session_state.pop, args=("link_error",))


def _follow() -> None:
    parameters = st.query_params.to_dict()
    front = _jobs.front()
    if subject := parameters.get("subject"):
        st.session_state["subject"] = known_subject(subject)
    if layers := parameters.get("layers"):
        seed = parameters.get("seed", "")
        _session.set_layers(linked_layers(layers), seed=int(seed) if re.fullmatch(r"[0-9]{1,4}", seed) else None)
    if named := parameters.get("recipe"):
        take_recipe(from_link(named) if named.startswith(LINK_PREFIX) else front.store.get_recipe(named))
    if run_id := parameters.get("run"):
        open_run(front.store.get_run(run_id))
    if flip := parameters.get("flip"):
        st.session_state.update(flip_at=flip, flip_arm=parameters.get("arm"), flip_kind="all")
    if (job_id := parameters.get("job")) and (job := front.snapshot(job_id)) is not None and job.kind in SLOTS:
        _jobs.hold(SLOTS[job.kind], job=job_id)


def known_subject(name: str) -> str:
    """Return `name`; raise `CorpusError` when the profile has no such subject."""
    subjects = _session.profile().problems.subjects
    if name not in subjects:
        raise CorpusError("the link names an unknown subject", got=repr(name), expected=" or ".join(subjects))
    return name


def linked_layers(text: str) -> list[int]:
    """Return the layers of "3,4,8"; those beyond the model's are told where it is loaded."""
    if not re.fullmatch(r"[0-9]{1,3}(,[0-9]{1,3}){0,199}", text):
        raise RecipeError("the link's layers cannot be read", got=repr(text[:60]), expected="for example 3,4,8")
    return [int(layer) for layer in text.split(",")]


def open_run(run: Any) -> str:
    """Put a stored run on show and return the name of its page; raise `StoreError` when it has no result."""
    spec = run.spec
    kind = type(spec).__name__
    if run.result_id is None:
        raise StoreError(f"run {run.run_id} has no result", got=run.state, next_step="Open a finished run.")
    if isinstance(spec, DiagnoseSpec):
        take_diagnosis(spec)
    elif isinstance(spec, StabilitySpec):
        take_diagnosis(spec.diagnosis)
    elif isinstance(spec, EnergySpec):
        take_diagnosis(spec.diagnosis)
        st.session_state.update(subject=spec.subject, task_vector=spec.task_vector.name, fold_gains=spec.fold_gains)
    elif isinstance(spec, CompareTextSpec | ProbeSpec | DoseSpec):
        take_recipe(spec.recipe)
    elif isinstance(spec, BenchSpec):
        # a result is shown whatever its recipe; the page edits with one that its slider can show
        edits = [arm.recipe for arm in spec.arms if arm.recipe and 0 <= arm.recipe.master_alpha <= MAX_ALPHA]
        if edits:
            take_recipe(edits[0])
        _plan.take(spec)
    if kind in SLOTS:
        _jobs.hold(SLOTS[kind], run=run.run_id, spec=spec)
    return SCREEN.get(kind, "setup")


def take_diagnosis(spec: DiagnoseSpec) -> None:
    """Set the Diagnose page to `spec`."""
    st.session_state.update(control=spec.control, score=spec.score, top_k=spec.top_k)


def take_recipe(recipe: EditRecipe) -> None:
    """Set the layers, strengths, arm and task vector of the session to those of `recipe`.

    Raises:
        RecipeError: a recipe for another model, or with a task vector that the profile does not have.
    """
    profile = _session.profile()
    if recipe.model != profile.model:
        raise RecipeError("the recipe is for another model", got=_called(recipe.model), expected=_called(profile.model),
                          next_step="Load the profile with that model on the Setup page first.")  # fmt: skip
    if recipe.task_vector not in profile.task_vectors:
        raise RecipeError("the recipe's task vector is not among the profile's",
                          got=f"{recipe.task_vector.name} ({recipe.task_vector.tuned})",
                          expected=" or ".join(ref.name for ref in profile.task_vectors),
                          next_step="Add it on the Setup page, then load the recipe again.")  # fmt: skip
    if not 0 <= recipe.master_alpha <= MAX_ALPHA:
        raise RecipeError("the recipe's master alpha is outside the slider's range", got=recipe.master_alpha,
                          expected=f"0 to {MAX_ALPHA}", next_step="Put the rest into the strengths.")  # fmt: skip
    st.session_state.update(
        taken=recipe.model_dump_json(),
        norms=recipe.norms,
        embeddings=recipe.embeddings,
        strength_edits=st.session_state.get("strength_edits", 0) + 1,
        layers=sorted(recipe.layers),
        layer_alpha={str(layer): [alpha.attention, alpha.mlp] for layer, alpha in recipe.layers.items()},
        alpha=recipe.master_alpha,
        task_vector=recipe.task_vector.name,
        arm=recipe.arm.kind,
    )
    if isinstance(recipe.arm, RandomSubspaceArm):
        st.session_state.update(edit_k=recipe.arm.rank, arm_seed=recipe.arm.seed, arm_matched=recipe.arm.norm_matched)
    if isinstance(recipe.arm, ProjectedArm | NormMatchedArm):
        st.session_state.update(subject=recipe.arm.subject, edit_k=recipe.arm.top_k)
        take_diagnosis(recipe.arm.diagnosis)


def _called(model: ModelRef) -> str:
    return f"{model.id} {model.revision or ''} in {model.dtype}".replace("  ", " ")
