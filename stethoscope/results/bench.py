"""Result of a benchmark: answers, accuracies, paired differences, totals and claims about layers."""

from collections.abc import Mapping
from typing import Literal

from stethoscope.records import BenchSpec, Grade, Record
from stethoscope.results.base import Result
from stethoscope.results.edit import Certificate
from stethoscope.results.reach import Reach

SUBJECTS_NAMED = 4


def shortage(spec: BenchSpec, available: Mapping[str, int]) -> str | None:
    """Return a sentence naming the subjects with fewer than n problems `available`; None if there are none."""
    n = spec.n
    if n == "all" or not (short := sorted((has, subject) for subject, has in available.items() if has < n)):
        return None
    named = ", ".join(f"{subject.replace('_', ' ')} has only {has}" for has, subject in short[:SUBJECTS_NAMED])
    more = f" and {len(short) - SUBJECTS_NAMED} more have too few" * (len(short) > SUBJECTS_NAMED)
    return f"{named}{more} {spec.split} problems; all of them are used.".capitalize()


class BenchItem(Record):
    """One graded answer. `problem_id` is the hash of the problem's text.

    Attributes:
        prompt_id: hash of the prompt's tokens; empty in results of older versions.
        repetitive: whether the completion ends in a loop (see `minerva.repetition`).
        token_ids: tokens of the completion; only in the store, not in a result.
        diverges_at: character position in `completion` of the first token that differs from the reference arm's answer;
            None if no token differs or this is the reference arm.
    """

    arm: str
    subject: str
    problem_id: str
    problem: str
    gold: str
    completion: str
    n_tokens: int
    truncated: bool
    grade: Grade
    prompt_id: str = ""
    repetitive: bool = False
    token_ids: tuple[int, ...] = ()
    diverges_at: int | None = None


class ArmRow(Record):
    """Accuracy of one arm on one subject with a Wilson interval, and other rates of its answers.

    Attributes:
        lm_eval_stderr: sd(n-1)/sqrt(n) of the scores; None when n < 2.
        math_verify: accuracy according to math_verify.
        strict: accuracy according to the strict metric (see `records.Grade`); None if older answers lack it.
        golds_at_risk: number of problems whose gold answer lm-eval cannot parse completely.
        marker_rate: share of answers with the sentence that exact_match reads.
        truncation_rate: share that hit the token limit. repetition_rate: share that end in a loop.
        no_answer_rate: share without an answer for exact_match.
        n_unparsable, n_timeout: unscored answers; included in n and counted as wrong.
        accuracy_if_right: accuracy if all unscored answers were right; None if there are none.
        collapsed: a description of the rates that are worse than the reference's; None if there are none or this is the
            reference.
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
    strict: float | None = None
    golds_at_risk: int = 0
    marker_rate: float
    truncation_rate: float
    repetition_rate: float
    no_answer_rate: float
    n_unparsable: int
    n_timeout: int
    accuracy_if_right: float | None = None
    collapsed: str | None = None


class Sensitivity(Record):
    """A paired difference if all unscored answers counted against the arm (low) or in its favour (high).

    Against the arm means that its own unscored answers are wrong and the reference's are right. `unscored` is the
    number of pairs with at least one unscored answer.
    """

    unscored: int
    difference_low: float
    ci_low: float
    verdict_low: str | None
    difference_high: float
    ci_high: float
    verdict_high: str | None


class ComparisonRow(Record):
    """Paired difference arm - reference on the same problems.

    n10 = arm right, reference wrong; n01 = arm wrong, reference right; ci = Newcombe's paired interval; holm_p is
    corrected over the subjects of the arm; e_value is valid at any time while the benchmark runs, the others only at
    its end. `verdict` is None if the benchmark gives no verdict (`BenchResult.no_verdict` says why).
    `cannot_be_significant`: no outcome of the n10 + n01 discordant pairs could bring holm_p below .05, given the other
    subjects' p values.
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
    e_value: float
    verdict: str | None
    cannot_be_significant: bool = False
    sensitivity: Sensitivity | None = None


class TotalRow(Record):
    """Macro (mean over subjects) or micro (over problems) difference with a stratified paired bootstrap interval."""

    kind: Literal["macro", "micro"]
    arm: str
    reference: str
    n: int
    accuracy: float
    reference_accuracy: float
    difference: float
    ci_low: float
    ci_high: float


