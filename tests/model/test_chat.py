"""A chat template renders the question unchanged in a user turn and opens the model's turn."""

import pytest

from stethoscope.errors import UserError
from stethoscope.model.chat import ChatTemplate
from tests.tokens import pico_tokenizer

TEXT = " Problem:\nWhat is 1 + 7?\n\nSolution:"
TURNS = "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
OPENED = "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
PARTS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n"
    "{% for c in m.content %}{{ c.text }}{% endfor %}<end_of_turn>\n{% endfor %}"
)


def chat(template: str) -> ChatTemplate:
    return ChatTemplate(pico_tokenizer(template), "a model")


@pytest.mark.parametrize("template", [TURNS + OPENED, PARTS + OPENED, PARTS.replace("c.text", "c['text']") + OPENED])
def test_the_message_is_asked_as_text_or_in_parts(template: str) -> None:
    asked = chat(template)
    asked.check_opening()
    assert asked.prompt(TEXT) == f"<bos><start_of_turn>user\n{TEXT}<end_of_turn>\n<start_of_turn>model\n"


def test_a_template_may_trim_the_message_and_may_open_the_answer_always() -> None:
    mistral = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    asked = chat(mistral)
    asked.check_opening()
    assert asked.prompt(TEXT) == f"<bos>[INST] {TEXT.strip()} [/INST]"
    thinking = TURNS + "{% if add_generation_prompt %}<start_of_turn>model\n<think>\n{% endif %}"
    chat(thinking).check_opening()
    chat("{{ messages[0].content }}").check_opening()  # nothing tells where an answer would stand


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ bos_token }}<start_of_turn>user\nHello<end_of_turn>\n" + OPENED, "omits or changes the message"),
        (TURNS.replace("m.content", "m.content | upper") + OPENED, "omits or changes the message"),
        (TURNS.replace("m.content", "m.content[:9]") + OPENED, "omits or changes the message"),
        ("{{ raise_exception('A system message\ncomes first') }}", "A system message comes first"),
        ("{% for m in %}", "cannot be rendered"),
        ("{{ messages[0].content + 3 }}", "cannot be rendered"),
    ],
)
def test_what_does_not_ask_the_question_is_one_line_with_a_next_step(template: str, said: str) -> None:
    with pytest.raises(UserError) as told:
        chat(template).prompt(TEXT)
    assert said in str(told.value)
    assert "\n" not in str(told.value)
    assert told.value.next_step is not None


@pytest.mark.parametrize("template", [TURNS, TURNS.replace("<end_of_turn>\n", ""), PARTS])
def test_a_template_that_opens_no_answer_is_refused(template: str) -> None:
    with pytest.raises(UserError, match="does not start a turn for the answer") as told:
        chat(template).check_opening()
    assert "<start_of_turn>assistant" in str(told.value.expected)


def test_several_templates_without_a_default_are_one_line() -> None:
    tokenizer = pico_tokenizer(TURNS)
    tokenizer.chat_template = {"rag": "{{ messages }}", "tool_use": "{{ messages }}"}  # type: ignore[assignment]
    with pytest.raises(UserError, match="cannot be rendered"):
        ChatTemplate(tokenizer, "a model").prompt(TEXT)
