"""From session keys to an `EditRecipe`, in symbols and in words."""

import streamlit as st

from pages import _jobs, _mirror, _session, _strengths, _ui, _watch
from stethoscope.errors import CheckpointError
from stethoscope.figures.theme import pretty
from stethoscope.profiles import Profile
from stethoscope.reach import in_words, reach
from stethoscope.records import (
    Arm,
    EditRecipe,
    InfoSpec,
    NormMatchedArm,
    ProjectedArm,
    RandomSubspaceArm,
    RawArm,
    ServedArm,
)
from stethoscope.results import Ground, InfoResult


def known_layers() -> int | None:
    """Return the number of layers of the model, once it is loaded (None before)."""
    model = _jobs.loaded()
    return None if model is None else model.n_layers


def has_chat_template() -> bool:
    """Return whether the loaded model's tokenizer has a chat template."""
    model = _jobs.loaded()
    return model is not None and model.chat_template


def has_task_vector(purpose: str, key: str) -> bool:
    """Tell whether the profile names a task vector; where it does not, draw what `purpose` waits for."""
    if _session.profile().task_vectors:
        return True
    said = f"No task vector is named: {purpose} needs one."
    _ui.empty(said, "Name one on the Setup page", f"{key}-name", lambda: st.session_state.update(go_to_setup=True))
    if st.session_state.pop("go_to_setup", False):
        st.switch_page("pages/setup.py")
    return False


def wait_for_model() -> None:
    """Show that the model is loading, or one button that loads it."""
    profile = _session.profile()
    spec = InfoSpec(model=profile.model, saes=profile.saes, task_vectors=profile.task_vectors)
    view = _jobs.ask("info", spec, title=f"Loading {profile.title}")
    if view.result is not None and not view.stale:  # loaded before, and another model since
        _ui.empty(
            f"{profile.title} is not loaded any more.", "Load the model", "load-model", lambda: _jobs.forget("info")
        )
    else:
        _watch.standing(view, "info", "Load the model")


def info() -> InfoResult | None:
    """Return what the profile holds; None until it was read once."""
    profile = _session.profile()
    spec = InfoSpec(model=profile.model, saes=profile.saes, task_vectors=profile.task_vectors)
    view = _jobs.ask("info", spec, title=f"Loading {profile.title}")
    return view.result if isinstance(view.result, InfoResult) and not view.stale else None


def ground(task_vector: str) -> Ground | None:
    """Return what the task vector of that name moves and where there are SAEs; None until it was read once.

    None, too, where it cannot be used (see `refusal`).
    """
    found = info()
    return None if found is None or found.refusal(task_vector) is not None else found.ground(task_vector)


def refusal(task_vector: str) -> CheckpointError | None:
    """Return why the task vector of that name cannot be used with the model; None where it can, or is not read yet."""
    found = info()
    return None if found is None else found.refusal(task_vector)


def line(recipe: EditRecipe) -> str:
    """Return what `recipe` names without changing it, in words; "" where it changes all, or before that is known."""
    found = ground(recipe.task_vector.name) if recipe.layers else None
    return "" if found is None else in_words(reach(recipe, found))


def from_session(profile: Profile) -> EditRecipe:
    """Return the recipe that the session describes."""
    chosen = st.session_state
    return EditRecipe(
        model=profile.model,
        task_vector=profile.task_vector(chosen["task_vector"]),
        layers=_strengths.picked(),
        master_alpha=float(chosen["alpha"]),
        arm=_arm(profile),
        norms=bool(chosen["norms"]),
        embeddings=bool(chosen["embeddings"]),
    )


def _arm(profile: Profile) -> Arm:
    chosen = st.session_state
    k = int(chosen["edit_k"])
    if chosen["arm"] == "raw":
        return RawArm()
    if chosen["arm"] == "raw-where-projected":
        return ServedArm(saes=_session.diagnosis().listens_with)
    if chosen["arm"] == "random-subspace":
        return RandomSubspaceArm(
            rank=k,
            site=profile.site,
            saes=profile.saes if chosen["arm_served"] else None,
            seed=int(chosen["arm_seed"]),
            norm_matched=bool(chosen["arm_matched"]),
        )
    diagnosis = _session.diagnosis(top_k=k)
    kind = ProjectedArm if chosen["arm"] == "projected" else NormMatchedArm
    return kind(diagnosis=diagnosis, subject=chosen["subject"], top_k=k)


def controls(n_layers: int) -> None:
    """Draw what decides the recipe: layers, master alpha, arm, task vector, what else moves."""
    chosen, profile = st.session_state, _session.profile()
    _session.layer_pills("Layers", n_layers, "edit-layer-pills")
    left, right = st.columns([3, 1.2])
    left.slider("Master alpha: 0 is the base, 1 the full task vector", 0.0, _session.MAX_ALPHA, step=0.05,
                **_mirror.mirror("alpha", "master-alpha", "value"))  # fmt: skip
    right.selectbox(
        "Task vector", [ref.name for ref in profile.task_vectors], **_mirror.mirror("task_vector", "edit-tau")
    )
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.segmented_control("Edit type", _session.possible_arms(profile), format_func=lambda arm: _session.ARMS[arm],
                             required=True, **_mirror.mirror("arm", "arm-choice", "default"))  # fmt: skip
        st.checkbox("Also edit norm weights", help="The norm weights of the picked layers move with them.",
                    **_mirror.mirror("norms", "edit-norms", "value"))  # fmt: skip
        st.checkbox("Also edit embeddings", help="Token embeddings, the tied head and the final norm, at master alpha.",
                    **_mirror.mirror("embeddings", "edit-embeddings", "value"))  # fmt: skip
    if chosen["arm"] in ("raw", "raw-where-projected"):
        return
    one, two = st.columns([2, 1])
    if chosen["arm"] == "random-subspace":
        one.number_input("Seed of the random subspace", step=1, **_mirror.bounds("arm_seed", *_session.SEEDS),
                         **_mirror.mirror("arm_seed", "edit-seed", "value"))  # fmt: skip
        two.number_input("Dimensions", step=1, **_mirror.bounds("edit_k", *_session.LATENTS),
                         **_mirror.mirror("edit_k", "edit-k", "value"))  # fmt: skip
        two.checkbox("Scaled back to the raw norm", **_mirror.mirror("arm_matched", "edit-matched", "value"))
        if profile.saes is not None:
            one.checkbox("Only the matrices that an SAE serves",
                         help="Those that a projected edit of these layers moves; else as if every layer had an SAE.",
                         **_mirror.mirror("arm_served", "edit-served", "value"))  # fmt: skip
        return
    one.selectbox("Span of the latents of", profile.problems.subjects, format_func=pretty,
                  **_mirror.mirror("subject", "edit-subject"))  # fmt: skip
    two.number_input("Latents k", step=1, **_mirror.bounds("edit_k", *_session.LATENTS),
                     **_mirror.mirror("edit_k", "edit-k", "value"))  # fmt: skip
