"""Verdicts on planted results state what the numbers show, and nothing more."""

import re

import pytest

from stethoscope.formatting import points
from stethoscope.judging import arms
from stethoscope.judging.comparison import judge
from stethoscope.judging.verdicts import referee_text, shown_verdict
from stethoscope.records import (
    BenchArm,
    BenchSpec,
    EditRecipe,
    Grade,
    GradeStatus,
    ModelRef,
    ProblemsRef,
    RankSpec,
    TaskVectorRef,
)
from stethoscope.results import BenchItem, BenchResult, RankedSet, RankResult, RankRow

Table = tuple[int, int, int, int]
PROBLEMS = ProblemsRef(
    problems="p", controls="c", shots="s", subjects=("algebra", "number_theory"), control_names=("facts",)
)
RECIPE = EditRecipe.model_validate(
    {"model": ModelRef(id="m"), "task_vector": TaskVectorRef(name="t", tuned="t"), "layers": {4: 1.0, 5: 1.0}}
)
GAIN, LOSS, LEVEL, OPEN = (60, 40, 5, 95), (60, 5, 40, 95), (960, 20, 20, 1000), (60, 15, 12, 113)


def answer(
    arm: str, subject: str, number: int, right: bool, *, marked: bool, status: GradeStatus | None = None
) -> BenchItem:
    exact = status or (GradeStatus.CORRECT if right else GradeStatus.INCORRECT)
    verified = GradeStatus.CORRECT if right or not marked else GradeStatus.INCORRECT
    return BenchItem(
        arm=arm,
        subject=subject,
        problem_id=f"{number}",
        problem="?",
        gold="1",
        completion="1",
        n_tokens=1,
        truncated=False,
        grade=Grade(exact_match=exact, math_verify=verified, marked=marked),
    )


def planted(
    tables: dict[str, Table],
    *,
    split: str = "test",
    complete: bool = True,
    draws: int = 0,
    draw: Table = GAIN,
    unmarked: int = 0,
    timeouts: int = 0,
    tried: int | None = 4,
) -> BenchResult:
    """A benchmark of base and recipe with these 2x2 tables, and `draws` random controls with the table `draw`."""
    chosen = (arms.BASE, BenchArm(name="recipe", recipe=RECIPE), *arms.random_layers(RECIPE, range(10), draws=draws))
    spec = BenchSpec.model_validate(
        {
            "model": ModelRef(id="m"),
            "problems": PROBLEMS,
            "arms": chosen,
            "split": split,
            "subjects": tuple(tables),
            "n": 200,
            "seed": 7,
        }
    )
    items: dict[str, list[BenchItem]] = {arm.name: [] for arm in chosen}
    for subject, table in tables.items():
        cells = [pair for pair, n in zip([(1, 1), (1, 0), (0, 1), (0, 0)], table, strict=True) for _ in range(n)]
        others = [pair for pair, n in zip([(1, 1), (1, 0), (0, 1), (0, 0)], draw, strict=True) for _ in range(n)]
        for number, (ours, theirs) in enumerate(cells):
            items["base"].append(answer("base", subject, number, bool(theirs), marked=number >= unmarked))
            late = GradeStatus.TIMEOUT if number >= len(cells) - timeouts else None
            items["recipe"].append(answer("recipe", subject, number, bool(ours), marked=True, status=late))
            for arm in chosen[2:]:
                right = bool(others[number][0]) if number < len(others) else False
                items[arm.name].append(answer(arm.name, subject, number, right, marked=True))
    ids = {arm.name: arm.name for arm in chosen}
    found = judge(spec, items, ids, complete=complete)
    return BenchResult(
        spec=spec, **found._asdict(), items=(), certificates={}, complete=complete, configurations_tried=tried
    )


def ranked(as_good: int, matched: int, *, recipe_id: str = "recipe", n: int = 99) -> RankResult:
    row = RankRow(
        subject="all",
        n=112,
        gain=0.01,
        ci_low=0.0,
        ci_high=0.02,
        as_good=as_good,
        p=(1 + as_good) / (1 + n),
        as_good_matched=matched,
        p_matched=(1 + matched) / (1 + n),
        cannot_be_significant=n < 20,
    )
    one = RankedSet(layers=(1, 2), norm=1.0, scale=1.0, gains={"all": 0.0}, matched={"all": 0.0})
    return RankResult(
        spec=RankSpec(recipe=RECIPE, problems=PROBLEMS),
        recipe_id=recipe_id,
        n_layers=10,
        layers=(4, 5),
        norm=1.0,
        rows=(row,),
        sets=(one,) * n,
        n_possible=44 if n == 44 else 209,
        complete=True,
    )


