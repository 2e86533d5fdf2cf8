"""What each use case holds in memory, stacked against what there is; the formula of each part on hover."""

import plotly.graph_objects as go

from stethoscope.figures.theme import GRAY, ORANGE, SERIES, apply_layout
from stethoscope.results import MemoryResult

GB = 1e9


def memory_stacks(result: MemoryResult) -> go.Figure:
    """Return a stacked bar a use case in GB, parts that give way lighter, and lines at what can be had and at all."""
    names = list(dict.fromkeys(part.part for stack in result.stacks for part in stack.parts))
    activities = [stack.activity for stack in result.stacks]
    figure = go.Figure()
    for number, name in enumerate(names):
        found = {s.activity: part for s in result.stacks for part in s.parts if part.part == name}
        shown = [found.get(activity) for activity in activities]
        gives_way = any(part.gives_way for part in found.values())
        figure.add_trace(
            go.Bar(
                y=activities,
                x=[None if part is None else part.size_bytes / GB for part in shown],
                customdata=["" if part is None else part.formula for part in shown],
                name=f"{name} (gives way)" if gives_way else name,
                orientation="h",
                marker={"color": SERIES[number % len(SERIES)], "opacity": 0.35 if gives_way else 1.0},
                hovertemplate=f"%{{y}}: {name} %{{x:.3g}} GB<br><i>%{{customdata}}</i><extra></extra>",
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


def memory_caption(result: MemoryResult) -> str:
    """Return in words what is drawn, with both lines' numbers and what does not fit."""
    short = [stack.activity for stack in result.stacks if not result.fits(stack)]
    said = "Everything fits." if not short else f"Does not fit: {', '.join(short)}."
    return (
        f"By formula, before anything is loaded: {result.dtype}, {result.edited_layers} layers edited, "
        f"{result.batch_size} prompts at once. Dashed: {result.available_bytes / GB:.1f} GB to be had, solid: "
        f"{result.capacity_bytes / GB:.1f} GB in all on {result.device} ({result.device_name}). {said}"
    )
