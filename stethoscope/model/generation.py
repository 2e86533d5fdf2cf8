"""Greedy text for many prompts: one shared prefix, right-aligned rows, each row leaving when it is finished.

1. the prompts' common beginning is computed once (`prefix`);
2. each batch is one block behind that cache: prompts end in the same slot, padding stands on the left;
3. every step takes the argmax of each row, until the stop string, an end-of-text token or the limit; finished rows
   are taken out of the batch once they are an eighth of it.

In float32 each row's tokens equal `model.generate(do_sample=False)` on the prompt alone. No logits processors: this
is the argmax, whatever the checkpoint's generation config suggests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from stethoscope.model.prefix import Prefix, right_align, share_prefix
from stethoscope.model.session import INCOMPLETE, ModelSession
from stethoscope.progress import Progress

STOP = "Problem:"  # minerva.prompts.STOP_STRING, which stands above this module
RETIRE_SHARE = 8


@dataclass(frozen=True, slots=True)
class Generation:
    """The completion of prompt `index`.

    Attributes:
        token_ids: the tokens of `text` (the last one may reach into the stop string), without end-of-text.
        text: decoded completion, cut before the stop string.
        n_tokens: tokens generated, those of the stop string and end-of-text included.
        truncated: the limit came before a stop string or an end-of-text token.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    n_tokens: int
    truncated: bool


def generate_greedy(
    session: ModelSession,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: str | None = STOP,
    batch_size: int = 32,
    prefix: Prefix | None = None,
    progress: Progress | None = None,
    on_finished: Callable[[Generation], None] | None = None,
    on_batch: Callable[[list[Generation]], None] | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Generation]:
    """Return the greedy completion of each prompt (text, or token ids taken as they are), in the prompts' order.

    Batches are `batch_size` prompts in the order given; `on_batch` receives each finished one, `on_finished` each
    finished row. `on_text(index, delta)` receives text as it is decoded: whole characters, never a part of the stop
    string; the deltas add up to the text. Counts each finished prompt on `progress` (which the caller has started) and
    looks for a cancel at every step.

    Args:
        prefix: a beginning computed earlier with the weights in place (`share_prefix`, of these prompts or more); the
            part that all prompts begin with is used. None: it is computed here.

    Raises:
        Cancelled: asked to stop; what was handed to `on_finished` and `on_batch` is complete.
        StethoscopeError: `prefix` was computed with other weights than those in place.
    """
    assert min(max_new_tokens, batch_size) > 0, (max_new_tokens, batch_size)
    progress = progress or Progress()
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    rows = session.encode(texts) if texts else [[int(token) for token in prompt] for prompt in prompts]
    assert len(rows) == len(prompts), "prompts are all text or all token ids"
    progress.give_way()
    prefix = prefix or share_prefix(session, rows)
    prefix.check(session)
    prefix = prefix.cut_to(rows)
    finished: list[Generation] = []
    for start in range(0, len(rows), batch_size):
        batch = GreedyBatch(
            session,
            rows[start : start + batch_size],
            prefix,
            max_new_tokens=max_new_tokens,
            stop=stop,
            first_index=start,
            on_text=on_text,
        )
        while not batch.done:
            progress.give_way()
            batch.step()
        generations = batch.finish()
        finished.extend(generations)
        if on_finished is not None:
            for generation in generations:
                on_finished(generation)
        if on_batch is not None:
            on_batch(generations)
        progress.advance(len(generations))
    return finished


@dataclass(slots=True)
class _Draft:
    """One completion in the making; `sent` characters of its text were handed to `on_text`."""

    index: int
    on_text: Callable[[int, str], None] | None
    tokens: list[int] = field(default_factory=list)
    done: bool = False
    sent: int = 0

    def send(self, text: str) -> None:
        """Hand what is new in `text` to `on_text`."""
        if self.on_text is not None and len(text) > self.sent:
            self.on_text(self.index, text[self.sent :])
            self.sent = len(text)


