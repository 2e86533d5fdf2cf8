"""What a benchmark returns: answers, accuracies, paired differences, totals."""

from stethoscope.records import Grade, Record
from stethoscope.results.edit import Certificate


class BenchItem(Record):
    """One graded answer. `problem_id` is the hash of the problem's text."""

    arm: str
    subject: str
    problem_id: str
    problem: str
    gold: str
    completion: str
    n_tokens: int
    truncated: bool
    grade: Grade


class ArmRow(Record):
    """Accuracy of one arm on one subject, with a Wilson interval, the share of marked and of truncated answers.

    `unscored` counts timeouts and unparsable answers (inside n, shown apart); `lm_eval_stderr` is sd(n-1)/sqrt(n).
    """

    arm: str
    recipe_id: str | None
    subject: str
    n: int
    correct: int
    accuracy: float
    ci_low: float
    ci_high: float
    lm_eval_stderr: float | None
    math_verify: float
    marker_rate: float
    truncation_rate: float
    unscored: int


class ComparisonRow(Record):
    """Paired difference arm - reference on the same problems.

    n10 = arm right, reference wrong; n01 = arm wrong, reference right; ci = Newcombe's paired interval;
    holm_p is corrected over the subjects of the arm.
    """

    arm: str
    reference: str
    subject: str
    n11: int
    n10: int
    n01: int
    n00: int
    difference: float
    ci_low: float
    ci_high: float
    mcnemar_p: float
    holm_p: float
    z_unpooled: float | None
    verdict: str


class TotalRow(Record):
    """Macro (mean over subjects) or micro (over problems) difference with a stratified paired bootstrap interval."""

    kind: str
    arm: str
    reference: str
    n: int
    accuracy: float
    reference_accuracy: float
    difference: float
    ci_low: float
    ci_high: float


class BenchResult(Record):
    """A finished, or cancelled and therefore partial, benchmark."""

    arms: tuple[ArmRow, ...]
    comparisons: tuple[ComparisonRow, ...]
    totals: tuple[TotalRow, ...]
    items: tuple[BenchItem, ...]
    certificates: dict[str, Certificate]
    complete: bool
