"""Batched greedy text equals transformers' generate on each prompt alone, token by token, past the window."""

from collections.abc import Sequence

import pytest
import torch

from stethoscope.delta.patch import Patch, applied, patch_removed
from stethoscope.errors import Cancelled, StethoscopeError
from stethoscope.minerva.prompts import STOP_STRING, few_shot_prompt
from stethoscope.model.generation import STOP, Generation, GreedyBatch, generate_greedy
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.model.prefix import MIN_PREFIX, right_align, share_prefix
from stethoscope.progress import Progress

SHOTS = [("What is the prime divisor of 35?", "5 and 7."), ("A river and a circle?", "the circle.")]
PROBLEMS = ["A story of 4?", "What is 3 and the divisor of 99, the prime and the river and é?", "?", "circle 7", "1+1"]
FRAMED = [few_shot_prompt(problem, SHOTS) for problem in PROBLEMS]
UNLIKE = ["a", " the prime divisor of a river and the story", "Problem: é", "Solution: 12 + 7 = 19, the prime circle"]


N = 12  # tokens: beyond the sliding window, with the prompts


def alone(loaded: LoadedModel, ids: Sequence[int], n: int) -> list[int]:
    """transformers' greedy tokens for one unpadded prompt."""
    prompt = torch.tensor([list(ids)])
    with torch.no_grad():
        out = loaded.model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n, do_sample=False
        )
    return out[0, len(ids) :].tolist()


@pytest.fixture(scope="module")
def expected(pico_loaded: LoadedModel) -> dict[str, list[int]]:
    """The tokens of each prompt alone, `N` at most."""
    prompts = [*FRAMED, *UNLIKE]
    rows = pico_loaded.encode(prompts)
    return {prompt: alone(pico_loaded, row, N) for prompt, row in zip(prompts, rows, strict=True)}


def test_the_stop_string_is_minervas() -> None:
    assert STOP == STOP_STRING


@pytest.mark.parametrize(
    ("prompts", "batch_size"),
    [
        pytest.param(FRAMED, 1, id="framed, one by one"),
        pytest.param(FRAMED, 9, id="framed, all at once"),
        pytest.param(UNLIKE, 2, id="unlike, in twos"),
        pytest.param(UNLIKE, 9, id="unlike, all at once"),
        pytest.param([*FRAMED, *UNLIKE], 2, id="mixed, in twos"),
        pytest.param([*FRAMED, *UNLIKE], 9, id="mixed, all at once"),
        pytest.param([FRAMED[0]] * 3, 1, id="same, one by one"),
        pytest.param([FRAMED[0]] * 3, 2, id="same, in twos"),
    ],
)
def test_batched_tokens_equal_those_of_generate_alone(
    prompts: list[str], batch_size: int, pico_loaded: LoadedModel, expected: dict[str, list[int]]
) -> None:
    rows = pico_loaded.encode(prompts)
    assert max(len(row) for row in rows) > pico_loaded.model.config.sliding_window
    eos = pico_loaded.tokenizer.eos_token_id
    found = generate_greedy(pico_loaded, prompts, max_new_tokens=N, stop=None, batch_size=batch_size)
    for prompt, generation in zip(prompts, found, strict=True):
        tokens = expected[prompt]
        ended = tokens[-1] == eos
        assert list(generation.token_ids) == (tokens[:-1] if ended else tokens)
        assert generation.n_tokens == len(tokens)
        assert generation.truncated == (not ended)
        assert generation.text == pico_loaded.decode(tokens)
    assert [generation.index for generation in found] == list(range(len(prompts)))
    assert len({generation.token_ids for generation in found}) == len(set(prompts))


def test_token_ids_are_taken_as_prompts(pico_loaded: LoadedModel) -> None:
    texts = generate_greedy(pico_loaded, FRAMED, max_new_tokens=8)
    assert generate_greedy(pico_loaded, pico_loaded.encode(FRAMED), max_new_tokens=8) == texts


def test_the_framed_prompts_do_share_a_prefix(pico_loaded: LoadedModel) -> None:
    rows = pico_loaded.encode(FRAMED)
    prefix = share_prefix(pico_loaded, rows)
    assert prefix.length > pico_loaded.model.config.sliding_window > 0
    assert right_align(pico_loaded, rows, prefix).input_ids.shape[1] == max(map(len, rows)) - prefix.length
    assert share_prefix(pico_loaded, rows[:1]).length == 0
    assert share_prefix(pico_loaded, [row[-5:] for row in rows]).length == 0
    same = [rows[0][: MIN_PREFIX + 1]] * 2
    assert share_prefix(pico_loaded, same).length == MIN_PREFIX  # each row keeps a token of its own


def a_stop_in(texts: Sequence[str]) -> str:
    """Two characters that first appear in the middle of one of the texts."""
    for text in texts:
        for start in range(4, len(text) - 2):
            piece = text[start : start + 2]
            if text.index(piece) == start and "\ufffd" not in piece:
                return piece
    raise AssertionError(texts)


