"""From ids back to a view: a reload, a shared link and "open again" all come in here.

A link only ever shows what is stored or running; it starts no benchmark, no load and no download. What it names is
shown as it is or refused: where the page's controls would ask for something else, nothing of the session changes.
"""

import re
from typing import Any

import streamlit as st

from pages import _energy, _gain, _jobs, _plan, _recipe, _session, _ui
from pages._session import LATENTS, MAX_ALPHA, SEEDS
from stethoscope.errors import CorpusError, RecipeError, StethoscopeError, StoreError
from stethoscope.recipes import LINK_PREFIX, differences, from_link, parse_recipe, setup_from_link
from stethoscope.records import (
    BenchSpec,
    CompareTextSpec,
    DiagnoseSpec,
    DoseSpec,
    EditRecipe,
    EnergySpec,
    ExportSpec,
    GainSpec,
    ModelRef,
    NormMatchedArm,
    ProjectedArm,
    RandomSubspaceArm,
    Spec,
    StabilitySpec,
)

PLACES: dict[type[Spec], tuple[str, str]] = {  # slot and page
    DiagnoseSpec: ("diagnosis", "diagnose"),
    StabilitySpec: ("stability", "diagnose"),
    EnergySpec: ("energy", "diagnose"),
    GainSpec: ("gain", "diagnose"),
    CompareTextSpec: ("compare", "edit"),
    DoseSpec: ("dose", "edit"),
    ExportSpec: ("export", "edit"),
    BenchSpec: ("bench", "benchmark"),
}
TAKEN = (  # what `take_recipe` and `show` write
    *("layers", "layer_alpha", "alpha", "task_vector", "arm", "norms", "embeddings", "edit_k", "arm_seed"),
    *("arm_matched", "arm_served", "strength_edits", "subject", "control", "score", "top_k", "fold_gains", "slots"),
)
DIFFERENCES_SHOWN = 3


def from_address() -> None:
    """Once per session, restore what the address names (profile, its changes, layers, subject, recipe, run, job).

    A failure stays on show until it is dismissed, and a profile that cannot be read for as long as it is so.
    """
    if not st.session_state.get("restored"):
        st.session_state["restored"] = True
        if name := st.query_params.get("profile"):
            _session.choose_profile(name)
        try:
            if setup := st.query_params.get("setup"):
                _session.take_setup(setup_from_link(setup))
            _follow()
        except StethoscopeError as error:
            st.session_state["link_error"] = error
    _take_waiting()
    if error := _session.lost_profile():
        _ui.banner(error)
    if error := st.session_state.get("link_error"):
        _ui.banner(error)
        st.button("Dismiss", key="dismiss-link", on_click=st.session_state.pop, args=("link_error",))


def _follow() -> None:
    parameters = st.query_params.to_dict()
    front = _jobs.front()
    if subject := parameters.get("subject"):
        st.session_state["subject"] = known_subject(subject)
    if layers := parameters.get("layers"):
        st.session_state["layers_waiting"] = (linked_layers(layers), linked_seed(parameters.get("seed")))
        if (n_layers := _recipe.known_layers()) is not None:
            _session.take_linked_layers(n_layers)
    if named := parameters.get("recipe"):
        take_recipe(from_link(named) if named.startswith(LINK_PREFIX) else front.store.get_recipe(named))
    if run_id := parameters.get("run"):
        open_run(front.store.get_run(run_id))
    if flip := parameters.get("flip"):
        st.session_state.update(flip_at=flip, flip_arm=parameters.get("arm"), flip_kind="all")
    if job_id := parameters.get("job"):
        job = front.snapshot(job_id)
        if job is None:
            raise StoreError("the link's job is not known any more", got=repr(job_id),
                             next_step="What it had finished is on the Runs page.")  # fmt: skip
        show(job.spec, job=job_id)


