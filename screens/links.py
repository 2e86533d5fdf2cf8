"""Restore views from ids: for a reload, a shared link and "Open again".

A link only shows stored or running work; it starts no benchmark, loading or download. Its content is shown exactly or
rejected: if the page's controls cannot represent it, the session does not change.
"""

import re

import streamlit as st

from screens.benchmark import claims, plan
from screens.diagnose import energy, layer_gains, stability
from screens.edit import dose, prompt, share
from screens.shared import jobs, loaded_model, opened, session, take, ui
from screens.shared.session import MAX_ALPHA
from stethoscope.errors import CorpusError, RecipeError, StethoscopeError, StoreError
from stethoscope.recipes.files import LINK_PREFIX, from_link, parse_recipe, setup_from_link
from stethoscope.records import (
    BenchSpec,
    CompareTextSpec,
    DiagnoseSpec,
    DoseSpec,
    EditRecipe,
    EnergySpec,
    ExportSpec,
    GainSpec,
    RankSpec,
    Spec,
    StabilitySpec,
    nested_records,
)
from stethoscope.results import BenchResult
from stethoscope.store.history import RunRecord
from stethoscope.use_cases import use_case_of


def from_address() -> None:
    """Restore the state in the URL once per session (profile, its changes, layers, subject, recipe, run, job).

    An error is shown until it is dismissed; an unreadable profile is reported as long as it is unreadable.
    """
    if not st.session_state.get("restored"):
        st.session_state["restored"] = True
        if name := st.query_params.get("profile"):
            session.choose_profile(name)
        try:
            if setup := st.query_params.get("setup"):
                session.take_setup(setup_from_link(setup))
            _follow()
        except StethoscopeError as error:
            st.session_state["link_error"] = error
    _take_waiting()
    if error := session.lost_profile():
        ui.banner(error)
    if error := st.session_state.get("link_error"):
        ui.banner(error)
        st.button("Dismiss", key="dismiss-link", on_click=st.session_state.pop, args=("link_error",))


def _follow() -> None:
    parameters = st.query_params.to_dict()
    front = jobs.front()
    if subject := parameters.get("subject"):
        st.session_state["subject"] = known_subject(subject)
    if layers := parameters.get("layers"):
        st.session_state["layers_waiting"] = (linked_layers(layers), linked_seed(parameters.get("seed")))
        if (n_layers := loaded_model.known_layers()) is not None:
            session.take_linked_layers(n_layers)
    if named := parameters.get("recipe"):
        take.take_recipe(from_link(named) if named.startswith(LINK_PREFIX) else front.store.get_recipe(named))
    if run_id := parameters.get("run"):
        open_run(front.store.get_run(run_id))
    if flip := parameters.get("flip"):
        st.session_state.update(flip_at=flip, flip_arm=parameters.get("arm"), flip_kind="all")
    if job_id := parameters.get("job"):
        job = front.snapshot(job_id)
        if job is None:
            raise StoreError(
                "the link's job is no longer known",
                got=repr(job_id),
                next_step="Its finished results are on the Runs page.",
            )
        show(job.spec, job=job_id)


def known_subject(name: str) -> str:
    """Return `name`; raise `CorpusError` if the profile has no such subject."""
    subjects = session.profile().problems.subjects
    if name not in subjects:
        raise CorpusError(
            "the link contains an unknown subject",
            got=repr(name),
            expected=" or ".join(subjects),
            next_step="Choose one of these on the page.",
        )
    return name


def linked_layers(text: str) -> list[int]:
    """Return the layers of "3,4,8"."""
    if not re.fullmatch(r"[0-9]{1,3}(,[0-9]{1,3}){0,199}", text):
        raise RecipeError(
            "the link's layers cannot be read",
            got=repr(text[:60]),
            expected="for example 3,4,8",
            next_step="Pick the layers on the page.",
        )
    return [int(layer) for layer in text.split(",")]


def linked_seed(text: str | None) -> int | None:
    """Return the seed of a random pick; None if the link has none."""
    if text and not re.fullmatch(r"[0-9]{1,4}", text):
        raise RecipeError(
            "the link's seed cannot be read",
            got=repr(text[:60]),
            expected="0 to 9999",
            next_step="Set the seed on the page.",
        )
    return int(text) if text else None


