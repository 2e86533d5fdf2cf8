"""Stethoscope: navigation and status strip. Every screen is a folder in screens/."""

from pathlib import Path

import streamlit as st

from screens import links
from screens.shared import jobs, mirror, session, status, ui, watch

HERE = Path(__file__).parent
LOGO = str(HERE / "static" / "logo.svg")

st.set_page_config(page_title="Stethoscope", page_icon=LOGO, layout="wide")
st.logo(LOGO, size="large")
st.html(ui.STYLE)

SCREENS = {"Listen": ("setup", "features", "diagnose"), "Inject": ("edit",), "Judge": ("benchmark", "runs")}

page = st.navigation(
    {
        section: [
            st.Page(HERE / ui.path_of(screen), title=screen.capitalize(), default=screen == "diagnose")
            for screen in screens
        ]
        for section, screens in SCREENS.items()
    }
)
session.defaults()
with mirror.drawing():
    strip = st.container()
    with ui.guarded():
        links.from_address()
        session.keep_profile_in_address()
    with ui.guarded():
        page.run()
    with strip, ui.guarded():
        status.draw()
        watch.unkept()
    with ui.guarded():
        if "warmed" not in st.session_state and session.may_load():
            jobs.front().warm_up(session.profile())
            st.session_state["warmed"] = True
