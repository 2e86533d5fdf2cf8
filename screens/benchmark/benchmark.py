"""Benchmark page: arms on the same seeded problems, paired differences with intervals, and verdicts."""

import streamlit as st

from screens.benchmark import (
    arm_choice,
    claims,
    files,
    flips,
    frozen_predictions,
    plan,
    power,
    problem_set,
    response,
    running,
    scores,
    verdict,
)
from screens.shared import benchmarks, edit_recipe, jobs, loaded_model, session, status, ui
from screens.shared.fragment import fragment
from stethoscope.recipes.files import to_link
from stethoscope.records import EditRecipe
from stethoscope.results import BenchPlanResult, BenchResult, Ground


@fragment()
def draw_plan(recipe: EditRecipe, ground: Ground, *, chat_template: bool, busy: bool) -> None:
    """Draw the plan of the benchmark and the button that starts it; only this button starts one."""
    plan.problems_and_n()
    detectable = st.container()
    plan.how_asked(chat_template=chat_template)
    spec = plan.spec_of(arm_choice.choose(recipe, ground))
    view = power.plan_of(spec)
    with detectable:
        found = view.result if isinstance(view.result, BenchPlanResult) and not view.stale else None
        power.draw(spec, {} if found is None else found.available)
    possible = power.size(spec, view)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Run the benchmark",
            key="run-bench",
            type="primary",
            disabled=busy or not possible,
            on_click=benchmarks.start,
            args=(spec,),
        )
        if busy:
            st.caption("A benchmark is running. Pause or cancel it to start another one.")


def outcome(view: jobs.View, recipe: EditRecipe | None) -> None:
    """Draw progress, error or result of the current benchmark; without one, the rank of `recipe`."""
    if view.error:
        ui.banner(view.error)
    if view.under_way is not None:
        running.draw(view.under_way)
        return
    running.unfinished(jobs.front().store.list_runs("bench"), view.run_id)
    shown = view.result if isinstance(view.result, BenchResult) and not view.stale else None
    if view.stopped or (shown is not None and not shown.complete):
        running.stopped(view)
    if shown is not None:
        scores.draw(shown)
        verdict.draw(shown)
        claims.draw(shown)
        response.draw(shown)
        if view.run_id:
            frozen_predictions.draw(view.run_id, shown)
        with ui.card("Answers, one problem at a time", key="bench-flips"):
            flips.browser(shown)
        files.draw(shown, view.run_id)
        status.recorded(view)
    elif not view.error and not view.stopped:
        st.caption("No benchmark to show. Run one here, or open one from the Runs page.")
        if recipe is not None and recipe.layers:
            claims.draw_rank(claims.rank_spec(recipe, session.profile().problems))


def plan_when_ready(recipe: EditRecipe, *, busy: bool) -> None:
    """Draw the plan, or what is missing for it: layers, or the model."""
    n_layers = loaded_model.known_layers()
    if n_layers is None and "recipe_waiting" in st.session_state:
        loaded_model.wait_for_model()
    elif not recipe.layers:
        if ui.empty("No layers picked, so there is no recipe to benchmark.", "Pick layers", "bench-pick"):
            ui.open_screen("diagnose")
    elif (error := loaded_model.refusal(recipe.task_vector.name)) is not None:
        ui.banner(error)
    elif n_layers is None or (ground := loaded_model.ground(recipe.task_vector.name)) is None:
        loaded_model.wait_for_model()
    else:
        with ui.card("Plan", key="bench-plan"):
            draw_plan(recipe, ground, chat_template=loaded_model.has_chat_template(), busy=busy)


def main() -> None:
    """Draw the page."""
    ui.heading(
        "Benchmark",
        "Compare the edit with the base and with controls. Every arm answers the same problems, and only paired "
        "differences count.",
    )
    status.show_base()
    view = jobs.look("bench")
    named = loaded_model.has_task_vector("a benchmark", "bench")
    recipe = edit_recipe.from_session(session.profile()) if named else None
    plan.defaults()
    if (why := problem_set.cannot_ask()) is not None:
        ui.missing(why)
        problem_set.draw(st.session_state["bench_split"])
    elif recipe is not None:
        plan_when_ready(recipe, busy=view.active)
    outcome(view, recipe)
    shown = isinstance(view.result, BenchResult) and not view.stale
    session.link(
        recipe=to_link(recipe) if recipe is not None and recipe.layers else None,
        run=view.run_id,
        job=view.active_id,
        flip=st.session_state.get("flip_at") if shown and view.run_id else None,
        arm=st.session_state.get("flip_arm") if shown and view.run_id else None,
    )


main()
