"""What a task vector moves, for tests that need no model: every matrix of every layer, or of some."""

from collections.abc import Iterable

from stethoscope.results import Ground, MovedWeights


def ground(n_layers: int, moved: Iterable[int] | None = None, saes: Iterable[int] | None = None) -> Ground:
    """Return the ground of a Gemma-like model; by default the task vector moves all layers, and all have an SAE."""
    rows = (
        ("attention", "read", "q_proj k_proj v_proj"),
        ("attention", "write", "o_proj"),
        ("mlp", "read", "gate_proj up_proj"),
        ("mlp", "write", "down_proj"),
        ("attention", "norm", "input_layernorm"),
        ("mlp", "norm", "pre_feedforward_layernorm"),
    )
    layers = range(n_layers)
    return Ground(
        n_layers=n_layers,
        moved=tuple(
            MovedWeights(layer=layer, part=part, side=side, names=tuple(names.split()))
            for layer in (layers if moved is None else moved)
            for part, side, names in rows
        ),
        outer=moved is None,
        sae_layers=tuple(layers if saes is None else saes),
    )
