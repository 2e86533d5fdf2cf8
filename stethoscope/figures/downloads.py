"""Download plan: one bar per part of the profile, showing what is here and what is missing."""

import plotly.graph_objects as go

from stethoscope.figures.theme import BLUE, GRAY, ORANGE, apply_layout
from stethoscope.formatting import counted, size_text
from stethoscope.results import DownloadPart, DownloadResult


def download_bars(result: DownloadResult) -> go.Figure:
    """Return one bar per part, in GB or (if all are small) MB: here, and to download; numbers on hover."""
    listed = [part for part in result.parts if part.files]
    names = [part.part for part in listed]
    widest = max((part.size_bytes for part in listed), default=1)
    unit, scale = ("GB", 1e9) if widest >= 1e8 else ("MB", 1e6)
    figure = go.Figure()
    for title, colour, sizes in (
        ("on this machine", BLUE, [part.size_bytes - part.missing_bytes for part in listed]),
        ("to download", ORANGE, [part.missing_bytes for part in listed]),
    ):
        figure.add_trace(
            go.Bar(
                y=names,
                x=[size / scale for size in sizes],
                customdata=[
                    [size_text(size), part.location, len(part.files)] for size, part in zip(sizes, listed, strict=True)
                ],
                name=title,
                orientation="h",
                marker={"color": colour},
                hovertemplate=f"%{{y}}, {title}: %{{customdata[0]}}<br>"
                "%{customdata[1]}, %{customdata[2]} files<extra></extra>",
            )
        )
    for part in listed:
        figure.add_annotation(
            x=part.size_bytes / scale,
            y=part.part,
            text=size_text(part.size_bytes),
            showarrow=False,
            xanchor="left",
            xshift=4,
            font={"color": GRAY, "size": 12},
        )
    apply_layout(figure, height=38 * len(listed) + 84, x_title=unit)
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(range=[0, 1.22 * widest / scale])  # space for the number after the longest bar
    return figure


def download_rows(result: DownloadResult) -> list[dict[str, object]]:
    """Return one row per part for a table and a file: name, source, sizes and access."""
    return [
        {
            "part": part.part,
            "repository": part.location,
            "revision": part.revision,
            "files": len(part.files) or None,
            "size_bytes": part.size_bytes if part.files else None,
            "to_fetch_bytes": part.missing_bytes if part.files else None,
            "access": _access(part),
        }
        for part in result.parts
    ]


def _access(part: DownloadPart) -> str:
    if part.refusal is not None:
        return "refused"
    return "yes" if part.missing_bytes else "all here"


def download_caption(result: DownloadResult) -> str:
    """Return the caption: size of the download, total size, and free disk space."""
    unknown = [part.part for part in result.parts if not part.files]
    n_files = sum(len(part.files) for part in result.parts)
    parts = []
    if n_files:
        sizes = counted(result.missing_bytes, result.size_bytes, "B")
        parts.append(f"{sizes} to download, {n_files} files in total;")
    parts.append(f"{size_text(result.free_bytes)} free at {result.cache}.")
    if not result.fits:
        parts.append("The disk is too small: set HF_HOME to a folder on another disk.")
    if unknown:
        parts.append(f"Not included, because the files could not be listed: {', '.join(unknown)}.")
    if result.offline:
        parts.append("HF_HUB_OFFLINE is set: missing files cannot be downloaded.")
    return " ".join(parts)
