"""The Minerva prompt format: four worked examples followed by a problem.

The frame is lm-evaluation-harness 0.4.13's `minerva_math_*`: each example is ``Problem:\\n{problem}\\n\\nSolution:``
followed by one space and the solution, examples are separated by blank lines, and generation stops at ``Problem:``. An
answer is marked if the sentence ``Final Answer: The final answer is X. I hope it is correct.`` appears.
"""

from collections.abc import Sequence

EXAMPLE_SEPARATOR = "\n\n"
STOP_STRING = "Problem:"
ANSWER_SENTENCE = "Final Answer: The final answer is ${answer}$. I hope it is correct."


def frame_problem(problem: str) -> str:
    """Return the prompt for a solution of `problem`; the completion follows it, starting with a space."""
    return f"Problem:\n{problem}\n\nSolution:"


def frame_example(problem: str, solution: str) -> str:
    """Return `problem` and its worked `solution` as a few-shot example."""
    return f"{frame_problem(problem)} {solution}"


def few_shot_prefix(shots: Sequence[tuple[str, str]]) -> str:
    """Return the few-shot examples, each followed by a blank line; empty without examples."""
    return "".join(frame_example(problem, solution) + EXAMPLE_SEPARATOR for problem, solution in shots)


def few_shot_prompt(problem: str, shots: Sequence[tuple[str, str]]) -> str:
    """Return the complete prompt: few-shot examples, blank line, problem (without BOS, which the tokenizer adds)."""
    return few_shot_prefix(shots) + frame_problem(problem)
