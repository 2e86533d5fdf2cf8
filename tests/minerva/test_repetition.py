"""An answer that ends in a loop is distinguished from text with short repeats, at every loop length."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stethoscope.minerva.repetition import is_repetitive


@pytest.mark.parametrize(
    "text",
    [
        "We have " + "12 = 4 + 8 and " * 8,
        "So " + "the the the " * 5,
        "x = 3. " + "1" * 40,
        "Therefore " + "the number of ways to choose is again the same as before, so that we count once more. " * 4,
        "12 = 4 + 8 and " * 8 + "12 = 4",  # the last copy is cut off
        "-" * 80,
    ],
)
def test_loops(text: str) -> None:
    assert is_repetitive(text)
    assert is_repetitive(text + "\n \n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Final Answer: The final answer is $12$. I hope it is correct.",
        "1 + 1 + 1 + 1 + 1 = 5",
        "| a | b |\n" + "-" * 60,
        "12 = 4 + 8 and " * 3,  # three copies
        "ha " * 13,  # 38 characters
        "12 = 4 + 8 and " * 8 + "so the final answer is 12.",  # it came out of the loop
        r"\begin{pmatrix} 0 & 0 & 0 \\ 0 & 0 & 0 \\ 0 & 0 & 1 \end{pmatrix}",
    ],
)
def test_no_loops(text: str) -> None:
    assert not is_repetitive(text)


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "Zs"]), min_size=1, max_size=60), st.integers(4, 7))
@settings(max_examples=100, deadline=None)
def test_any_unit_four_times_is_a_loop_and_once_is_none(unit: str, copies: int) -> None:
    looped = "Q. " + unit * copies
    if len((unit * copies).rstrip()) >= 40 + len(unit) and any(c.isalnum() for c in unit) and not unit[-1].isspace():
        assert is_repetitive(looped)
    assert not is_repetitive(unit[:39])
