"""Greedy generation for many prompts, with a shared prefix, continuous batching and exact sliding windows.

1. the common prefix of the prompts is computed once for a set of weights (`prefix`), and all rows read it in place;
2. rows wait in order of length, so that neighbours need similar numbers of slots (`slots`);
3. each step is one forward pass over the newest token of every active row and the tails of new rows;
4. each row appends the argmax until the stop string, an end-of-text token or the limit;
5. a finished row frees its place immediately, and a waiting row starts with the next step.

In float32 each row's tokens equal `model.generate(do_sample=False)` on the prompt alone, unless two logits are equal
within rounding. In bfloat16, rounding depends on the batch, and some texts differ. There are no logits processors:
generation is the argmax, regardless of the checkpoint's generation config.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stethoscope.errors import GenerationError
from stethoscope.model.loaded_model import INCOMPLETE, LoadedModel
from stethoscope.model.prefix import Prefix, share_prefix
from stethoscope.model.slots import RowSlots
from stethoscope.progress import Progress

STOP = "Problem:"  # minerva.prompts.STOP_STRING, which is in a higher layer
ADMIT_TOKENS = 4096  # tokens of new rows per pass, to limit its memory


@dataclass(frozen=True, slots=True)
class Generation:
    """The completion of prompt `index`.

    Attributes:
        token_ids: tokens of `text` (the last one can include the start of the stop string), without end-of-text.
        text: decoded completion, cut before the stop string.
        n_tokens: number of generated tokens, including the stop string and end-of-text.
        truncated: whether the limit was reached before a stop string or end-of-text token.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    n_tokens: int
    truncated: bool


def generate_greedy(
    loaded: LoadedModel,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: str | None = STOP,
    batch_size: int = 32,
    prefix: Prefix | None = None,
    progress: Progress | None = None,
    on_finished: Callable[[Generation], None] | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Generation]:
    """Return the greedy completion of each prompt (text or token ids), in the order of the prompts.

    `batch_size` rows are processed at a time. `on_finished` receives each completion when it is finished.
    `on_text(index, delta)` receives decoded text: complete characters, never a part of the stop string; the deltas
    concatenate to the text. Counts each finished prompt on `progress` (which the caller has started) and checks for
    cancel at every step.

    Args:
        prefix: a prefix computed earlier with the current weights (`share_prefix`, of these prompts or more), of which
            the part common to all prompts is used. None to compute it here.

    Raises:
        Cancelled: stopped; completions passed to `on_finished` are complete.
        StethoscopeError: `prefix` was computed with weights other than the current ones.
    """
    progress = progress or Progress()
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    rows = loaded.encode(texts) if texts else [[int(token) for token in prompt] for prompt in prompts]
    assert len(rows) == len(prompts), "prompts are all text or all token ids"
    progress.yield_to_interactive()
    batch = GreedyBatch(
        loaded,
        rows,
        prefix or share_prefix(loaded, rows),
        max_new_tokens=max_new_tokens,
        stop=stop,
        batch_size=batch_size,
        on_text=on_text,
    )
    finished: list[Generation] = []
    while not batch.done:
        progress.yield_to_interactive()
        for generation in batch.step():
            finished.append(generation)
            if on_finished is not None:
                on_finished(generation)
            progress.advance()
    return sorted(finished, key=lambda generation: generation.index)


@dataclass(slots=True)
class _Draft:
    """An unfinished completion after the `tail` of its prompt; `sent` characters of its text have been passed on."""

    index: int
    tail: tuple[int, ...]
    on_text: Callable[[int, str], None] | None
    tokens: list[int] = field(default_factory=list)
    done: bool = False
    sent: int = 0

    @property
    def n_slots(self) -> int:
        """Number of written slots: those of all tokens but the newest, which is written to the slot with this index."""
        return len(self.tail) + len(self.tokens) - 1

    def send(self, text: str) -> None:
        """Pass the new part of `text` to `on_text`."""
        if self.on_text is not None and len(text) > self.sent:
            self.on_text(self.index, text[self.sent :])
            self.sent = len(text)


