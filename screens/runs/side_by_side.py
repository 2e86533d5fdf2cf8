"""Two benchmarks side by side: differences in settings, both figures, and the comparison on shared problems."""

from collections.abc import Sequence

import streamlit as st

from screens.runs.table import summary
from screens.shared import benchmarks, edit_recipe, jobs, ui
from stethoscope.errors import StethoscopeError
from stethoscope.figures import forest
from stethoscope.figures.bench_tables import differences as difference_rows
from stethoscope.judging.two_runs import TwoRuns, pair_runs
from stethoscope.recipes.files import differences
from stethoscope.results import BenchResult
from stethoscope.store.history import RunRecord

FIRST, SECOND = "run A", "run B"


def readable(runs: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """Return the benchmarks among `runs` with a result and a readable spec, by id."""
    found: dict[str, RunRecord] = {}
    for run in runs:
        if run.kind == "bench" and run.result_id is not None:
            try:
                _ = run.spec
            except StethoscopeError:
                continue
            found[run.run_id] = run
    return found


def draw(runs: Sequence[RunRecord]) -> None:
    """Draw the choice of two benchmarks, and then both benchmarks."""
    known = readable(runs)
    if len(known) < 2:
        st.caption("This needs two benchmarks with results; so far there " + ("is one." if known else "is none."))
        return
    left, right = st.columns(2)
    with left:
        first = _choice(known, "A", index=1)
    with right:
        second = _choice(known, "B", index=0)
    if first[0].run_id == second[0].run_id and first[2] == second[2]:
        st.caption("Both sides show the same arm of the same run. Choose another run or arm.")
        return
    _settings(first[0], second[0])
    _recipes(first, second)
    _pairs(pair_runs(first[1], second[1], (first[2], second[2]), (FIRST, SECOND)))
    for column, (run, result, _), name in zip(st.columns(2), (first, second), "AB", strict=True):
        with column:
            _picture(run, result, name)


def _choice(known: dict[str, RunRecord], name: str, *, index: int) -> tuple[RunRecord, BenchResult, str]:
    """Draw the choice of a run and of one of its arms; return the run, its result and the arm's name."""
    run = known[
        st.selectbox(
            f"Run {name}",
            list(known),
            index=index,
            key=f"side-{name}",
            format_func=lambda run_id: f"{run_id} · {summary(known[run_id])}",
        )
    ]
    result = jobs.load_result(jobs.front().store, run.run_id)
    assert isinstance(result, BenchResult)
    arms = [arm.name for arm in result.spec.arms]
    first_edit = min(1, len(arms) - 1)  # behind the reference
    return run, result, st.selectbox(f"Arm of run {name}", arms, index=first_edit, key=f"side-arm-{name}-{run.run_id}")


def _settings(first: RunRecord, second: RunRecord) -> None:
    bare = [run.spec.model_copy(update={"arms": ()}) for run in (first, second)]
    rows = [{"setting": row.field, FIRST: row.before, SECOND: row.after} for row in differences(*bare)]
    if rows:
        ui.table(rows, key="side-settings", alt="Settings that differ")
    else:
        st.caption("Both runs used the same problems and settings.")


def _recipes(first: tuple[RunRecord, BenchResult, str], second: tuple[RunRecord, BenchResult, str]) -> None:
    recipes = [next(arm.recipe for arm in result.spec.arms if arm.name == name) for _, result, name in (first, second)]
    if recipes[0] is None or recipes[1] is None:
        st.caption("One of the two arms is the base, which has no recipe to compare.")
    else:
        edit_recipe.changes(recipes[0], recipes[1], key="side-recipes")


def _pairs(found: TwoRuns) -> None:
    """Draw the paired difference on shared problems, or why there is none."""
    if found.paired is None:
        st.warning("These answers are not comparable. " + ui.escape(" ".join(found.obstacles)))
        return
    subjects = list(dict.fromkeys(row.subject for row in found.paired.arms))
    figure = forest.paired_differences(found.paired, subjects, found.paired.spec.margin)
    said = [f"{SECOND} − {FIRST}, on shared problems only.", *found.notes, found.paired.no_verdict or ""]
    ui.chart(
        figure,
        key="side-pairs",
        caption=" ".join(said),
        rows=found.paired.comparisons,
        more={"Arms": found.paired.arms, "Totals": found.paired.totals},
    )
    ui.table(
        difference_rows(found.paired),
        key="side-table",
        alt="Paired differences of the two runs by subject",
        column_config=benchmarks.POINTS,
    )


def _picture(run: RunRecord, result: BenchResult, name: str) -> None:
    if not result.comparisons:
        st.caption(f"Run {name} has no comparisons.")
        return
    subjects = list(dict.fromkeys(row.subject for row in result.arms))
    figure = forest.paired_differences(result, subjects, result.spec.margin)
    ui.chart(
        figure,
        key=f"side-forest-{name}",
        rows=result.comparisons,
        caption=f"Run {name} ({run.run_id}). {forest.caption(result, result.spec.margin)}",
    )
