"""Benchmark figures: forest plot, e-values, accuracy by alpha, flips, a problem's text."""

import html
import math
import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from stethoscope.figures import accuracy_dose, evidence, flips, forest, maths
from stethoscope.figures.bench_tables import differences
from stethoscope.judging import arms
from stethoscope.profiles import MINI
from stethoscope.records import BenchArm, BenchSpec, EditRecipe, Grade, GradeStatus
from stethoscope.results import ArmRow, BenchItem, BenchResult, ComparisonRow, TotalRow

SUBJECTS = ("algebra", "geometry", "number_theory")
RIGHT, WRONG = GradeStatus.CORRECT, GradeStatus.INCORRECT


def recipe(alpha: float = 1.0) -> EditRecipe:
    return EditRecipe(model=MINI.model, task_vector=MINI.task_vectors[0], layers={3: 1.0}, master_alpha=alpha)  # type: ignore[dict-item]


def comparison(
    arm: str, subject: str, *, n10: int = 12, n01: int = 4, n: int = 50, holm_p: float = 0.5, cannot: bool = False
) -> ComparisonRow:
    difference = (n10 - n01) / n
    return ComparisonRow(
        arm=arm,
        reference="base",
        subject=subject,
        n11=10,
        n10=n10,
        n01=n01,
        n00=n - 10 - n10 - n01,
        difference=difference,
        ci_low=difference - 0.18,
        ci_high=difference + 0.14,
        mcnemar_p=0.08,
        holm_p=holm_p,
        z_unpooled=1.5,
        e_value=1.4 if n10 - n01 < 15 else 60.0,
        verdict="inconclusive",
        cannot_be_significant=cannot,
    )


def total(arm: str, difference: float, kind: str = "macro") -> TotalRow:
    return TotalRow(
        kind=kind,
        arm=arm,
        reference="base",
        n=150,
        accuracy=0.3 + difference,
        reference_accuracy=0.3,  # type: ignore[arg-type]
        difference=difference,
        ci_low=difference - 0.05,
        ci_high=difference + 0.05,
    )


def arm_row(arm: str, subject: str, n: int = 50) -> ArmRow:
    return ArmRow(
        arm=arm,
        recipe_id=None,
        subject=subject,
        n=n,
        correct=14,
        accuracy=0.28,
        ci_low=0.17,
        ci_high=0.42,
        lm_eval_stderr=0.06,
        math_verify=0.3,
        marker_rate=1.0,
        truncation_rate=0.0,
        repetition_rate=0.0,
        no_answer_rate=0.0,
        n_unparsable=0,
        n_timeout=0,
    )


def item(
    arm: str, problem: str, status: GradeStatus, answer: str, *, subject: str = "algebra", **more: object
) -> BenchItem:
    grade = Grade(exact_match=status, math_verify=RIGHT if answer == "5" else WRONG, marked=True, answer=answer)
    return BenchItem(
        arm=arm,
        subject=subject,
        problem_id=problem,
        problem=f"Problem {problem}",
        gold="5",
        completion=f"so {answer}",
        n_tokens=2,
        truncated=False,
        grade=grade,
        **more,  # type: ignore[arg-type]
    )


def result(
    arms: tuple[str, ...] = ("recipe", "all layers"),
    *,
    complete: bool = True,
    items: tuple[BenchItem, ...] = (),
    **more: object,
) -> BenchResult:
    spec = BenchSpec(
        model=MINI.model,
        problems=MINI.problems,
        subjects=SUBJECTS,
        n=50,
        arms=(BenchArm(name="base"), *(BenchArm(name=arm, recipe=recipe()) for arm in arms)),
    )
    fields: dict[str, object] = {
        "arms": tuple(arm_row(arm, subject) for arm in ("base", *arms) for subject in SUBJECTS),
        "comparisons": tuple(comparison(arm, subject) for arm in arms for subject in SUBJECTS),
        "totals": tuple(total(arm, 0.1 * index, kind) for index, arm in enumerate(arms) for kind in ("macro", "micro")),
    }
    return BenchResult.model_validate(
        {"spec": spec, "items": items, "certificates": {}, "complete": complete} | fields | more
    )


def marks(figure: object) -> list[tuple[str, float, float]]:
    """Every mark as (symbol, x, y)."""
    return [
        (symbol, x, y)
        for trace in figure.data  # type: ignore[attr-defined]
        for symbol, x, y in zip(trace.marker.symbol, trace.x, trace.y, strict=True)
    ]


