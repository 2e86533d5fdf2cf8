"""Convert selections on the heatmap to picked layers: a click toggles a layer, a box adds a range."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from stethoscope.figures.specificity import layers_from_selection


class Pick(NamedTuple):
    """The picked layers in ascending order, and the layer clicked last (None after a box)."""

    layers: tuple[int, ...]
    anchor: int | None


def picked_after(event: object, picked: Collection[int]) -> Pick | None:
    """Return the picked layers after the selection `event` (as passed by Streamlit); None if it contains no layer."""
    clicked = layers_from_selection(event)
    if not clicked:
        return None
    selection = event["selection"] if isinstance(event, Mapping) else {}
    if selection.get("box") or len(clicked) > 1:
        return Pick(tuple(sorted({*picked, *clicked})), None)
    return Pick(tuple(sorted(set(picked) ^ set(clicked))), clicked[0])


def picked_up_to(layer: int, picked: Collection[int], anchor: int | None) -> Pick:
    """Return the picked layers after a shift-click on `layer`: the previous ones and all layers from `anchor` to
    `layer`.

    Without an anchor, `layer` becomes the anchor.
    """
    start = layer if anchor is None else anchor
    return Pick(tuple(sorted({*picked, *range(min(start, layer), max(start, layer) + 1)})), start)
