"""Functional energy and principal components, compared with the second moments that they are computed from."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stethoscope.delta.activity import measure_activity
from stethoscope.delta.projection import gain_of, project_delta, serving, span_basis
from stethoscope.delta.task_vector import TaskVector
from stethoscope.errors import Cancelled
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.model.residual import capture_residual, listen_inputs
from stethoscope.progress import Progress
from stethoscope.records import Site

TEXTS = ("the prime divisor of a river", "a story", "circle and circle and circle of the story", "2 + 3?")
SITES: tuple[Site, ...] = ("resid_post", "attn_out", "mlp_out")


def bases_of(loaded: LoadedModel, rows_of_layer: Callable[[int], Tensor]) -> dict:
    return {layer: span_basis(rows_of_layer(layer)) for layer in range(loaded.layout.n_layers)}


def inputs_of(loaded: LoadedModel, name: str) -> Tensor:
    """Inputs of a matrix over every text's own tokens, one text at a time, in float64."""
    seen: list[Tensor] = []
    with torch.no_grad(), listen_inputs(loaded, [name], lambda _, x: seen.append(x[0, 1:].double())):  # no BOS
        for row in loaded.encode(TEXTS):
            loaded.model(input_ids=torch.tensor([row]))
    return torch.cat(seen)


@pytest.mark.parametrize("fold_gains", [True, False])
@pytest.mark.parametrize("sae_site", SITES)
def test_functional_energy_is_the_trace_of_tau_s_tau(
    loaded: LoadedModel,
    task_vector: TaskVector,
    rows_of_layer: Callable[[int], Tensor],
    sae_site: Site,
    fold_gains: bool,
) -> None:
    bases = bases_of(loaded, rows_of_layer)
    activity = measure_activity(
        loaded,
        task_vector,
        bases,
        loaded.encode(TEXTS),
        n_components=3,
        sae_site=sae_site,
        fold_gains=fold_gains,
        batch_tokens=24,  # several batches, with padding
    )
    served = [site for site in loaded.layout.matrices if serving(site, sae_site) is not None]
    assert set(activity.functional) == {site.name for site in served}
    for site in (site for site in served if site.layer == 2):
        x, tau = inputs_of(loaded, site.name), task_vector.delta(site.name).double()
        assert activity.n_tokens == len(x)
        moment = x.T @ x / len(x)
        functional = activity.functional[site.name]
        assert functional.total == pytest.approx(float((tau @ moment @ tau.T).trace()), rel=1e-5)
        use = serving(site, sae_site)
        assert use is not None
        gain = gain_of(loaded, site) if fold_gains else None
        for rank in (0, 1, 4, 6):  # against the projected edit itself
            Q = bases[use.layer].Q[:, :rank]
            edit = project_delta(tau.float(), site, gain, Q, sae_site=sae_site).double()
            expected = float((edit @ moment @ edit.T).trace())
            assert float(functional.kept[rank]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_components_are_the_top_eigenvectors_of_the_stream(
    loaded: LoadedModel, task_vector: TaskVector, rows_of_layer: Callable[[int], Tensor]
) -> None:
    bases = bases_of(loaded, rows_of_layer)
    components = measure_activity(loaded, task_vector, bases, loaded.encode(TEXTS), n_components=3).components
    tokens: list[Tensor] = []
    with torch.no_grad(), capture_residual(loaded, [1]) as captured:
        for row in loaded.encode(TEXTS):
            loaded.model(input_ids=torch.tensor([row]))
            tokens.append(captured[1][0, 1:].double())
    expected = torch.linalg.svd(torch.cat(tokens)).Vh[:3]
    assert set(components) == set(range(loaded.layout.n_layers))
    assert components[1].shape == (3, 32)
    assert torch.allclose((components[1] * expected).sum(1).abs(), torch.ones(3, dtype=torch.float64), atol=1e-4)


def test_cancel_is_seen(loaded: LoadedModel, task_vector: TaskVector, rows_of_layer: Callable[[int], Tensor]) -> None:
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        measure_activity(
            loaded,
            task_vector,
            bases_of(loaded, rows_of_layer),
            loaded.encode(TEXTS),
            n_components=3,
            progress=progress,
        )
