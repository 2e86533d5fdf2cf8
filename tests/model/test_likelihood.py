"""Batched NLL and log-probabilities equal a plain forward pass on each text alone; KL is the textbook sum."""

import itertools
import threading

import numpy as np
import pytest
import torch

from stethoscope.errors import Cancelled
from stethoscope.minerva.prompts import few_shot_prompt
from stethoscope.model.likelihood import kl_per_token, next_token_logprobs, solution_nll
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.progress import Progress

SHOTS = [("What is the prime divisor of 35?", "5 and 7.")]
PAIRS = [
    (few_shot_prompt("A story?", SHOTS), "the river and the circle of 12."),
    (few_shot_prompt("What is 3 and 4, the prime and the divisor?", SHOTS), "7"),
    (few_shot_prompt("?", SHOTS), "é is the story and the prime divisor of the river " * 2),
    ("no frame", "the end"),
]


def nll_alone(loaded: LoadedModel, prompt: str, solution: str) -> float:
    ids = torch.tensor(loaded.encode([f"{prompt} {solution}"]))
    n = ids.shape[1] - len(loaded.encode([prompt])[0])
    logits = loaded.model(input_ids=ids).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits[-n:], ids[0, -n:]))


@pytest.mark.parametrize("pairs", [PAIRS, PAIRS[:3], PAIRS[:1]], ids=["mixed", "shared prefix", "single"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_nll_equals_that_of_each_text_alone(
    pairs: list[tuple[str, str]], batch_size: int, pico_loaded: LoadedModel
) -> None:
    progress = Progress()
    progress.start("probe", len(pairs))
    found = solution_nll(pico_loaded, pairs, batch_size=batch_size, progress=progress)
    expected = [nll_alone(pico_loaded, *pair) for pair in pairs]
    np.testing.assert_allclose(found, expected, atol=2e-5)  # float32 logits up to about 10
    assert progress.done == len(pairs)


@pytest.mark.parametrize("pairs", [PAIRS, PAIRS[:3]], ids=["mixed", "shared prefix"])
def test_two_batches_abreast_change_nothing_and_let_nobody_pass_meanwhile(
    pairs: list[tuple[str, str]], pico_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[int] = []
    most: list[int] = []

    class Watching(Progress):
        def yield_to_interactive(self) -> None:
            assert not running, "a batch ran while another job could have swapped the weights"

    def enter(*_: object) -> None:
        running.append(1)
        if next(entered) < abreast.parties:  # those that come first wait for each other
            abreast.wait(600)
        most.append(len(running))

    def leave(*_: object) -> None:
        running.pop()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    hooks = [
        pico_loaded.model.register_forward_pre_hook(enter),
        pico_loaded.model.register_forward_hook(leave),
    ]
    found = []
    try:
        for cores in (1, 2):
            most.clear()
            abreast, entered = threading.Barrier(cores), itertools.count()
            monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
            found.append(solution_nll(pico_loaded, pairs, batch_size=1, progress=Watching()))
            assert max(most) == cores
    finally:
        torch.set_num_threads(threads)
        for hook in hooks:
            hook.remove()
    assert (found[0] == found[1]).all()


def test_nll_of_the_same_pair_twice_is_the_same(pico_loaded: LoadedModel) -> None:
    found = solution_nll(pico_loaded, [PAIRS[0], PAIRS[0]])
    np.testing.assert_allclose(found, nll_alone(pico_loaded, *PAIRS[0]), atol=2e-5)


def test_nll_can_be_cancelled(pico_loaded: LoadedModel) -> None:
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        solution_nll(pico_loaded, PAIRS, progress=progress)


def test_logprobs_equal_those_of_each_row_alone(pico_loaded: LoadedModel) -> None:
    rows = pico_loaded.encode([" the prime divisor of 31 and a river", " a", "Problem: é"])
    found = next_token_logprobs(pico_loaded, rows, batch_size=2)
    last = next_token_logprobs(pico_loaded, rows, last=[3, 0, 1])
    for row, logprobs, tail, n in zip(rows, found, last, [3, 0, 1], strict=True):
        alone = pico_loaded.model(input_ids=torch.tensor([row])).logits[0, :-1].log_softmax(-1)
        torch.testing.assert_close(logprobs, alone, atol=2e-5, rtol=0)
        assert tail.shape == (n, alone.shape[1])
        torch.testing.assert_close(tail, alone[len(alone) - n :], atol=2e-5, rtol=0)


def test_kl_is_the_textbook_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(6, 11, generator=generator).log_softmax(-1)
    q = torch.randn(6, 11, generator=generator).log_softmax(-1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    torch.testing.assert_close(kl_per_token(p, q), expected)
    assert kl_per_token(p, p).abs().max() == 0
    assert not torch.equal(kl_per_token(p, q), kl_per_token(q, p))
    certain = torch.tensor([[0.0, -torch.inf]])
    assert float(kl_per_token(certain, torch.tensor([[0.5, 0.5]]).log())) == pytest.approx(np.log(2))
