"""Choice of a benchmark's arms: the recipe with controls and saved recipes, or one recipe at several alphas."""

import streamlit as st

from screens.shared import edit_recipe, jobs, mirror, session, ui
from stethoscope.judging import arms
from stethoscope.recipes.files import shown_layers
from stethoscope.records import BenchArm, EditRecipe
from stethoscope.results import DiagnosisResult, Ground
from stethoscope.store.ids import content_id, short_id

WHAT = {"controls": "recipe and controls", "sweep": "recipe at several alphas"}
SUBSPACE = "random subspace"  # not part of the standard set
ALPHAS = tuple(round(0.25 * step, 2) for step in range(1, 7))
STARTS = {
    "bench_what": "controls",
    "bench_controls": ["all layers", "random layers"],
    "bench_draws": 3,
    "bench_saved": [],
    "bench_alphas": list(ALPHAS),
}


def _split_follows() -> None:
    """Use dev problems for choosing an alpha, and test problems with controls, as changeable defaults."""
    st.session_state["bench_what"] = st.session_state["bench-what"]
    st.session_state["bench_split"] = "dev" if st.session_state["bench-what"] == "sweep" else "test"


def choose(recipe: EditRecipe, ground: Ground) -> list[BenchArm]:
    """Draw the choice of arms and return them all, the base first."""
    for name, start in STARTS.items():
        st.session_state.setdefault(name, start)
    widget = mirror.mirror("bench_what", "bench-what", "default") | {"on_change": _split_follows, "args": ()}
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.segmented_control("Arms", list(WHAT), format_func=lambda what: WHAT[what], required=True, **widget)
        if st.session_state["bench_what"] == "controls":
            st.button(
                "Standard set",
                key="bench-standard",
                on_click=_take_standard,
                args=(recipe, ground),
                help="All controls available for this recipe, with three random draws.",
            )
    chosen = _sweep(recipe) if st.session_state["bench_what"] == "sweep" else _controls(recipe, ground)
    chosen = [arms.BASE, *chosen]
    with st.expander(f"{len(chosen)} arms: {', '.join(ui.escape(arm.name) for arm in chosen)}", key="bench-arm-list"):
        for arm in chosen:
            what = (
                "the unedited model; all other arms are compared with it"
                if arm.recipe is None
                else edit_recipe.words(arm.recipe)
            )
            st.caption(f"**{ui.escape(arm.name)}**: {ui.escape(what)}")
    return chosen


def _sweep(recipe: EditRecipe) -> list[BenchArm]:
    options = sorted({*ALPHAS, 0.05, 0.1, *st.session_state["bench_alphas"]})
    st.multiselect(
        "Alpha values to test (0, the base, is always included)",
        options,
        format_func=lambda alpha: f"{alpha:g}",
        **mirror.mirror("bench_alphas", "bench-alphas", "default"),
    )
    return list(arms.alpha_sweep(recipe, st.session_state["bench_alphas"]))


def _controls(recipe: EditRecipe, ground: Ground) -> list[BenchArm]:
    chosen = st.session_state
    offered, notes = _offered(recipe, ground)
    chosen["bench_controls"] = [name for name in chosen["bench_controls"] if name in offered]
    st.pills(
        "Control arms",
        list(offered),
        selection_mode="multi",
        **mirror.mirror("bench_controls", "bench-controls", "default"),
    )
    if notes:
        st.caption(ui.escape(" ".join(notes)))
    saved = _saved(recipe)
    chosen["bench_saved"] = [key for key in chosen["bench_saved"] if key in saved]
    left, right = st.columns([4, 1], vertical_alignment="bottom")
    left.multiselect(
        "Saved recipes as additional arms",
        list(saved),
        format_func=lambda key: saved[key].name,
        placeholder="none" if saved else "no other saved recipes",
        disabled=not saved,
        **mirror.mirror("bench_saved", "bench-saved", "default"),
    )
    right.number_input("Random draws", 1, 10, step=1, **mirror.mirror("bench_draws", "bench-draws", "value"))
    found = [BenchArm(name="recipe", recipe=recipe)]
    for name in offered:
        found += offered[name] if name in chosen["bench_controls"] else ()
    return found + [saved[key] for key in chosen["bench_saved"]]


def _take_standard(recipe: EditRecipe, ground: Ground) -> None:
    offered, _ = _offered(recipe, ground)
    st.session_state.update(bench_controls=[name for name in offered if name != SUBSPACE], bench_draws=3)


def _offered(recipe: EditRecipe, ground: Ground) -> tuple[dict[str, list[BenchArm]], tuple[str, ...]]:
    """Return the arms of all controls available for this recipe by name, and notes about missing ones."""
    chosen, profile = st.session_state, session.profile()
    diagnosis, seed, k = jobs.look("diagnosis").result, int(chosen["bench_seed"]), int(chosen["edit_k"])
    order = diagnosis.order.get(chosen["subject"]) if isinstance(diagnosis, DiagnosisResult) else None
    standard = arms.standard_set(
        recipe,
        ground,
        order=order,
        diagnosis=None if profile.cannot_listen() is not None else session.diagnosis(top_k=k),
        subject=chosen["subject"],
        top_k=k,
        seed=seed,
        draws=int(chosen["bench_draws"]),
    )
    offered: dict[str, list[BenchArm]] = {}
    for arm in standard.arms:
        if arm.recipe is not None and arm.recipe != recipe:
            kind = arms.layer_control(arm, recipe)
            offered.setdefault(f"{kind} layers" if kind else arm.name, []).append(arm)
    if recipe.edit_type.kind == "raw":
        offered[SUBSPACE] = list(arms.random_subspace(recipe, k, profile.site, saes=profile.saes, seed=seed))
    return offered, standard.notes


def _saved(recipe: EditRecipe) -> dict[str, BenchArm]:
    """Return the saved recipes of this model as arms, by recipe id; without those that edit nothing."""
    stored = {content_id(kept.recipe): kept.recipe for kept in jobs.front().store.list_recipes()}
    return {
        recipe_id: BenchArm(
            name=f"saved {short_id(recipe_id)}: layers {shown_layers(kept.layers)} at {kept.master_alpha:g}",
            recipe=kept,
        )
        for recipe_id, kept in stored.items()
        if kept.layers and kept.model == recipe.model and kept != recipe
    }