def open_run(run: RunRecord) -> str:
    """Show a stored run and return the name of its page; raise `StoreError` if it has no result."""
    if run.result_id is None:
        raise StoreError(f"run {run.run_id} has no result", got=run.state, next_step="Open a finished run.")
    return show(run.spec, run=run.run_id)


def show(spec: Spec | None, *, run: str | None = None, job: str | None = None) -> str:
    """Set the page of `spec` to it, show its stored run or job there, and return the page's name.

    Raises:
        StoreError: no page shows such a run.
        RecipeError: the page cannot represent the spec; nothing has changed.
    """
    place = None if spec is None else use_case_of(spec).place
    if spec is None or place is None:
        raise StoreError(
            "no page can show this kind of run",
            got=type(spec).__name__,
            next_step="You can download its numbers on the Runs page.",
        )
    if isinstance(spec, BenchSpec):
        take.check_model("benchmark", spec.model)
        jobs.hold(place.slot, run=run, job=job, spec=spec)
        plan.take(spec)  # the result is shown for any arms; the page uses an arm that its slider can represent
        if edits := [arm.recipe for arm in spec.arms if arm.recipe and 0 <= arm.recipe.master_alpha <= MAX_ALPHA]:
            take.take_recipe(edits[0])
        return place.page
    with session.all_or_nothing(take.TAKEN):
        for part in nested_records(spec):
            if isinstance(part, EditRecipe):
                take.take_recipe(part)
                break
        _take_controls(spec)
        session.defaults()
        take.must_be("run", spec, _asked_by_page(spec))
        jobs.hold(place.slot, run=run, job=job, spec=spec)
    return place.page


def _take_controls(spec: Spec) -> None:
    """Set the controls and the settings without controls to those of `spec`."""
    chosen = st.session_state
    if isinstance(spec, RankSpec) and not _is_judged(spec):
        jobs.forget("bench")  # the card of the current benchmark is about another recipe
    if isinstance(spec, CompareTextSpec):
        prompt.take(spec)
    if isinstance(spec, ExportSpec):
        chosen.update(export_out=spec.out, export_kind=spec.kind)
    if isinstance(spec, EnergySpec | GainSpec):
        chosen["task_vector"] = spec.task_vector.name
    if isinstance(spec, EnergySpec):
        chosen.update(subject=spec.subject, fold_gains=spec.fold_gains)
    if isinstance(spec, DiagnoseSpec):
        take.take_diagnosis(spec)
    elif isinstance(spec, StabilitySpec | EnergySpec | GainSpec):
        take.take_diagnosis(spec.diagnosis)
    if not isinstance(spec, DiagnoseSpec | CompareTextSpec):
        opened.keep(spec, lambda: _asked_by_page(spec))


def _is_judged(spec: RankSpec) -> bool:
    """Return whether `spec` ranks the recipe of the current benchmark."""
    shown = jobs.look("bench").result
    return isinstance(shown, BenchResult) and claims.judged_recipe(shown.spec) == spec.recipe


def _asked_by_page(spec: Spec) -> Spec:
    """Return the current spec of the page of `spec`; `spec` itself if its page can show any spec."""
    match spec:
        case DiagnoseSpec():
            return session.diagnosis(silent=True)
        case StabilitySpec():
            return stability.spec_of(session.diagnosis(silent=True))
        case EnergySpec():
            return energy.spec_from_session()
        case GainSpec():
            return layer_gains.spec_from_session()
        case DoseSpec(recipe=recipe):
            return dose.spec_of(recipe)
        case RankSpec(recipe=recipe):
            return claims.rank_spec(recipe, session.profile().problems)
        case ExportSpec(recipe=recipe):
            return share.export_spec(recipe)
        case _:
            return spec


def _take_waiting() -> None:
    """Apply pending layers and recipe once the model is loaded."""
    if (n_layers := loaded_model.known_layers()) is None:
        return
    recipe = st.session_state.pop("recipe_waiting", None)
    try:
        session.take_linked_layers(n_layers)
        if recipe is not None:
            take.take_recipe(parse_recipe(recipe.encode(), source="of the link"))
    except RecipeError as error:
        st.session_state["link_error"] = error
