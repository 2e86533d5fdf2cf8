"""Use case: text comparison. Greedy answers of base and edited model, token by token.

The models take turns at every token, by pointer swaps, so that their texts stream at the same pace. Then each text is
fed back (teacher forcing), and each of its tokens gets

    KL(edited || base) = sum_v p_edited(v) log(p_edited(v) / p_base(v))   in nats,

and the most likely tokens of both models. A third recipe (for example the full fine-tune) can be added; it is compared
with the base in the same way.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack

from stethoscope.delta.certificate import Certifying, certified
from stethoscope.delta.patch import Patch, applied, patch_removed
from stethoscope.minerva.prompts import few_shot_prompt
from stethoscope.minerva.sources import load_shots
from stethoscope.model.generation import Generation, GreedyBatch
from stethoscope.model.likelihood import kl_per_token, next_token_logprobs, top_tokens
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.model.prefix import share_prefix
from stethoscope.pipeline import job_memory
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import patch_of
from stethoscope.pipeline.footprint import Setting
from stethoscope.progress import Progress
from stethoscope.records import CompareTextSpec
from stethoscope.results import TextColumn, TextComparison, TextPair, TopTokens
from stethoscope.store.ids import content_id

BASE, EDITED, THIRD = "base", "edited", "third"  # channels that the texts are streamed to
BATCH_SIZE = 8


def prompt_texts(spec: CompareTextSpec, loaded: LoadedModel) -> list[str]:
    """Return the full text of every prompt, with few-shot examples and chat template as requested.

    Raises:
        UserError: a chat template is requested, but the tokenizer has none.
    """
    shots = load_shots(spec.problems.shots) if spec.framed and spec.problems.shots is not None else ()
    framed = [few_shot_prompt(prompt, shots) if spec.framed else prompt for prompt in spec.prompts]
    return [loaded.chat_prompt(text) for text in framed] if spec.chat_template else framed


def run(spec: CompareTextSpec, context: Context, progress: Progress) -> TextComparison:
    """Return the texts for every prompt, with KL and the most likely tokens of both models at each token."""
    loaded = context.load(spec.recipe.model, progress)
    patches = {BASE: Patch(None, {}), EDITED: patch_of(spec.recipe, context, progress)}
    if spec.third is not None:
        patches[THIRD] = patch_of(spec.third, context, progress)
    rows = loaded.encode(prompt_texts(spec, loaded))
    certifying: dict[str, Certifying] = {}
    with ExitStack() as stack:
        for channel in [channel for channel in patches if channel != BASE]:
            certifying[channel] = stack.enter_context(certified(loaded, patches[channel]))
            stack.enter_context(patch_removed(loaded))
        written = _write(loaded, rows, patches, spec.max_new_tokens, progress)
        pairs = _compare(loaded, spec.prompts, rows, written, patches, progress)
    return TextComparison(
        recipe_id=content_id(spec.recipe),
        pairs=pairs,
        certificate=certifying[EDITED].certificate,
        third_certificate=certifying[THIRD].certificate if THIRD in certifying else None,
    )


def _write(
    loaded: LoadedModel,
    rows: Sequence[Sequence[int]],
    patches: Mapping[str, Patch],
    max_new_tokens: int,
    progress: Progress,
) -> dict[str, dict[int, Generation]]:
    """Decode all prompts with all models, taking turns at every token; each model keeps its own prefix and cache."""
    progress.start("Writing", len(rows))
    written: dict[str, dict[int, Generation]] = {channel: {} for channel in patches}
    prefixes = {}
    for channel, patch in patches.items():
        progress.yield_to_interactive()
        with applied(loaded, patch):
            prefixes[channel] = share_prefix(loaded, rows)

    def writer(channel: str) -> Callable[[int, str], None]:
        return lambda index, delta: progress.write(channel if len(rows) == 1 else f"{channel}-{index}", delta)

    batches = {
        channel: GreedyBatch(
            loaded,
            rows,
            prefixes[channel],
            max_new_tokens=max_new_tokens,
            batch_size=BATCH_SIZE,
            on_text=writer(channel),
        )
        for channel in patches
    }
    while unfinished := [channel for channel, batch in batches.items() if not batch.done]:
        for channel in unfinished:
            progress.yield_to_interactive()
            with applied(loaded, patches[channel]):
                written[channel].update((text.index, text) for text in batches[channel].step())
        complete = set(range(len(rows))).intersection(*written.values())
        progress.advance(len(complete) - progress.done)
    return written


def _compare(
    loaded: LoadedModel,
    prompts: Sequence[str],
    rows: Sequence[Sequence[int]],
    written: Mapping[str, Mapping[int, Generation]],
    patches: Mapping[str, Patch],
    progress: Progress,
) -> tuple[TextPair, ...]:
    """Read every text with its own model and the base (the base's text: with the edited model and the base)."""
    progress.start("Comparing predictions", len(rows))
    pairs = []
    for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        base, edited = written[BASE][index], written[EDITED][index]
        columns = {}
        for channel in patches:
            progress.yield_to_interactive()
            text = written[channel][index]
            columns[channel] = _column(
                loaded,
                row,
                text,
                patches[EDITED if channel == BASE else channel],
                first_difference(base.token_ids, (edited if channel == BASE else text).token_ids),
            )
        pairs.append(TextPair(prompt=prompt, base=columns[BASE], edited=columns[EDITED], third=columns.get(THIRD)))
        progress.advance()
    return tuple(pairs)


def _column(loaded: LoadedModel, row: Sequence[int], text: Generation, patch: Patch, first: int | None) -> TextColumn:
    """Return `text` (after the prompt `row`) with the predictions of the model of `patch` and of the base at each
    token."""
    whole, count = [*row, *text.token_ids], len(text.token_ids)
    with applied(loaded, patch):
        (edited,) = next_token_logprobs(loaded, [whole], last=[count])
    (base,) = next_token_logprobs(loaded, [whole], last=[count])
    top = zip(top_tokens(loaded, edited), top_tokens(loaded, base), strict=True)
    return TextColumn(
        text=text.text,
        ids=text.token_ids,
        tokens=tuple(loaded.token_strings(text.token_ids)),
        kl=tuple(float(nats) for nats in kl_per_token(edited, base)),
        top=tuple(TopTokens(edited=of_edited, base=of_base) for of_edited, of_base in top),
        first_difference=first,
    )


def first_difference(base: Sequence[int], edited: Sequence[int]) -> int | None:
    """Return the first position at which two token lists differ, or at which one ends; None if they are equal."""
    for position, (left, right) in enumerate(zip(base, edited, strict=False)):
        if left != right:
            return position
    return None if len(base) == len(edited) else min(len(base), len(edited))


def needs(spec: CompareTextSpec, setting: Setting, saes_of: job_memory.SaesOf) -> Iterable[job_memory.Parts]:
    """Yield the memory of generating text."""
    yield job_memory.answering(setting, len(spec.prompts), spec.max_new_tokens)


def smaller(spec: CompareTextSpec) -> str:
    """Return a smaller setting."""
    return job_memory.fewer_layers(spec)