def test_the_forest_has_a_panel_a_subject_and_a_row_an_arm() -> None:
    twelve = tuple(f"arm {index}" for index in range(12))
    figure = forest.paired_differences(result(twelve), SUBJECTS, 0.03, columns=4)
    assert [note.text for note in figure.layout.annotations] == [
        "<b>all subjects</b>",
        "<b>algebra</b>",
        "<b>geometry</b>",
        "<b>number theory</b>",
    ]
    assert len(marks(figure)) == 12 * 2 + 12 * 3
    assert list(figure.layout.yaxis.ticktext) == list(twelve)
    domains = {tuple(figure.layout[f"yaxis{index or ''}"].domain) for index in ("", 2, 3, 4)}
    assert len(domains) == 1, "side by side"
    tall = forest.paired_differences(result(twelve), SUBJECTS, 0.03, columns=1)
    assert tall.layout.height > 3 * figure.layout.height
    first, *others = tall.select_xaxes()
    assert first.matches is None, "plotly warns of an axis that matches itself"
    assert {axis.matches for axis in others} == {"x"}, "one scale for all panels"


def test_a_mark_stands_at_the_difference_with_its_interval_and_is_filled_by_holm() -> None:
    rows = (comparison("recipe", "algebra", holm_p=0.049), comparison("recipe", "geometry", n10=4, n01=12, holm_p=0.05))
    figure = forest.paired_differences(result(comparisons=rows, totals=()), SUBJECTS, 0.03)
    assert marks(figure) == [("circle", 16.0, 0), ("circle-open", -16.0, 0)]
    assert figure.data[0].error_x.array[0] == pytest.approx(14.0)
    assert figure.data[0].error_x.arrayminus[0] == pytest.approx(18.0)
    assert {shape.x0 for shape in figure.layout.shapes if shape.type == "rect"} == {-3.0}
    for part in ("gained 12, lost 4", "n = 50", "Newcombe", "inconclusive"):
        assert part in figure.data[0].text[0]


def test_a_comparison_that_could_not_be_significant_has_no_open_circle_and_says_so() -> None:
    rows = (comparison("recipe", "algebra", n10=3, n01=2, cannot=True), comparison("recipe", "geometry", n10=6, n01=0))
    found = result(comparisons=rows, totals=())
    figure = forest.paired_differences(found, SUBJECTS, 0.03)
    assert [symbol for symbol, *_ in marks(figure)] == ["x-thin-open", "circle-open"]
    said = [text for trace in figure.data for text in trace.text]
    assert ["5 discordant pairs" in text for text in said] == [True, False]
    assert ["cannot be significant at this size" in text for text in said] == [True, False]
    shown = [str(row["verdict"]) for row in differences(found)]
    assert ["cannot be significant at this size" in text for text in shown] == [True, False]


def test_totals_have_macro_above_micro() -> None:
    figure = forest.paired_differences(result(), SUBJECTS, 0.03)
    macro = [y for symbol, _, y in marks(figure) if symbol == "diamond"]
    micro = [y for symbol, _, y in marks(figure) if symbol == "diamond-open"]
    assert all(above < below for above, below in zip(sorted(macro), sorted(micro), strict=True))
    assert "bootstrap" in " ".join(text for trace in figure.data for text in trace.text)


def test_arms_can_be_chosen_and_sorted() -> None:
    found = result(("low", "high"))
    assert forest.arms_in_order(found) == ("low", "high")
    assert forest.arms_in_order(found, "by difference") == ("high", "low")
    figure = forest.paired_differences(found, SUBJECTS, 0.03, arms=("high",))
    assert list(figure.layout.yaxis.ticktext) == ["high"]
    assert len(marks(figure)) == 2 + 3


