"""Reference values next to retention: other spans, directions, functional energy, and undefined cases."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stethoscope.delta.activity import FunctionalEnergy
from stethoscope.delta.energy import EnergyTable, energy_cells
from stethoscope.delta.parts import LayerSpectra, References
from stethoscope.delta.projection import facing_basis, gain_of, serving
from stethoscope.delta.realised import realise
from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.records import TaskVectorRef
from stethoscope.results import EnergyCell

Rows = Callable[[int], Tensor]
KS = (2, 6)


def none(layer: int) -> Tensor | None:
    return None


def cell_of(table: EnergyTable, layer: int, matrix: str, k: int) -> EnergyCell:
    rows = table.layers if matrix == "all" else table.cells
    return next(cell for cell in rows if (cell.layer, cell.matrix, cell.k) == (layer, matrix, k))


def top_directions(loaded: LoadedModel, task_vector: TaskVector, matrix: str) -> Rows:
    """Rows that are the best possible span for one matrix: a reference that must reach the ceiling."""

    def rows(layer: int) -> Tensor:
        site = next(site for site in loaded.layout.of_layer(layer) if site.matrix == matrix)
        use = serving(site, "resid_post")
        assert use is not None
        faced = facing_basis(task_vector.delta(site.name), use, gain_of(loaded, site))
        return torch.linalg.svd(faced).U.T[:6]

    return rows


def test_each_reference_is_measured_with_its_own_rows_at_the_same_rank(
    loaded: LoadedModel, task_vector: TaskVector, rows_of_layer: Rows
) -> None:
    draws = tuple(lambda layer, draw=draw: rows_of_layer(100 * draw + layer) for draw in (1, 2, 3))
    table = energy_cells(
        loaded,
        task_vector,
        rows_of_layer,
        KS,
        "algebra",
        references=References(
            components=top_directions(loaded, task_vector, "down_proj"),
            control=lambda layer: rows_of_layer(layer)[:3],
            encoder=lambda layer: rows_of_layer(50 + layer),
            random=draws,
        ),
    )
    alone = {draw: energy_cells(loaded, task_vector, rows, KS, "algebra") for draw, rows in enumerate(draws)}
    encoder = energy_cells(loaded, task_vector, lambda layer: rows_of_layer(50 + layer), KS, "algebra")
    for layer, matrix in ((2, "down_proj"), (2, "q_proj"), (3, "all"), (0, "all")):
        for k in KS:
            cell = cell_of(table, layer, matrix, k)
            random = [cell_of(alone[draw], layer, matrix, k).retention for draw in alone]
            assert cell.random_mean == pytest.approx(sum(random) / 3)  # type: ignore[arg-type]
            assert (cell.random_low, cell.random_high) == (min(random), max(random))  # type: ignore[type-var]
            assert cell.control == (pytest.approx(cell.retention) if k == 2 else None), "three rows have no rank 6"
    for k in KS:
        best = cell_of(table, 2, "down_proj", k)
        assert best.components == pytest.approx(best.ceiling)
        assert best.components is not None
        assert best.retention is not None
        assert best.components > best.retention
        assert best.encoder is None, "the encoder reads; down_proj writes"
        assert cell_of(table, 2, "q_proj", k).encoder == pytest.approx(cell_of(encoder, 2, "q_proj", k).retention)
        assert cell_of(table, 0, "all", k).encoder is None, "no reader of layer 0 has an SAE"
        mixed = cell_of(table, 3, "all", k)  # readers by the encoder, writers by the decoder
        assert mixed.encoder is not None
        assert mixed.encoder not in (mixed.retention, cell_of(encoder, 3, "all", k).retention)


def test_missing_references_are_none_and_change_nothing(
    loaded: LoadedModel, task_vector: TaskVector, rows_of_layer: Rows
) -> None:
    plain = energy_cells(loaded, task_vector, rows_of_layer, KS, "algebra")
    missing = References(components=none, control=none, encoder=none, random=(none, rows_of_layer))
    table = energy_cells(loaded, task_vector, rows_of_layer, KS, "algebra", references=missing)
    names = ("components", "control", "encoder", "random_mean", "random_low", "random_high", "functional_share")
    for cell in (*plain.cells, *plain.layers, *table.cells, *table.layers):
        seen = [getattr(cell, name) for name in names]
        assert seen[:3] == [None] * 3
        assert cell.functional_share is None
    assert [cell.retention for cell in table.layers] == [cell.retention for cell in plain.layers]


def test_principal_angles_functional_energy_and_what_is_realised_stand_in_the_table(
    loaded: LoadedModel, task_vector: TaskVector, rows_of_layer: Rows
) -> None:
    functional = {
        site.name: FunctionalEnergy(10.0 + i, torch.linspace(0, 5 + i % 3, 7, dtype=torch.float64))
        for i, site in enumerate(loaded.layout.matrices)
    }
    rows = top_directions(loaded, task_vector, "down_proj")
    table = energy_cells(loaded, task_vector, rows, KS, "algebra", functional=functional)
    down = cell_of(table, 2, "down_proj", 6)
    assert down.principal_cos2 == pytest.approx(1), "the span is the matrix' own top directions"
    assert down.principal_null == pytest.approx(8 / 32)
    assert down.n_directions == 8
    site = next(site for site in loaded.layout.of_layer(2) if site.matrix == "down_proj")
    measured = functional[site.name]
    assert down.functional_energy == measured.total
    assert down.functional_share == pytest.approx(float(measured.kept[6]) / measured.total)
    realised = realise(loaded, site, task_vector.origin(site.name), task_vector.delta(site.name))
    assert down.radial_share == realised.radial_share
    assert (down.realised_cosine, down.realised_norm_ratio) == (realised.cosine, realised.norm_ratio)
    assert cell_of(table, 2, "v_proj", 6).radial_share is None
    layer = cell_of(table, 2, "all", 6)
    parts = [cell for cell in table.cells if (cell.layer, cell.k) == (2, 6)]
    low, high = min(cell.functional_share or 0 for cell in parts), max(cell.functional_share or 0 for cell in parts)
    assert layer.functional_energy is None, "outputs of different matrices do not add up"
    assert layer.functional_share is not None
    assert low < layer.functional_share < high
    assert layer.radial_share is not None
    assert layer.percentile is not None
    assert 0 <= layer.percentile <= 1


def test_no_latents_and_too_few_are_said(loaded: LoadedModel, task_vector: TaskVector, rows_of_layer: Rows) -> None:
    def rows(layer: int) -> Tensor:
        found = rows_of_layer(layer).clone()
        found[2] = found[0] + found[1]
        return found[:0] if layer == 3 else found

    references = References(rows_of_layer, rows_of_layer, rows_of_layer, (rows_of_layer,))
    functional = {
        site.name: FunctionalEnergy(1.0, torch.zeros(7, dtype=torch.float64)) for site in loaded.layout.matrices
    }
    table = energy_cells(loaded, task_vector, rows, (2, 4, 50), "algebra", references=references, functional=functional)
    empty = cell_of(table, 3, "down_proj", 4)
    assert (empty.rank, empty.n_latents, empty.n_dropped, empty.null_mean) == (0, 0, 0, 0)
    undefined = (
        "retention",
        "enrichment",
        "z",
        "percentile",
        "components",
        "control",
        "encoder",
        "random_mean",
        "principal_cos2",
        "functional_share",
    )
    assert {name: getattr(empty, name) for name in undefined} == dict.fromkeys(undefined)
    assert [(cell.k, cell.rank, cell.n_latents, cell.n_dropped) for cell in table.layers if cell.layer == 2] == [
        (2, 2, 2, 0),
        (4, 3, 4, 1),
        (50, 5, 6, 1),
    ]
    half = cell_of(table, 3, "all", 4)  # its readers have the SAE of layer 2, its writers none that spans
    assert half.retention is not None
    assert half.rank < 3


def test_a_task_vector_of_zeros_is_undefined_and_never_nan(
    loaded: LoadedModel, pico_folder: Path, rows_of_layer: Rows
) -> None:
    same = open_task_vector(TaskVectorRef(name="same", tuned=str(pico_folder)), loaded)
    functional = {
        site.name: FunctionalEnergy(0.0, torch.zeros(7, dtype=torch.float64)) for site in loaded.layout.matrices
    }
    references = References(rows_of_layer, rows_of_layer, rows_of_layer, (rows_of_layer,))
    table = energy_cells(loaded, same, rows_of_layer, KS, "algebra", references=references, functional=functional)
    for cell in (*table.cells, *table.layers):  # NaN cannot be built into a record
        defined = {name for name, value in cell.model_dump().items() if value is not None}
        assert defined == {
            "layer",
            "matrix",
            "subject",
            "k",
            "rank",
            "d",
            "null_mean",
            "approximate",
            "n_latents",
            "n_dropped",
            "n_directions",
        }
        assert cell.n_directions == 0


def test_spectra_are_factorised_once_for_every_subject(
    loaded: LoadedModel, task_vector: TaskVector, rows_of_layer: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, LayerSpectra] = {}

    def spectra_of(key: str, make: Callable[[], LayerSpectra]) -> LayerSpectra:
        if key not in kept:
            kept[key] = make()
        return kept[key]

    first = energy_cells(loaded, task_vector, rows_of_layer, KS, "algebra", spectra_of=spectra_of)
    plain = energy_cells(loaded, task_vector, rows_of_layer, KS, "algebra", fold_gains=False, spectra_of=spectra_of)
    assert plain == energy_cells(loaded, task_vector, rows_of_layer, KS, "algebra", fold_gains=False)
    assert plain != first
    assert all(spectra.size_bytes > 0 for spectra in kept.values())
    monkeypatch.setattr("stethoscope.delta.parts.spectrum_of", lambda _: pytest.fail("factorised again"))
    again = energy_cells(loaded, task_vector, rows_of_layer, KS, "algebra", spectra_of=spectra_of)
    assert again == first
    other = energy_cells(
        loaded, task_vector, lambda layer: rows_of_layer(layer + 9), KS, "geometry", spectra_of=spectra_of
    )
    assert [cell.ceiling for cell in other.layers] == [cell.ceiling for cell in first.layers]