class _Ends:
    """Detects the end of a completion and trims it."""

    def __init__(self, loaded: LoadedModel, stop: str | None) -> None:
        self._loaded = loaded
        self._stop = stop
        self._eos = loaded.eos_ids
        self._may_complete: dict[int, bool] = {}

    def take(self, draft: _Draft, token: int) -> None:
        """Append `token` to `draft`, mark it as finished at an end, and stream its text."""
        draft.tokens.append(token)
        draft.done = token in self._eos or self._stops(draft.tokens)
        if draft.on_text is not None:
            text, _ = self._cut(draft.tokens)
            draft.send(text if draft.done else self._settled(text))

    def finish(self, draft: _Draft) -> Generation:
        """Return the finished completion, with tokens trimmed to the text before the stop string."""
        text, found = self._cut(draft.tokens)
        tokens = self._without_eos(draft.tokens)
        while found and tokens and len(self._loaded.decode(tokens[:-1])) >= len(text):
            tokens = tokens[:-1]
        draft.send(text)
        return Generation(draft.index, tuple(tokens), text, len(draft.tokens), not draft.done)

    def _stops(self, tokens: list[int]) -> bool:
        """Return whether the text contains the stop string; only the tail is decoded, and only if it may contain the
        end."""
        if self._stop is None:
            return False
        last = tokens[-1]
        if last not in self._may_complete:
            text = self._loaded.decode([last])
            self._may_complete[last] = self._stop[-1] in text or not self._stop[-1].isascii()
        if not self._may_complete[last]:
            return False
        return self._stop in self._loaded.decode(tokens[-len(self._stop.encode()) - 4 :])

    def _cut(self, tokens: list[int]) -> tuple[str, bool]:
        text = self._loaded.decode(self._without_eos(tokens))
        if self._stop is None or self._stop not in text:
            return text, False
        return text[: text.index(self._stop)], True

    def _without_eos(self, tokens: list[int]) -> list[int]:
        return tokens[:-1] if tokens and tokens[-1] in self._eos else tokens

    def _settled(self, text: str) -> str:
        """Return the text without an incomplete trailing character and without a possible start of the stop string."""
        text = text.rstrip(INCOMPLETE)
        for size in range(min(len(self._stop or "") - 1, len(text)), 0, -1):
            if self._stop is not None and text.endswith(self._stop[:size]):
                return text[:-size]
        return text


class GreedyBatch:
    """Prompts that are continued together, `batch_size` at a time, one token per step, until all are finished.

    Every step needs the weights that `prefix` was computed with, because all keys and values belong to these weights.
    Between two steps, the model may be used for anything else.

    Args:
        rows: token ids of the prompts.
        prefix: keys and values of a prefix, of which the part common to all rows is used.
        on_text: receives (index of the row, new text).

    Raises:
        StethoscopeError: in `step`: the weights differ from those that `prefix` was computed with.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        rows: Sequence[Sequence[int]],
        prefix: Prefix,
        *,
        max_new_tokens: int,
        stop: str | None = STOP,
        batch_size: int = 32,
        on_text: Callable[[int, str], None] | None = None,
    ) -> None:
        assert min(max_new_tokens, batch_size) > 0, (max_new_tokens, batch_size)
        if not all(rows):
            raise GenerationError(
                "a prompt has no tokens", expected="at least one token", next_step="Write a longer prompt."
            )
        self._loaded = loaded
        self._prefix = prefix.cut_to(rows)
        self._max_new_tokens = max_new_tokens
        self._batch_size = batch_size
        self._ends = _Ends(loaded, stop)
        drafts = [_Draft(i, tuple(row[self._prefix.length :]), on_text) for i, row in enumerate(rows)]
        self._waiting = deque(sorted(drafts, key=lambda draft: -len(draft.tail)))
        self._live: list[_Draft] = []
        self._slots = RowSlots(loaded, self._prefix, min(batch_size, len(rows)))

    @property
    def done(self) -> bool:
        """Whether all rows are finished."""
        return not self._live and not self._waiting

    def step(self) -> list[Generation]:
        """Run the model once, append the next token to each active row, and return the completions that it finished."""
        assert not self.done, "the batch is done"
        self._prefix.check(self._loaded)
        continued = [(draft.tokens[-1], draft.n_slots) for draft in self._live]
        new = self._admit()
        chosen = self._slots.next_tokens(continued, [draft.tail for draft in new])
        self._live += new
        for draft, token in zip(self._live, chosen, strict=True):
            self._ends.take(draft, token)
        ended = [row for row, draft in enumerate(self._live) if self._has_ended(draft)]
        finished = [self._ends.finish(self._live[row]) for row in ended]
        for row in reversed(ended):  # from the last one, so that the moved row is an active one
            self._retire(row)
        return finished

    def _admit(self) -> list[_Draft]:
        """Start waiting rows in free places, longest first, with at most `ADMIT_TOKENS` tokens per step."""
        new: list[_Draft] = []
        n_tokens = 0
        while self._waiting and len(self._live) + len(new) < self._batch_size:
            n_tokens += len(self._waiting[0].tail)
            if new and n_tokens > ADMIT_TOKENS:
                break
            new.append(self._waiting.popleft())
        return new

    def _has_ended(self, draft: _Draft) -> bool:
        return draft.done or len(draft.tokens) == self._max_new_tokens

    def _retire(self, row: int) -> None:
        """Free the row's place by moving the last active row there, so that active rows occupy the first stripes."""
        last = self._live.pop()
        if row < len(self._live):
            self._slots.move(len(self._live), row, last.n_slots)
            self._live[row] = last