def free_text(loaded: LoadedModel, n: int) -> list[Generation]:
    return generate_greedy(loaded, [*FRAMED, *UNLIKE], max_new_tokens=n, stop=None)


def test_text_is_cut_before_the_stop_string_and_the_row_leaves(pico_loaded: LoadedModel) -> None:
    whole = [generation.text for generation in free_text(pico_loaded, 20)]
    stop = a_stop_in(whole)
    cut = generate_greedy(pico_loaded, [*FRAMED, *UNLIKE], max_new_tokens=20, stop=stop, batch_size=3)
    for generation, text in zip(cut, whole, strict=True):
        assert generation.text == text.split(stop)[0]
        assert generation.truncated == (stop not in text)
        assert pico_loaded.decode(generation.token_ids).startswith(generation.text)
        if stop in text:
            assert generation.n_tokens < 20
            assert len(pico_loaded.decode(generation.token_ids[:-1])) < len(generation.text) or not generation.text
    assert any(not generation.truncated for generation in cut)


def test_a_stop_at_once_leaves_an_empty_text(pico_loaded: LoadedModel) -> None:
    first = next(generation for generation in free_text(pico_loaded, 1) if "\ufffd" not in generation.text)
    prompt = [*FRAMED, *UNLIKE][first.index]
    (cut,) = generate_greedy(pico_loaded, [prompt], max_new_tokens=5, stop=first.text)
    assert (cut.text, cut.token_ids, cut.n_tokens, cut.truncated) == ("", (), 1, False)