@pytest.mark.parametrize(
    ("table", "word"),
    [(GAIN, "better"), (LOSS, "worse"), (LEVEL, "not worse by more than the margin"), (OPEN, "inconclusive")],
)
def test_each_outcome_has_its_word_and_no_other(table: Table, word: str) -> None:
    _, arm, _ = referee_text(planted({"algebra": table}), None)
    assert arm.startswith(f"recipe: {word} in algebra (")
    others = {"better in", "worse in", "not worse by more than the margin in", "inconclusive in"} - {f"{word} in"}
    assert not any(f" {other} " in arm.lower() for other in others)


def test_a_mixed_result_names_every_subject_under_its_own_word_and_controls_apart() -> None:
    text = referee_text(planted({"algebra": GAIN, "number_theory": LOSS, "facts": LOSS}), None)[1]
    assert "better in algebra (+17.5 points [" in text
    assert ". Worse in number theory (−17.5 points [" in text
    assert "Control corpora: worse in facts" in text
    assert "Macro over subjects 0.0 points" in text


def test_every_sentence_after_the_first_begins_with_a_capital_and_zero_has_no_sign() -> None:
    found = planted({"algebra": GAIN, "number_theory": OPEN, "facts": LEVEL}, draws=3, timeouts=2)
    for result in (found, planted({"algebra": GAIN, "number_theory": OPEN, "facts": LEVEL}, complete=False)):
        for paragraph in referee_text(result, ranked(0, 1)):
            starts = re.findall(r"(?<!\bp)[a-z)\]]\. (.)", paragraph)
            assert starts == [letter.upper() for letter in starts], paragraph
            assert not re.search(r"[+\u2212]0\.0\b", paragraph)


@pytest.mark.parametrize(
    ("fraction", "said"),
    [(0.0, "0.0"), (-0.0004, "0.0"), (0.0004, "0.0"), (-0.0006, "−0.1"), (-0.1, "−10.0"), (0.104, "+10.4")],
)
def test_points_that_round_to_zero_have_no_sign(fraction: float, said: str) -> None:
    assert points(fraction) == said


def test_the_setting_names_what_a_referee_asks_for() -> None:
    setting = referee_text(planted({"algebra": GAIN}).model_copy(update={"excluded": {"algebra": 12}}), None)[0]
    for part in (
        "m, 200 test problems",
        "(algebra; seed 7)",
        "256 tokens",
        "without the chat template",
        "Holm",
        "margin 3 points",
        "12 problems already used for tuning were excluded",
        "Configurations tried on these problems so far: 4",
    ):
        assert part in setting
    assert "Smoke test" not in setting
    assert "Smoke test" in referee_text(planted({"algebra": (10, 9, 0, 80)}), None)[0]
    assert "Smoke test" not in referee_text(planted({"algebra": (10, 9, 0, 81)}), None)[0]
    assert "is unknown" in referee_text(planted({"algebra": GAIN}, tried=None), None)[0]


def test_tuning_and_partial_results_say_no_verdict_word() -> None:
    tuning = referee_text(planted({"algebra": GAIN}, split="dev", draws=3), None)
    assert tuning[1].startswith("No verdict.")
    assert "algebra +17.5 points (a tuning number)." in tuning[2]
    partial = referee_text(planted({"algebra": GAIN, "number_theory": OPEN}, complete=False), None)
    gained, level = partial[2].split(" Number theory ")
    assert "(evidence of a difference" in gained
    assert "(no evidence yet" in level
    assert partial[2].count("no evidence yet") == 1
    near = referee_text(planted({"algebra": (60, 16, 4, 120)}, complete=False), None)[2]  # short of 20
    assert "e = 8.28 (no evidence yet" in near
    for text in (*tuning[2:], *partial[2:]):
        assert "better in" not in text.lower()
        assert "Holm p" not in text
        assert not text.endswith(": better.")
    assert "no verdict." in tuning[-1]


def test_a_gain_that_comes_with_the_marker_may_be_format() -> None:
    bare = referee_text(planted({"algebra": GAIN}, unmarked=0), None)[1]
    assert "Part of the gain may be due to the answer format" not in bare
    repaired = referee_text(planted({"algebra": GAIN}, unmarked=80), None)[1]
    assert "answers with the marker sentence changes by +40.0" in repaired
    assert "Part of the gain may be due to the answer format." in repaired
    assert "Alarm" not in repaired, "a marker that comes back is no collapse"
    assert "may be due to the answer format" not in referee_text(planted({"algebra": LOSS}, unmarked=80), None)[1]