def known_subject(name: str) -> str:
    """Return `name`; raise `CorpusError` when the profile has no such subject."""
    subjects = _session.profile().problems.subjects
    if name not in subjects:
        raise CorpusError(
            "the link names an unknown subject",
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
    """Return the seed of a random pick, None where the link has none."""
    if text and not re.fullmatch(r"[0-9]{1,4}", text):
        raise RecipeError(
            "the link's seed cannot be read",
            got=repr(text[:60]),
            expected="0 to 9999",
            next_step="Set the seed on the page.",
        )
    return int(text) if text else None


def open_run(run: Any) -> str:
    """Put a stored run on show and return the name of its page; raise `StoreError` when it has no result."""
    if run.result_id is None:
        raise StoreError(f"run {run.run_id} has no result", got=run.state, next_step="Open a finished run.")
    return show(run.spec, run=run.run_id)


def show(spec: Spec | None, *, run: str | None = None, job: str | None = None) -> str:
    """Set the page of `spec` to it, put its stored run or its job on show there, and return the page's name.

    Raises:
        StoreError: no page shows such a run.
        RecipeError: the page would ask for something else; then nothing has changed.
    """
    if spec is None or type(spec) not in PLACES:
        raise StoreError("no page shows this kind of run", got=type(spec).__name__,
                         next_step="Its numbers can be downloaded on the Runs page.")  # fmt: skip
    slot, page = PLACES[type(spec)]
    if isinstance(spec, BenchSpec):
        _check_model("benchmark", spec.model)
        _jobs.hold(slot, run=run, job=job, spec=spec)
        _plan.take(spec)  # the result is shown whatever its arms; the page edits with one that its slider can show
        if edits := [arm.recipe for arm in spec.arms if arm.recipe and 0 <= arm.recipe.master_alpha <= MAX_ALPHA]:
            take_recipe(edits[0])
        return page
    with _session.all_or_nothing(TAKEN):
        if isinstance(spec, CompareTextSpec | DoseSpec | ExportSpec):
            take_recipe(spec.recipe)
        if isinstance(spec, DiagnoseSpec):
            _take_diagnosis(spec)
        if isinstance(spec, StabilitySpec | EnergySpec | GainSpec):
            _take_diagnosis(spec.diagnosis)
        if isinstance(spec, EnergySpec | GainSpec):
            st.session_state["task_vector"] = spec.task_vector.name
        if isinstance(spec, EnergySpec):
            st.session_state.update(subject=spec.subject, fold_gains=spec.fold_gains)
        _session.defaults()
        _must_be("run", spec, _asked_by_page(spec))
        _jobs.hold(slot, run=run, job=job, spec=spec)
    return page


def _asked_by_page(spec: Spec) -> Spec:
    """Return what the page of `spec` asks for now; `spec` itself where its page shows whatever it holds."""
    diagnosis = _session.diagnose_spec(silent=True)
    if isinstance(spec, DiagnoseSpec):
        return diagnosis
    if isinstance(spec, StabilitySpec):
        return StabilitySpec(diagnosis=diagnosis)
    if isinstance(spec, EnergySpec):
        return _energy.spec_from_session()
    if isinstance(spec, GainSpec):
        return _gain.spec_from_session()
    if isinstance(spec, DoseSpec):
        return DoseSpec(recipe=spec.recipe, problems=_session.profile().problems)
    return spec


def _must_be(what: str, wanted: Any, shown: Any) -> None:
    """Raise `RecipeError` with the first differences where the page shows another record than `wanted`."""
    changes = differences(wanted, shown)
    if changes:
        said = [f"{change.field}: {change.before} (here {change.after})" for change in changes[:DIFFERENCES_SHOWN]]
        more = f"; {len(changes) - DIFFERENCES_SHOWN} more" if len(changes) > DIFFERENCES_SHOWN else ""
        raise RecipeError(f"this page cannot show the {what} as it is", got="; ".join(said) + more,
                          next_step="Choose its profile on the Setup page, or use it on the command line.")  # fmt: skip


def _take_diagnosis(spec: DiagnoseSpec) -> None:
    st.session_state.update(control=spec.control, score=spec.score, top_k=spec.top_k)


def take_recipe(recipe: EditRecipe) -> None:
    """Set the layers, strengths, arm and task vector of the session to those of `recipe`, exactly, or change nothing.

    Where the number of the model's layers is not known yet, the recipe waits for it (see `from_address`).

    Raises:
        RecipeError: a recipe for another model, with a task vector that the profile does not have, or with something
            else that the page's controls cannot show.
    """
    profile = _session.profile()
    _check_model("recipe", recipe.model)
    if recipe.task_vector not in profile.task_vectors:
        raise RecipeError("the recipe's task vector is not among the profile's",
                          got=f"{recipe.task_vector.name} ({recipe.task_vector.tuned})",
                          expected=" or ".join(ref.name for ref in profile.task_vectors),
                          next_step="Add it on the Setup page, then load the recipe again.")  # fmt: skip
    if not 0 <= recipe.master_alpha <= MAX_ALPHA:
        raise RecipeError("the recipe's master alpha is outside the slider's range", got=recipe.master_alpha,
                          expected=f"0 to {MAX_ALPHA}", next_step="Put the rest into the strengths.")  # fmt: skip
    if (n_layers := _recipe.known_layers()) is None:
        st.session_state["recipe_waiting"] = recipe.model_dump_json()
        return
    if beyond := [layer for layer in recipe.layers if layer >= n_layers]:
        raise RecipeError(
            "the recipe names layers that the model does not have",
            got=", ".join(map(str, beyond)),
            expected=f"0 to {n_layers - 1}",
            next_step="Load the model that the recipe was made for, or take these layers out of it.",
        )
    with _session.all_or_nothing(TAKEN):
        _write(recipe)
        _session.defaults()
        _must_be("recipe", recipe, _recipe.from_session(profile))


def _write(recipe: EditRecipe) -> None:
    """Set the session to `recipe`, as far as its controls go."""
    st.session_state.update(
        norms=recipe.norms,
        embeddings=recipe.embeddings,
        strength_edits=st.session_state.get("strength_edits", 0) + 1,
        layers=sorted(recipe.layers),
        layer_alpha={str(layer): [alpha.attention, alpha.mlp] for layer, alpha in recipe.layers.items()},
        alpha=recipe.master_alpha,
        task_vector=recipe.task_vector.name,
        arm=recipe.arm.kind,
    )
    arm = recipe.arm
    if isinstance(arm, RandomSubspaceArm):
        _check_within("dimensions", arm.rank, LATENTS)
        _check_within("seed", arm.seed, SEEDS)
        st.session_state.update(edit_k=arm.rank, arm_seed=arm.seed, arm_matched=arm.norm_matched)
        st.session_state["arm_served"] = arm.saes is not None or _session.profile().saes is None
    if isinstance(arm, ProjectedArm | NormMatchedArm):
        _check_within("latents k", arm.top_k, LATENTS)
        st.session_state.update(subject=arm.subject, edit_k=arm.top_k)
        _take_diagnosis(arm.diagnosis)


def _check_within(name: str, value: int, bounds: tuple[int, int]) -> None:
    if not bounds[0] <= value <= bounds[1]:
        raise RecipeError(
            f"the recipe's {name} is outside the page's range",
            got=value,
            expected=f"{bounds[0]} to {bounds[1]}",
            next_step="Change it in the recipe, or use the recipe on the command line.",
        )


def _take_waiting() -> None:
    """Take the layers and the recipe that wait for the model, once that is loaded."""
    if (n_layers := _recipe.known_layers()) is None:
        return
    recipe = st.session_state.pop("recipe_waiting", None)
    try:
        _session.take_linked_layers(n_layers)
        if recipe is not None:
            take_recipe(parse_recipe(recipe.encode(), source="of the link"))
    except RecipeError as error:
        st.session_state["link_error"] = error


def _check_model(what: str, model: ModelRef) -> None:
    if model != (own := _session.profile().model):
        raise RecipeError(f"the {what} is for another model", got=_called(model), expected=_called(own),
                          next_step="Load the profile with that model on the Setup page first.")  # fmt: skip


def _called(model: ModelRef) -> str:
    return f"{model.id} {model.revision or ''} in {model.dtype}".replace("  ", " ")
