"""Base and edited text side by side: each model's own output, compared position by position."""

import shutil
from pathlib import Path

import pytest
import torch

from stethoscope import pipeline
from stethoscope.errors import Cancelled, UserError
from stethoscope.minerva.prompts import few_shot_prompt
from stethoscope.minerva.sources import load_shots
from stethoscope.model.generation import Generation, GreedyBatch, generate_greedy
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.pipeline.compare_text import prompt_texts
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import CompareTextSpec, EditRecipe, ModelRef
from stethoscope.results import TextComparison

PROMPTS = ("a story of the river", "What is the prime divisor of 35 and é?", "circle")
EVERYWHERE = dict.fromkeys(range(4), 1.0)


@pytest.fixture(scope="module")
def tuned(pico_tuned_folder: Path) -> LoadedModel:
    """The fine-tune, loaded by transformers and never patched."""
    return load_checkpoint(ModelRef(id=str(pico_tuned_folder)), device="cpu")


def spec_of(profile: Profile, layers: dict[int, float], **fields: object) -> CompareTextSpec:
    recipe = EditRecipe(model=profile.model, task_vector=profile.task_vector(), layers=layers)
    defaults = {"prompts": PROMPTS, "max_new_tokens": 12, "framed": True}
    return CompareTextSpec(recipe=recipe, problems=profile.problems, **(defaults | fields))


def compared(spec: CompareTextSpec, context: Context, progress: Progress | None = None) -> TextComparison:
    result = pipeline.run(spec, context, progress or Progress()).result
    assert isinstance(result, TextComparison)
    return result


def test_each_column_is_what_its_model_writes_alone(
    pico_profile: Profile, context: Context, pico_loaded: LoadedModel, tuned: LoadedModel
) -> None:
    weak = EditRecipe(model=pico_profile.model, task_vector=pico_profile.task_vector(), layers={0: 0.0})
    result = compared(spec_of(pico_profile, EVERYWHERE, third=weak), context)
    shots = load_shots(pico_profile.problems.shots)
    prompts = [few_shot_prompt(prompt, shots) for prompt in PROMPTS]
    base = generate_greedy(pico_loaded, prompts, max_new_tokens=12)
    edited = generate_greedy(tuned, prompts, max_new_tokens=12)
    assert [pair.base.ids for pair in result.pairs] == [generation.token_ids for generation in base]
    assert [pair.edited.ids for pair in result.pairs] == [generation.token_ids for generation in edited]
    assert [pair.edited.text for pair in result.pairs] == [generation.text for generation in edited]
    assert any(pair.base.ids != pair.edited.ids for pair in result.pairs), "the edit changes nothing"
    for pair in result.pairs:
        assert pair.third is not None
        assert pair.third.ids == pair.base.ids
        assert pair.third.first_difference is None
        assert set(pair.third.kl) == {0.0}
        parts = [i for i, (b, e) in enumerate(zip(pair.base.ids, pair.edited.ids, strict=False)) if b != e]
        if parts:
            assert pair.edited.first_difference == pair.base.first_difference == parts[0]
        elif len(pair.base.ids) == len(pair.edited.ids):
            assert pair.edited.first_difference is None
    assert result.certificate.verified
    assert result.third_certificate is not None
    assert result.third_certificate.verified
    assert context.loaded is not None
    assert context.loaded.checksum() == context.base_checksum


def test_kl_and_likeliest_tokens_are_the_two_models_own_at_every_position(
    pico_profile: Profile, context: Context, pico_loaded: LoadedModel, tuned: LoadedModel
) -> None:
    spec = spec_of(pico_profile, EVERYWHERE)
    result = compared(spec, context)
    rows = pico_loaded.encode(prompt_texts(spec, pico_loaded))
    largest = 0.0
    for row, pair in zip(rows, result.pairs, strict=True):
        for column in (pair.base, pair.edited):
            ids = torch.tensor([[*row, *column.ids]])
            there = slice(len(row) - 1, len(row) - 1 + len(column.ids))
            of_edited = torch.distributions.Categorical(logits=tuned.model(input_ids=ids).logits[0, there])
            of_base = torch.distributions.Categorical(logits=pico_loaded.model(input_ids=ids).logits[0, there])
            kl = torch.distributions.kl_divergence(of_edited, of_base)
            reverse = torch.distributions.kl_divergence(of_base, of_edited)
            torch.testing.assert_close(torch.tensor(column.kl), kl, atol=2e-5, rtol=1e-3)  # float32 logits up to 10
            largest = max(largest, float((kl - reverse).abs().max()))
            for position, (top, token) in enumerate(zip(column.top, column.ids, strict=True)):
                for chances, model in ((top.edited, of_edited), (top.base, of_base)):
                    expected, order = model.probs[position].topk(5)
                    torch.testing.assert_close(
                        torch.tensor([chance.probability for chance in chances]), expected, atol=2e-5, rtol=1e-4
                    )
                    assert chances[0].token == pico_loaded.token_name(int(order[0]))
                greedy = top.edited if column is pair.edited else top.base
                assert greedy[0].token == pico_loaded.token_name(token)
    assert largest > 1e-3, "the test cannot tell KL(edited || base) from KL(base || edited)"


