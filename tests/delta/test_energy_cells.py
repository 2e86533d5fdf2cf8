"""Energy of a whole model: planted task vectors, the figure by layer, chance level and ceiling of projections."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stethoscope.delta.energy import EnergyTable, energy_cells
from stethoscope.delta.projection import (
    cumulative_energy,
    facing_basis,
    gain_of,
    serving,
    span_basis,
)
from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.errors import Cancelled, SaeError
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.progress import Progress
from stethoscope.records import TaskVectorRef

Rows = Callable[[int], Tensor]
KS = (1, 2, 3, 6)


def planted(loaded: LoadedModel, make_pico: Callable[..., Path], rows: Rows, *, inside: bool) -> EnergyTable:
    """Measure a fine-tune in which every matrix changes inside the span of its SAE's rows (or orthogonally to it)."""

    def move(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(9)
        for site in loaded.layout.matrices:
            parameter = model.get_parameter(site.name)
            noise = torch.randn(parameter.shape, generator=generator)
            reads = site.side == "read"
            d = 32
            Q = span_basis(rows(max(site.layer - reads, 0))).Q.float()
            projector = Q @ Q.T if inside else torch.eye(d) - Q @ Q.T
            gain = gain_of(loaded, site)
            assert gain is not None
            edit = noise @ projector / gain if reads else projector @ noise / gain[:, None]
            parameter.add_(0.1 * edit)

    folder = make_pico(move)
    task_vector = open_task_vector(TaskVectorRef(name="planted", tuned=str(folder)), loaded)
    return energy_cells(loaded, task_vector, rows, KS, "algebra")


def test_a_planted_task_vector_is_kept_whole_inside_and_lost_outside(
    loaded: LoadedModel, make_pico: Callable[..., Path], rows_of_layer: Rows
) -> None:
    for inside, expected in ((True, 1.0), (False, 0.0)):
        cells, layers = planted(loaded, make_pico, rows_of_layer, inside=inside)
        full = [cell for cell in (*cells, *layers) if cell.k == 6]
        assert len(full) == 7 * 4 - 5 + 4
        for cell in full:
            assert cell.retention == pytest.approx(expected, abs=1e-5)  # the weights are float32
            assert cell.rank == 6
            assert cell.null_mean == pytest.approx(6 / 32)
            assert cell.ceiling is not None
            assert cell.retention is not None
            assert cell.retention <= cell.ceiling + 1e-9
            assert cell.enrichment == pytest.approx(cell.retention / (6 / 32))


def test_cells_and_layers_are_what_the_formulas_say(
    loaded: LoadedModel, task_vector: TaskVector, rows_of_layer: Rows
) -> None:
    cells, layers = energy_cells(loaded, task_vector, rows_of_layer, KS, "algebra")
    by_place = {(cell.layer, cell.matrix, cell.k): cell for cell in cells}
    for layer_cell in layers:
        kept, stacked = 0.0, []
        for site in loaded.layout.of_layer(layer_cell.layer):
            use = serving(site, "resid_post")
            if use is None:
                assert (site.layer, site.matrix, layer_cell.k) not in by_place
                continue
            faced = facing_basis(task_vector.delta(site.name), use, gain_of(loaded, site))
            stacked.append(faced)
            energy = float(cumulative_energy(faced, span_basis(rows_of_layer(use.layer)[: layer_cell.k]))[-1])
            kept += energy
            cell = by_place[site.layer, site.matrix, layer_cell.k]
            assert cell.retention == pytest.approx(energy / float(faced.square().sum()), abs=1e-10)
            squares = torch.linalg.svdvals(faced).square()
            assert cell.ceiling == pytest.approx(float(squares[: layer_cell.k].sum() / squares.sum()), abs=1e-9)
            assert cell.approximate is (site.matrix in ("gate_proj", "up_proj"))
            assert cell.d == 32
        whole = torch.cat(stacked, dim=1)  # along the residual axis
        squares = torch.linalg.svdvals(whole).square()
        d, r = 32, layer_cell.k
        concentration = float(squares.square().sum() / squares.sum().square())
        variance = 2 * r * (d - r) / (d * (d - 1) * (d + 2)) * (concentration - 1 / d)
        assert layer_cell.matrix == "all"
        assert layer_cell.retention == pytest.approx(kept / float(whole.square().sum()), abs=1e-10)
        assert layer_cell.null_mean == pytest.approx(r / d)
        assert layer_cell.null_sd == pytest.approx(variance**0.5, rel=1e-9)
        assert layer_cell.z is not None
        assert layer_cell.retention is not None
        assert layer_cell.z == pytest.approx((layer_cell.retention - r / d) / variance**0.5, rel=1e-6)
        shared = float(squares[:r].sum() / squares.sum())  # one subspace for all; here readers have their own
        assert layer_cell.ceiling is not None
        assert layer_cell.ceiling >= shared - 1e-12
        if layer_cell.layer == 0:
            assert layer_cell.ceiling == pytest.approx(shared, abs=1e-9)
            assert not layer_cell.approximate


def test_mlp_and_attention_saes_measure_one_matrix_a_layer(
    loaded: LoadedModel, task_vector: TaskVector, rows_of_layer: Rows
) -> None:
    for sae_site, matrix in (("mlp_out", "down_proj"), ("attn_out", "o_proj")):
        cells, layers = energy_cells(loaded, task_vector, rows_of_layer, KS, "algebra", sae_site=sae_site)
        assert {cell.matrix for cell in cells} == {matrix}
        assert len(cells) == len(layers) == 4 * len(KS)
        assert [cell.retention for cell in cells] == [cell.retention for cell in layers]
    delta = task_vector.delta(loaded.layout.of_layer(2)[3].name).double()
    Q = span_basis(rows_of_layer(2)).Q
    expected = float((delta @ Q).square().sum() / delta.square().sum())  # o_proj's input side, no gain
    assert [cell.retention for cell in cells if (cell.layer, cell.k) == (2, 6)] == [pytest.approx(expected, abs=1e-10)]


def test_gains_matter_and_can_be_left_out(loaded: LoadedModel, task_vector: TaskVector, rows_of_layer: Rows) -> None:
    folded = energy_cells(loaded, task_vector, rows_of_layer, (6,), "algebra").cells
    plain = energy_cells(loaded, task_vector, rows_of_layer, (6,), "algebra", fold_gains=False).cells
    name = loaded.layout.of_layer(2)[6].name
    delta, Q = task_vector.delta(name).double(), span_basis(rows_of_layer(2)).Q
    down = next(cell for cell in plain if (cell.layer, cell.matrix) == (2, "down_proj"))
    assert down.retention == pytest.approx(float((Q.T @ delta).square().sum() / delta.square().sum()), abs=1e-10)
    differences = [abs(a.retention - b.retention) for a, b in zip(folded, plain, strict=True)]  # type: ignore[operator]
    assert max(differences) > 0.01


def test_layers_that_the_fine_tune_left_alone_are_undefined(
    loaded: LoadedModel, pico_folder: Path, rows_of_layer: Rows
) -> None:
    same = open_task_vector(TaskVectorRef(name="same", tuned=str(pico_folder)), loaded)
    for cell in energy_cells(loaded, same, rows_of_layer, (3,), "algebra").layers:
        assert (cell.retention, cell.enrichment, cell.z, cell.ceiling, cell.null_sd) == (None,) * 5
        assert cell.null_mean == pytest.approx(3 / 32)


def test_dropped_rows_lower_the_rank_and_missing_saes_leave_a_gap(
    loaded: LoadedModel, task_vector: TaskVector, rows_of_layer: Rows
) -> None:
    def rows(layer: int) -> Tensor | None:
        if layer == 1:
            return None
        found = rows_of_layer(layer).clone()
        found[1] = found[0]
        return found

    cells, layers = energy_cells(loaded, task_vector, rows, (2, 6, 50), "algebra")
    assert {(cell.layer, cell.matrix) for cell in cells if cell.layer in (1, 2)} == {
        (1, matrix) for matrix in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    } | {(2, "o_proj"), (2, "down_proj")}
    assert [cell.rank for cell in layers if cell.layer == 3] == [1, 5, 5]


def test_rows_that_do_not_fit_and_cancel(loaded: LoadedModel, task_vector: TaskVector, rows_of_layer: Rows) -> None:
    with pytest.raises(SaeError, match="width 32"):
        energy_cells(loaded, task_vector, lambda layer: torch.randn(2, 8), KS, "algebra")

    class CancelAtTwo(Progress):
        def advance(self, items: int = 1) -> None:
            super().advance(items)
            if self.done == 2:
                self.cancel()

    progress = CancelAtTwo()
    with pytest.raises(Cancelled, match="2 of 4"):
        energy_cells(loaded, task_vector, rows_of_layer, KS, "algebra", progress)
