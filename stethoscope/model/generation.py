"""Greedy text for many prompts: one shared prefix, a batch that stays full, exact sliding windows.

1. the prompts' common beginning is computed once for a set of weights (`prefix`), and read by all rows where it lies;
2. rows wait in order of length, so that neighbours need equally many slots (`slots`);
3. each step is one forward pass: the newest token of every living row, and the tails of the rows that come in;
4. each row takes the argmax, until the stop string, an end-of-text token or the limit;
5. a row that ended frees its place at once, and a waiting one comes in with the next step.

In float32 each row's tokens equal `model.generate(do_sample=False)` on the prompt alone, wherever two logits are not
equal to within rounding. In bfloat16 rounding depends on what is computed together, and some texts part from it. No
logits processors: this is the argmax, whatever the checkpoint's generation config suggests.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stethoscope.errors import GenerationError
from stethoscope.model.loaded_model import INCOMPLETE, LoadedModel
from stethoscope.model.prefix import Prefix, share_prefix
from stethoscope.model.slots import RowSlots
from stethoscope.progress import Progress

STOP = "Problem:"  # minerva.prompts.STOP_STRING, which stands above this module
ADMIT_TOKENS = 4096  # of new rows in one pass: bounds what the pass holds in memory


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
    """Return the greedy completion of each prompt (text, or token ids taken as they are), in the prompts' order.

    `batch_size` rows are in work at a time. `on_finished` receives each completion as soon as it is there;
    `on_text(index, delta)` receives text as it is decoded: whole characters, never a part of the stop string; the
    deltas add up to the text. Counts each finished prompt on `progress` (which the caller has started) and looks for a
    cancel at every step.

    Args:
        prefix: a beginning computed earlier with the weights in place (`share_prefix`, of these prompts or more); the
            part that all prompts begin with is used. None: it is computed here.

    Raises:
        Cancelled: asked to stop; what was handed to `on_finished` is complete.
        StethoscopeError: `prefix` was computed with other weights than those in place.
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
    """One completion in the making, behind the `tail` of its prompt; `sent` characters of its text were handed on."""

    index: int
    tail: tuple[int, ...]
    on_text: Callable[[int, str], None] | None
    tokens: list[int] = field(default_factory=list)
    done: bool = False
    sent: int = 0

    @property
    def n_slots(self) -> int:
        """Slots that are written: those of all tokens but the newest, which takes the slot of this number."""
        return len(self.tail) + len(self.tokens) - 1

    def send(self, text: str) -> None:
        """Hand what is new in `text` to `on_text`."""
        if self.on_text is not None and len(text) > self.sent:
            self.on_text(self.index, text[self.sent :])
            self.sent = len(text)


class _Ends:
    """Knows when a completion is over, and what of it counts."""

    def __init__(self, loaded: LoadedModel, stop: str | None) -> None:
        self._loaded = loaded
        self._stop = stop
        self._eos = loaded.eos_ids
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
        while found and tokens and len(self._loaded.decode(tokens[:-1])) >= len(text):
            tokens = tokens[:-1]
        draft.send(text)
        return Generation(draft.index, tuple(tokens), text, len(draft.tokens), not draft.done)

    def _stops(self, tokens: list[int]) -> bool:
        """Whether the stop string stands in the text; only the tail is decoded, and only where it may have ended."""
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
        """Hold back a trailing piece of a character, and what may be the beginning of the stop string."""
        text = text.rstrip(INCOMPLETE)
        for size in range(min(len(self._stop or "") - 1, len(text)), 0, -1):
            if self._stop is not None and text.endswith(self._stop[:size]):
                return text[:-size]
        return text


class GreedyBatch:
    """Prompts that are continued together, `batch_size` at a time, one token a step, until all have ended.

    Every step must find the weights that `prefix` was computed with: its keys and values, like those that the steps
    add, belong to them. Between two steps the model may do anything else.

    Args:
        rows: token ids of the prompts.
        prefix: keys and values of a beginning; the part that all rows begin with is used.
        on_text: receives (index of the row, new text).

    Raises:
        StethoscopeError: in `step`: other weights are in place than `prefix` was computed with.
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
            raise GenerationError("a prompt has no token", expected="at least one", next_step="Write a longer prompt.")
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
        """True when every row has ended."""
        return not self._live and not self._waiting

    def step(self) -> list[Generation]:
        """Run the model once, give each living row its next token, and return the completions that ended by it."""
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
        for row in reversed(ended):  # from the last one on, so that the row that moves in is a living one
            self._retire(row)
        return finished

    def _admit(self) -> list[_Draft]:
        """Take rows that wait, longest first, into the free places, at most `ADMIT_TOKENS` tokens a step."""
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
        """Free the row's place: the last living row moves in, so that living rows stand in the first stripes."""
        last = self._live.pop()
        if row < len(self._live):
            self._slots.move(len(self._live), row, last.n_slots)
            self._live[row] = last
