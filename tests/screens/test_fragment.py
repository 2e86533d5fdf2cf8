"""Every fragment has a container of its own."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from screens.shared import jobs

SCREENS = Path(__file__).parent.parent.parent / "screens"


def _page() -> None:
    import streamlit as st

    from screens.shared.fragment import fragment

    @fragment(run_every=None)
    def inside(text: str) -> None:
        """Say `text`."""
        st.caption(text)
        st.button("again")

    with st.container():
        inside("first")
        st.caption("behind it")
    assert (inside.__name__, inside.__doc__) == ("inside", "Say `text`.")


def test_a_fragment_is_the_only_child_of_its_container() -> None:
    app = AppTest.from_function(_page, default_timeout=600).run()
    assert not app.exception
    outer = app.main.children[0]
    alone, behind = outer.children.values()
    assert behind.value == "behind it"
    (block,) = alone.children.values()
    assert [child.type for child in block.children.values()] == ["caption", "button"]
    app.button[0].click().run()
    assert [caption.value for caption in app.caption] == ["first", "behind it"]


def _nested() -> None:
    import streamlit as st

    from screens.shared.fragment import fragment

    @fragment(run_every=0.5)
    def inner() -> None:
        st.caption("inner")

    @fragment()
    def outer() -> None:
        inner()

    outer()


def test_a_fragment_inside_another_is_none_by_itself() -> None:
    app = AppTest.from_function(_nested, default_timeout=600).run()
    assert not app.exception
    depth, node = 0, app.main
    while node.type != "caption":
        (node,) = node.children.values()
        depth += 1
    assert depth == 4  # its container, the outer fragment, the inner one's container, the text: no second fragment


def _begins_a_job() -> None:
    from types import SimpleNamespace

    import streamlit as st

    from screens.shared import jobs, mirror

    st.session_state["runs"] = st.session_state.get("runs", 0) + 1
    st.session_state.setdefault("slots", {"plan": {"job": "j1", "spec": None}})
    job = SimpleNamespace(job_id="j1", state="running", active=True, result=None, error=None)
    jobs.front = lambda: SimpleNamespace(snapshot=lambda job_id: job)
    with mirror.drawing(whole=False):
        jobs.look("plan")
        if st.session_state["runs"] == 2:
            st.session_state["watched"] = ["j1"]
        jobs.show_begun()
    st.session_state["ended"] = st.session_state["runs"]


def test_a_job_that_a_fragment_began_draws_the_page_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "front", jobs.front)  # put back behind the page, which replaces it
    app = AppTest.from_function(_begins_a_job, default_timeout=600).run()
    assert not app.exception
    assert (app.session_state["runs"], app.session_state["ended"]) == (2, 2)  # cut off once, then it is watched


def test_no_page_makes_a_fragment_another_way() -> None:
    others = [path.name for path in SCREENS.rglob("*.py") if "st.fragment" in path.read_text()]
    assert others == ["fragment.py"]
