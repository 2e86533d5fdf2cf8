"""The session's recipe: from session keys, as formula and text, and compared with another recipe."""

import streamlit as st

from screens.shared import loaded_model, session, ui
from stethoscope.formatting import pretty
from stethoscope.profiles import Profile
from stethoscope.recipes.files import differences, shown_layers
from stethoscope.recipes.reach import in_words, reach
from stethoscope.records import (
    EditRecipe,
    EditType,
    LayerAlpha,
    NormMatchedEdit,
    ProjectedEdit,
    RandomSubspaceEdit,
    RawEdit,
    ServedEdit,
)


def from_session(profile: Profile) -> EditRecipe:
    """Return the recipe of the session."""
    chosen = st.session_state
    return EditRecipe(
        model=profile.model,
        task_vector=profile.task_vector(chosen["task_vector"]),
        layers=picked(),
        master_alpha=float(chosen["alpha"]),
        edit_type=_edit_type(profile),
        norms=bool(chosen["norms"]),
        embeddings=bool(chosen["embeddings"]),
    )


def _edit_type(profile: Profile) -> EditType:
    chosen = st.session_state
    k = int(chosen["edit_k"])
    if chosen["edit_type"] == "raw":
        return RawEdit()
    if chosen["edit_type"] == "raw-where-projected":
        return ServedEdit(saes=session.diagnosis().listens_with)
    if chosen["edit_type"] == "random-subspace":
        return RandomSubspaceEdit(
            rank=k,
            site=profile.site,
            saes=profile.saes if chosen["subspace_served"] else None,
            seed=int(chosen["subspace_seed"]),
            norm_matched=bool(chosen["subspace_matched"]),
        )
    diagnosis = session.diagnosis(top_k=k)
    kind = ProjectedEdit if chosen["edit_type"] == "projected" else NormMatchedEdit
    return kind(diagnosis=diagnosis, subject=chosen["subject"], top_k=k)


def line(recipe: EditRecipe) -> str:
    """Return a text about weights that `recipe` selects but does not change; "" if there are none or this is
    unknown."""
    found = loaded_model.ground(recipe.task_vector.name) if recipe.layers else None
    return "" if found is None else in_words(reach(recipe, found))


def picked() -> dict[int, LayerAlpha]:
    """Return the strengths of the picked layers; 1 by default."""
    kept = st.session_state["layer_alpha"]
    pairs = {layer: kept.get(str(layer), (1.0, 1.0)) for layer in st.session_state["layers"]}
    return {layer: LayerAlpha(attention=float(pair[0]), mlp=float(pair[1])) for layer, pair in pairs.items()}


def symbols(recipe: EditRecipe) -> str:
    """Return the edit as a LaTeX formula."""
    vector = {
        "raw": r"\tau_\ell",
        "projected": r"P_\ell\,\tau_\ell",
        "raw-where-projected": r"\tau_\ell",
        "random-subspace": r"R_\ell\,\tau_\ell",
        "projected-norm-matched": r"\tfrac{\lVert\tau_\ell\rVert}{\lVert P_\ell\tau_\ell\rVert}\,P_\ell\,\tau_\ell",
    }[recipe.edit_type.kind]
    spans = shown_layers(recipe.layers).replace("-", r"\text{–}")
    layers = rf"\{{{spans}\}}" if recipe.layers else r"\varnothing"
    return rf"\theta'_\ell = \theta_\ell + {recipe.master_alpha:g}\; a_\ell\; {vector},\qquad \ell \in {layers}"


def words(recipe: EditRecipe) -> str:
    """Return the edit as a sentence."""
    if not recipe.layers:
        return "No layers picked: this is the base."
    what = f"the task vector {recipe.task_vector.name}"
    edit_type = recipe.edit_type
    if isinstance(edit_type, RandomSubspaceEdit):
        what = f"the component of {what} in a random subspace of {edit_type.rank} dimensions (seed {edit_type.seed})"
        what += ", rescaled to the raw norm" if edit_type.norm_matched else ""
    elif isinstance(edit_type, ServedEdit):
        what += ", only in matrices with a matching SAE"
    elif not isinstance(edit_type, RawEdit):
        what = f"the component of {what} in the span of the top {edit_type.top_k} {pretty(edit_type.subject)} latents"
        if isinstance(edit_type, NormMatchedEdit):
            what += ", rescaled to the raw norm"
    layers = shown_layers(recipe.layers)
    own = {(strength.attention, strength.mlp) for strength in recipe.layers.values()} != {(1.0, 1.0)}
    moved = [name for name, on in (("norms", recipe.norms), ("embeddings", recipe.embeddings)) if on]
    return (
        f"In layer{'s' if len(recipe.layers) > 1 else ''} {layers}: base plus {recipe.master_alpha:g} times {what}"
        f"{', times the strength a of each layer' if own else ' (the strength a of every layer is 1)'}"
        f"{'; ' + ' and '.join(moved) + ' are edited too' if moved else ''}."
    )


def changes(before: EditRecipe, after: EditRecipe, *, key: str = "recipe-diff") -> None:
    """Draw the differences between two recipes as a table."""
    rows = differences(before, after)
    if not rows:
        st.caption("The two recipes are the same.")
        return
    cells = [{"field": row.field, "before": row.before, "now": row.after} for row in rows]
    ui.table(cells, key=key, alt="Differences between the two recipes")
