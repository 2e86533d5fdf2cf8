"""Format a text as a user message with a tokenizer's chat template, ready for the model's answer.

A template is code written by the model's authors: it can raise an error, omit the message, or not start a turn for the
answer, and then the model would answer a different question. Therefore the rendered prompt is checked:

    the message is in the prompt unchanged (except surrounding white space), as text or, if the template reads content
    as parts, as [{"type": "text", "text": message}]; if add_generation_prompt changes nothing, the answer in a complete
    conversation follows the prompt directly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from stethoscope.errors import UserError

NEXT_STEP = (
    "Turn off the chat template, or correct it in the model's folder (chat_template.jinja or tokenizer_config.json)."
)
Content = str | list[dict[str, str]]


def _as_parts(text: str) -> Content:
    return [{"type": "text", "text": text}]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The chat template of `tokenizer`; `model` is its name in messages."""

    tokenizer: PreTrainedTokenizerBase
    model: str

    def prompt(self, text: str) -> str:
        """Return `text` as a user message, followed by the start of the answer's turn; the template's own BOS is kept.

        Raises:
            UserError: there is no template, it cannot be rendered, or it omits the message.
        """
        return self._render([{"role": "user", "content": self._content(text)}], opened=True)

    def check_opening(self) -> None:
        """Raise `UserError` if the prompt ends inside the user's turn, or without starting a turn for the answer."""
        question, answer = "What is 1 + 1?", "It is two."
        content = self._content(question)
        turn = {"role": "user", "content": content}
        prompt = self._render([turn], opened=True)
        if prompt != self._render([turn], opened=False):
            return
        reply = answer if isinstance(content, str) else _as_parts(answer)
        try:
            whole = self._render([turn, {"role": "assistant", "content": reply}], opened=False)
        except UserError:  # a template for questions only: the position of answers is unknown
            return
        before, found, _ = whole.partition(answer)
        if found and before.startswith(prompt) and (missing := before[len(prompt) :].strip()):
            raise UserError(
                f"the chat template of {self.model} does not start a turn for the answer",
                got=f"a prompt that ends with {prompt[-40:]!r}",
                expected=f"{missing!r} at the end if add_generation_prompt is set",
                next_step=NEXT_STEP,
            )

    def _content(self, text: str) -> Content:
        """Return the message's content in the form that the template renders completely: text, or parts."""
        if not self.tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {self.model} has no chat template",
                expected="the tokenizer of an instruction-tuned model",
                next_step="Turn off the chat template, or load an instruction-tuned model.",
            )
        refusals = []
        for content in (text, _as_parts(text)):
            try:
                rendered = self._render([{"role": "user", "content": content}], opened=True)
            except UserError as error:
                refusals.append(error)
                continue
            if text.strip() in rendered:
                return content
            refusals.append(
                UserError(
                    f"the chat template of {self.model} omits or changes the message",
                    got=f"a prompt that starts with {rendered[:80]!r}",
                    expected="a prompt that contains the problem unchanged",
                    next_step=NEXT_STEP,
                )
            )
        raise refusals[0]

    def _render(self, messages: Sequence[Mapping[str, Any]], *, opened: bool) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=opened
            )
        except Exception as error:  # noqa: BLE001 - the template is a program that may raise anything
            raise UserError(
                f"the chat template of {self.model} cannot be rendered",
                got=f"{type(error).__name__}: {error}"[:200],
                expected="a template that accepts a single user message",
                next_step=NEXT_STEP,
            ) from error
        assert isinstance(rendered, str)
        return rendered
