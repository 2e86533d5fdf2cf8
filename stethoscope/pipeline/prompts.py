"""The prompts of a benchmark as token ids, and the ids under which their answers are stored.

An answer belongs to the tokens of its prompt: if a chat template contains the date, or the tokenizer changes, the
prompt is different and stored answers are not reused. A prompt takes 4 bytes per token: 18 MB for 5,000 problems with
four few-shot examples.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from stethoscope.minerva.problems import Problem
from stethoscope.minerva.prompts import few_shot_prompt
from stethoscope.model.loaded_model import LoadedModel

ENCODED_AT_ONCE = 256


class Prompt(NamedTuple):
    """The tokens of one prompt, and the first 16 hex digits of their sha256."""

    token_ids: Int32[np.ndarray, " n"]
    prompt_id: str


def prompt_id_of(token_ids: Sequence[int]) -> str:
    """Return the id of a prompt: the first 16 hex digits of the sha256 of its token ids as little-endian int32."""
    return hashlib.sha256(np.asarray(token_ids, dtype="<i4").tobytes()).hexdigest()[:16]


def as_read(loaded: LoadedModel, prompt: Prompt) -> str:
    """Return the text of a prompt as the model reads it, with special tokens."""
    return str(loaded.tokenizer.decode(prompt.token_ids.tolist(), clean_up_tokenization_spaces=False))


def encode_prompts(
    loaded: LoadedModel, problems: Sequence[Problem], shots: Sequence[tuple[str, str]], *, chat_template: bool
) -> dict[str, Prompt]:
    """Return the prompt of each problem by problem id.

    Raises:
        UserError: the chat template is missing, cannot be rendered, or omits the problem (see `model.chat`); or the
            tokenizer cannot encode a text.
    """
    found: dict[str, Prompt] = {}
    for start in range(0, len(problems), ENCODED_AT_ONCE):
        part = problems[start : start + ENCODED_AT_ONCE]
        texts = [few_shot_prompt(problem.problem, shots) for problem in part]
        if chat_template:
            texts = [loaded.chat_prompt(text) for text in texts]
        for problem, row in zip(part, loaded.encode(texts), strict=True):
            found[problem.problem_id] = Prompt(np.array(row, dtype=np.int32), prompt_id_of(row))
    return found
