"""First-order effects equal autograd's <dNLL/dW, tau> per text and finite differences, without side effects."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stethoscope.errors import Cancelled, CheckpointError
from stethoscope.minerva.prompts import few_shot_prompt
from stethoscope.model.gradients import first_order_effects
from stethoscope.model.likelihood import solution_nll
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.progress import Progress
from stethoscope.records import ModelRef

SHOTS = [("What is the prime divisor of 35?", "5 and 7.")]
PAIRS = [
    (few_shot_prompt("A story?", SHOTS), "the river and the circle of 12."),
    (few_shot_prompt("What is 3 and 4, the prime and the divisor?", SHOTS), "7"),
    (few_shot_prompt("?", SHOTS), "é is the story and the prime divisor of the river " * 2),
    ("no frame", "the end"),
]


def random_tau(loaded: LoadedModel, seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        site.name: 0.05 * torch.randn(loaded.parameter(site.name).shape, generator=generator)
        for site in loaded.layout.matrices
    }


def hooks_of(loaded: LoadedModel) -> int:
    return sum(len(module._forward_hooks) + len(module._backward_hooks) for module in loaded.model.modules())


def autograd_effects(loaded: LoadedModel, tau: dict[str, torch.Tensor]) -> np.ndarray:
    """One plain backward pass per text, with gradients of the weights."""
    effects = np.zeros((len(PAIRS), loaded.layout.n_layers))
    weights = {name: loaded.parameter(name) for name in tau}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        for row, (prompt, solution) in enumerate(PAIRS):
            ids = torch.tensor(loaded.encode([f"{prompt} {solution}"]))
            n = ids.shape[1] - len(loaded.encode([prompt])[0])
            logits = loaded.model(input_ids=ids).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits[-n:].float(), ids[0, -n:])
            found = torch.autograd.grad(loss, list(weights.values()))
            for (name, _), gradient in zip(weights.items(), found, strict=True):
                effects[row, loaded.layout.site(name).layer] += float((gradient.float() * tau[name]).sum())
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    return effects


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_effects_are_autograds_inner_products_text_by_text(pico_loaded: LoadedModel, batch_size: int) -> None:
    tau = random_tau(pico_loaded)
    progress = Progress()
    progress.start("gradients", len(PAIRS))
    found = first_order_effects(pico_loaded, PAIRS, tau.__getitem__, batch_size=batch_size, progress=progress)
    expected = autograd_effects(pico_loaded, tau)
    assert np.abs(expected).min() > 1e-4
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-5)  # float32 through four layers
    assert progress.done == len(PAIRS)


def test_effects_agree_with_a_finite_difference(pico_loaded: LoadedModel) -> None:
    tau, step = random_tau(pico_loaded), 2e-3
    found = first_order_effects(pico_loaded, PAIRS, tau.__getitem__)
    for layer in range(pico_loaded.layout.n_layers):
        sides = []
        for sign in (1, -1):
            names = [site.name for site in pico_loaded.layout.of_layer(layer)]
            originals = {name: pico_loaded.parameter(name).data for name in names}
            try:
                for name in names:
                    pico_loaded.parameter(name).data = originals[name] + sign * step * tau[name]
                sides.append(solution_nll(pico_loaded, PAIRS))
            finally:
                for name in names:
                    pico_loaded.parameter(name).data = originals[name]
        difference = (sides[0] - sides[1]) / (2 * step)
        np.testing.assert_allclose(found[:, layer], difference, rtol=0.03, atol=5e-3)  # float32 NLL over 4e-3


def test_nothing_is_left_behind(pico_loaded: LoadedModel) -> None:
    before, hooks = pico_loaded.checksum(), hooks_of(pico_loaded)
    first_order_effects(pico_loaded, PAIRS, random_tau(pico_loaded).__getitem__)
    assert pico_loaded.checksum() == before
    assert hooks_of(pico_loaded) == hooks
    assert all(p.grad is None and not p.requires_grad for p in pico_loaded.model.parameters())


def test_nothing_is_left_behind_by_a_failure_or_a_cancel(pico_loaded: LoadedModel) -> None:
    hooks = hooks_of(pico_loaded)

    def broken(name: str) -> torch.Tensor:
        raise CheckpointError(f"cannot read {name}")

    with pytest.raises(CheckpointError, match="cannot read"):
        first_order_effects(pico_loaded, PAIRS, broken)
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        first_order_effects(pico_loaded, PAIRS, random_tau(pico_loaded).__getitem__, progress=progress)
    assert hooks_of(pico_loaded) == hooks


def test_no_weight_gets_a_gradient_even_in_between(pico_loaded: LoadedModel) -> None:
    """Memory is limited to one tau matrix: tau is read once per matrix and batch, and weights never have a gradient."""
    tau, read = random_tau(pico_loaded), []

    def reading(name: str) -> torch.Tensor:
        assert all(p.grad is None and not p.requires_grad for p in pico_loaded.model.parameters())
        read.append(name)
        return tau[name]

    first_order_effects(pico_loaded, PAIRS, reading, batch_size=8)
    assert sorted(read) == sorted(tau)


def test_bfloat16_is_close_to_float32(pico_loaded: LoadedModel, pico_folder: Path) -> None:
    tau = random_tau(pico_loaded)
    low = load_checkpoint(ModelRef(id=str(pico_folder), dtype="bfloat16"), device="cpu")
    before = low.checksum()
    found = first_order_effects(low, PAIRS, tau.__getitem__)
    exact = first_order_effects(pico_loaded, PAIRS, tau.__getitem__)
    assert low.checksum() == before
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.97  # eight bits of mantissa


def test_a_gradient_that_is_not_finite_is_told(make_pico: Callable[..., Path]) -> None:
    loaded = load_checkpoint(ModelRef(id=str(make_pico())), device="cpu")
    tau = {name: torch.full_like(delta, torch.inf) for name, delta in random_tau(loaded).items()}
    with pytest.raises(CheckpointError, match="not finite"):
        first_order_effects(loaded, PAIRS, tau.__getitem__)
