"""A recipe in symbols and in words."""

from stethoscope.figures.theme import pretty
from stethoscope.recipes import shown_layers
from stethoscope.records import EditRecipe, NormMatchedArm, RandomSubspaceArm, RawArm, ServedArm


def symbols(recipe: EditRecipe) -> str:
    """Return the edit as a LaTeX formula."""
    vector = {
        "raw": r"\tau_\ell",
        "projected": r"P_\ell\,\tau_\ell",
        "raw-where-projected": r"\tau_\ell",
        "random-subspace": r"R_\ell\,\tau_\ell",
        "projected-norm-matched": r"\tfrac{\lVert\tau_\ell\rVert}{\lVert P_\ell\tau_\ell\rVert}\,P_\ell\,\tau_\ell",
    }[recipe.arm.kind]
    spans = shown_layers(recipe.layers).replace("-", r"\text{–}")
    layers = rf"\{{{spans}\}}" if recipe.layers else r"\varnothing"
    return rf"\theta'_\ell = \theta_\ell + {recipe.master_alpha:g}\; a_\ell\; {vector},\qquad \ell \in {layers}"


def words(recipe: EditRecipe) -> str:
    """Return the edit as a sentence."""
    if not recipe.layers:
        return "No layer is picked: this is the base."
    what = f"the task vector {recipe.task_vector.name}"
    if isinstance(recipe.arm, RandomSubspaceArm):
        what = f"the part of {what} in a random subspace of {recipe.arm.rank} dimensions (seed {recipe.arm.seed})"
        what += ", scaled back to the raw norm" if recipe.arm.norm_matched else ""
    elif isinstance(recipe.arm, ServedArm):
        what += ", only where an SAE serves the matrix"
    elif not isinstance(recipe.arm, RawArm):
        what = f"the part of {what} in the span of the top {recipe.arm.top_k} {pretty(recipe.arm.subject)} latents"
        if isinstance(recipe.arm, NormMatchedArm):
            what += ", scaled back to the raw norm"
    layers = shown_layers(recipe.layers)
    own = {(strength.attention, strength.mlp) for strength in recipe.layers.values()} != {(1.0, 1.0)}
    moved = [name for name, on in (("norms", recipe.norms), ("embeddings", recipe.embeddings)) if on]
    return (
        f"In layer{'s' if len(recipe.layers) > 1 else ''} {layers}: base plus {recipe.master_alpha:g} times {what}"
        f"{', times each layer’s own strength a' if own else ' (every layer’s own strength a is 1)'}"
        f"{'; ' + ' and '.join(moved) + ' move, too' if moved else ''}."
    )
