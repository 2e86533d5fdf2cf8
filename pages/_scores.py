"""A finished benchmark: forest plot first, then verdicts, totals and each arm's accuracy."""

import pandas as pd
import streamlit as st

from pages import _jobs, _status, _ui
from stethoscope.figures import forest
from stethoscope.figures.theme import percent, pretty, shown_p, signed
from stethoscope.records import BenchSpec
from stethoscope.results import BenchResult

MARGIN = BenchSpec.model_fields["margin"].default


def interval(low: float, high: float) -> str:
    """Return an interval of fractions in percentage points."""
    return f"[{signed(100 * low, 1)}, {signed(100 * high, 1)}]"


def differences(result: BenchResult) -> pd.DataFrame:
    """Return the table of paired differences, one row per arm and subject."""
    rows = [
        {
            "arm": row.arm,
            "subject": pretty(row.subject),
            "verdict": row.verdict or "none",
            "n": row.n11 + row.n10 + row.n01 + row.n00,
            "difference": signed(100 * row.difference, 1),
            "95% CI, points": interval(row.ci_low, row.ci_high),
            "gained": row.n10,
            "lost": row.n01,
            "McNemar p": shown_p(row.mcnemar_p).removeprefix("= "),
            "Holm p": shown_p(row.holm_p).removeprefix("= "),
        }
        for row in result.comparisons
    ]
    return pd.DataFrame(rows)


def accuracies(result: BenchResult) -> pd.DataFrame:
    """Return the table of accuracies, one row per arm and subject, with what else an answer can be."""
    rows = [
        {
            "arm": row.arm,
            "subject": pretty(row.subject),
            "n": row.n,
            "correct": row.correct,
            "exact match": percent(row.accuracy),
            "95% CI (Wilson)": f"[{100 * row.ci_low:.1f}, {100 * row.ci_high:.1f}]",
            "math-verify": percent(row.math_verify),
            "marked": percent(row.marker_rate),
            "truncated": percent(row.truncation_rate),
            "in a loop": percent(row.repetition_rate),
            "no answer": percent(row.no_answer_rate),
            "unparsable": row.n_unparsable,
            "timeout": row.n_timeout,
        }
        for row in result.arms
    ]
    return pd.DataFrame(rows)


def means(result: BenchResult) -> pd.DataFrame:
    """Return the table of macro and micro totals, two rows an arm, in the units of the other tables."""
    rows = [
        {
            "arm": row.arm,
            "mean over": {"macro": "subjects (macro)", "micro": "problems (micro)"}[row.kind],
            "n": row.n,
            "exact match": percent(row.accuracy),
            "reference": row.reference,
            "its exact match": percent(row.reference_accuracy),
            "difference": signed(100 * row.difference, 1),
            "95% CI, points": interval(row.ci_low, row.ci_high),
        }
        for row in result.totals
    ]
    return pd.DataFrame(rows)


def totals(result: BenchResult) -> None:
    """Draw the macro totals as numbers, one an arm; micro stands in the table."""
    macro = [row for row in result.totals if row.kind == "macro"]
    if macro:
        reference = macro[0].reference
        st.caption(
            f"Macro: the mean over subjects of the paired difference to {_ui.escape(reference)}; bootstrap intervals "
            "over problems within each subject."
        )
    with st.container(horizontal=True, key="bench-totals"):
        for row in macro:
            st.metric(
                row.arm,
                signed(100 * row.difference, 1, " points"),
                f"95% CI {interval(row.ci_low, row.ci_high)}, n = {row.n}",
                delta_color="off",
                delta_arrow="off",
                border=True,
                help=f"Macro accuracy {percent(row.accuracy)}, {row.reference} {percent(row.reference_accuracy)}.",
                width=250,
            )


def draw(result: BenchResult, run_id: str | None) -> None:
    """Draw the benchmark and name its weights in the status strip."""
    spec = _jobs.front().store.get_run(run_id).spec if run_id else None
    recipes = {arm.name: arm.recipe for arm in spec.arms} if isinstance(spec, BenchSpec) else {}
    if "recipe" in result.certificates:
        _status.show_certificate(result.certificates["recipe"], recipes.get("recipe"))
    if any(not certificate.verified for certificate in result.certificates.values()):
        st.warning("At least one arm's weights could not be verified; do not trust this run.")
    subjects = list(dict.fromkeys(row.subject for row in result.arms))
    note = forest.caption(result, MARGIN)
    smoke = any(row.n < forest.SMOKE_TEST_BELOW for row in result.arms)
    with _ui.card("Paired differences to the base", key="bench-result"):
        if not result.complete:
            st.badge("partial: finished blocks only", color="orange")
        if smoke:
            st.badge("smoke test", color="orange")
        if result.comparisons:
            figure = forest.paired_differences(result, subjects, MARGIN)
            more = {"Arms": result.arms, "Answers": result.items}
            _ui.chart(figure, key="forest", caption=note, rows=result.comparisons, more=more)
        totals(result)
        names = ("Verdicts", "Accuracy by arm", "Totals")
        verdicts, arms, sums = st.tabs(names)
        verdicts.dataframe(differences(result), hide_index=True, key="verdict-table", alt="Verdict by arm and subject")
        arms.dataframe(accuracies(result), hide_index=True, key="arm-table", alt="Accuracy by arm and subject")
        sums.dataframe(means(result), hide_index=True, key="total-table", alt="Macro and micro totals by arm")
