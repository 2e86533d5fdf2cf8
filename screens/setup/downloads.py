"""Setup: download plan with sizes, and what is already here."""

import pandas as pd
import streamlit as st

from screens.shared import jobs, ui, watch
from stethoscope.figures.downloads import download_bars, download_caption, download_rows
from stethoscope.formatting import size_text
from stethoscope.locations import local_path
from stethoscope.profiles import Profile
from stethoscope.records import DownloadSpec
from stethoscope.results import DownloadResult


def card(profile: Profile) -> None:
    """Offer the download plan of a profile with parts on the hub; no card if everything is local.

    The plan is requested with a button, and updated after "Load the model".
    """
    spec = DownloadSpec(
        model=profile.model, saes=profile.saes, task_vectors=profile.task_vectors, problems=profile.problems
    )
    if not _on_hub(spec):
        return
    with ui.card("Download", key="download-card"):
        said = "Lists the names and sizes of the files on the hub without downloading them."
        if not watch.asked_for("download", spec, said, "What would be downloaded?"):
            return
        view = jobs.ask("download", spec, title=f"Listing {profile.title}", loads=False)
        watch.standing(view, "download", "Query the hub")
        if isinstance(view.result, DownloadResult) and not view.stale:
            draw(view.result)
            st.button("Refresh", key="download-again", type="tertiary", on_click=jobs.forget, args=("download",))


def draw(result: DownloadResult) -> None:
    """Draw one banner for each error, the sizes by part, and all files in an expander."""
    for refusal in result.refusals:
        ui.banner(refusal)
    files = [
        {"part": part.part, "file": file.name, "size_bytes": file.size_bytes, "here": file.here}
        for part in result.parts
        for file in part.files
    ]
    if not files:
        st.caption(ui.escape(download_caption(result)))
        return
    rows, caption = download_rows(result), download_caption(result)
    ui.chart(download_bars(result), key="downloads", caption=caption, rows=rows, more={"Files": files})
    with st.expander(f"All {len(files)} files", key="download-files"):
        table = pd.DataFrame(
            [
                {
                    "part": file["part"],
                    "file": file["file"],
                    "size": size_text(file["size_bytes"]),
                    "here": "yes" if file["here"] else "no",
                }
                for file in files
            ]
        )
        ui.table(table, key="download-table", alt="Files by part, with sizes and what is already here")


def _on_hub(spec: DownloadSpec) -> bool:
    named = [spec.model.id, *(ref.tuned for ref in spec.task_vectors)]
    named += [] if spec.saes is None else [spec.saes.location]
    if spec.problems is not None:
        named += [place for place in (spec.problems.problems, spec.problems.controls) if place is not None]
    return any(local_path(place) is None for place in named)
