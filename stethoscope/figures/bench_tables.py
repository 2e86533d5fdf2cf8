"""Tables of a benchmark: verdicts, rates of each arm's answers, and totals.

Cells are text, except for counts and differences, which are numbers so that tables can be sorted and exported.
"""

from stethoscope.formatting import interval, percent, pretty, shown_p
from stethoscope.judging.verdicts import shown_verdict
from stethoscope.results import BenchResult, ComparisonRow

DIFFERENCE = "difference, points"


def differences(result: BenchResult) -> list[dict[str, object]]:
    """Return the rows of the table of paired differences, one row per arm and subject."""
    return [
        {
            "arm": row.arm,
            "subject": pretty(row.subject),
            "verdict": "no change" if row.arm in result.idle else shown_verdict(row),
            "n": row.n11 + row.n10 + row.n01 + row.n00,
            DIFFERENCE: 100 * row.difference,
            "95% CI, points": interval(row.ci_low, row.ci_high),
            "gained": row.n10,
            "lost": row.n01,
            "McNemar p": shown_p(row.mcnemar_p).removeprefix("= "),
            "Holm p": shown_p(row.holm_p).removeprefix("= "),
            "e-value": f"{row.e_value:.3g}",
            "unscored could make it": _sensitivity(row),
        }
        for row in result.comparisons
    ]


def _sensitivity(row: ComparisonRow) -> str:
    could = row.sensitivity
    if could is None:
        return "–"
    return f"{interval(could.difference_low, could.difference_high)}, {could.unscored} unscored"


def accuracies(result: BenchResult) -> list[dict[str, object]]:
    """Return the rows of the table of accuracies, one row per arm and subject, with the rates of other outcomes."""
    return [
        {
            "arm": row.arm,
            "subject": pretty(row.subject),
            "n": row.n,
            "correct": row.correct,
            "exact match": percent(row.accuracy),
            "95% CI (Wilson)": f"[{100 * row.ci_low:.1f}, {100 * row.ci_high:.1f}]",
            "lm-eval stderr": "–" if row.lm_eval_stderr is None else f"{100 * row.lm_eval_stderr:.1f}",
            "math-verify": percent(row.math_verify),
            "strict": percent(row.strict),
            "golds at risk": row.golds_at_risk,
            "marked": percent(row.marker_rate),
            "truncated": percent(row.truncation_rate),
            "in a loop": percent(row.repetition_rate),
            "no answer": percent(row.no_answer_rate),
            "unparsable": row.n_unparsable,
            "timeouts": row.n_timeout,
            "if unscored were right": percent(row.accuracy_if_right),
            "alarm": row.collapsed or "",
        }
        for row in result.arms
    ]


def means(result: BenchResult) -> list[dict[str, object]]:
    """Return the rows of the table of macro and micro totals, two rows per arm, in the units of the other tables."""
    return [
        {
            "arm": row.arm,
            "mean over": {"macro": "subjects (macro)", "micro": "problems (micro)"}[row.kind],
            "n": row.n,
            "exact match": percent(row.accuracy),
            "reference": row.reference,
            "its exact match": percent(row.reference_accuracy),
            DIFFERENCE: 100 * row.difference,
            "95% CI, points": interval(row.ci_low, row.ci_high),
        }
        for row in result.totals
    ]
