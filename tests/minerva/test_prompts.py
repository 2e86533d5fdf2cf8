"""The prompt equals lm-eval's byte for byte (`record_lm_eval.py` recorded the hashes), as do stop strings."""

import json
import subprocess
import sys

import pytest

from stethoscope.minerva.grader import lm_eval_functions
from stethoscope.minerva.prompts import STOP_STRING, few_shot_prompt, frame_problem
from stethoscope.minerva.sources import CANONICAL_SHOTS, load_shots
from tests.minerva.record_lm_eval import PROMPTS, QUESTIONS, sha256

ROWS = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]


def test_the_recorded_questions_are_those_of_the_script() -> None:
    assert [row["problem"] for row in ROWS] == list(QUESTIONS)


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_the_prompt_is_lm_evals_byte_for_byte(row: dict) -> None:
    prompt = few_shot_prompt(row["problem"], load_shots(CANONICAL_SHOTS))
    assert sha256(prompt) == row["prompt_sha256"]
    assert row["until"] == [STOP_STRING]
    assert frame_problem(row["problem"]) == lm_eval_functions().doc_to_text(row)


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_a_chat_is_one_message_that_holds_the_same_prompt(row: dict) -> None:
    assert row["chat_roles"] == ["user"]
    assert sha256(few_shot_prompt(row["problem"], load_shots(CANONICAL_SHOTS))) == row["chat_sha256"]


def test_the_canonical_shots_end_in_the_sentence_that_is_graded() -> None:
    shots = load_shots(CANONICAL_SHOTS)
    assert len(shots) == 4
    functions = lm_eval_functions()
    answers = [functions.normalize_final_answer(functions.get_unnormalized_answer(solution)) for _, solution in shots]
    assert answers == ["[2,5)", "24", "16", "-\\frac{2}{3}"]


def test_reading_problems_and_shots_of_a_file_needs_no_sympy() -> None:
    code = (
        "import sys\n"
        "from stethoscope.minerva.sources import load_problems, load_shots\n"
        "load_problems('embedded:problems', 'dev'), load_shots('embedded:shots.json')\n"
        "heavy = {'sympy', 'torch', 'pandas', 'pyarrow', 'lm_eval', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