def test_recipes_and_controls_have_colours_of_their_own() -> None:
    edit = recipe()
    profile = MINI.diagnose_spec()
    chosen = (
        arms.BASE,
        BenchArm(name="mine", recipe=edit),
        arms.all_layers(edit, range(10)),
        *arms.random_layers(edit, range(10), draws=2),
        *arms.projected(edit, profile, "algebra", 8),
        *arms.random_subspace(edit, 8, "resid_post", saes=MINI.saes),
        arms.full_fine_tune(edit, 10),
    )
    controls = [forest.GRAY] * 3 + [forest.CONTROLS["filtered"]] * 4 + [forest.CONTROLS["fine-tune"]]
    assert list(forest.colours(chosen).values()) == [forest.BLUE, forest.ORANGE, *controls]
    second = BenchArm(name="projected", recipe=recipe(0.5))  # of no other arm: not a control
    third = BenchArm(name="saved", recipe=edit.model_copy(update={"norms": True}))
    own = forest.colours((*chosen[:3], second, third))
    assert len({own[name] for name in ("mine", "projected", "saved", "all layers", "base")}) == 5
    sweep = forest.colours((arms.BASE, *arms.alpha_sweep(edit, (0.5, 1.0, 1.5))))
    assert list(sweep.values()) == [forest.BLUE, *[forest.ORANGE] * 3]


def test_every_mark_and_its_interval_have_the_arm_s_colour_and_the_caption_says_which() -> None:
    edit = recipe()
    found = result(("mine", "all layers"))
    chosen = (arms.BASE, BenchArm(name="mine", recipe=edit), arms.all_layers(edit, range(10)))
    found = found.model_copy(update={"spec": found.spec.model_copy(update={"arms": chosen})})
    figure = forest.paired_differences(found, SUBJECTS, 0.03)
    seen = {(y, trace.marker.color, trace.error_x.color) for trace in figure.data for y in map(round, trace.y)}
    assert seen == {(0, forest.ORANGE, forest.ORANGE), (1, forest.GRAY, forest.GRAY)}
    assert "Orange: the recipe; gray: other layers." in forest.caption(found, 0.03)
    assert "range:" not in forest.caption(result(("mine",)), 0.03), "one colour needs no legend"


def test_a_partial_forest_is_faded_and_says_so() -> None:
    partial = forest.paired_differences(result(complete=False), SUBJECTS, 0.03)
    assert {trace.opacity for trace in partial.data} == {forest.FADED}
    assert {trace.opacity for trace in forest.paired_differences(result(), SUBJECTS, 0.03).data} == {1.0}
    assert "Partial: finished blocks only" in forest.caption(result(complete=False), 0.03)
    assert "Partial" not in forest.caption(result(), 0.03)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bfloat16_weights_are_said_to_depend_on_the_batch_size(dtype: str) -> None:
    found = result()
    model = found.spec.model.model_copy(update={"dtype": dtype})
    found = found.model_copy(update={"spec": found.spec.model_copy(update={"model": model, "batch_size": 24})})
    said = "an answer can change with the batch size (24 here)" in forest.caption(found, 0.03)
    assert said == (dtype == "bfloat16")
    assert (Path(__file__).parents[2] / "benchmarks" / "batch_flips.py").is_file(), "the caption names it"


def test_small_benchmarks_say_so() -> None:
    large = result(arms=("recipe",), complete=True)
    large = large.model_copy(update={"arms": tuple(arm_row("recipe", subject, n=100) for subject in SUBJECTS)})
    assert "Smoke test" not in forest.caption(large, 0.03)
    assert "Smoke test" in forest.caption(result(), 0.03)
    assert "n = 50 problems per subject" in forest.caption(result(), 0.03)


def test_evidence_is_what_reaches_twenty_and_says_which_way() -> None:
    rows = (comparison("recipe", "algebra", n10=30, n01=0), comparison("all layers", "algebra", n10=0, n01=30))
    rows = (rows[0], rows[1].model_copy(update={"e_value": 20.0}), comparison("recipe", "geometry"))
    found = result(comparisons=rows)
    figure = evidence.e_values(found, ("recipe", "all layers"))
    assert list(figure.data[0].marker.symbol) == ["diamond", "diamond", "circle"]
    assert list(figure.data[0].x) == [60.0, 20.0, 1.4]
    assert figure.layout.xaxis.type == "log"
    assert [shape.x0 for shape in figure.layout.shapes] == [20.0]
    assert "recipe · algebra (better), all layers · algebra (worse)." in evidence.caption(found)
    assert "No e-value has reached 20 yet." in evidence.caption(result())


def test_evidence_names_its_side() -> None:
    for n10, n01, side in ((12, 4, "for gains"), (4, 12, "for losses"), (4, 4, "for neither side")):
        assert side in evidence.describe(comparison("recipe", "algebra", n10=n10, n01=n01))


