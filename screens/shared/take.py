"""Set the session to a recipe or diagnosis exactly, or raise an error and change nothing."""

import streamlit as st

from screens.shared import edit_recipe, loaded_model, opened, session
from screens.shared.session import LATENTS, MAX_ALPHA, SEEDS
from stethoscope.errors import RecipeError
from stethoscope.recipes.files import differences
from stethoscope.records import (
    DiagnoseSpec,
    EditRecipe,
    ModelRef,
    NormMatchedEdit,
    ProjectedEdit,
    RandomSubspaceEdit,
    Record,
)

TAKEN = (  # written by `take_recipe` and `links.show`
    *("layers", "layer_alpha", "alpha", "task_vector", "edit_type", "norms", "embeddings", "edit_k", "subspace_seed"),
    *(
        "subspace_matched",
        "subspace_served",
        "strength_edits",
        "subject",
        "control",
        "score",
        "top_k",
        "fold_gains",
        "slots",
    ),
    *("export_out", "export_kind", "prompt_kind", "problem", "problem_opened", "free_text", "prompt_list", "third"),
    *("chat", "text_tokens", opened.KEY),
)
DIFFERENCES_SHOWN = 3


def take_recipe(recipe: EditRecipe) -> None:
    """Set the session's layers, strengths, edit type and task vector to those of `recipe`, exactly, or change nothing.

    If the number of layers is not known yet, the recipe is applied later (see `from_address`).

    Raises:
        RecipeError: a recipe for another model, with a task vector missing in the profile, or with settings that the
            page's controls cannot represent.
    """
    profile = session.profile()
    check_model("recipe", recipe.model)
    if recipe.task_vector not in profile.task_vectors:
        raise RecipeError(
            "the recipe's task vector is not in the profile",
            got=f"{recipe.task_vector.name} ({recipe.task_vector.tuned})",
            expected=" or ".join(ref.name for ref in profile.task_vectors),
            next_step="Add it on the Setup page, then load the recipe again.",
        )
    if not 0 <= recipe.master_alpha <= MAX_ALPHA:
        raise RecipeError(
            "the recipe's master alpha is outside the slider's range",
            got=recipe.master_alpha,
            expected=f"0 to {MAX_ALPHA}",
            next_step="Use the layer strengths for larger values.",
        )
    if (n_layers := loaded_model.known_layers()) is None:
        st.session_state["recipe_waiting"] = recipe.model_dump_json()
        return
    if beyond := [layer for layer in recipe.layers if layer >= n_layers]:
        raise RecipeError(
            "the recipe contains layers that the model does not have",
            got=", ".join(map(str, beyond)),
            expected=f"0 to {n_layers - 1}",
            next_step="Load the recipe's model, or remove these layers from the recipe.",
        )
    with session.all_or_nothing(TAKEN):
        _write(recipe)
        session.defaults()
        must_be("recipe", recipe, edit_recipe.from_session(profile))


def _write(recipe: EditRecipe) -> None:
    """Set the session to `recipe`, as far as the controls allow."""
    st.session_state.update(
        norms=recipe.norms,
        embeddings=recipe.embeddings,
        strength_edits=st.session_state.get("strength_edits", 0) + 1,
        layers=sorted(recipe.layers),
        layer_alpha={str(layer): [alpha.attention, alpha.mlp] for layer, alpha in recipe.layers.items()},
        alpha=recipe.master_alpha,
        task_vector=recipe.task_vector.name,
        edit_type=recipe.edit_type.kind,
    )
    edit_type = recipe.edit_type
    if isinstance(edit_type, RandomSubspaceEdit):
        _check_within("dimensions", edit_type.rank, LATENTS)
        _check_within("seed", edit_type.seed, SEEDS)
        st.session_state.update(
            edit_k=edit_type.rank, subspace_seed=edit_type.seed, subspace_matched=edit_type.norm_matched
        )
        st.session_state["subspace_served"] = edit_type.saes is not None or session.profile().saes is None
    if isinstance(edit_type, ProjectedEdit | NormMatchedEdit):
        _check_within("latents k", edit_type.top_k, LATENTS)
        st.session_state.update(subject=edit_type.subject, edit_k=edit_type.top_k)
        take_diagnosis(edit_type.diagnosis)


def _check_within(name: str, value: int, bounds: tuple[int, int]) -> None:
    if not bounds[0] <= value <= bounds[1]:
        raise RecipeError(
            f"the recipe's {name} is outside the range of this page",
            got=value,
            expected=f"{bounds[0]} to {bounds[1]}",
            next_step="Change it in the recipe, or use the recipe on the command line.",
        )


def take_diagnosis(spec: DiagnoseSpec) -> None:
    st.session_state.update(control=spec.control, score=spec.score, top_k=spec.top_k)
    session.defaults()  # if the control corpus does not exist, the profile's first one is used
    opened.keep(spec, lambda: session.diagnosis(silent=True))


def must_be(what: str, wanted: Record, shown: Record) -> None:
    """Raise `RecipeError` with the first differences if the page's record differs from `wanted`."""
    changes = differences(wanted, shown)
    if changes:
        said = [f"{change.field}: {change.before} (here {change.after})" for change in changes[:DIFFERENCES_SHOWN]]
        more = f"; {len(changes) - DIFFERENCES_SHOWN} more" if len(changes) > DIFFERENCES_SHOWN else ""
        raise RecipeError(
            f"this page cannot show the {what} exactly",
            got="; ".join(said) + more,
            next_step="Choose its profile on the Setup page, or use it on the command line.",
        )


def check_model(what: str, model: ModelRef) -> None:
    if model != (own := session.profile().model):
        raise RecipeError(
            f"the {what} is for another model",
            got=_called(model),
            expected=_called(own),
            next_step="Load the profile with that model on the Setup page first.",
        )


def _called(model: ModelRef) -> str:
    return f"{model.id} {model.revision or ''} in {model.dtype}".replace("  ", " ")
