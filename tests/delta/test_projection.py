"""The maths of projection without a model: nested bases, planted edits, norm weights, chance level, ceiling."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stethoscope.delta.projection import (
    Serving,
    cumulative_energy,
    facing_basis,
    inverse_gain,
    layer_basis,
    project_delta,
    serving,
    span_basis,
)
from stethoscope.errors import SaeError
from stethoscope.model.layout import MatrixSite

D, OTHER = 24, 40


def site(matrix: str, layer: int = 3) -> MatrixSite:
    writes = matrix in ("o_proj", "down_proj")
    part = "mlp" if matrix in ("gate_proj", "up_proj", "down_proj") else "attention"
    return MatrixSite(f"{layer}.{matrix}", layer, matrix, part, "write" if writes else "read", "a norm", 1.0)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def oblique_rows(k: int, seed: int = 0) -> Tensor:
    """Rows that are far from orthogonal, as decoder rows are: they share a direction, and their norms differ."""
    rows = normal(k, D, seed=seed) + 3 * normal(1, D, seed=seed + 1)
    return rows * torch.linspace(0.1, 5, k, dtype=torch.float64)[:, None]


def plain_projector(rows: Tensor) -> Tensor:
    """The projector on the span of `rows`, by pseudo-inverse instead of QR."""
    return torch.linalg.pinv(rows) @ rows


# --- the basis -------------------------------------------------------------------------------------------------------


def test_basis_is_orthonormal_and_spans_the_rows() -> None:
    rows = oblique_rows(10)
    basis = span_basis(rows)
    assert basis.Q.dtype == torch.float64
    assert torch.allclose(basis.Q.T @ basis.Q, torch.eye(10, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(basis.Q @ basis.Q.T, plain_projector(rows), atol=1e-10)
    assert (basis.rank_at(4), basis.rank_at(10), basis.rank_at(99), basis.dropped) == (4, 10, 10, 0)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 1e-5)],  # float32 rows and matrices are rounded on the way in
)
def test_every_nested_k_equals_a_projector_of_its_own(dtype: torch.dtype, tolerance: float) -> None:
    rows, matrix = oblique_rows(16), normal(D, OTHER, seed=7)
    kept = cumulative_energy(matrix.to(dtype).double(), span_basis(rows.to(dtype)))
    for k in range(1, 17):
        expected = float((plain_projector(rows[:k]) @ matrix).square().sum() / matrix.square().sum())
        assert float(kept[k] / matrix.square().sum()) == pytest.approx(expected, abs=tolerance)


def test_dependent_rows_are_dropped_counted_and_credited_nothing() -> None:
    rows = oblique_rows(8)
    rows[3] = 2 * rows[0] - rows[1]  # depends on earlier rows
    rows[5] = 0  # a dead latent
    basis = span_basis(rows)
    assert basis.kept == (0, 1, 2, 4, 6, 7)
    assert basis.dropped == 2
    assert [basis.rank_at(k) for k in range(9)] == [0, 1, 2, 3, 3, 4, 4, 5, 6]
    matrix = normal(D, OTHER, seed=7)
    kept = cumulative_energy(matrix, basis)
    for k in range(1, 9):  # the rows after a dropped one still span what they should
        expected = float((plain_projector(rows[:k]) @ matrix).square().sum())
        assert float(kept[basis.rank_at(k)]) == pytest.approx(expected, rel=1e-9)


def test_a_row_that_is_almost_dependent_is_dropped_at_a_thousandth() -> None:
    rows = torch.eye(3, D, dtype=torch.float64)
    for new, expected in ((2e-3, 3), (5e-4, 2)):
        rows[2] = rows[0] + new * torch.eye(3, D, dtype=torch.float64)[2]
        assert len(span_basis(rows).kept) == expected


def test_more_rows_than_dimensions_span_everything_once() -> None:
    basis = span_basis(normal(D + 9, D))
    assert basis.Q.shape == (D, D)
    assert basis.kept == tuple(range(D))
    assert basis.dropped == 9


def test_no_rows_span_nothing() -> None:
    basis = span_basis(torch.zeros(2, D))
    assert basis.Q.shape == (D, 0)
    assert basis.dropped == 2
    assert span_basis(torch.zeros(0, D)).kept == ()


def test_rows_that_do_not_fit_are_refused_with_both_widths() -> None:
    with pytest.raises(SaeError, match=r"\[4, 20\].*width 24"):
        layer_basis(lambda layer: normal(4, 20), 2, D)
    with pytest.raises(SaeError, match="NaN"):
        layer_basis(lambda layer: torch.full((2, D), math.nan), 2, D)
    assert layer_basis(lambda layer: None, 2, D) is None


# --- planted edits ---------------------------------------------------------------------------------------------------

SIDES = [("down_proj", "resid_post"), ("q_proj", "resid_post"), ("o_proj", "attn_out"), ("down_proj", "mlp_out")]


def planted(matrix: str, sae_site: str, *, inside: bool, gain: Tensor, rows: Tensor) -> Tensor:
    """A delta whose image, as the SAE sees it through the gain, lies in the span of `rows` (or orthogonal to it)."""
    projector = plain_projector(rows)
    projector = projector if inside else torch.eye(D, dtype=torch.float64) - projector
    faced = projector @ normal(D, OTHER, seed=5)
    if sae_site != "attn_out":
        faced = faced / gain[:, None]
    return (faced if matrix == "down_proj" else faced.T).float()


def retention(delta: Tensor, matrix: str, sae_site: str, gain: Tensor, rows: Tensor) -> float:
    use = serving(site(matrix), sae_site)  # type: ignore[arg-type]
    assert use is not None
    faced = facing_basis(delta, use, gain)
    return float(cumulative_energy(faced, span_basis(rows))[-1] / faced.square().sum())


@pytest.mark.parametrize(("matrix", "sae_site"), SIDES)
def test_a_planted_edit_is_kept_whole_inside_and_lost_outside(matrix: str, sae_site: str) -> None:
    gain, rows = 1 + 0.3 * normal(D, seed=2), oblique_rows(6)
    inside = planted(matrix, sae_site, inside=True, gain=gain, rows=rows)
    outside = planted(matrix, sae_site, inside=False, gain=gain, rows=rows)
    assert retention(inside, matrix, sae_site, gain, rows) == pytest.approx(1, abs=1e-6)  # deltas are float32
    assert retention(outside, matrix, sae_site, gain, rows) == pytest.approx(0, abs=1e-6)
    project = {"site": site(matrix), "gain": gain, "Q": span_basis(rows).Q, "sae_site": sae_site}
    assert torch.allclose(project_delta(inside, **project), inside, atol=1e-5)
    assert torch.allclose(project_delta(outside, **project), torch.zeros_like(outside), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, D - 1))
def test_inside_and_outside_add_up_to_one(seed: int, k: int) -> None:
    rows, matrix = oblique_rows(k, seed), normal(D, OTHER, seed=seed + 2)
    Q = span_basis(rows).Q
    complement = torch.linalg.qr(Q, mode="complete").Q[:, Q.shape[1] :]
    total = matrix.square().sum()
    inside = (Q.T @ matrix).square().sum() / total
    outside = cumulative_energy(matrix, span_basis(complement.T))[-1] / total
    assert float(inside + outside) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize(("matrix", "sae_site"), SIDES)
def test_projecting_matches_the_formula_and_is_idempotent(matrix: str, sae_site: str) -> None:
    gain, rows, delta = 1 + 0.3 * normal(D, seed=2), oblique_rows(6), normal(D, OTHER, seed=9)
    delta = delta if matrix == "down_proj" else delta.T
    P, G = plain_projector(rows), torch.diag(gain) if sae_site != "attn_out" else torch.eye(D, dtype=torch.float64)
    expected = G.inverse() @ P @ G @ delta if matrix == "down_proj" else delta @ G @ P @ G.inverse()
    project = {"site": site(matrix), "gain": gain, "Q": span_basis(rows).Q, "sae_site": sae_site}
    projected = project_delta(delta.float(), **project)
    assert projected.dtype == torch.float32
    assert torch.allclose(projected.double(), expected, atol=1e-5)
    assert torch.allclose(project_delta(projected, **project), projected, atol=1e-5)


def test_a_gain_near_zero_gets_no_edit_and_is_counted() -> None:
    gain = 1 + 0.1 * normal(D, seed=2)
    gain[4], gain[9] = 1e-5, 0.0
    inverse = inverse_gain(gain)
    assert inverse.n_without_edit == 2
    assert inverse.values[4] == 0
    assert inverse.values[9] == 0
    assert float(inverse.values[0]) == pytest.approx(1 / float(gain[0]))
    delta = normal(D, OTHER, seed=3).float()
    projected = project_delta(delta, site("down_proj"), gain, span_basis(oblique_rows(6)).Q)
    assert projected[4].abs().max() == 0
    assert projected[9].abs().max() == 0
    assert projected.norm() < 2 * delta.norm()  # 1/1e-5 would have made it thousands of times longer


def test_without_a_norm_the_gain_is_the_identity() -> None:
    delta, Q = normal(D, OTHER).float(), span_basis(oblique_rows(5)).Q
    one = project_delta(delta, site("o_proj"), None, Q)
    assert torch.allclose(one, project_delta(delta, site("o_proj"), torch.ones(D), Q))


# --- which SAE serves which matrix -----------------------------------------------------------------------------------


def test_resid_post_serves_its_writers_and_the_next_layers_readers() -> None:
    for matrix in ("o_proj", "down_proj"):
        assert serving(site(matrix), "resid_post") == Serving(3, output_side=True, gain=True)
    for matrix in ("q_proj", "k_proj", "v_proj"):
        assert serving(site(matrix), "resid_post") == Serving(2, output_side=False, gain=True)
        assert serving(site(matrix, layer=0), "resid_post") is None
    for matrix in ("gate_proj", "up_proj"):
        assert serving(site(matrix), "resid_post") == Serving(2, output_side=False, gain=True, approximate=True)
        assert serving(site(matrix, layer=0), "resid_post") is None
    assert serving(site("o_proj", layer=0), "resid_post") == Serving(0, output_side=True, gain=True)


def test_mlp_and_attention_saes_serve_one_matrix_each() -> None:
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert [matrix for matrix in every if serving(site(matrix), "mlp_out")] == ["down_proj"]
    assert serving(site("down_proj"), "mlp_out") == Serving(3, output_side=True, gain=True)
    assert [matrix for matrix in every if serving(site(matrix), "attn_out")] == ["o_proj"]
    assert serving(site("o_proj"), "attn_out") == Serving(3, output_side=False, gain=False)
