"""Stacked bars of the memory of each use case, compared with the available memory; formulas on hover."""

import plotly.graph_objects as go

from stethoscope.figures.theme import GRAY, ORANGE, SERIES, apply_layout
from stethoscope.results import MemoryPart, MemoryResult, MemoryStack

GB = 1e9
OF_THEIR_OWN = ("weights", "runtime", "SAEs", "activations", "patch", "directions", "KV cache")


def memory_stacks(result: MemoryResult) -> go.Figure:
    """Return one stacked bar per use case in GB, with lighter evictable parts, and lines at free and total memory."""
    kinds = list(dict.fromkeys(_kind(part.part) for stack in result.stacks for part in _drawn(stack)))
    activities = [stack.activity for stack in result.stacks]
    figure = go.Figure()
    for number, kind in enumerate(kinds):
        found = [[part for part in _drawn(stack) if _kind(part.part) == kind] for stack in result.stacks]
        gives_way = any(part.gives_way for parts in found for part in parts)
        figure.add_trace(
            go.Bar(
                y=activities,
                x=[sum(part.size_bytes for part in parts) / GB if parts else None for parts in found],
                customdata=["<br>".join(map(_line, parts)) for parts in found],
                name=f"{kind} (evictable cache)" if gives_way else kind,
                orientation="h",
                marker={"color": SERIES[number % len(SERIES)], "opacity": 0.35 if gives_way else 1.0},
                hovertemplate=f"%{{y}}: {kind} %{{x:.3g}} GB<br><i>%{{customdata}}</i><extra></extra>",
            )
        )
    lines = {"available": (result.available_bytes, ORANGE, "dash"), "capacity": (result.capacity_bytes, GRAY, "solid")}
    for size_bytes, colour, dash in lines.values():
        figure.add_vline(x=size_bytes / GB, line={"color": colour, "width": 1.5, "dash": dash})
    apply_layout(figure, height=46 * len(activities) + 96, x_title="GB")
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(rangemode="tozero")
    return figure


def _drawn(stack: MemoryStack) -> list[MemoryPart]:
    return [part for part in stack.parts if part.where == "device"]


def _kind(part: str) -> str:
    return part if part in OF_THEIR_OWN else "KV cache" if part == "shared prefix" else "working memory"


def _line(part: MemoryPart) -> str:
    return f"{part.part} {part.size_bytes / GB:.3g} GB: {part.formula}"


def memory_caption(result: MemoryResult) -> str:
    """Return the caption: settings, free and total memory, and what does not fit."""
    short = [stack.activity for stack in result.stacks if not result.fits(stack)]
    said = "Everything fits." if not short else f"Does not fit: {', '.join(short)}."
    host, most = result.host_available_bytes, max(result.stacks, key=lambda stack: stack.host_bytes)
    if host is not None:
        used = f"{most.host_bytes / GB:.1f} GB ({most.activity})"
        said += f" Host memory (not shown): at most {used} of {host / GB:.1f} GB free."
    return (
        f"Estimated before loading: {result.dtype}, {result.edited_layers} layers edited, {result.batch_size} "
        f"prompts per batch. Dashed: {result.available_bytes / GB:.1f} GB free; solid: "
        f"{result.capacity_bytes / GB:.1f} GB total on {result.device} ({result.device_name}). {said}"
    )
