"""Setup: estimated memory of each use case, and advice if it does not fit."""

import streamlit as st

from screens.shared import jobs, ui, watch
from stethoscope.figures.memory import memory_caption, memory_stacks
from stethoscope.locations import EMBEDDED_PREFIX
from stethoscope.profiles import Profile
from stethoscope.records import MemorySpec
from stethoscope.results import MemoryResult
from stethoscope.results.memory import cards_text


def card(profile: Profile) -> None:
    """Compute the memory of the profile's model and SAEs and draw the bars; nothing is loaded.

    For a model that is neither included nor loaded, a button is needed, because its config.json may have to be
    downloaded.
    """
    with ui.card("Memory", key="memory-card"):
        spec = MemorySpec(model=profile.model, saes=profile.saes, documents=profile.documents)
        title = f"Sizes of {profile.title}"
        here = profile.model.id.startswith(EMBEDDED_PREFIX) or jobs.loaded() is not None
        said = "Estimated from config.json and the SAEs' settings (downloaded if missing). Weights are not downloaded."
        if not here and not watch.asked_for("memory", spec, said, "Does it fit?"):
            return
        view = jobs.ask("memory", spec, title=title, loads=False)
        watch.standing(view, "memory", "Compute the sizes")
        if isinstance(view.result, MemoryResult) and not view.stale:
            draw(view.result)


def draw(result: MemoryResult) -> None:
    """Draw the figure, its numbers, and advice for each use case that does not fit."""
    rows = [{"activity": stack.activity, **part.model_dump()} for stack in result.stacks for part in stack.parts]
    ui.chart(memory_stacks(result), key="memory-stacks", caption=memory_caption(result), rows=rows)
    st.caption(ui.escape(cards_text(result)))
    for stack in result.stacks:
        if stack.advice:
            st.warning(ui.escape(f"{stack.activity.capitalize()}: {stack.advice}"))