def test_a_row_without_a_verdict_says_so() -> None:
    row = comparison("recipe", "algebra")
    assert forest.describe_comparison(row).endswith("<b>inconclusive</b>")
    assert forest.describe_comparison(row.model_copy(update={"verdict": None})).endswith("<b>no verdict</b>")


def test_an_e_value_beyond_the_axis_stands_at_its_end() -> None:
    rows = tuple(
        comparison("recipe", s).model_copy(update={"e_value": e}) for s, e in (("algebra", 1e300), ("geometry", 0.0))
    )
    assert list(evidence.e_values(result(comparisons=rows), ("recipe",)).data[0].x) == [1e6, 0.05]


SWEEP = {"alpha 0.5": 0.5, "alpha 1": 1.0}


def swept(**more: object) -> BenchResult:
    rows = (comparison("alpha 1", "algebra", n10=2, n01=4), comparison("alpha 0.5", "algebra"))
    return result(tuple(SWEEP), comparisons=rows, totals=(total("alpha 1", -0.1), total("alpha 0.5", 0.2)), **more)


def test_dose_and_response_starts_at_the_base_and_hangs_paired_intervals_there() -> None:
    points = accuracy_dose.points(swept(), SWEEP, "algebra")
    assert [point.alpha for point in points] == [0.0, 0.5, 1.0]
    assert [point.ci_low is None for point in points] == [True, False, False]
    base = points[0].accuracy
    assert base == pytest.approx((10 + 4) / 50)
    assert points[1].accuracy == pytest.approx((10 + 12) / 50)
    figure = accuracy_dose.curves(swept(), SWEEP, subject="algebra")
    (trace,) = figure.data
    assert list(trace.x) == [0.0, 0.5, 1.0]
    top = trace.y[1] + trace.error_y.array[1]
    assert top == pytest.approx(100 * (base + 0.16 + 0.14))
    assert trace.y[1] - trace.error_y.arrayminus[1] == pytest.approx(100 * (base + 0.16 - 0.18))
    assert trace.error_y.array[0] == 0
    assert [shape.y0 for shape in figure.layout.shapes] == [pytest.approx(100 * base)]


def test_dose_and_response_of_all_subjects_is_the_macro_total() -> None:
    assert [point.accuracy for point in accuracy_dose.points(swept(), SWEEP)] == pytest.approx([0.3, 0.5, 0.2])
    said = accuracy_dose.caption(swept(), SWEEP, "dev")
    assert "at alpha 0.5: 50.0%, base 30.0%" in said
    assert "Choose alpha here" in said
    assert "do not evaluate an alpha on the problems it was chosen on" in accuracy_dose.caption(swept(), SWEEP, "test")
    assert accuracy_dose.caption(result(), {}, "dev") == "No results yet: the first block is not finished."


def flipping() -> BenchResult:
    base = (
        item("base", "a", WRONG, "4"),
        item("base", "b", RIGHT, "5"),
        item("base", "c", WRONG, "6"),
        item("base", "d", WRONG, "7", subject="geometry"),
        item("base", "e", RIGHT, "5"),
    )
    arm = (
        item("recipe", "b", WRONG, "3"),
        item("recipe", "a", RIGHT, "5"),
        item("recipe", "c", WRONG, "8"),
        item("recipe", "d", WRONG, "7", subject="geometry"),
    )
    return result(items=base + arm)


def test_flips_are_paired_by_problem_and_told_apart() -> None:
    found = flips.pairs(flipping(), "recipe")
    assert [flip.problem_id for flip in found] == ["a", "b", "c", "d"]
    assert [flip.kind("exact_match") for flip in found] == [
        "wrong to right",
        "right to wrong",
        "both wrong, different answers",
        "all",
    ]
    assert flips.counts(found, "exact_match") == {
        "wrong to right": 1,
        "right to wrong": 1,
        "both wrong, different answers": 1,
        "all": 4,
    }
    assert len(flips.chosen(found, kind="all", metric="exact_match", subject="geometry")) == 1
    assert [flip.problem_id for flip in flips.chosen(found, kind="all", metric="exact_match", search=" SO 8")] == ["c"]
    assert [flip.problem_id for flip in flips.chosen(found, kind="wrong to right", metric="exact_match")] == ["a"]
    assert flips.row(found[0])["arm_exact_match"] == "correct"


def test_the_other_score_can_decide_a_flip() -> None:
    lenient = item("recipe", "c", WRONG, "5")
    (flip,) = flips.pairs(result(items=(item("base", "c", WRONG, "6"), lenient)), "recipe")
    assert (flip.kind("exact_match"), flip.kind("math_verify")) == ("both wrong, different answers", "wrong to right")


