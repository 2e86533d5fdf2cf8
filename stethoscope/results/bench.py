"""What a benchmark returns: answers, accuracies, paired differences, totals, claims about layers."""

from collections.abc import Mapping
from typing import Literal

from stethoscope.records import BenchSpec, Grade, Record
from stethoscope.results.base import Result
from stethoscope.results.edit import Certificate
from stethoscope.results.reach import Reach

SUBJECTS_NAMED = 4


def shortage(spec: BenchSpec, available: Mapping[str, int]) -> str | None:
    """Return in a sentence which subjects have fewer than n problems `available`; None where none has."""
    n = spec.n
    if n == "all" or not (short := sorted((has, subject) for subject, has in available.items() if has < n)):
        return None
    named = ", ".join(f"{subject.replace('_', ' ')} has only {has}" for has, subject in short[:SUBJECTS_NAMED])
    more = f" and {len(short) - SUBJECTS_NAMED} more have too few" * (len(short) > SUBJECTS_NAMED)
    return f"{named}{more} {spec.split} problems; all of them are asked.".capitalize()


class BenchItem(Record):
    """One graded answer. `problem_id` is the hash of the problem's text.

    Attributes:
        prompt_id: the hash of the tokens that were asked; empty in results of versions that did not keep it.
        repetitive: the completion ends in a loop (see `minerva.repetition`).
        token_ids: of the completion; kept in the store, left out of a result.
        diverges_at: place in `completion` of the first token that the reference arm's answer does not share; None
            where it shares all of them, or this is the reference's.
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
    """Accuracy of one arm on one subject with a Wilson interval, and what else its answers were.

    Attributes:
        lm_eval_stderr: sd(n-1)/sqrt(n) of the scores; None when n < 2.
        math_verify: accuracy by the second score.
        strict: accuracy by the strict score (see `records.Grade`); None where older answers have none.
        golds_at_risk: problems whose gold answer lm-eval does not read whole.
        marker_rate: share of answers that hold the sentence which exact_match reads.
        truncation_rate: share that hit the token limit. repetition_rate: share that end in a loop.
        no_answer_rate: share that exact_match found no answer in.
        n_unparsable, n_timeout: answers without a score: inside n, counted as wrong, and shown apart.
        accuracy_if_right: accuracy, had all unscored answers been right; None without any.
        collapsed: which rates got worse than the reference's, in words; None when none did, or it is the reference.
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
    """A paired difference, had all unscored answers counted against the arm (low) or for it (high).

    Against it means: its own wrong, the reference's right. `unscored` pairs have at least one such answer.
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

    n10 = arm right, reference wrong; n01 = arm wrong, reference right; ci = Newcombe's paired interval;
    holm_p is corrected over the subjects of the arm; e_value may be looked at while the benchmark runs, the others
    may not. `verdict` is None where the benchmark gives none (`BenchResult.no_verdict` says why).
    `cannot_be_significant`: whichever way the n10 + n01 discordant pairs had fallen, holm_p beside the other subjects'
    p would not be below .05.
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
    """An arm minus equally strong edits of other layers, macro over subjects, on the problems that all have answered.

    Attributes:
        control: which other layers; "random" is the claim about the choice of layers.
        draws: arms of that control (random draws; 1 for the others).
        n: problems in all subjects together.
        difference, ci_low, ci_high, p: arm minus mean of the draws; the interval allows for other problems and, with
            two draws or more, for other draws.
        p_holm: corrected over the controls of the arm.
        cannot_be_significant: with so few problems no answers could bring p_holm, beside the other controls' p, below
            .05.
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
    """A finished, or stopped and therefore partial, benchmark.

    Attributes:
        spec: what was asked.
        blocks_done, blocks_total: blocks of problems that every arm has answered; all numbers are of these.
        asked: problems of each subject that every arm is asked.
        no_verdict: why no verdict is given; None where they are.
        excluded: problems left out because something was chosen on them, by subject.
        reach: which weights each arm's recipe changes, and which it names without changing them, by arm.
        first_prompt: the first prompt as the model reads it, special tokens and shots included; empty in results of
            older versions.
        not_the_fine_tune: why no edit makes the base into the fine-tuned model, by task vector; only where so.
        damaged_rows: stored records of what was chosen on and of what was tried that are not as they were written:
            problems may be missing from `excluded`, and each unreadable configuration counts as tried.
        configurations_tried: other weights and settings than the base that have answered any of these problems so
            far, these arms included; None where nobody counted.
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
        """Arms with a recipe whose weights were the base's bit by bit: they change nothing and get no verdict."""
        return idle_arms(self.spec, self.certificates)

    @property
    def shortage(self) -> str | None:
        """Which subjects have fewer than n problems, in a sentence; None where none has."""
        return shortage(self.spec, self.asked)


def idle_arms(spec: BenchSpec, certificates: Mapping[str, Certificate]) -> tuple[str, ...]:
    """Return the arms with a recipe whose certificates show the base's weights."""
    edited = (arm.name for arm in spec.arms if arm.recipe is not None)
    return tuple(name for name in edited if name in certificates and certificates[name].is_base)


class BenchPlanResult(Result):
    """What a benchmark would ask.

    Attributes:
        available: problems that the split has, by subject.
        stored: answers that are in the store already, by arm.
        reach: which weights each arm's recipe would change, by arm.
        not_the_fine_tune: why no edit makes the base into the fine-tuned model, by task vector; only where so.
        first_prompt: the first prompt as the model reads it, special tokens and shots included; empty without problems.
        first_prompt_tokens: its length.
        answers_per_s: the median of the newest benchmarks asked like this one, counting only what they generated; None
            without any.
    """

    available: dict[str, int]
    stored: dict[str, int]
    first_prompt: str = ""
    first_prompt_tokens: int = 0
    answers_per_s: float | None
    reach: dict[str, Reach] = {}
    not_the_fine_tune: dict[str, str] = {}
