"""The engine on four architectures writes what transformers writes for each prompt alone, in any batch.

Every model is random and tiny; its sliding window (where it has one) is shorter than the shared prefix, or only
shorter than prefix and tail together. With these prompts, stops and limits, rows start and end at different steps.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from stethoscope.errors import StethoscopeError
from stethoscope.model import generation as engine
from stethoscope.model import slots as slots_module
from stethoscope.model.generation import Generation, GreedyBatch, generate_greedy
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.model.prefix import share_prefix
from stethoscope.model.slots import SLOT_CHUNK, RowSlots, pack, windows_of
from stethoscope.records import ModelRef

LIMIT = 12
SHARED = (
    "Problem:\nWhat is the prime divisor of 35?\n\nSolution: 5 and 7.\n\nProblem:\n"  # 34 tokens with BOS (Qwen: 73)
)
WORDS = ("the river", " 7", " prime", "é", " and the circle of 12", " story", "?", ": x + y", " 99", " divisor")
PROMPTS = [SHARED + "".join(WORDS[(i * 7 + j * (i + 3)) % len(WORDS)] for j in range(1 + i % 6)) for i in range(8)]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]


def gemma3(window: int, **sizes: int) -> PreTrainedModel:
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SIZES, **sizes, head_dim=8, query_pre_attn_scalar=8, sliding_window=window, layer_types=MIXED
        )
    )


def gemma2(window: int, **sizes: int) -> PreTrainedModel:
    return Gemma2ForCausalLM(
        Gemma2Config(
            **SIZES,
            **sizes,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=window,
            layer_types=MIXED,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=5.0,
        )
    )


def qwen2(window: int, **sizes: int) -> PreTrainedModel:
    return Qwen2ForCausalLM(
        Qwen2Config(**SIZES, **sizes, use_sliding_window=True, sliding_window=window, layer_types=MIXED)
    )


MODELS: dict[str, Callable[..., PreTrainedModel]] = {
    "gemma3, window 8": lambda **sizes: gemma3(8, **sizes),
    "gemma3, window 45": lambda **sizes: gemma3(45, **sizes),  # prefix inside it, prefix and tail beyond
    "gemma2, window 16": lambda **sizes: gemma2(16, **sizes),
    "llama": lambda **sizes: LlamaForCausalLM(LlamaConfig(**SIZES, **sizes)),
    "qwen2": lambda **sizes: Qwen2ForCausalLM(Qwen2Config(**SIZES, **sizes)),
    "qwen2, window 16": lambda **sizes: qwen2(16, **sizes),
    "mistral, window 40": lambda **sizes: MistralForCausalLM(MistralConfig(**SIZES, **sizes, sliding_window=40)),
}


ONE_OF_EACH = pytest.mark.parametrize("loaded", ["gemma3, window 8", "llama"], indirect=True, scope="module")


@pytest.fixture(scope="module", params=list(MODELS))
def loaded(request: pytest.FixtureRequest, pico_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A random model with the pico tokenizer; weights large enough that its text varies."""
    tokenizer = AutoTokenizer.from_pretrained(pico_folder)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model = MODELS[request.param](vocab_size=len(tokenizer), **special)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(0.2 * noise + (2.0 if "post_" in name else 1.0))
            else:
                parameter.copy_(1.5 * noise * parameter.shape[-1] ** -0.5)
    folder = tmp_path_factory.mktemp("architecture") / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_checkpoint(ModelRef(id=str(folder)), device="cpu")


@pytest.fixture(scope="module")
def alone(loaded: LoadedModel) -> list[list[int]]:
    """transformers' greedy tokens for each prompt alone, including end tokens."""
    found = []
    for row in loaded.encode(PROMPTS):
        ids = torch.tensor([row])
        with torch.no_grad():
            out = loaded.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=LIMIT, do_sample=False
            )
        found.append(out[0, len(row) :].tolist())
    return found


def without_end(loaded: LoadedModel, tokens: Sequence[int]) -> tuple[int, ...]:
    return tuple(tokens[:-1] if tokens[-1] in loaded.eos_ids else tokens)


def assert_same(loaded: LoadedModel, found: Sequence[Generation], alone: Sequence[Sequence[int]]) -> None:
    assert [generation.index for generation in found] == list(range(len(alone)))
    for generation, expected in zip(found, alone, strict=True):
        assert generation.token_ids == without_end(loaded, expected)
        assert generation.n_tokens == len(expected)


