"""Presets and bulk changes of layer strengths, as pure functions that return a new mapping.

A strength is a pair (attention, MLP) that multiplies the master alpha; 1 is the full task vector, 0 is the base.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from stethoscope.records import LayerAlpha

Part = Literal["both", "attention", "mlp"]
Strengths = Mapping[int, LayerAlpha]


def uniform(layers: Iterable[int], value: float = 1.0) -> dict[int, LayerAlpha]:
    """Return `value` for attention and MLP of each of `layers`."""
    return {layer: LayerAlpha(attention=value, mlp=value) for layer in sorted(layers)}


def only(strengths: Strengths, part: Literal["attention", "mlp"]) -> dict[int, LayerAlpha]:
    """Return strength 1 for `part` of each layer and 0 for the other part."""
    kept = LayerAlpha(attention=float(part == "attention"), mlp=float(part == "mlp"))
    return dict.fromkeys(sorted(strengths), kept)


def ramp(layers: Iterable[int], n_layers: int, first: float = 0.0, last: float = 1.0) -> dict[int, LayerAlpha]:
    """Return strengths that rise linearly with depth: first + (last - first) * l / (n_layers - 1).

    LiNeS (Wang et al., arXiv 2410.17146) scales a task vector this way, because shallow layers contain general
    features.
    """
    steps = max(n_layers - 1, 1)
    values = {layer: round(first + (last - first) * layer / steps, 4) for layer in sorted(layers)}
    return {layer: LayerAlpha(attention=value, mlp=value) for layer, value in values.items()}


def assigned(strengths: Strengths, value: float, part: Part = "both") -> dict[int, LayerAlpha]:
    """Return `strengths` with `part` of every layer set to `value`."""
    return {layer: _changed(alpha, value, value, part) for layer, alpha in sorted(strengths.items())}


def multiplied(strengths: Strengths, factor: float, part: Part = "both") -> dict[int, LayerAlpha]:
    """Return `strengths` with `part` of every layer multiplied by `factor`."""
    return {
        layer: _changed(alpha, round(alpha.attention * factor, 4), round(alpha.mlp * factor, 4), part)
        for layer, alpha in sorted(strengths.items())
    }


def _changed(alpha: LayerAlpha, attention: float, mlp: float, part: Part) -> LayerAlpha:
    return LayerAlpha(
        attention=alpha.attention if part == "mlp" else attention, mlp=alpha.mlp if part == "attention" else mlp
    )
