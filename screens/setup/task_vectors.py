"""Setup: preflight report of the chosen task vector, and the form for adding your own."""

from typing import Any

import streamlit as st

from screens.shared import jobs, session, ui, watch
from stethoscope.errors import ProfileError
from stethoscope.figures import sizes
from stethoscope.profiles import Profile
from stethoscope.records import PreflightSpec, TaskVectorRef
from stethoscope.results import PreflightResult

COLOURS = {"pass": "green", "warn": "orange", "fail": "red"}
EXACT = 0.9995  # above this cosine, a chart shows nothing useful


def report(profile: Profile) -> None:
    """Run the preflight of the chosen task vector and draw it."""
    ref = profile.task_vector(st.session_state["task_vector"])
    spec = PreflightSpec(model=profile.model, task_vector=ref, problems=profile.problems)
    with ui.card(f"Preflight of the task vector {ref.name}", key="preflight"):
        view = jobs.ask("preflight", spec, title=f"Preflight of {ref.name}")
        watch.standing(view, "preflight", "Check the task vector")
        if isinstance(view.result, PreflightResult) and not view.stale:
            draw(view.result)


def draw(result: PreflightResult) -> None:
    """Draw the checks, the sizes by matrix, and the effect of rounding."""
    st.caption(ui.escape(result.source))
    counts = {outcome: sum(check.outcome == outcome for check in result.checks) for outcome in COLOURS}
    st.markdown(" · ".join(f"{n} {outcome}" for outcome, n in counts.items() if n))
    lines = []
    for check in result.checks:
        parts = [f"**{ui.escape(check.name)}**: {ui.escape(check.what)}"]
        parts += [f"got {ui.escape(check.got)}"] if check.got else []
        parts += [f"expected {ui.escape(check.expected)}"] if check.expected else []
        line = "; ".join(parts) + (f". {ui.escape(check.next_step)}" if check.next_step else "")
        lines.append(f":{COLOURS[check.outcome]}-badge[{check.outcome}] {line}")
    with st.container(key="preflight-checks"):
        st.markdown("  \n".join(lines))
    if not result.layers:
        return
    more = {"Layers": result.layers, "Norms and embeddings": result.rest}
    ui.chart(
        sizes.matrix_norms(result),
        key="matrix-norms",
        caption=sizes.matrix_caption(result),
        rows=result.matrices,
        more=more,
    )
    cosines = [row.realised_cosine for row in result.layers if row.realised_cosine is not None]
    if cosines and min(cosines) < EXACT:
        note = sizes.realised_caption(result)
        ui.chart(sizes.realised(result), key="realised", caption=note, rows=result.layers)
    else:
        st.caption(ui.escape(sizes.realised_caption(result)))


def add_own(profile: Profile) -> None:
    """Draw the form for your own task vector; it is checked before pages can use it."""
    with st.expander("Use your own task vector", key="own-form"):
        st.caption(
            "A fine-tuned checkpoint, a LoRA adapter in peft's format or a safetensors delta: a path or a hub id."
        )
        place, revision, name = st.columns([3, 1, 1])
        tuned = place.text_input("Path or hub id", key="own-tuned", placeholder="/models/tuned or user/model").strip()
        at = revision.text_input("Revision", key="own-revision", placeholder="main").strip() or None
        called = name.text_input("Name", key="own-name", placeholder="from its path").strip()
        ref = TaskVectorRef(name=called or _last_part(tuned), tuned=tuned, revision=at)
        taken = bool(tuned) and ref.name in [known.name for known in profile.task_vectors]
        if taken:
            ui.banner(
                ProfileError(
                    "there is already a task vector with this name",
                    got=ref.name,
                    expected="a new name",
                    next_step="Enter another name.",
                )
            )
        ready = bool(tuned) and not taken
        st.button("Check and add", key="own-add", disabled=not ready, on_click=check, args=(profile, ref))
        _follow(profile)
        own = session.own_task_vectors()
        if any(known.name == st.session_state["task_vector"] for known in own):
            chosen = st.session_state["task_vector"]
            st.button(
                f"Remove {ui.escape(chosen)}", key="own-remove", on_click=session.remove_task_vector, args=(chosen,)
            )


def check(profile: Profile, ref: TaskVectorRef) -> None:
    """Check `ref` against the base, downloading both if necessary, and add it if it is usable."""
    session.ask_to_load()
    spec = PreflightSpec(model=profile.model, task_vector=ref, problems=profile.problems)
    jobs.begin("own-preflight", spec, title=f"Preflight of {ref.name}", interactive=True)
    st.session_state["own-candidate"] = ref.model_dump()


def _follow(profile: Profile) -> None:
    """Watch the check of the candidate; add it if it is usable, otherwise show why not."""
    candidate: dict[str, Any] | None = st.session_state.get("own-candidate")
    if candidate is None:
        return
    view = jobs.look("own-preflight")
    if view.error:
        ui.banner(view.error)
    elif view.active:
        watch.watch(view, key="own-preflight")
    elif isinstance(view.result, PreflightResult) and not view.stale:
        for check in view.result.checks:
            if check.outcome == "fail":
                ui.banner(check)
        if view.result.usable:
            del st.session_state["own-candidate"]
            jobs.forget("own-preflight")
            session.add_task_vector(TaskVectorRef.model_validate(candidate))
            st.rerun()


def _last_part(location: str) -> str:
    return location.rstrip("/").rpartition("/")[2].removesuffix(".safetensors") or "own"