@pytest.mark.parametrize("batch_size", [3, 32])
def test_tokens_are_those_of_generate_alone(batch_size: int, loaded: LoadedModel, alone: list[list[int]]) -> None:
    assert len({tuple(tokens) for tokens in alone}) == len(set(PROMPTS)) == len(PROMPTS)
    assert len(share_prefix(loaded, loaded.encode(PROMPTS)).tokens) >= 34
    found = generate_greedy(loaded, PROMPTS, max_new_tokens=LIMIT, stop=None, batch_size=batch_size)
    assert_same(loaded, found, alone)


@ONE_OF_EACH
@pytest.mark.parametrize("batch_size", [1, len(PROMPTS) - 1, len(PROMPTS)])
def test_every_batch_size_writes_the_same_tokens(batch_size: int, loaded: LoadedModel, alone: list[list[int]]) -> None:
    found = generate_greedy(loaded, PROMPTS, max_new_tokens=LIMIT, stop=None, batch_size=batch_size)
    assert_same(loaded, found, alone)


def test_every_window_is_passed(loaded: LoadedModel, alone: list[list[int]]) -> None:
    """The tests of windows in this file need rows that are longer than the windows."""
    longest = max(len(row) + len(tokens) for row, tokens in zip(loaded.encode(PROMPTS), alone, strict=True))
    assert all(window is None or window < longest for window in windows_of(loaded))