class LayerClaim(Record):
    """Difference between an arm and equally strong edits of other layers, macro over subjects, on the problems that all
    of them answered.

    Attributes:
        control: role of the other arms; "random" tests the choice of layers.
        draws: number of arms with this role (random draws; 1 for the others).
        n: number of problems over all subjects.
        difference, ci_low, ci_high, p: arm minus the mean of the draws; the interval covers the sampling of problems
            and, with two or more draws, of draws.
        p_holm: corrected over the controls of the arm.
        cannot_be_significant: with so few problems, no answers could bring p_holm below .05, given the other controls'
            p values.
    """

    arm: str
    control: Literal["random", "bottom", "last", "all"]
    draws: int
    n: int
    difference: float
    ci_low: float
    ci_high: float
    p: float
    p_holm: float
    verdict: str | None
    cannot_be_significant: bool = False


class BenchResult(Result):
    """A benchmark, complete or partial (if it was stopped).

    Attributes:
        spec: the request.
        blocks_done, blocks_total: blocks of problems that every arm has answered; all numbers are based on these.
        asked: number of problems per subject.
        no_verdict: why there are no verdicts; None if there are.
        excluded: number of problems excluded because they were used for tuning, by subject.
        reach: the weights that each arm's recipe changes, and those that it selects but does not change, by arm.
        first_prompt: the first prompt as the model reads it, special tokens and shots included; empty in results of
            older versions.
        not_the_fine_tune: why no edit reproduces the fine-tuned model, by task vector; only if this is the case.
        damaged_rows: number of damaged stored records of tuning problems and tried configurations. Problems may be
            missing from `excluded`, and each unreadable configuration counts as tried.
        configurations_tried: number of different weights and settings, without the base but including these arms, that
            have answered any of these problems so far; None if unknown.
    """

    spec: BenchSpec
    arms: tuple[ArmRow, ...]
    comparisons: tuple[ComparisonRow, ...]
    totals: tuple[TotalRow, ...]
    layer_claims: tuple[LayerClaim, ...] = ()
    items: tuple[BenchItem, ...]
    certificates: dict[str, Certificate]
    complete: bool
    blocks_done: int = 0
    blocks_total: int = 0
    asked: dict[str, int] = {}
    no_verdict: str | None = None
    excluded: dict[str, int] = {}
    configurations_tried: int | None = None
    damaged_rows: int = 0
    reach: dict[str, Reach] = {}
    first_prompt: str = ""
    not_the_fine_tune: dict[str, str] = {}

    @property
    def idle(self) -> tuple[str, ...]:
        """Arms whose recipe left the weights identical to the base; they change nothing and get no verdict."""
        return idle_arms(self.spec, self.certificates)

    @property
    def shortage(self) -> str | None:
        """A sentence naming the subjects with fewer than n problems; None if there are none."""
        return shortage(self.spec, self.asked)


def idle_arms(spec: BenchSpec, certificates: Mapping[str, Certificate]) -> tuple[str, ...]:
    """Return the arms with a recipe whose certificates show the base weights."""
    edited = (arm.name for arm in spec.arms if arm.recipe is not None)
    return tuple(name for name in edited if name in certificates and certificates[name].is_base)


class BenchPlanResult(Result):
    """Plan of a benchmark.

    Attributes:
        available: number of problems in the split, by subject.
        stored: number of answers that are already stored, by arm.
        reach: the weights that each arm's recipe would change, by arm.
        not_the_fine_tune: why no edit reproduces the fine-tuned model, by task vector; only if this is the case.
        first_prompt: the first prompt as the model reads it, special tokens and shots included; empty without problems.
        first_prompt_tokens: number of tokens of the first prompt.
        answers_per_s: median speed of the newest benchmarks with the same settings, counting only generated answers;
            None if there are none.
    """

    available: dict[str, int]
    stored: dict[str, int]
    first_prompt: str = ""
    first_prompt_tokens: int = 0
    answers_per_s: float | None
    reach: dict[str, Reach] = {}
    not_the_fine_tune: dict[str, str] = {}
