"""Statistical power and cost of a benchmark, shown before it runs."""

from collections.abc import Mapping

import streamlit as st

from screens.shared import jobs, ui
from stethoscope.formatting import pretty
from stethoscope.judging.verdicts import SMOKE_TEST, SMOKE_TEST_BELOW, sizes_text
from stethoscope.recipes.reach import in_words
from stethoscope.records import BenchPlanSpec, BenchSpec, sample_size
from stethoscope.results import BenchPlanResult, BenchResult, shortage
from stethoscope.statistics import SIGNIFICANCE, detectable_difference, expected_found, n_for_margin

ABSTRACT_BASE, ABSTRACT_GAIN, ABSTRACT_CORRELATION = 0.296, 0.098, 0.45
POWER = 0.8
SUBJECTS_SHOWN = 8


def _base_accuracy() -> tuple[float, str]:
    """Return the accuracy of the base and its source; from the current benchmark if there is one."""
    result = jobs.look("bench").result
    if isinstance(result, BenchResult):
        rows = [row for row in result.arms if row.arm == result.spec.arms[0].name]
        n = sum(row.n for row in rows)
        if n and 0 < (right := sum(row.correct for row in rows) / n) < 1 - ABSTRACT_GAIN:
            return right, "as in the benchmark shown"
    return ABSTRACT_BASE, "as in the paper's abstract"


def draw(spec: BenchSpec, available: Mapping[str, int]) -> None:
    """Draw the power at the chosen n: the detectable effect, the expected number of significant subjects, and the n for
    a margin.

    Args:
        available: number of problems of each subject, if known; required for n = "all".
    """
    ns = tuple(sorted(sample_size(spec.n, available[name]) for name in spec.subjects if available.get(name)))
    if not ns and spec.n == "all":
        st.caption("Counting the problems …")
        return
    ns = ns or (int(spec.n),) * max(len(spec.subjects), 1)
    base, source = _base_accuracy()
    effects = [detectable_difference(n, base, ABSTRACT_CORRELATION, power=POWER) for n in (ns[-1], ns[0])]
    found = expected_found(ns, base, ABSTRACT_GAIN, ABSTRACT_CORRELATION)
    needed = n_for_margin(base, ABSTRACT_CORRELATION, spec.margin)
    with st.container(key="bench-power"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(f"**n = {sizes_text(ns)} per subject {_detectable(*effects)}.**", width="content")
            if ns[0] < SMOKE_TEST_BELOW:
                st.badge("smoke test", color="orange", help=SMOKE_TEST)
        st.caption(
            f"{_expected(len(ns), found)} Showing “not worse by more than {100 * spec.margin:g} points” needs about "
            f"n = {needed:,} if there is no difference. Assumes exact McNemar tests at {SIGNIFICANCE:g}, "
            f"{100 * POWER:.0f}% power, base accuracy {100 * base:.0f}% ({source}), and correlation "
            f"{ABSTRACT_CORRELATION:g} between arms."
        )


def _detectable(at_most: float | None, at_fewest: float | None) -> str:
    """Return a text with the detectable differences for the largest and smallest subjects."""
    if at_most is None:
        return "is too few to detect any difference"
    least = f"{100 * at_most:.0f}"
    if at_fewest is None:
        return f"can detect differences of about {least} points or more, and none in the smallest subject"
    most = f"{100 * at_fewest:.0f}"
    return f"can detect differences of about {least if least == most else f'{least} to {most}'} points or more"


def _expected(subjects: int, found: float) -> str:
    """Return a sentence with the expected number of significant subjects if all gain as in the paper's abstract."""
    gain = f"{100 * ABSTRACT_GAIN:.1f} points"
    if subjects == 1:
        return f"If it truly gains {gain}, the chance to detect this is {100 * found:.0f}%."
    which = "both subjects" if subjects == 2 else f"all {subjects} subjects"
    return f"If {which} truly gain {gain}, expect about {found:.1f} to reach significance after Holm correction."


def plan_of(spec: BenchSpec) -> jobs.View:
    """Return the view of the plan of `spec`; recomputed after every benchmark, because stored answers change."""
    if not spec.subjects or len(spec.arms) < 2:
        return jobs.View()
    newest = next((f"{run.run_id} {run.state}" for run in jobs.front().store.list_runs("bench", limit=1)), "")
    return jobs.ask("plan", BenchPlanSpec(bench=spec, after=newest), title="Counting stored answers")


def size(spec: BenchSpec, view: jobs.View) -> bool:
    """Draw the number of answers, how many are stored, and the estimated time; return whether `spec` can run."""
    if not spec.subjects or len(spec.arms) < 2:
        st.caption("Choose at least one subject, and one arm besides the base.")
        return False
    if view.error:
        ui.banner(view.error)
        return False
    if not isinstance(view.result, BenchPlanResult) or view.stale:
        st.caption("Counting problems and stored answers …")
        return True
    plan = view.result
    sizes = {name: sample_size(spec.n, has) for name, has in plan.available.items()}
    answers, stored = len(spec.arms) * sum(sizes.values()), sum(plan.stored.values())
    said = f"{len(spec.arms)} arms × {_problems_text(sizes)}: {answers:,} answers"
    said += f", {stored:,} of them cached." if stored else ", none of them cached."
    if plan.answers_per_s and answers > stored:
        said += f" About {_span((answers - stored) / plan.answers_per_s)} at the {plan.answers_per_s:.1f} answers per "
        said += "second of previous runs."
    st.caption(ui.escape(said))
    for name, found in plan.reach.items():
        if what := in_words(found):
            (st.warning if found.nothing else st.caption)(f"**{ui.escape(name)}**: {ui.escape(what)}")
    for why in plan.not_the_fine_tune.values():
        st.caption(ui.escape(why))
    with st.expander(f"First prompt, {plan.first_prompt_tokens:,} tokens, as the model reads it", key="bench-prompt"):
        st.code(plan.first_prompt, language=None, wrap_lines=True, height=320)
    if few := shortage(spec, {name: has for name, has in plan.available.items() if has}):
        st.warning(ui.escape(few))
    if none := [pretty(name) for name, has in plan.available.items() if not has]:
        st.warning(f"No {spec.split} problems for {ui.escape(', '.join(none))}. Remove these subjects.")
    return not none


def _problems_text(sizes: Mapping[str, int]) -> str:
    """Return the number of problems per arm as text; by subject if they differ and there are few."""
    if len(set(sizes.values())) == 1:
        return f"{len(sizes)} subjects × {next(iter(sizes.values()))} problems"
    named = ", ".join(f"{pretty(name)} {n}" for name, n in list(sizes.items())[:SUBJECTS_SHOWN])
    return f"{sum(sizes.values()):,} problems ({named}{', …' * (len(sizes) > SUBJECTS_SHOWN)})"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
