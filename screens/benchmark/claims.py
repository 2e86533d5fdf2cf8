"""Claims about the choice of layers: comparison with random draws of the same size, and rank among random sets."""

from typing import Any

import streamlit as st

from screens.shared import jobs, opened, ui, watch
from stethoscope.figures import layer_claims
from stethoscope.figures import rank as figures
from stethoscope.judging.arms import judged
from stethoscope.records import BenchSpec, EditRecipe, ProblemsRef, RankSpec
from stethoscope.results import BenchResult, RankResult

RANDOM_SETS = 99


def draw(result: BenchResult) -> None:
    """Draw the claims about layers of every arm that has controls, and the rank of the recipe."""
    for index, arm in enumerate(dict.fromkeys(claim.arm for claim in result.layer_claims)):
        rows = [claim for claim in result.layer_claims if claim.arm == arm]
        with ui.card(f"Are these layers better than others? {arm} and controls", key=f"claims-{index}-card"):
            figure = layer_claims.against_controls(rows, result.spec.margin)
            note = layer_claims.caption(rows, result.spec.margin)
            ui.chart(figure, key=f"claims-{index}", caption=note, rows=rows)
            if not any(row.control == "random" for row in rows):
                st.caption("A claim about the choice of layers needs at least two random draws.")
    if (recipe := judged_recipe(result.spec)) is not None:
        draw_rank(rank_spec(recipe, result.spec.problems))


def judged_recipe(bench: BenchSpec) -> EditRecipe | None:
    """Return the recipe under test; None without one."""
    arm = judged(bench.arms)
    return None if arm is None else arm.recipe


def draw_rank(spec: RankSpec) -> None:
    """Draw the rank of a recipe, or the button that computes it."""
    with ui.card("Rank of these layers among random sets", key="rank-card"):
        ui.opened_settings("rank")
        _rank(spec, _on_show(spec))


def rank_spec(recipe: EditRecipe, problems: ProblemsRef) -> RankSpec:
    """Return the spec of the rank of `recipe`."""
    named: dict[str, Any] = {"n_sets": RANDOM_SETS} | opened.settings("rank")
    return RankSpec(recipe=recipe, problems=problems, **named)


def ranked(bench: BenchSpec) -> RankResult | None:
    """Return the current rank if it belongs to this benchmark's recipe."""
    recipe = judged_recipe(bench)
    return None if recipe is None else _on_show(rank_spec(recipe, bench.problems))


def _on_show(spec: RankSpec) -> RankResult | None:
    view = jobs.look("rank")
    found = view.result if isinstance(view.result, RankResult) and not view.stale else None
    return found if found is not None and found.spec == spec else None


def _picture(result: object, key: str) -> None:
    if isinstance(result, RankResult):
        ui.chart(
            figures.strip(result),
            key=key,
            caption=figures.caption(result),
            rows=result.rows,
            more={"Sets": result.sets},
        )


def _rank(spec: RankSpec, found: RankResult | None) -> None:
    view = jobs.look("rank")
    if view.error:
        ui.banner(view.error)
    if view.active:
        watch.watch(view, key="rank", draw=lambda job: _picture(job.partial, "rank-partial"), every=2.0)
    elif found is not None:
        _picture(found, "rank")
    if not view.active and (found is None or not found.complete):
        st.caption(
            f"Compares this edit with {spec.n_sets} random layer sets of the same size, unscaled and rescaled to its "
            f"norm, by the likelihood of {spec.split} solutions."
        )
        st.button(
            f"Rank among {spec.n_sets} random sets",
            key="run-rank",
            on_click=jobs.begin,
            args=("rank", spec),
            kwargs={"title": "Rank among random sets"},
        )
