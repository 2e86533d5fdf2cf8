"""The Minerva frame: how a problem, four worked shots and the question become one prompt.

The frame is lm-evaluation-harness 0.4.13's `minerva_math_*`: each example is
``Problem:\\n{problem}\\n\\nSolution:`` followed by one space and the solution, examples are joined by a blank
line, and generation stops at ``Problem:``. An answer is marked when the sentence
``Final Answer: The final answer is X. I hope it is correct.`` appears.
"""

from collections.abc import Sequence

EXAMPLE_SEPARATOR = "\n\n"
STOP_STRING = "Problem:"
ANSWER_SENTENCE = "Final Answer: The final answer is ${answer}$. I hope it is correct."


def frame_problem(problem: str) -> str:
    """Return the text that asks for a solution of `problem`; the completion follows it, starting with a space."""
    return f"Problem:\n{problem}\n\nSolution:"


def frame_example(problem: str, solution: str) -> str:
    """Return `problem` and its worked `solution` in the frame, as one shot."""
    return f"{frame_problem(problem)} {solution}"


def few_shot_prefix(shots: Sequence[tuple[str, str]]) -> str:
    """Return the shots joined by blank lines, ending with one; the question is appended to it. Empty for no shots."""
    return "".join(frame_example(problem, solution) + EXAMPLE_SEPARATOR for problem, solution in shots)


def few_shot_prompt(problem: str, shots: Sequence[tuple[str, str]]) -> str:
    """Return the whole prompt: shots, blank line, question (without a BOS token: the tokenizer adds it once)."""
    return few_shot_prefix(shots) + frame_problem(problem)
