"""Use case: what does the edit change in the text? Greedy answers of base and edited model, token by token.

Both are streamed as they are decoded. Afterwards the edited text is fed to both models (teacher forcing), and each
of its tokens carries KL(edited || base) = sum_v p_edited(v) log(p_edited(v) / p_base(v)) in nats: how surprised the
base would be by what the edited model wanted to say there.
"""

from stethoscope.delta.certificate import certified
from stethoscope.minerva.problems import load_shots
from stethoscope.minerva.prompts import few_shot_prompt
from stethoscope.model.generation import Generation, generate_greedy
from stethoscope.model.likelihood import kl_per_token, next_token_logprobs
from stethoscope.model.session import ModelSession
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import patch_of
from stethoscope.progress import Progress
from stethoscope.records import CompareTextSpec
from stethoscope.results import TextComparison, TextPair
from stethoscope.store.ids import content_id

BASE_CHANNEL = "base"
EDITED_CHANNEL = "edited"


def _stream(
    session: ModelSession, prompts: list[str], channel: str, spec: CompareTextSpec, progress: Progress
) -> list[Generation]:
    def write(index: int, delta: str) -> None:
        name = channel if len(prompts) == 1 else f"{channel}-{index}"
        progress.write(name, delta)

    progress.start(f"Writing with the {channel} model", len(prompts))
    return generate_greedy(
        session, prompts, max_new_tokens=spec.max_new_tokens, batch_size=8, progress=progress, on_text=write
    )


def _first_difference(base: list[int], edited: list[int]) -> int | None:
    for position, (left, right) in enumerate(zip(base, edited, strict=False)):
        if left != right:
            return position
    return None if len(base) == len(edited) else min(len(base), len(edited))


def _pair(session: ModelSession, shown: str, base: Generation, edited: Generation, kl: tuple[float, ...]) -> TextPair:
    base_ids, edited_ids = list(base.token_ids), list(edited.token_ids)
    return TextPair(
        prompt=shown,
        base=base.text,
        edited=edited.text,
        base_tokens=tuple(session.decode([token]) for token in base_ids),
        edited_tokens=tuple(session.decode([token]) for token in edited_ids),
        kl=kl,
        first_difference=_first_difference(base_ids, edited_ids),
    )


def run(spec: CompareTextSpec, context: Context, progress: Progress) -> TextComparison:
    """Return base and edited text of every prompt with KL at each edited token."""
    session = context.session(spec.recipe.model, progress)
    patch = patch_of(spec.recipe, context, progress)
    shots = load_shots(spec.problems.shots)
    prompts = [few_shot_prompt(prompt, shots) if spec.framed else prompt for prompt in spec.prompts]
    encoded = session.encode(prompts)
    base = _stream(session, prompts, BASE_CHANNEL, spec, progress)
    with certified(session, patch) as certifying:
        edited = _stream(session, prompts, EDITED_CHANNEL, spec, progress)
        lengths = [len(generation.token_ids) for generation in edited]
        full = [ids + list(generation.token_ids) for ids, generation in zip(encoded, edited, strict=True)]
        edited_logprobs = next_token_logprobs(session, full, last=lengths)
    base_logprobs = next_token_logprobs(session, full, last=lengths)
    pairs = []
    for index, prompt in enumerate(spec.prompts):
        kl = kl_per_token(edited_logprobs[index], base_logprobs[index])
        pairs.append(_pair(session, prompt, base[index], edited[index], tuple(float(value) for value in kl)))
    return TextComparison(recipe_id=content_id(spec.recipe), pairs=tuple(pairs), certificate=certifying.certificate)