@pytest.mark.parametrize("diverges_at", [None, 0, 9, 20, 30])
def test_no_part_of_an_answer_is_markup(diverges_at: int | None) -> None:
    answer = "<u>one</u> <u>two</u> <u>three</u>"
    shown = flips.answer_html(answer, diverges_at)
    assert "<u>" not in shown
    assert "</u>" not in shown
    inside = re.sub(r"</?(div|mark)[^>]*>", "", shown)
    assert html.unescape(inside) == answer


def test_an_answer_without_a_score_is_not_right() -> None:
    for status in (GradeStatus.TIMEOUT, GradeStatus.UNPARSABLE, GradeStatus.NO_ANSWER):
        unscored = item("recipe", "c", status, "6")
        assert not flips.is_right(unscored, "exact_match")
        (flip,) = flips.pairs(result(items=(item("base", "c", RIGHT, "6"), unscored)), "recipe")
        assert flip.kind("exact_match") == "right to wrong"


def test_an_answer_is_escaped_and_the_first_difference_marked() -> None:
    shown = flips.answer_html("is <b>6</b> so", 3)
    assert "<b>" not in shown
    assert 'aria-label="first difference">&lt;b&gt;6&lt;/b&gt;</mark> so' in shown
    assert "<mark" not in flips.answer_html("is 6", None)
    assert "⏹</mark>" in flips.answer_html("is", 2), "the answer ended where the other went on"
    assert "(2,000 more characters)" in flips.answer_html("x" * 10_000, None)
    assert "empty" in flips.answer_html("", None)


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("Find $x^2$.", r"Find $x^2$\."),
        (r"cost \$5 or $\$7$", r"cost \\\$5 or $\text{\textdollar}7$"),
        (r"\(a\) and \[b\]", "$a$ and \n\n$$\nb\n$$\n\n"),
        (r"$$\frac{1}{2}$$", "\n\n$$\n\\frac{1}{2}\n$$\n\n"),
        ("![x](http://far/away.png)", "\\!\\[x\\]\\(http\\:\u200b\\/\\/far\\/away\\.png\\)"),
        ("<img src=x>", r"\<img src\=x\>"),
        (r"$\href{http://far}{x}$", "\\$\\\\href\\{http\\:\u200b\\/\\/far\\}\\{x\\}\\$"),
        (r"$\rule{999em}{999em}$", r"\$\\rule\{999em\}\{999em\}\$"),
        ("a\n  b", "a  \n\N{NO-BREAK SPACE}\N{NO-BREAK SPACE}b"),
        ("$a\nb$", "$a b$"),
        ("costs $5", r"costs \$5"),
        ("$a % note\nb$", "$a b$"),
        ('[asy]\nlabel("$A$");\n[/asy]', '\n\n```text\n[asy]\nlabel("$A$");\n[/asy]\n```\n\n'),
        (r"\begin{align*}a&=b\\c&=d\end{align*}", "\n\n$$\n\\begin{align*}a&=b\\\\c&=d\\end{align*}\n$$\n\n"),
        ("a\u202eb", "ab"),
    ],
)
def test_only_formulas_are_markup(text: str, markdown: str) -> None:
    assert maths.markdown(text) == markdown


@given(some.text(some.sampled_from("$\\ab[]()!<>`{}\n %"), max_size=40))
def test_no_text_leaves_its_formula_or_becomes_markup(text: str) -> None:
    """Reads the markdown like its parser: escapes outside formulas, everything up to the closing dollars inside."""
    shown, at = maths.markdown(text), 0
    while at < len(shown):
        if shown[at] == "\\":
            assert shown[at + 1] in string.punctuation
            at += 2
        elif shown[at] == "$":
            fence = "\n$$\n" if shown.startswith("$$\n", at) else "$"
            end = shown.index(fence, at + 1)
            body = shown[at:end].strip("$").strip("\n")
            assert body.strip()
            assert "$" not in body
            assert "`" not in body
            assert "\n" not in body
            at = end + len(fence)
        else:
            assert shown[at] not in string.punctuation
            at += 1


def test_every_point_of_a_forest_is_finite() -> None:
    assert all(math.isfinite(x) for _, x, _ in marks(forest.paired_differences(result(), SUBJECTS, 0.03)))
