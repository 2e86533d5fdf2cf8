"""The part of a task vector that a norm cancels, and the part lost to rounding."""

import pytest
import torch
from torch import Tensor

from stethoscope.delta.realised import radial_energy, realise, realised_step, scale_free_rows
from stethoscope.model.loaded_model import LoadedModel


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("sd", "cosine"), [(1e-4, 0.95), (3e-5, 0.74), (1e-5, 0.46)])
def test_bfloat16_realises_small_steps_as_published(sd: float, cosine: float) -> None:
    """Weights of sd .02: the published numbers."""
    weight = (0.02 * normal(400, 500)).bfloat16()
    realised = realised_step(weight, sd * normal(400, 500, seed=1), None)
    assert realised.cosine == pytest.approx(cosine, abs=0.006)
    step = (weight.double() + sd * normal(400, 500, seed=1).double()).bfloat16().double() - weight.double()
    assert realised.norm_ratio == pytest.approx(float(step.norm() / (sd * normal(400, 500, seed=1)).norm()), rel=1e-3)


def test_float32_realises_everything() -> None:
    realised = realised_step(0.02 * normal(40, 50), 1e-4 * normal(40, 50, seed=1), None)
    assert realised.cosine == pytest.approx(1, abs=1e-6)
    assert realised.norm_ratio == pytest.approx(1, abs=1e-4)
    assert realised.radial_share is None


def test_a_step_that_is_nothing_has_no_direction() -> None:
    weight = normal(40, 50).bfloat16()
    nothing = realised_step(weight, torch.zeros(40, 50), 40)
    assert (nothing.cosine, nothing.norm_ratio, nothing.radial_share) == (None, None, None)
    lost = realised_step(weight, 1e-9 * normal(40, 50, seed=1), None)
    assert (lost.cosine, lost.norm_ratio) == (None, 0.0)


def test_radial_energy_is_found_block_by_block() -> None:
    weight, other = normal(12, 10), normal(12, 10, seed=1)
    heads = torch.cat([0.1 * weight[:4], -0.3 * weight[4:8], 0.2 * weight[8:]])
    assert radial_energy(heads, weight, 4) == pytest.approx(float(heads.square().sum()), rel=1e-6)
    assert radial_energy(heads, weight, 12) < 0.5 * float(heads.square().sum())  # not along the matrix as a whole
    along = (other * weight).sum() / weight.square().sum()
    assert radial_energy(other - along * weight, weight, 12) == pytest.approx(0, abs=1e-10)
    assert radial_energy(other, torch.zeros(12, 10), 4) == 0


def test_which_matrices_have_a_scale_that_a_norm_cancels(loaded: LoadedModel) -> None:
    rows = {site.matrix: scale_free_rows(loaded, site) for site in loaded.layout.of_layer(2)}
    assert rows == {
        "q_proj": 8,  # one head
        "k_proj": 8,
        "v_proj": None,
        "o_proj": 32,  # the whole matrix, under the post-norm
        "gate_proj": None,
        "up_proj": None,
        "down_proj": 32,
    }


@pytest.mark.parametrize("matrix", ["q_proj", "k_proj", "o_proj", "down_proj"])
def test_the_radial_part_does_nothing_to_the_model(loaded: LoadedModel, matrix: str) -> None:
    """Scaling a block leaves the logits unchanged (up to the norm's epsilon); another step does not."""
    site = next(site for site in loaded.layout.of_layer(1) if site.matrix == matrix)
    rows = scale_free_rows(loaded, site)
    assert rows is not None
    parameter = loaded.parameter(site.name)
    kept, ids = parameter.data, torch.arange(5, 25)[None]
    scales = 1 + 0.3 * torch.arange(len(kept) // rows).repeat_interleave(rows)[:, None]
    radial = (0.2 * scales * kept).clone()
    step = normal(*kept.shape)

    def moved_by(delta: Tensor) -> float:
        try:
            parameter.data = kept + delta
            return float((loaded.model(input_ids=ids).logits - before).abs().max())
        finally:
            parameter.data = kept

    with torch.no_grad():
        before = loaded.model(input_ids=ids).logits
        assert realise(loaded, site, kept, radial).radial_share == pytest.approx(1, abs=1e-6)
        assert moved_by(radial) < 2e-4 * moved_by(step * radial.norm() / step.norm())