def test_end_of_text_stops_a_row(pico_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = free_text(pico_loaded, 12)
    token = plain[0].token_ids[5]
    monkeypatch.setattr(pico_loaded.model.generation_config, "eos_token_id", [1, token])
    for before, after in zip(plain, free_text(pico_loaded, 12), strict=True):
        kept = before.token_ids[: before.token_ids.index(token)] if token in before.token_ids else before.token_ids
        assert after.token_ids == kept
        assert after.truncated == (token not in before.token_ids)


@pytest.mark.parametrize("stop", [None, "Q"])
def test_streamed_deltas_add_up_to_the_text(stop: str | None, pico_loaded: LoadedModel) -> None:
    if stop is not None:
        stop = a_stop_in([generation.text for generation in free_text(pico_loaded, 20)])
    streamed: dict[int, list[str]] = {}
    found = generate_greedy(
        pico_loaded,
        [*FRAMED, *UNLIKE],
        max_new_tokens=20,
        stop=stop,
        on_text=lambda index, delta: streamed.setdefault(index, []).append(delta),
    )
    for generation in found:
        assert "".join(streamed.get(generation.index, [])) == generation.text
    assert max(len(deltas) for deltas in streamed.values()) > 5


def test_streaming_holds_back_split_characters_and_beginnings_of_the_stop(pico_loaded: LoadedModel) -> None:
    from stethoscope.model.generation import _Draft, _Ends

    deltas: list[str] = []
    ends, draft = _Ends(pico_loaded, "Problem:"), _Draft(0, (), lambda _, delta: deltas.append(delta))
    for token in pico_loaded.encode(["aé😀 Pro, Problem:x"], add_bos=False)[0]:
        if not draft.done:
            ends.take(draft, token)
    assert "".join(deltas) == "aé😀 Pro, "
    assert all("\ufffd" not in delta for delta in deltas)
    assert draft.done
    assert ends.finish(draft).text == "aé😀 Pro, "


def test_cancel_stops_between_steps_and_keeps_what_is_finished(pico_loaded: LoadedModel) -> None:
    progress, kept = Progress(), list[Generation]()
    progress.start("write", 9)
    steps: list[int] = []

    def count(index: int, _: str) -> None:
        steps.append(index)
        if len(kept) == 4:
            progress.cancel()

    with pytest.raises(Cancelled):
        generate_greedy(
            pico_loaded,
            [*FRAMED, *UNLIKE],
            max_new_tokens=N,
            stop=None,
            batch_size=2,
            progress=progress,
            on_finished=kept.append,
            on_text=count,
        )
    whole = generate_greedy(pico_loaded, [*FRAMED, *UNLIKE], max_new_tokens=N, stop=None)
    assert kept == [whole[generation.index] for generation in kept]
    assert progress.done == len(kept) in (4, 5)


def test_each_finished_row_is_counted_at_once_and_handed_on_in_the_order_of_finishing(
    pico_loaded: LoadedModel,
) -> None:
    progress, seen = Progress(), list[tuple[int, int]]()
    progress.start("write", 5)
    found = generate_greedy(
        pico_loaded,
        FRAMED,
        max_new_tokens=6,
        stop=None,
        batch_size=1,
        progress=progress,
        on_finished=lambda generation: seen.append((generation.index, progress.done)),
    )
    lengths = [len(row) for row in pico_loaded.encode(FRAMED)]
    longest_first = sorted(range(5), key=lambda index: -lengths[index])
    assert seen == [(index, done) for done, index in enumerate(longest_first)]
    assert progress.done == 5
    assert [generation.index for generation in found] == [0, 1, 2, 3, 4]


def test_no_prompts_give_no_text(pico_loaded: LoadedModel) -> None:
    assert generate_greedy(pico_loaded, [], max_new_tokens=3) == []


def edited(loaded: LoadedModel) -> Patch:
    """A patch that changes what the model writes."""
    names = [site.name for site in loaded.layout.of_layer(1)]
    return Patch(None, {name: loaded.parameter(name).detach() * 1.5 for name in names})


def test_a_prefix_kept_from_more_prompts_gives_the_same_tokens(pico_loaded: LoadedModel) -> None:
    expected = generate_greedy(pico_loaded, FRAMED, max_new_tokens=12)
    kept = share_prefix(pico_loaded, pico_loaded.encode(FRAMED))
    assert generate_greedy(pico_loaded, FRAMED, max_new_tokens=12, prefix=kept) == expected
    for prompt, generation in zip(FRAMED, expected, strict=True):  # one row alone uses it, too
        (alone_,) = generate_greedy(pico_loaded, [prompt], max_new_tokens=12, prefix=kept)
        assert alone_.token_ids == generation.token_ids
    others = [FRAMED[0][:40] + end for end in ("x", "river")]  # they leave the shots half-way
    kept_longer = share_prefix(pico_loaded, pico_loaded.encode([FRAMED[0], FRAMED[0] + "."]))
    assert kept_longer.cut_to(pico_loaded.encode(others)).length < kept_longer.length
    assert generate_greedy(pico_loaded, others, max_new_tokens=12, prefix=kept_longer) == generate_greedy(
        pico_loaded, others, max_new_tokens=12
    )


def test_a_prompt_that_is_the_whole_prefix_keeps_a_token_of_its_own(pico_loaded: LoadedModel) -> None:
    kept = share_prefix(pico_loaded, pico_loaded.encode([FRAMED[0] + "x", FRAMED[0] + "river"]))
    row = list(kept.tokens)
    assert kept.cut_to([row]).length == len(row) - 1
    (found,) = generate_greedy(pico_loaded, [row], max_new_tokens=8, stop=None, prefix=kept)
    assert found.text == pico_loaded.decode(alone(pico_loaded, row, 8))


def test_a_prefix_is_refused_with_other_weights(pico_loaded: LoadedModel) -> None:
    rows = pico_loaded.encode(FRAMED)
    base, patch = share_prefix(pico_loaded, rows), edited(pico_loaded)
    plain = generate_greedy(pico_loaded, FRAMED, max_new_tokens=12)
    with applied(pico_loaded, patch):
        with pytest.raises(StethoscopeError, match="weights version"):
            generate_greedy(pico_loaded, FRAMED, max_new_tokens=12, prefix=base)
        with pytest.raises(StethoscopeError, match="weights version"):
            right_align(pico_loaded, rows, base)
        of_patch = share_prefix(pico_loaded, rows)
        changed = generate_greedy(pico_loaded, FRAMED, max_new_tokens=12, prefix=of_patch)
        with patch_removed(pico_loaded):  # the base is in place here: its own prefix fits again
            assert generate_greedy(pico_loaded, FRAMED, max_new_tokens=12, prefix=base) == plain
            with pytest.raises(StethoscopeError, match="weights version"):
                generate_greedy(pico_loaded, FRAMED, max_new_tokens=12, prefix=of_patch)
        assert generate_greedy(pico_loaded, FRAMED, max_new_tokens=12, prefix=of_patch) == changed
    assert changed != plain
    with pytest.raises(StethoscopeError, match="weights version"):
        generate_greedy(pico_loaded, FRAMED, max_new_tokens=12, prefix=of_patch)
    with applied(pico_loaded, edited(pico_loaded)), pytest.raises(StethoscopeError, match="weights version"):
        generate_greedy(pico_loaded, FRAMED, max_new_tokens=12, prefix=of_patch)  # built again: written elsewhere
    with applied(pico_loaded, Patch(None, {})):  # a patch of nothing is the base
        assert generate_greedy(pico_loaded, FRAMED, max_new_tokens=12, prefix=base) == plain


def test_weights_swapped_between_two_steps_are_noticed(pico_loaded: LoadedModel) -> None:
    rows = pico_loaded.encode(FRAMED)
    batch = GreedyBatch(pico_loaded, rows, share_prefix(pico_loaded, rows), max_new_tokens=4)
    batch.step()
    with applied(pico_loaded, edited(pico_loaded)), pytest.raises(StethoscopeError, match="weights version"):
        batch.step()
