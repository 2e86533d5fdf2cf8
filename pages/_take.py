"""A recipe or a diagnosis becomes the session's, exactly, or is refused and nothing changes."""

from typing import Any

import streamlit as st

from pages import _opened, _recipe, _session
from pages._session import LATENTS, MAX_ALPHA, SEEDS
from stethoscope.errors import RecipeError
from stethoscope.recipes import differences
from stethoscope.records import (
    DiagnoseSpec,
    EditRecipe,
    ModelRef,
    NormMatchedArm,
    ProjectedArm,
    RandomSubspaceArm,
)

TAKEN = (  # what `take_recipe` and `_restore.show` write
    *("layers", "layer_alpha", "alpha", "task_vector", "arm", "norms", "embeddings", "edit_k", "arm_seed"),
    *("arm_matched", "arm_served", "strength_edits", "subject", "control", "score", "top_k", "fold_gains", "slots"),
    *("export_out", "export_kind", "prompt_kind", "problem", "problem_opened", "free_text", "prompt_list", "third"),
    *("chat", "text_tokens", _opened.KEY),
)
DIFFERENCES_SHOWN = 3


def take_recipe(recipe: EditRecipe) -> None:
    """Set the layers, strengths, arm and task vector of the session to those of `recipe`, exactly, or change nothing.

    Where the number of the model's layers is not known yet, the recipe waits for it (see `from_address`).

    Raises:
        RecipeError: a recipe for another model, with a task vector that the profile does not have, or with something
            else that the page's controls cannot show.
    """
    profile = _session.profile()
    check_model("recipe", recipe.model)
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
        must_be("recipe", recipe, _recipe.from_session(profile))


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
        take_diagnosis(arm.diagnosis)


def _check_within(name: str, value: int, bounds: tuple[int, int]) -> None:
    if not bounds[0] <= value <= bounds[1]:
        raise RecipeError(
            f"the recipe's {name} is outside the page's range",
            got=value,
            expected=f"{bounds[0]} to {bounds[1]}",
            next_step="Change it in the recipe, or use the recipe on the command line.",
        )


def take_diagnosis(spec: DiagnoseSpec) -> None:
    st.session_state.update(control=spec.control, score=spec.score, top_k=spec.top_k)
    _session.defaults()  # without a control corpus of that name the profile's first one stands there
    _opened.keep(spec, lambda: _session.diagnosis(silent=True))


def must_be(what: str, wanted: Any, shown: Any) -> None:
    """Raise `RecipeError` with the first differences where the page shows another record than `wanted`."""
    changes = differences(wanted, shown)
    if changes:
        said = [f"{change.field}: {change.before} (here {change.after})" for change in changes[:DIFFERENCES_SHOWN]]
        more = f"; {len(changes) - DIFFERENCES_SHOWN} more" if len(changes) > DIFFERENCES_SHOWN else ""
        raise RecipeError(f"this page cannot show the {what} as it is", got="; ".join(said) + more,
                          next_step="Choose its profile on the Setup page, or use it on the command line.")  # fmt: skip


def check_model(what: str, model: ModelRef) -> None:
    if model != (own := _session.profile().model):
        raise RecipeError(f"the {what} is for another model", got=_called(model), expected=_called(own),
                          next_step="Load the profile with that model on the Setup page first.")  # fmt: skip


def _called(model: ModelRef) -> str:
    return f"{model.id} {model.revision or ''} in {model.dtype}".replace("  ", " ")
