"""Splits are disjoint, answers follow from the text, and no solver without mathematics scores well."""

import ast
import itertools
import operator
import random
import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stethoscope.mini.evaluate import extract_answer
from stethoscope.mini.language import (
    CONTROL_SUBJECTS,
    MATH_SUBJECTS,
    SUBJECTS,
    all_templates,
    draw_problem,
    mixed_shares,
    normalise_problem,
    numbers_in,
    problem_stream,
    split_of,
)
from stethoscope.mini.recipe import full
from stethoscope.mini.trivial import trivial_accuracies

N_STREAM = 30_000
OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
MATH_TEMPLATES = [(subject, name) for subject in MATH_SUBJECTS for name in all_templates()[subject]]


def evaluate(text: str) -> Fraction:
    """Return the value of an arithmetic expression, without eval."""

    def walk(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return Fraction(OPERATIONS[type(node.op)](walk(node.left), walk(node.right)))
        if isinstance(node, ast.UnaryOp):
            return -walk(node.operand)
        assert isinstance(node, ast.Constant)
        return Fraction(node.value)

    return walk(ast.parse(text.replace("^", "**"), mode="eval").body)


# What each problem asks, computed from the numbers in its text by another way than the template's.
ORACLES = {
    "linear_equation": lambda n: (n[2] - n[1]) / n[0],
    "linear_value": lambda n: n[0] * n[2] + n[1],
    "sum_and_difference": lambda n: (n[0] + n[1]) / 2,
    "number_puzzle": lambda n: (n[2] + n[1]) / n[0],
    "expanded_coefficient": lambda n: n[0] * n[1] + n[3],
    "pick_a_pair": lambda n: n[0] * (n[1] + n[2]),
    "routes": lambda n: n[0] * n[1] + n[2],
    "neither": lambda n: n[0] - n[1] - n[2] + n[3],
    "red_ball": lambda n: Fraction(n[0], sum(n)),
    "inclusive_count": lambda n: len(range(n[0], n[1] + 1)),
    "rectangle_perimeter": lambda n: n[0] + n[1] + n[0] + n[1],
    "third_angle": lambda n: 180 - n[0] - n[1],
    "cut_area": lambda n: n[1] * n[2] - n[0] ** 2,
    "triangle_perimeter": sum,
    "missing_side": lambda n: (n[0] - 2 * n[1]) / 2,
    "polynomial_remainder": lambda n: n[0] * n[4] ** 2 + n[2] * n[4] + n[3],
    "arithmetic_sequence": lambda n: range(n[0], 10**6, n[1])[n[2] - 1],
    "composition": lambda n: n[0] * (n[3] + n[2]) + n[1],
    "shifted_square": lambda n: (n[3] - n[0]) ** 2 + n[2],
    "sum_of_squares": lambda n: n[0] ** 2 - 2 * n[1],
    "remainder": lambda n: n[0] % n[1],
    "lcm_from_gcd": lambda n: n[0] * n[1] / n[2],
    "digit_sum": lambda n: n[0] + sum(map(int, str(n[1]))),
    "base_to_decimal": lambda n: int(str(n[1]), n[0]),
    "next_multiple": lambda n: n[1] + n[0] - n[1] % n[0],
    "consecutive_sum": lambda n: sum(range(n[1], n[1] + n[0])),
    "buy_and_give": lambda n: n[0] + n[1] - n[2],
    "boxes_of_pens": lambda n: n[0] * n[1] - n[2],
    "percent_more": lambda n: Fraction(n[0] * n[1], 100) + n[2],
    "average_of_three": lambda n: Fraction(sum(n), 3),
    "order_of_operations": lambda n: n[0] + n[1] * (n[2] - n[3]),
    "dot_product": lambda n: n[0] * n[2] + n[1] * n[3],
    "determinant": lambda n: n[0] * n[3] - n[1] * n[2],
    "logarithm": lambda n: n[0] ** n[2] + n[1],
    "imaginary_part": lambda n: (complex(n[0], n[1]) * complex(n[2], n[3])).imag,
    "coterminal_angle": lambda n: n[2] % 360,
}


@pytest.mark.parametrize(("subject", "name"), MATH_TEMPLATES)
def test_answers_are_right_and_steps_hold(subject: str, name: str) -> None:
    rng = random.Random(17)
    for _ in range(60):
        drawn = draw_problem(rng, subject, name)
        expected = Fraction(ORACLES[name]([int(value) for value in numbers_in(drawn.problem)]))
        fraction = re.fullmatch(r"\\frac\{(\d+)\}\{(\d+)\}", drawn.answer)
        given_answer = Fraction(int(fraction[1]), int(fraction[2])) if fraction else Fraction(int(drawn.answer))
        assert given_answer == expected, drawn.problem
        if fraction:
            assert int(fraction[2]) == expected.denominator, "not in lowest terms"
        steps = drawn.solution.split(" Final Answer")[0].rstrip(".").split(". ")
        for step in steps:
            sides = [evaluate(side) for side in step.split("=")]
            assert len(set(sides)) == 1, f"{step} in {drawn.solution}"


@pytest.mark.parametrize("subject", SUBJECTS)
def test_solutions_end_in_the_graded_sentence(subject: str) -> None:
    rng = random.Random(3)
    for name in all_templates()[subject]:
        drawn = draw_problem(rng, subject, name)
        assert extract_answer(drawn.solution) == drawn.answer
        assert drawn.solution.endswith(f"Final Answer: The final answer is ${drawn.answer}$. I hope it is correct.")


def test_five_templates_a_subject() -> None:
    assert all(len(templates) >= 5 for templates in all_templates().values())
    assert set(ORACLES) == {name for _, name in MATH_TEMPLATES}


@given(st.text(max_size=40))
def test_split_ignores_case_and_spaces(text: str) -> None:
    assert split_of(f"  {text}\n") == split_of(text.replace(" ", "  "))
    assert split_of(text) in ("train", "dev", "test")


def test_files_match_their_split_and_are_disjoint(records) -> None:
    seen: dict[str, str] = {}
    for split, lines in records.items():
        for record in lines:
            key = normalise_problem(record["problem"])
            assert split_of(record["problem"]) == split
            assert seen.setdefault(key, split) == split
            assert extract_answer(record["solution"]) == record["answer"]
    assert len(seen) == sum(map(len, records.values())), "a problem stands in the files twice"


def test_file_sizes(records) -> None:
    for split, least in (("train", 300), ("dev", 150), ("test", 300)):
        counts = Counter(record["subject"] for record in records[split])
        assert set(counts) == set(SUBJECTS)
        assert min(counts.values()) >= least


@pytest.mark.parametrize("run", ["base", "settle", "math", "forgetting"])
def test_no_dev_or_test_problem_is_trained_on(run: str, records) -> None:
    recipe = getattr(full(), run)
    shares = mixed_shares(
        math_share=recipe.math_share, subject_weights=recipe.subject_weights, digits_share=recipe.digits_share
    )
    stream = problem_stream(seed=recipe.seed, shares=shares)
    trained = {normalise_problem(item.problem) for item in itertools.islice(stream, N_STREAM)}
    held_out = {normalise_problem(record["problem"]) for split in ("dev", "test") for record in records[split]}
    assert not trained & held_out


def test_shots_are_train_problems(shots) -> None:
    assert len(shots) == 4
    assert all(split_of(problem) == "train" for problem, _ in shots)


@pytest.mark.parametrize("subject", MATH_SUBJECTS)
def test_no_trivial_solver(subject: str, records, card) -> None:
    train, test = ([r for r in records[split] if r["subject"] == subject] for split in ("train", "test"))
    found = trivial_accuracies(train, test)
    assert max(found.majority, found.copied, found.nearest) <= 0.10
    assert found.nearest == pytest.approx(card["trivial_solvers"][subject]["nearest"], abs=1e-3)


@pytest.mark.parametrize("subject", MATH_SUBJECTS)
def test_nearest_of_a_long_stream_does_not_solve_either(subject: str, records) -> None:
    stream = problem_stream(seed=2, shares={subject: 1.0})
    train = [item.as_record() for item in itertools.islice(stream, 4_000)]
    test = [record for record in records["test"] if record["subject"] == subject][::4]
    assert trivial_accuracies(train, test).nearest <= 0.10


def test_the_same_seed_gives_the_same_stream() -> None:
    shares = mixed_shares(math_share=0.5)
    first, second = (list(itertools.islice(problem_stream(seed=9, shares=shares), 50)) for _ in range(2))
    assert first == second
    assert sum(shares.values()) == pytest.approx(1)
    assert {item.subject for item in first} & set(CONTROL_SUBJECTS)


@pytest.mark.parametrize("subject", MATH_SUBJECTS)
def test_no_answer_stands_in_its_problem(subject: str) -> None:
    rng = random.Random(23)
    drawn = [draw_problem(rng, subject) for _ in range(400)]
    assert not [item for item in drawn if item.answer in numbers_in(item.problem)]
