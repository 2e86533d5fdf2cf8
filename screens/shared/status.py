"""Status strip of every page: the loaded model, the weights of the current result, and running jobs."""

import streamlit as st

from screens.shared import jobs, session, ui, watch
from screens.shared.fragment import fragment
from stethoscope.jobs.worker import WorkerStatus
from stethoscope.records import EditRecipe
from stethoscope.results import Certificate, ModelRow


def show_base() -> None:
    """Note that the current result belongs to the base model."""
    st.session_state.update(on_show=None, recorded=False)


def show_certificate(certificate: Certificate, recipe: EditRecipe | None) -> None:
    """Note the weights of the current result: the base, or the edit of `recipe`."""
    label = "BASE verified"
    if not certificate.is_base:
        layers = ",".join(map(str, certificate.layers_edited))
        alpha = f" · alpha {recipe.master_alpha:g}" if recipe is not None else ""
        short = (certificate.recipe_id or "").removeprefix("sha256-")[:4]
        which = f"layer{'' if len(certificate.layers_edited) == 1 else 's'} {layers}"
        label = f"EDITED: {which}{alpha}" + (f" · recipe {short}…" if short else "")
    elif recipe is not None and recipe.layers and recipe.master_alpha:
        label = "NOTHING CHANGED: the edit is the base"
    if not certificate.verified:
        failed = certificate.base_intact and certificate.is_base and not certificate.others
        label = f"NOT VERIFIED: {'the edit is not in the weights' if failed else 'checksums differ'}"
    st.session_state["on_show"] = {"label": label, "verified": certificate.verified}


def recorded(view: jobs.View) -> None:
    """Note whether the current result is live or stored."""
    st.session_state["recorded"] = view.recorded


def _badge(status: WorkerStatus, model: ModelRow | None) -> tuple[str, str]:
    """Label and colour of the certificate badge; `model` is the profile's, None before it is loaded."""
    shown = st.session_state.get("on_show")
    if isinstance(shown, dict):
        edited = not shown["label"].startswith("BASE")
        return shown["label"], "red" if not shown["verified"] else "orange" if edited else "green"
    if model is None or status.base_verified is None:
        return "weights not checked yet", "gray"
    return ("BASE verified", "green") if status.base_verified else ("BASE CHANGED: restart the app", "red")


def draw() -> None:
    """Draw the strip; it refreshes while a job runs, and Cancel is outside the fragment.

    It watches the active jobs that the page has drawn, and reruns the page when one of them ends.
    """
    active, watched = jobs.front().active(), sorted(jobs.awaited())
    st.session_state["watched"] = watched

    @fragment(run_every=0.5 if active or watched else None)
    def live() -> None:
        status, running = jobs.front().status(), jobs.front().active()
        jobs.draw_again(bool(active and not running) or any(jobs.ended(job_id) for job_id in watched))
        profile = session.profile()
        model = jobs.loaded()
        loaded = f"{model.n_layers} layers · {model.dtype}" if model else "not loaded"
        loaded = "loading" if status.state == "loading" else loaded
        with st.container(horizontal=True, gap="small", vertical_alignment="center"):
            label, colour = _badge(status, model)
            with st.container(key="certificate", width="content"):
                st.badge(label, color=colour)  # pyright: ignore[reportArgumentType]
            st.badge("recorded" if st.session_state.get("recorded") else "live", color="gray")
            memory = f"{status.memory_bytes / 1e6:.0f} MB" if status.memory_bytes else ""
            parts = [f"{profile.title}: {loaded}", f"SAEs {profile.site}" if profile.saes else "no SAEs"]
            parts += [f"task vector {st.session_state['task_vector'] or 'not set'}"]
            parts += [" · ".join(part for part in (model.device if model else "", memory) if part)]
            st.caption(ui.escape("  |  ".join(part for part in parts if part)), width="content")
            if running:
                st.badge(ui.escape(watch.describe(running[0])), color="blue")

    with st.container(key="status", horizontal=True, vertical_alignment="center", gap="small"):
        live()
        if active and jobs.may_stop(active[0]):
            st.button("Cancel", key="cancel-job", type="tertiary", on_click=jobs.stop, args=(active[0].job_id,))