class Listening(Progress):
    """Records streamed text."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, str]] = []

    def write(self, channel: str, text: str) -> None:
        self.heard.append((channel, text))


def test_texts_stream_at_the_same_pace(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, step = list[int](), GreedyBatch.step
    monkeypatch.setattr(GreedyBatch, "step", lambda batch: (turns.append(id(batch)), step(batch))[1])
    progress = Listening()
    result = compared(spec_of(pico_profile, EVERYWHERE, prompts=PROMPTS[:1]), context, progress)
    base, edited = result.pairs[0].base, result.pairs[0].edited
    for channel, column in (("base", base), ("edited", edited)):
        assert "".join(text for heard, text in progress.heard if heard == channel) == column.text
    both = 2 * min(len(base.ids), len(edited.ids))
    assert both > 8
    assert all(left != right for left, right in zip(turns[:both], turns[1:both], strict=False))
    assert len(set(turns)) == 2


def test_stop_works_within_one_decode_step(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress, steps = Progress(), list[int]()
    step = GreedyBatch.step

    def counted(batch: GreedyBatch) -> list[Generation]:
        steps.append(1)
        finished = step(batch)
        if len(steps) == 5:
            progress.cancel()
        return finished

    monkeypatch.setattr(GreedyBatch, "step", counted)
    with pytest.raises(Cancelled):
        pipeline.run(spec_of(pico_profile, EVERYWHERE), context, progress)
    assert len(steps) == 5
    assert context.loaded is not None
    assert context.loaded.checksum() == context.base_checksum


def test_tokens_of_half_characters_join_to_the_text(pico_loaded: LoadedModel) -> None:
    text = "aé😀 prime\n\nz"
    ids = pico_loaded.encode([text], add_bos=False)[0]
    tokens = pico_loaded.token_strings(ids)
    assert len(tokens) == len(ids) > len(text) - 5
    assert "".join(tokens) == text
    assert {"é", "😀", " prime"} <= set(tokens)
    assert tokens.count("") == 4  # the first of two bytes, the first three of four
    cut = pico_loaded.token_strings(ids[:2])
    assert "".join(cut) == pico_loaded.decode(ids[:2])
    assert pico_loaded.token_strings([]) == []
    assert pico_loaded.token_name(ids[0]) == "a"
    assert "\ufffd" not in pico_loaded.token_name(ids[1])


@pytest.fixture(scope="module")
def chat_session(tmp_path_factory: pytest.TempPathFactory, pico_folder: Path) -> LoadedModel:
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(pico_folder, folder)
    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[model]{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return load_checkpoint(ModelRef(id=str(folder)), device="cpu")


def test_a_chat_prompt_has_its_bos_exactly_once(pico_profile: Profile, chat_session: LoadedModel) -> None:
    spec = spec_of(pico_profile, {1: 1.0}, framed=False, chat_template=True, prompts=("circle", "<bos>river"))
    plain, typed = chat_session.encode(prompt_texts(spec, chat_session))
    assert plain[0] == chat_session.bos_id
    assert plain.count(chat_session.bos_id) == 1
    assert chat_session.decode(plain) == "[user]circle[model]"
    assert chat_session.decode(typed) == "[user]river[model]"
    framed = prompt_texts(spec.model_copy(update={"framed": True}), chat_session)[0]
    assert framed.startswith("<bos>[user]Problem:\n1 + 7?")
    assert framed.endswith("Solution:[model]")


def test_without_a_chat_template_the_message_says_so(pico_profile: Profile, context: Context) -> None:
    with pytest.raises(UserError, match="no chat template"):
        pipeline.run(spec_of(pico_profile, {1: 1.0}, chat_template=True), context, Progress())
