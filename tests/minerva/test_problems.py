"""Problems are read completely or refused with the line; samples nest, regardless of the file's order."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stethoscope.errors import CorpusError
from stethoscope.minerva.problems import (
    Problem,
    answer_of,
    last_boxed,
    problem_id_of,
    sample_problems,
    subject_of,
)
from stethoscope.minerva.sources import load_problems, load_shots

SENTENCE = "Final Answer: The final answer is $7$. I hope it is correct."
LINE = {"problem": "What is 3+4?", "solution": f"3+4=7. {SENTENCE}", "subject": "algebra", "answer": "7"}


def write(folder: Path, *lines: object, name: str = "test.jsonl") -> str:
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / name).write_bytes(b"\n".join(raw) + b"\n")
    return str(folder)


def test_a_line_becomes_a_problem(tmp_path: Path) -> None:
    (problem,) = load_problems(write(tmp_path, LINE), "test")
    assert problem == Problem(LINE["problem"], LINE["solution"], "algebra", "7", problem_id_of("What is 3+4?"))
    assert len(problem.problem_id) == 16


def test_math_format_without_subject_and_answer(tmp_path: Path) -> None:
    line = {
        "problem": "p",
        "level": "Level 5",
        "type": "Counting & Probability",
        "solution": r"So it is $\boxed{\frac{1}{2}}$.",
    }
    (problem,) = load_problems(write(tmp_path, line), "test")
    assert problem.subject == "counting_and_probability"
    assert problem.answer == r"\frac{1}{2}"


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("Algebra", "algebra"),
        ("Counting & Probability", "counting_and_probability"),
        ("Intermediate Algebra", "intermediate_algebra"),
        ("facts_and_stories", "facts_and_stories"),
    ],
)
def test_subject_names(name: str, subject: str) -> None:
    assert subject_of(name) == subject


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"first \boxed{1} then \boxed{\sqrt{2}}", r"\sqrt{2}"),
        (r"\boxed 5$ and more", "5"),
        (f"steps. {SENTENCE}", "7"),
        ("Final Answer: The final answer is blue. I hope it is correct.", "blue"),
        ("Final Answer: The final answer is $7$, $8$. I hope it is correct.", "$7$, $8$"[1:-1]),
        (r"a \boxed{never closed", None),
        (r"Adding gives \boxed {14}.", "14"),
        (r"Write the result as \boxed at the end. Here it is $\boxed{14}$.", "14"),
        (r"Here it is $\boxed{14}$. Write the result as \boxed at the end of $x$.", "14"),
        (r"first $\boxed{1}$, then $\boxed 14$.", "14"),
        (r"It is $\boxed14$.", "14"),
        (r"It is $\fbox{14}$.", "14"),
        (r"So $\boxed{\{1,14\}}$.", r"\{1,14\}"),
        (r"So $\boxed{\left\{14\right.}$.", r"\left\{14\right."),
        (r"So $\boxed{14}$. (Compare \boxed{} in the template.)", "14"),
        (r"So $\boxed{\boxed{14}}$.", "14"),
        (r"So $\boxed{}$ and the sum is 14.", None),
        ("nothing", None),
    ],
)
def test_answers_are_read_out_of_solutions(solution: str, answer: str | None) -> None:
    assert answer_of(solution) == answer


@given(st.text("\\boxed{}$ a1", max_size=40).map(lambda text: text + r"\boxed{" + "x}" + text.replace("\\", "")))
@settings(max_examples=80, deadline=None)
def test_the_boxed_answer_is_lm_eval_s(solution: str) -> None:
    from stethoscope.minerva.grader import lm_eval_functions

    reference = lm_eval_functions()
    if solution.count("\\boxed") > 1 or "\\{" in solution or "\\}" in solution:
        return  # there lm-eval can read another box than the last
    boxed = reference.last_boxed_only_string(solution)
    if boxed is None or not boxed.startswith(("\\boxed{", "\\boxed ")):
        return
    try:
        expected = reference.remove_boxed(boxed)
    except AssertionError:
        return
    assert last_boxed(solution) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{not json", "line 2 of test.jsonl is not JSON"),
        (b"[" * 100_000, "line 2 of test.jsonl is not JSON"),
        (b'{"problem": "\xff"}', "line 2 of test.jsonl is not UTF-8"),
        (b"[1, 2]", "line 2 of test.jsonl is not a JSON object"),
        ({k: v for k, v in LINE.items() if k != "problem"}, "line 2 of test.jsonl has no problem"),
        ({k: v for k, v in LINE.items() if k != "solution"}, "has no solution"),
        ({k: v for k, v in LINE.items() if k != "subject"}, "has no subject"),
        (LINE | {"problem": 7}, "has an invalid problem"),
        (LINE | {"subject": " "}, "has an invalid subject"),
        (LINE | {"answer": ["7"]}, "has an invalid answer"),
        (LINE | {"answer": " "}, "has an invalid answer"),
        (LINE | {"answer": True}, "has an invalid answer"),
        (LINE | {"answer": float("nan")}, "has an invalid answer"),
        (LINE | {"answer": float("-inf")}, "has an invalid answer"),
        ({"problem": "p", "solution": "no answer in it", "subject": "algebra"}, "has no answer"),
        (LINE | {"problem": "\ud800"}, "surrogate"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        load_problems(write(tmp_path, LINE, line), "test")


def test_several_malformed_lines_are_named_at_once(tmp_path: Path) -> None:
    without = {name: value for name, value in LINE.items() if name != "solution"}
    with pytest.raises(CorpusError) as told:
        load_problems(write(tmp_path, without, LINE, b"\xff", b"", b"{", *[without] * 4), "test")
    first = told.value
    assert first.what == "line 1 of test.jsonl has no solution"
    assert first.got == f"only {', '.join(without)}"
    assert (
        first.next_step == "Correct it, or remove it. Also correct 6 more: line 3, line 5, line 6, line 7, line 8, …."
    )
    with pytest.raises(CorpusError) as told:
        load_problems(write(tmp_path, LINE, b"\xff", without), "test")
    assert told.value.next_step == "Save the file as UTF-8. Also correct 1 more: line 3."


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no test.jsonl"):
        load_problems(str(tmp_path), "test")
    with pytest.raises(CorpusError, match="no problems at"):
        load_problems("some-dataset", "test")
    with pytest.raises(CorpusError, match="no problems at"):
        load_problems(str(tmp_path / "none"), "test")
    with pytest.raises(CorpusError, match="has no problems"):
        load_problems(write(tmp_path, b"", b"  "), "test")
    (tmp_path / "dev.jsonl").mkdir()
    with pytest.raises(CorpusError):
        load_problems(str(tmp_path), "dev")


def test_blank_lines_bom_and_repeats(tmp_path: Path) -> None:
    location = write(tmp_path, b"\xef\xbb\xbf" + json.dumps(LINE).encode(), b"", LINE, LINE | {"problem": "a\u2028b"})
    assert [problem.problem for problem in load_problems(location, "test")] == ["What is 3+4?", "a\u2028b"]


def test_numeric_answers_are_text(tmp_path: Path) -> None:
    for number, answer in ((7, "7"), (0.5, "0.5"), (1e21, "1" + "0" * 21), (1e-7, "0.0000001"), (" $7$ ", "7")):
        assert load_problems(write(tmp_path, LINE | {"answer": number}), "test")[0].answer == answer


def make(subject: str, n: int) -> list[Problem]:
    return [
        Problem(f"{subject} {number}", "s", subject, "1", problem_id_of(f"{subject} {number}")) for number in range(n)
    ]


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 1000), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_samples_nest(small: int, large: int, seed: int, shuffler) -> None:
    small, large = min(small, large), max(small, large)
    problems = make("algebra", 30)
    sample = sample_problems(problems, "algebra", large, seed)
    assert sample_problems(problems, "algebra", small, seed) == sample[:small]
    assert len({problem.problem_id for problem in sample}) == large
    other_order = [*problems, *make("geometry", 5)]
    shuffler.shuffle(other_order)
    assert sample_problems(other_order, "algebra", large, seed) == sample


def test_seeds_draw_different_samples_evenly() -> None:
    problems = make("algebra", 40)
    hits = {problem.problem_id: 0 for problem in problems}
    for seed in range(400):
        for problem in sample_problems(problems, "algebra", 10, seed):
            hits[problem.problem_id] += 1
    # binomial(400, 1/4): mean 100, sd 8.7; six sd
    assert max(abs(count - 100) for count in hits.values()) < 52


def test_too_few_or_unknown() -> None:
    with pytest.raises(CorpusError, match="got 5; expected 6"):
        sample_problems(make("algebra", 5), "algebra", 6, 0)
    with pytest.raises(CorpusError, match="expected one of algebra"):
        sample_problems(make("algebra", 5), "geometry", 1, 0)


def test_shots(tmp_path: Path) -> None:
    path = tmp_path / "shots.json"
    path.write_text(json.dumps({"shots": [LINE, LINE | {"problem": "q"}]}))
    assert load_shots(str(path)) == (("What is 3+4?", LINE["solution"]), ("q", LINE["solution"]))
    path.write_text(json.dumps({"shots": [LINE]}))
    assert load_shots(str(path)) == (("What is 3+4?", LINE["solution"]),)
    for bad, message in (
        ("{", "not JSON"),
        ("{}", "not contain a list of few-shot examples"),
        ('{"shots": [{"problem": "p"}]}', "shot 1 of"),
    ):
        path.write_text(bad)
        with pytest.raises(CorpusError, match=message):
            load_shots(str(path))
    with pytest.raises(CorpusError, match="no few-shot examples at"):
        load_shots(str(tmp_path / "none.json"))


def test_the_shipped_problems_and_shots_are_read() -> None:
    problems = load_problems("embedded:problems", "test")
    assert len({problem.subject for problem in problems}) == 7
    assert all(problem.answer == answer_of(problem.solution) for problem in problems)
    assert len(load_shots("embedded:shots.json")) == 4


def test_reading_problems_needs_no_sympy() -> None:
    import subprocess

    code = "import sys, stethoscope.minerva.sources; sys.exit('sympy' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
