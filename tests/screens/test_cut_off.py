"""Values that the code sets on a widget are sent again if a rerun may lose them, never over the user's input."""

from typing import Any

from streamlit.testing.v1 import AppTest


def _page() -> None:
    import streamlit as st

    from screens.shared import mirror, session

    chosen = st.session_state
    for name, value in {"subjects": ["algebra"], "layers": [2], "margin": 3.0, "picks": 0}.items():
        chosen.setdefault(name, value)
    if chosen.get("program"):
        chosen["subjects"], chosen["margin"] = chosen.pop("program")
    with mirror.drawing(whole=not chosen.get("fragment")):
        st.number_input("Margin", 0.5, 50.0, **mirror.mirror("margin", "in-a-popover", "value"))
        st.multiselect("Subjects", ["algebra", "geometry"], **mirror.mirror("subjects", "wide"))
        session.layer_pills("Layers", 4, "layer-pills")
        if chosen.get("cut"):
            chosen["cut"] -= 1
            st.stop()  # as a click does it


def _written(app: AppTest) -> list[bool]:
    """Return whether the last run sent each widget's value to the browser."""
    widgets: list[Any] = [app.number_input[0], app.multiselect[0], app.button_group[0]]
    return [widget.proto.set_value for widget in widgets]


def test_a_widget_is_written_once_and_again_where_that_drawing_was_cut_off() -> None:
    app = AppTest.from_function(_page, default_timeout=600)
    app.session_state["cut"] = 2
    app.run()
    app.run()
    app.run()
    assert _written(app) == [True, True, True]
    app.run()
    assert _written(app) == [False, False, False]
    app.session_state["program"], app.session_state["cut"] = (["geometry"], 7.0), 1
    app.run()
    app.run()
    assert _written(app) == [True, True, False]
    assert list(app.multiselect[0].proto.raw_values) == ["geometry"]
    app.run()
    assert _written(app) == [False, False, False]


def test_a_cut_off_drawing_that_wrote_nothing_is_no_reason_to_write() -> None:
    app = AppTest.from_function(_page, default_timeout=600).run()
    for fragment in (False, True):
        app.session_state["cut"], app.session_state["fragment"] = 1, fragment
        app.run()
        app.run()
        assert _written(app) == [False, False, False], "a person may be typing"


def test_what_a_person_chose_stays_where_the_drawing_is_cut_off() -> None:
    app = AppTest.from_function(_page, default_timeout=600).run()
    app.session_state["cut"] = 1
    app.multiselect[0].select("geometry").run()
    app.run()
    assert app.session_state["subjects"] == app.session_state["wide"] == ["algebra", "geometry"]


def test_a_change_right_after_a_write_is_told_to_the_browser() -> None:
    """The write may reach the browser after the change and hide it."""
    app = AppTest.from_function(_page, default_timeout=600).run()
    app.multiselect[0].select("geometry").run()
    assert _written(app)[1] is False, "nothing was written over what the browser showed"
    app.session_state["program"] = (["algebra"], 3.0)
    app.run()
    app.multiselect[0].set_value(["geometry"]).run()
    assert _written(app) == [False, True, False]
    assert list(app.multiselect[0].proto.raw_values) == ["geometry"]
    app.run()
    assert _written(app) == [False, False, False]


def test_a_widget_that_is_drawn_later_starts_from_what_was_chosen() -> None:
    app = AppTest.from_function(_page, default_timeout=600).run()
    app.number_input[0].set_value(7.0).run()
    app.run()
    assert (app.number_input[0].proto.default, app.session_state["margin"]) == (7.0, 7.0)
    assert not app.number_input[0].proto.set_value  # a popover that is opened now knows only the default
