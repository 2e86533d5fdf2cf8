"""Stethoscope: the navigation and the status strip; every screen is a file of pages/."""

from pathlib import Path

import streamlit as st

from pages import _jobs, _mirror, _restore, _session, _status, _ui, _watch

HERE = Path(__file__).parent
LOGO = str(HERE / "static" / "logo.svg")

st.set_page_config(page_title="Stethoscope", page_icon=LOGO, layout="wide")
st.logo(LOGO, size="large")
st.html(_ui.STYLE)

SCREENS = {
    "Listen": [
        st.Page(HERE / "pages" / "setup.py", title="Setup"),
        st.Page(HERE / "pages" / "features.py", title="Features"),
        st.Page(HERE / "pages" / "diagnose.py", title="Diagnose", default=True),
    ],
    "Inject": [st.Page(HERE / "pages" / "edit.py", title="Edit")],
    "Judge": [
        st.Page(HERE / "pages" / "benchmark.py", title="Benchmark"),
        st.Page(HERE / "pages" / "runs.py", title="Runs"),
    ],
}

page = st.navigation(SCREENS)
_session.defaults()
with _mirror.drawing():
    strip = st.container()
    with _ui.guarded():
        _restore.from_address()
        _session.keep_profile_in_address()
    st.session_state["inside_app"] = True
    try:
        with _ui.guarded():
            page.run()
    finally:
        st.session_state["inside_app"] = False
    with strip, _ui.guarded():
        _status.draw()
        _watch.unkept()
    with _ui.guarded():
        if "warmed" not in st.session_state and _session.may_load():
            _jobs.front().warm_up(_session.profile())
            st.session_state["warmed"] = True
