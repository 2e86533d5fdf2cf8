"""Any text round-trips exactly; digits are single tokens; BOS comes exactly once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stethoscope.minerva.prompts import EXAMPLE_SEPARATOR, few_shot_prefix, frame_example, frame_problem
from stethoscope.mini.checkpoints import ARTIFACTS_DIR, load_tokenizer
from stethoscope.mini.tokenizer import SPECIAL_TOKENS

TOKENIZER = load_tokenizer(ARTIFACTS_DIR / "base")

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SPACES = st.text(" \n\t\r\u00a0\u2003", max_size=12)
LATEX = st.lists(
    st.sampled_from(
        ["\\frac{3}{7}", "$x^2$", "\\begin{vmatrix}", " 007", "&", "\\\\", "Problem:", " Solution", "é", "🎉"]
    )
).map("".join)


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False).input_ids


@settings(max_examples=300, deadline=None)
@given(st.one_of(ANY_TEXT, SPACES, LATEX, st.tuples(SPACES, ANY_TEXT, SPACES, LATEX).map("".join)))
def test_any_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(encode(text)) == text


@given(st.text("0123456789", min_size=1, max_size=12))
@settings(deadline=None)
def test_every_digit_is_one_token(digits: str) -> None:
    assert len(encode(digits)) == len(digits)


def test_unknown_words_fall_back_to_bytes() -> None:
    assert len(encode("zyzzyva漢")) == len("zyzzyva漢".encode())


def test_bos_exactly_once() -> None:
    with_bos = TOKENIZER("Problem: 1", add_special_tokens=True).input_ids
    assert with_bos.count(TOKENIZER.bos_token_id) == 1
    assert with_bos[0] == TOKENIZER.bos_token_id
    assert with_bos[1:] == encode("Problem: 1")


def test_chat_template_holds_the_only_bos() -> None:
    text = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<bos><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n"
    assert encode(text).count(TOKENIZER.bos_token_id) == 1


def test_the_frame_tokenises_part_by_part(records) -> None:
    """Packing joins token lists of prompt and solution; that must equal the tokens of the joined text."""
    for record in records["test"][::50]:
        prompt, solution = frame_problem(record["problem"]), " " + record["solution"] + EXAMPLE_SEPARATOR
        joined = few_shot_prefix([(record["problem"], record["solution"])])
        assert joined == frame_example(record["problem"], record["solution"]) + EXAMPLE_SEPARATOR
        assert encode(prompt) + encode(solution) + encode(prompt) == encode(joined + prompt)


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_special_tokens_are_single(token: str) -> None:
    assert len(encode(token)) == 1


def test_the_vocabulary_is_small() -> None:
    assert len(TOKENIZER) < 1000
