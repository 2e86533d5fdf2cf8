"""A page whose drawing is cut off: the next one tells the browser of every mirrored widget again."""

from typing import Any

from streamlit.testing.v1 import AppTest


def _page() -> None:
    import streamlit as st

    from pages import _session

    st.session_state.setdefault("subjects", ["algebra"])
    st.session_state.setdefault("layers", [2])
    st.session_state.setdefault("margin", 3.0)
    st.session_state.setdefault("picks", 0)
    with _session.drawing():
        st.number_input("Margin", 0.5, 50.0, **_session.mirror("margin", "in-a-popover", "value"))
        st.multiselect("Subjects", ["algebra", "geometry"], **_session.mirror("subjects", "wide"))
        _session.layer_pills("Layers", 4, "layer-pills")
        if st.session_state.get("cut"):
            st.session_state["cut"] -= 1
            st.rerun()
        st.session_state["seen"] = st.session_state["cut_off"]


def _written(app: AppTest) -> list[bool]:
    """Whether the last drawing told the browser of each widget's value."""
    widgets: list[Any] = [app.multiselect[0], app.button_group[0]]
    return [widget.proto.set_value for widget in widgets]


def test_a_widget_is_written_once_and_again_after_a_cut() -> None:
    app = AppTest.from_function(_page).run()
    assert _written(app) == [True, True]
    app.run()
    assert (_written(app), app.session_state["seen"]) == ([False, False], False)
    app.session_state["cut"] = 2
    app.run()
    assert (_written(app), app.session_state["seen"]) == ([True, True], True)
    assert (app.session_state["wide"], app.session_state["subjects"]) == (["algebra"], ["algebra"])
    app.run()
    assert _written(app) == [False, False]


def test_what_a_person_chose_is_what_is_written_after_a_cut() -> None:
    app = AppTest.from_function(_page).run()
    app.session_state["cut"] = 1
    app.multiselect[0].select("geometry").run()
    assert app.session_state["subjects"] == ["algebra", "geometry"]
    assert list(app.multiselect[0].proto.raw_values) == ["algebra", "geometry"]


def test_a_widget_that_is_drawn_later_starts_from_what_was_chosen() -> None:
    app = AppTest.from_function(_page).run()
    app.number_input[0].set_value(7.0).run()
    app.run()
    assert (app.number_input[0].proto.default, app.session_state["margin"]) == (7.0, 7.0)
    assert not app.number_input[0].proto.set_value  # a popover that is opened now knows only the default
