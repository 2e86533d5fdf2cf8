"""Running benchmark: progress, Pause, Cancel, and interim results."""

from collections.abc import Sequence

import streamlit as st

from screens.benchmark import scores
from screens.shared import benchmarks, jobs, ui, watch
from screens.shared.fragment import fragment
from stethoscope.figures import evidence, forest
from stethoscope.jobs.job import JobSnapshot
from stethoscope.records import BenchSpec
from stethoscope.results import BenchResult
from stethoscope.store.history import RunRecord

LOOK_EVERY_S = 3.0
UNFINISHED_SHOWN = 3


def draw(job: JobSnapshot) -> None:
    """Draw the running benchmark; the buttons are outside the fragments, so that they respond immediately."""
    job_id = job.job_id
    with ui.card("Running", key="bench-running"):
        watch.live(job_id)
        with st.container(horizontal=True, gap="small"):
            if job.may_pause:
                st.button(
                    "Pause",
                    key="bench-pause",
                    on_click=jobs.pause,
                    args=(job_id,),
                    help="Frees the model for other jobs. Finished blocks are kept; click Resume to continue.",
                )
            st.button(
                "Cancel",
                key="bench-stop",
                on_click=jobs.stop,
                args=(job_id,),
                help="Stops the benchmark. Finished blocks stay in the store and are reused.",
            )
    _look(job_id)


@fragment(run_every=LOOK_EVERY_S)
def _look(job_id: str) -> None:
    job = jobs.front().snapshot(job_id)
    partial = None if job is None else job.partial
    if not isinstance(partial, BenchResult) or not partial.comparisons:
        st.caption("Interim results appear after the first block.")
        return
    first_look(partial)


def first_look(partial: BenchResult) -> None:
    """Draw the interim result: e-values first, then faded and labelled differences."""
    arms = forest.arms_in_order(partial)
    with ui.card(f"Interim result: {partial.blocks_done} of {partial.blocks_total} blocks", key="bench-partial"):
        st.badge(f"partial: {partial.blocks_done} of {partial.blocks_total} blocks", color="orange")
        st.caption(
            "Only e-values are valid while the benchmark runs. The faded intervals are valid only at the planned "
            "end; do not stop because of them."
        )
        ui.chart(
            evidence.e_values(partial, arms),
            key="evidence",
            caption=evidence.caption(partial),
            rows=partial.comparisons,
        )
        scores.picture(partial, key="forest-partial")


def stopped(view: jobs.View) -> None:
    """Draw the state of a paused or cancelled benchmark, and the button that resumes it."""
    found = view.result if isinstance(view.result, BenchResult) and not view.stale else None
    asked = st.session_state.get("bench_asked")
    spec = found.spec if found else None if asked is None else BenchSpec.model_validate_json(asked)
    word = "Paused" if view.job is not None and view.job.state == "paused" else "Stopped"
    blocks = f"{found.blocks_done} of {found.blocks_total} blocks finished" if found else "no finished blocks"
    with st.container(border=True, key="bench-stopped"):
        st.markdown(
            f"**{word}**: {blocks}. Finished answers are kept. Resume generates only the missing ones and gives the "
            "same numbers as an uninterrupted run."
        )
        if spec is not None:
            st.button("Resume", key="bench-resume", type="primary", on_click=benchmarks.start, args=(spec,))


def unfinished(runs: Sequence[RunRecord], on_show: str | None) -> None:
    """Draw the newest unfinished benchmarks, each with a Resume button, except `on_show`."""
    over: set[str] = set()
    shown: list[tuple[RunRecord, BenchSpec]] = []
    for run in runs:  # newest first: a later run of the same spec supersedes earlier ones
        if run.spec_id not in over and run.state in ("paused", "interrupted") and run.run_id != on_show:
            spec = run.spec
            assert isinstance(spec, BenchSpec), "only benchmarks are listed"
            shown.append((run, spec))
        over.add(run.spec_id)
    if not shown:
        return
    with st.expander(f"Unfinished benchmarks ({len(shown)})", key="bench-unfinished"):
        for run, spec in shown[:UNFINISHED_SHOWN]:
            left, right = st.columns([4, 1], vertical_alignment="center")
            left.caption(
                ui.escape(
                    f"{run.run_id} · {run.state} · {len(spec.arms)} arms, {len(spec.subjects)} "
                    f"subjects, n = {spec.n}, {spec.split}"
                )
            )
            right.button("Resume", key=f"resume-{run.run_id}", on_click=benchmarks.start, args=(spec,))