def test_rows_that_end_at_different_steps_are_replaced_and_the_others_go_on(
    loaded: LoadedModel, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = [
        tokens[min(3 + 2 * i, len(tokens) - 1)] for i, tokens in enumerate(alone[:4])
    ]  # met at different steps by different rows
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", [*loaded.eos_ids, *ends])
    expected = [
        tokens[: next((i + 1 for i, token in enumerate(tokens) if token in loaded.eos_ids), LIMIT)] for tokens in alone
    ]
    assert len({len(tokens) for tokens in expected}) > 3
    passes: list[tuple[int, int]] = []
    whole = RowSlots.next_tokens

    def counted(self: RowSlots, continued: Sequence[tuple[int, int]], tails: Sequence[Sequence[int]]) -> list[int]:
        passes.append((len(continued), len(tails)))
        return whole(self, continued, tails)

    monkeypatch.setattr(RowSlots, "next_tokens", counted)
    found = generate_greedy(loaded, PROMPTS, max_new_tokens=LIMIT, stop=None, batch_size=3)
    assert_same(loaded, found, expected)
    assert [generation.truncated for generation in found] == [tokens[-1] not in loaded.eos_ids for tokens in expected]
    assert sum(new for _, new in passes) == len(PROMPTS)
    refills = [step for step, (_, new) in enumerate(passes) if new]
    assert len(refills) > 3, "rows came in one by one"
    assert all(old + new == 3 for old, new in passes[: refills[-1]]), "the batch is full while rows wait"
    assert sum(old + new for old, new in passes) == sum(map(len, expected)), "no row is continued after its end"


@ONE_OF_EACH
def test_slots_grow_without_losing_what_is_written(
    loaded: LoadedModel, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LIMIT + 2 < SLOT_CHUNK
    monkeypatch.setattr(slots_module, "SLOT_CHUNK", 4)
    assert_same(loaded, generate_greedy(loaded, PROMPTS, max_new_tokens=LIMIT, stop=None, batch_size=4), alone)


@ONE_OF_EACH
def test_a_bounded_number_of_tokens_comes_in_at_once(
    loaded: LoadedModel, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "ADMIT_TOKENS", 20)
    brought: list[int] = []
    whole = RowSlots.next_tokens

    def counted(self: RowSlots, continued: Sequence[tuple[int, int]], tails: Sequence[Sequence[int]]) -> list[int]:
        brought.append(sum(map(len, tails)))
        return whole(self, continued, tails)

    monkeypatch.setattr(RowSlots, "next_tokens", counted)
    assert_same(loaded, generate_greedy(loaded, PROMPTS, max_new_tokens=LIMIT, stop=None), alone)
    tails = [len(row) - share_prefix(loaded, loaded.encode(PROMPTS)).length for row in loaded.encode(PROMPTS)]
    assert max(brought) <= max(20, *tails)
    assert sum(brought) == sum(tails)
    assert sum(n > 0 for n in brought) > 2


def test_without_a_shared_prefix_the_tokens_are_the_same(loaded: LoadedModel, alone: list[list[int]]) -> None:
    none = share_prefix(loaded, [])
    assert none.length == 0
    found = generate_greedy(loaded, PROMPTS, max_new_tokens=LIMIT, stop=None, batch_size=4, prefix=none)
    assert_same(loaded, found, alone)


def test_a_stop_string_ends_the_row_that_wrote_it_only(loaded: LoadedModel, alone: list[list[int]]) -> None:
    texts = [loaded.decode(without_end(loaded, tokens)) for tokens in alone]
    stop = next(
        text[k : k + 2]
        for text in texts
        for k in range(4, len(text) - 2)
        if "\ufffd" not in text[k : k + 2] and any(text[k : k + 2] not in other for other in texts)
    )
    found = generate_greedy(loaded, PROMPTS, max_new_tokens=LIMIT, stop=stop, batch_size=3)
    for generation, tokens, text in zip(found, alone, texts, strict=True):
        assert generation.text == text.split(stop)[0]
        assert generation.token_ids == tuple(tokens[: len(generation.token_ids)])
        if stop not in text:
            assert generation.n_tokens == len(tokens)
    assert {stop in text for text in texts} == {True, False}


@ONE_OF_EACH
def test_two_batches_take_turns_on_one_model(loaded: LoadedModel, alone: list[list[int]]) -> None:
    rows = loaded.encode(PROMPTS)
    prefix = share_prefix(loaded, rows)
    batches = [
        GreedyBatch(loaded, part, prefix, max_new_tokens=LIMIT, stop=None, batch_size=2)
        for part in (rows[:4], rows[4:])
    ]
    found: list[dict[int, Generation]] = [{}, {}]
    before = loaded.model.config._attn_implementation
    while not all(batch.done for batch in batches):
        for batch, kept in zip(batches, found, strict=True):
            if not batch.done:
                kept.update((generation.index, generation) for generation in batch.step())
                assert loaded.model.config._attn_implementation == before
    assert_same(loaded, [found[0][i] for i in range(4)], alone[:4])
    assert_same(loaded, [found[1][i] for i in range(4)], alone[4:])


@ONE_OF_EACH
def test_the_prefix_is_stored_once_and_left_as_it_is(loaded: LoadedModel) -> None:
    rows = loaded.encode(PROMPTS)
    prefix = share_prefix(loaded, rows)
    before = [states.clone() for states in (*prefix.keys, *prefix.values)]
    batch = GreedyBatch(loaded, rows, prefix, max_new_tokens=LIMIT, stop=None, batch_size=8)
    while not batch.done:
        batch.step()
    assert all(torch.equal(*pair) for pair in zip(before, (*prefix.keys, *prefix.values), strict=True))
    own = [*batch._slots._keys.values(), *batch._slots._values.values()]
    longest = max(map(len, rows)) - prefix.length + LIMIT
    assert {states.shape[2] for states in own} == {-(-longest // SLOT_CHUNK) * SLOT_CHUNK}
    assert batch._slots._prefix.keys[0].data_ptr() == prefix.keys[0].data_ptr()


def test_windows_are_those_of_the_config(loaded: LoadedModel) -> None:
    config = loaded.model.config
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        assert set(windows_of(loaded)) == {getattr(config, "sliding_window", None)}
    else:
        expected = [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]
        assert windows_of(loaded) == expected


@ONE_OF_EACH
def test_a_model_with_an_attention_of_its_own_is_refused(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = loaded.model.get_submodule(f"{loaded.layout.layers}.2.self_attn")
    monkeypatch.setattr(attention, "forward", lambda hidden_states, **_: (hidden_states, None))
    with pytest.raises(StethoscopeError, match="a custom attention implementation"):
        generate_greedy(loaded, PROMPTS[:1], max_new_tokens=2)


def test_a_pass_is_packed_row_after_row() -> None:
    packed = pack([(50, 4), (51, 9)], [(60, 61), (62, 63), (70,)], 100, torch.device("cpu"))
    assert packed.ids.tolist() == [[50, 51, 60, 61, 62, 63, 70]]
    assert packed.positions.tolist() == [[104, 109, 100, 101, 100, 101, 100]]
    assert packed.rows.tolist() == [0, 1, 2, 2, 3, 3, 4]
    assert packed.slots.tolist() == [4, 9, 0, 1, 0, 1, 0]
    assert packed.last.tolist() == [0, 1, 3, 5, 6]
    spans = [(g.rows.start, g.rows.stop, g.tokens.start, g.tokens.stop, g.lowest, g.highest) for g in packed.groups]
    assert spans == [(0, 2, 0, 2, 4, 9), (2, 4, 2, 6, 0, 1), (4, 5, 6, 7, 0, 0)]
