"""From session keys to an `EditRecipe`, in symbols and in words."""

import streamlit as st

from pages import _jobs, _session, _ui, _watch
from stethoscope.figures.theme import pretty
from stethoscope.profiles import Profile
from stethoscope.records import EditRecipe, InfoSpec, LayerAlpha, NormMatchedArm, ProjectedArm, RawArm


def known_layers() -> int | None:
    """Return the number of layers of the model, once it is loaded (None before)."""
    model = _jobs.front().status().model
    return model.n_layers if model is not None and model.id == _session.profile().model.id else None


def wait_for_model() -> None:
    """Show that the model is loading, or one button that loads it."""
    profile = _session.profile()
    spec = InfoSpec(model=profile.model, saes=profile.saes, task_vectors=profile.task_vectors)
    asked = profile.model.id.startswith("embedded:") or st.session_state.get("load-asked") == profile.name
    view = _jobs.ask("info", spec, title=f"Loading {profile.title}") if asked else _jobs.View()
    if view.error:
        _ui.banner(view.error)
    if view.active:
        _watch.watch(view, key="info")
        return

    def load() -> None:
        st.session_state["load-asked"] = profile.name
        _jobs.forget("info")

    _ui.empty(f"{profile.title} is not loaded yet.", "Load the model", "load-model", load)


def layer_strengths(layers: list[int]) -> None:
    """Draw the strengths of each layer, attention and MLP apart, and keep them in the session."""
    kept = st.session_state["layer_alpha"]
    columns = st.columns(min(4, len(layers)))
    for index, layer in enumerate(layers):
        with columns[index % len(columns)]:
            values = []
            for part, start in zip(("attention", "MLP"), kept.get(str(layer), [1.0, 1.0]), strict=True):
                key = f"alpha-{layer}-{part.lower()}"
                st.session_state.setdefault(key, float(start))
                values.append(st.number_input(f"layer {layer} {part}", -2.0, 2.0, step=0.1, key=key))
            kept[str(layer)] = values


def from_session(profile: Profile) -> EditRecipe:
    """Return the recipe that the session describes."""
    chosen = st.session_state
    strengths = {}
    for layer in chosen["layers"]:
        attention, mlp = chosen["layer_alpha"].get(str(layer), (1.0, 1.0))
        strengths[layer] = LayerAlpha(attention=attention, mlp=mlp)
    arm: RawArm | ProjectedArm | NormMatchedArm = RawArm()
    if chosen["arm"] != "raw":
        k = int(chosen["edit_k"])
        diagnosis = profile.diagnose_spec(control=chosen["control"], score=chosen["score"], top_k=k)
        kind = ProjectedArm if chosen["arm"] == "projected" else NormMatchedArm
        arm = kind(diagnosis=diagnosis, subject=chosen["subject"], top_k=k)
    return EditRecipe(
        model=profile.model,
        task_vector=profile.task_vector(chosen["task_vector"]),
        layers=strengths,
        master_alpha=round(float(chosen["alpha"]), 4),
        arm=arm,
    )


def symbols(recipe: EditRecipe) -> str:
    """Return the edit as a LaTeX formula."""
    vector = {
        "raw": r"\tau_\ell",
        "projected": r"P_\ell\,\tau_\ell",
        "projected-norm-matched": r"\tfrac{\lVert\tau_\ell\rVert}{\lVert P_\ell\tau_\ell\rVert}\,P_\ell\,\tau_\ell",
    }[recipe.arm.kind]
    layers = rf"\{{{','.join(map(str, recipe.layers))}\}}" if recipe.layers else r"\varnothing"
    return rf"\theta'_\ell = \theta_\ell + {recipe.master_alpha:g}\; a_\ell\; {vector},\qquad \ell \in {layers}"


def words(recipe: EditRecipe) -> str:
    """Return the edit as a sentence."""
    if not recipe.layers:
        return "Nothing is added anywhere: this is the base."
    what = f"the task vector {recipe.task_vector.name}"
    if not isinstance(recipe.arm, RawArm):
        what = f"the part of {what} in the span of the top {recipe.arm.top_k} {pretty(recipe.arm.subject)} latents"
        if isinstance(recipe.arm, NormMatchedArm):
            what += ", scaled back to the raw norm"
    layers = ", ".join(map(str, recipe.layers))
    own = {(strength.attention, strength.mlp) for strength in recipe.layers.values()} != {(1.0, 1.0)}
    return (
        f"In layer{'s' if len(recipe.layers) > 1 else ''} {layers}: base plus {recipe.master_alpha:g} times {what}"
        f"{', times each layer’s own strength a' if own else ' (every layer’s own strength a is 1)'}."
    )
