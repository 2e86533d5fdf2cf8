"""Every fragment of the pages stands alone in its container."""

from pathlib import Path

from streamlit.testing.v1 import AppTest

PAGES = Path(__file__).parent.parent.parent / "pages"


def _page() -> None:
    import streamlit as st

    from pages._fragment import fragment

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
    app = AppTest.from_function(_page).run()
    assert not app.exception
    outer = app.main.children[0]
    alone, behind = outer.children.values()
    assert behind.value == "behind it"
    (block,) = alone.children.values()
    assert [child.type for child in block.children.values()] == ["caption", "button"]
    app.button[0].click().run()
    assert [caption.value for caption in app.caption] == ["first", "behind it"]


def test_no_page_makes_a_fragment_another_way() -> None:
    others = [path.name for path in PAGES.glob("*.py") if "st.fragment" in path.read_text()]
    assert others == ["_fragment.py"]
