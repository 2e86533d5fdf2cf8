"""Controls of the recipe on the Edit page."""

import streamlit as st

from screens.shared import mirror, session
from stethoscope.formatting import pretty


def draw(n_layers: int) -> None:
    """Draw the recipe's controls: layers, master alpha, edit type, task vector, norms and embeddings."""
    chosen, profile = st.session_state, session.profile()
    session.layer_pills("Layers", n_layers, "edit-layer-pills")
    left, right = st.columns([3, 1.2])
    left.slider(
        "Master alpha: 0 is the base, 1 the full task vector",
        0.0,
        session.MAX_ALPHA,
        step=0.05,
        **mirror.mirror("alpha", "master-alpha", "value"),
    )
    right.selectbox(
        "Task vector", [ref.name for ref in profile.task_vectors], **mirror.mirror("task_vector", "edit-tau")
    )
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.segmented_control(
            "Edit type",
            session.possible_edit_types(profile),
            format_func=lambda kind: session.EDIT_TYPES[kind],
            required=True,
            **mirror.mirror("edit_type", "edit-type", "default"),
        )
        st.checkbox(
            "Also edit norm weights",
            help="Also applies the task vector to the norm weights of the picked layers.",
            **mirror.mirror("norms", "edit-norms", "value"),
        )
        st.checkbox(
            "Also edit embeddings",
            help=(
                "Also applies the task vector to token embeddings, the tied head and the final norm, at the master "
                "alpha."
            ),
            **mirror.mirror("embeddings", "edit-embeddings", "value"),
        )
    if chosen["edit_type"] in ("raw", "raw-where-projected"):
        return
    one, two = st.columns([2, 1])
    if chosen["edit_type"] == "random-subspace":
        one.number_input(
            "Seed of the random subspace",
            step=1,
            **mirror.bounds("subspace_seed", *session.SEEDS),
            **mirror.mirror("subspace_seed", "edit-seed", "value"),
        )
        two.number_input(
            "Dimensions",
            step=1,
            **mirror.bounds("edit_k", *session.LATENTS),
            **mirror.mirror("edit_k", "edit-k", "value"),
        )
        two.checkbox("Rescale to the raw norm", **mirror.mirror("subspace_matched", "edit-matched", "value"))
        if profile.saes is not None:
            one.checkbox(
                "Only matrices with a matching SAE",
                help=(
                    "Restricts the edit to the matrices that a projected edit of these layers changes. Otherwise "
                    "all layers are treated as if they had an SAE."
                ),
                **mirror.mirror("subspace_served", "edit-served", "value"),
            )
        return
    one.selectbox(
        "Span of the latents of",
        profile.problems.subjects,
        format_func=pretty,
        **mirror.mirror("subject", "edit-subject"),
    )
    two.number_input(
        "Latents k", step=1, **mirror.bounds("edit_k", *session.LATENTS), **mirror.mirror("edit_k", "edit-k", "value")
    )
