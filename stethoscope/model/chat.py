"""A text as the user's message in a tokenizer's chat template, open for the model's answer.

A template is a program of whoever made the model: it may raise, leave the message out, or open no turn for the answer,
and then the model would be asked something else than the problem. So what it renders is checked:

    the message stands in the prompt as it is (white space around it apart), as text or, where the template reads
    content as parts, as [{"type": "text", "text": message}];
    where add_generation_prompt changes nothing, an answer in a whole conversation follows the prompt at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from stethoscope.errors import UserError

NEXT_STEP = (
    "Switch the chat template off, or mend it in the model's folder (chat_template.jinja or tokenizer_config.json)."
)
Content = str | list[dict[str, str]]


def _as_parts(text: str) -> Content:
    return [{"type": "text", "text": text}]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The chat template of `tokenizer`; `model` is the name that messages give it."""

    tokenizer: PreTrainedTokenizerBase
    model: str

    def prompt(self, text: str) -> str:
        """Return `text` as the user's message, with the turn of the answer opened; the template's own BOS stays in it.

        Raises:
            UserError: there is no template, it cannot be rendered, or leaves the message out.
        """
        return self._render([{"role": "user", "content": self._content(text)}], opened=True)

    def check_opening(self) -> None:
        """Raise `UserError` where the template leaves the model inside the user's turn, or behind it in no turn."""
        question, answer = "What is 1 + 1?", "It is two."
        content = self._content(question)
        turn = {"role": "user", "content": content}
        prompt = self._render([turn], opened=True)
        if prompt != self._render([turn], opened=False):
            return
        reply = answer if isinstance(content, str) else _as_parts(answer)
        try:
            whole = self._render([turn, {"role": "assistant", "content": reply}], opened=False)
        except UserError:  # a template for questions alone: nothing tells where its answers stand
            return
        before, found, _ = whole.partition(answer)
        if found and before.startswith(prompt) and (missing := before[len(prompt) :].strip()):
            raise UserError(
                f"the chat template of {self.model} opens no turn for the answer",
                got=f"a prompt that ends in {prompt[-40:]!r}",
                expected=f"{missing!r} behind it where add_generation_prompt is set",
                next_step=NEXT_STEP,
            )

    def _content(self, text: str) -> Content:
        """Return the message's content in the form that the template puts into the prompt whole: text, or parts."""
        if not self.tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {self.model} has no chat template",
                expected="an instruction-tuned model's tokenizer",
                next_step="Switch the chat template off, or load an instruction-tuned model.",
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
                    f"the chat template of {self.model} leaves the message out of the prompt, or changes it",
                    got=f"a prompt that begins {rendered[:80]!r}",
                    expected="a prompt that holds the problem as it is written",
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
                expected="a template for one user message",
                next_step=NEXT_STEP,
            ) from error
        assert isinstance(rendered, str)
        return rendered