class _Ends:
    """Knows when a completion is over, and what of it counts."""

    def __init__(self, session: ModelSession, stop: str | None) -> None:
        self._session = session
        self._stop = stop
        self._eos = session.eos_ids
        self._may_complete: dict[int, bool] = {}

    def take(self, draft: _Draft, token: int) -> None:
        """Append `token` to `draft`, mark it done at an end, and stream its text."""
        draft.tokens.append(token)
        draft.done = token in self._eos or self._stops(draft.tokens)
        if draft.on_text is not None:
            text, _ = self._cut(draft.tokens)
            draft.send(text if draft.done else self._settled(text))

    def finish(self, draft: _Draft) -> Generation:
        """Return the finished completion, its tokens trimmed to the text that counts."""
        text, found = self._cut(draft.tokens)
        tokens = self._without_eos(draft.tokens)
        while found and tokens and len(self._session.decode(tokens[:-1])) >= len(text):
            tokens = tokens[:-1]
        draft.send(text)
        return Generation(draft.index, tuple(tokens), text, len(draft.tokens), not draft.done)

    def _stops(self, tokens: list[int]) -> bool:
        """Whether the stop string stands in the text; only the tail is decoded, and only where it may have ended."""
        if self._stop is None:
            return False
        last = tokens[-1]
        if last not in self._may_complete:
            text = self._session.decode([last])
            self._may_complete[last] = self._stop[-1] in text or not self._stop[-1].isascii()
        if not self._may_complete[last]:
            return False
        return self._stop in self._session.decode(tokens[-len(self._stop.encode()) - 4 :])

    def _cut(self, tokens: list[int]) -> tuple[str, bool]:
        text = self._session.decode(self._without_eos(tokens))
        if self._stop is None or self._stop not in text:
            return text, False
        return text[: text.index(self._stop)], True

    def _without_eos(self, tokens: list[int]) -> list[int]:
        return tokens[:-1] if tokens and tokens[-1] in self._eos else tokens

    def _settled(self, text: str) -> str:
        """Hold back a trailing piece of a character, and what may be the beginning of the stop string."""
        text = text.rstrip(INCOMPLETE)
        for size in range(min(len(self._stop or "") - 1, len(text)), 0, -1):
            if self._stop is not None and text.endswith(self._stop[:size]):
                return text[:-size]
        return text


class GreedyBatch:
    """Rows that are extended together, one token a step, until all are done or `max_new_tokens` are reached.

    Every step must find the weights that `prefix` was computed with: its keys and values, like those that the steps
    add, belong to them. Between two steps the model may do anything else.

    Args:
        rows: token ids of the prompts, each beginning with `prefix`.
        first_index: index of the first row, for `Generation.index` and `on_text(index, delta)`.
    """

    def __init__(
        self,
        session: ModelSession,
        rows: Sequence[Sequence[int]],
        prefix: Prefix,
        *,
        max_new_tokens: int,
        stop: str | None = STOP,
        first_index: int = 0,
        on_text: Callable[[int, str], None] | None = None,
    ) -> None:
        assert all(rows), "a prompt without a token"
        self._session = session
        self._prefix = prefix
        self._ends = _Ends(session, stop)
        self._drafts = [_Draft(first_index + i, on_text) for i in range(len(rows))]
        self._live = list(self._drafts)
        self._steps_left = max_new_tokens
        block = right_align(session, rows, prefix)
        self._cache = block.cache
        self._ids, self._mask, self._positions = block.input_ids, block.attention_mask, block.position_ids

    @property
    def done(self) -> bool:
        """True when every row has ended or the limit is reached."""
        return self._steps_left == 0 or not self._live

    def step(self) -> None:
        """Run the model once and give each living row its next token."""
        assert not self.done, "the batch is done"
        self._prefix.check(self._session)
        with torch.no_grad():
            logits = self._session.model(
                input_ids=self._ids,
                attention_mask=self._mask,
                position_ids=self._positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        chosen = logits[:, -1].argmax(-1)  # [live]
        for draft, token in zip(self._live, chosen.tolist(), strict=True):
            if not draft.done:
                self._ends.take(draft, token)
        self._steps_left -= 1
        keep = [i for i, draft in enumerate(self._live) if not draft.done]
        if not keep:
            self._live = []
        if self.done:
            return
        self._positions = self._positions[:, -1:] + 1
        if (len(self._live) - len(keep)) * RETIRE_SHARE >= len(self._live):
            index = torch.tensor(keep, device=self._session.device)
            self._cache.batch_select_indices(index)
            chosen, self._mask, self._positions = chosen[index], self._mask[index], self._positions[index]
            self._live = [self._live[i] for i in keep]
        self._ids = chosen[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._live), 1)], dim=1)

    def finish(self) -> list[Generation]:
        """Return the completions as they stand, in the rows' order, and stream what was held back."""
        return [self._ends.finish(draft) for draft in self._drafts]