def test_unscored_answers_are_told_with_what_hangs_on_them() -> None:
    firm = referee_text(planted({"algebra": GAIN}, timeouts=2), None)[1]
    assert "2 pairs have an unscored answer" in firm
    assert "this does not affect any verdict" in firm
    loose = referee_text(planted({"algebra": OPEN}, timeouts=60), None)[1]
    assert "their true scores could change the verdict in algebra" in loose
    assert "Alarm in algebra: Answers: 30% timed out (reference 0%)." in loose


def test_layers_are_claimed_from_draws_and_rank_only() -> None:
    nothing = referee_text(planted({"algebra": GAIN}), None)[-1]
    assert nothing.count("not measured") == 2
    good = referee_text(planted({"algebra": GAIN}, draws=3, draw=LOSS), ranked(0, 1))[-1]
    assert "the difference between recipe and the mean of 3 random draws of the same size is +17.5 points" in good
    assert "): better." in good
    assert "0 of 99 random sets of the same size" in good
    assert good.endswith("above chance in both.")
    level = referee_text(planted({"algebra": GAIN}, draws=3, draw=GAIN), ranked(0, 30))[-1]
    assert "better." not in level
    assert level.endswith("not shown to be better than random layers.")
    stopped = ranked(0, 1).model_copy(update={"complete": False})
    assert "(stopped early): above chance" in referee_text(planted({"algebra": GAIN}), stopped)[-1]
    claimed = planted({"algebra": GAIN}, draws=3, draw=LOSS)
    (claim,) = claimed.layer_claims
    last = claim.model_copy(update={"control": "last", "draws": 1})
    assert referee_text(claimed.model_copy(update={"layer_claims": (claim, last)}), ranked(0, 1))[-1] == good
    assert "all 44 other sets" in referee_text(planted({"algebra": GAIN}), ranked(0, 0, n=44))[-1]
    foreign = referee_text(planted({"algebra": GAIN}), ranked(0, 0, recipe_id="another"))[-1]
    assert "random sets of layers was not measured" in foreign


@pytest.mark.parametrize(("n", "stated"), [(9, False), (19, False), (20, True), (99, True)])
def test_a_rank_that_could_not_be_significant_is_no_finding(n: int, stated: bool) -> None:
    said = referee_text(planted({"algebra": GAIN}), ranked(0, 0, n=n))[-1]
    assert ("above chance in both" in said) == stated
    assert "not shown to be better" not in said
    assert ("cannot be significant at this size" in said) != stated


@pytest.mark.parametrize(("gained", "lost", "cannot"), [(0, 0, True), (5, 0, True), (6, 0, False), (3, 3, False)])
def test_a_comparison_that_could_not_be_significant_says_so(gained: int, lost: int, cannot: bool) -> None:
    result = planted({"algebra": (60, gained, lost, 40)})
    (row,) = result.comparisons
    assert row.cannot_be_significant == cannot
    assert ("cannot be significant at this size" in shown_verdict(row)) == cannot
    assert ("cannot be significant at this size" in referee_text(result, None)[1]) == cannot


def test_the_family_counts_for_what_could_have_been_significant() -> None:
    """Seven pairs suffice for one subject; among seven subjects without other differences, nine are needed."""
    few = {f"s{i}": (40, 7, 0, 53) for i in range(7)}
    assert all(row.cannot_be_significant for row in planted(few).comparisons)
    assert not any(row.cannot_be_significant for row in planted(dict(list(few.items())[:2])).comparisons)
    beside = planted({**few, **{f"s{i}": (10, 60, 0, 30) for i in range(1, 7)}})
    first = next(row for row in beside.comparisons if row.subject == "s0")
    assert (first.cannot_be_significant, first.verdict) == (False, "better"), "the others' steps are passed before"


def test_a_claim_on_three_problems_cannot_be_significant() -> None:
    for n, cannot in ((3, True), (20, False)):
        (claim,) = planted({"algebra": (0, n, 0, 0)}, draws=3, draw=(0, 0, n, 0)).layer_claims
        assert claim.cannot_be_significant == cannot
        assert ("cannot be significant at this size" in shown_verdict(claim)) == cannot
