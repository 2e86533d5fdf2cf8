"""Benchmark: is it real? Arms on the same seeded problems, paired differences with their intervals, verdicts."""

import streamlit as st

from pages import (
    _arms,
    _claims,
    _downloads,
    _flips,
    _jobs,
    _outcome,
    _plan,
    _power,
    _problems,
    _recipe,
    _response,
    _running,
    _scores,
    _session,
    _status,
    _ui,
    _verdict,
)
from pages._fragment import fragment
from stethoscope.recipes import to_link
from stethoscope.records import EditRecipe
from stethoscope.results import BenchPlanResult, BenchResult, Ground


@fragment()
def plan(recipe: EditRecipe, ground: Ground, *, chat_template: bool, busy: bool) -> None:
    """Draw the plan of the benchmark and the button that starts it; nothing else ever starts one."""
    _plan.problems_and_n()
    power = st.container()
    _plan.how_asked(chat_template=chat_template)
    spec = _plan.spec_of(_arms.choose(recipe, ground))
    view = _power.plan_of(spec)
    with power:
        known = isinstance(view.result, BenchPlanResult) and not view.stale
        _power.draw(spec, view.result.available if known else {})
    possible = _power.size(spec, view)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Run the benchmark", key="run-bench", type="primary", disabled=busy or not possible,
                  on_click=_running.start, args=(spec,))  # fmt: skip
        if busy:
            st.caption("A benchmark is running; pause or cancel it to start another one.")


def outcome(view: _jobs.View, recipe: EditRecipe | None) -> None:
    """Draw progress, error or result of the benchmark on show; without one, the rank of `recipe`."""
    if view.error:
        _ui.banner(view.error)
    if view.active:
        _running.draw(view)
        return
    _running.unfinished(_jobs.front().store.list_runs("bench"), view.run_id)
    shown = view.result if isinstance(view.result, BenchResult) and not view.stale else None
    if view.stopped or (shown is not None and not shown.complete):
        _running.stopped(view)
    if shown is not None:
        _scores.draw(shown)
        _verdict.draw(shown)
        _claims.draw(shown)
        _response.draw(shown)
        if view.run_id:
            _outcome.draw(view.run_id, shown)
        with _ui.card("Answers, one problem at a time", key="bench-flips"):
            _flips.browser(shown)
        _downloads.draw(shown, view.run_id)
        _status.recorded(view)
    elif not view.error and not view.stopped:
        st.caption("No benchmark is on show. Run one here, or open one from the Runs page.")
        if recipe is not None and recipe.layers:
            _claims.draw_rank(_claims.rank_spec(recipe, _session.profile().problems))


def plan_when_ready(recipe: EditRecipe, *, busy: bool) -> None:
    """Draw the plan, or what it waits for: layers, or the model."""
    n_layers = _recipe.known_layers()
    if n_layers is None and "recipe_waiting" in st.session_state:
        _recipe.wait_for_model()
    elif not recipe.layers:
        _ui.empty("No layer is picked, so there is no recipe to judge.", "Pick layers", "bench-pick",
                  lambda: st.session_state.update(go="diagnose"))  # fmt: skip
        if st.session_state.pop("go", None):
            st.switch_page("pages/diagnose.py")
    elif (error := _recipe.refusal(recipe.task_vector.name)) is not None:
        _ui.banner(error)
    elif n_layers is None or (ground := _recipe.ground(recipe.task_vector.name)) is None:
        _recipe.wait_for_model()
    else:
        with _ui.card("Plan", key="bench-plan"):
            plan(recipe, ground, chat_template=_recipe.has_chat_template(), busy=busy)


def main() -> None:
    """Draw the page."""
    _ui.heading("Benchmark", "Is it real? Every arm answers the same problems; only paired differences count.")
    _status.show_base()
    view = _jobs.look("bench")
    recipe = _recipe.from_session(_session.profile()) if _recipe.has_task_vector("a benchmark", "bench") else None
    _plan.defaults()
    if (why := _problems.cannot_ask()) is not None:
        _ui.missing(why)
        _problems.draw(st.session_state["bench_split"])
    elif recipe is not None:
        plan_when_ready(recipe, busy=view.active)
    outcome(view, recipe)
    shown = isinstance(view.result, BenchResult) and not view.stale
    _session.link(
        recipe=to_link(recipe) if recipe is not None and recipe.layers else None,
        run=view.run_id,
        job=view.job.job_id if view.active else None,
        flip=st.session_state.get("flip_at") if shown and view.run_id else None,
        arm=st.session_state.get("flip_arm") if shown and view.run_id else None,
    )


_session.run_page(main)
