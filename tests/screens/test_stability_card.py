"""The stability card in every state, and the optional second control corpus."""

from collections.abc import Callable

import pytest
from fake_front import FakeFront
from streamlit.testing.v1 import AppTest

from stethoscope.profiles import MINI
from stethoscope.records import DiagnoseSpec, StabilitySpec


def card() -> None:
    """The script of a page that is nothing but the card."""
    import streamlit as st
    from fake_front import diagnosis

    from screens.diagnose import stability
    from screens.shared import mirror, session
    from stethoscope.profiles import MINI

    session.defaults()
    spec = MINI.diagnose_spec()
    view = stability.other_control(spec)
    st.caption(f"other: {view.result.control if view.result else None}")
    alone = spec.model_copy(update={"problems": spec.problems.model_copy(update={"control_names": (spec.control,)})})
    st.caption(f"alone: {stability.other_control(alone).job}")
    with mirror.drawing():
        stability.draw(diagnosis(spec), spec)


Open = Callable[[], AppTest]


@pytest.fixture
def open_card(front: FakeFront) -> Open:
    return lambda: AppTest.from_function(card, default_timeout=600).run()


def asked(front: FakeFront, kind: type) -> list:
    return [spec for spec in front.submitted if isinstance(spec, kind)]


def test_the_card_draws_ranks_and_the_other_control_is_asked(front: FakeFront, open_card: Open) -> None:
    app = open_card()
    assert not app.exception
    said = "\n".join(str(caption.value) for caption in app.caption).replace("\\", "")
    assert "Rank of each layer for algebra" in said
    assert len(app.get("plotly_chart")) == 1
    assert asked(front, StabilitySpec)[0].diagnosis == MINI.diagnose_spec()
    first, second = MINI.problems.control_names
    assert [spec.control for spec in asked(front, DiagnoseSpec)] == [second]
    assert first != second
    assert f"other: {second}" in said
    assert "alone: None" in said


@pytest.mark.parametrize(
    ("state", "said"), [("failed", "Pick an SAE trained on this model"), ("cancelled", "Stopped."), ("running", "")]
)
def test_the_card_stands_in_every_state(front: FakeFront, open_card: Open, state: str, said: str) -> None:
    front.state = state
    app = open_card()
    assert not app.exception
    shown = [str(element.value) for kind in (app.error, app.caption) for element in kind]
    assert any(said in text for text in shown)
    assert not app.get("plotly_chart")
    if state != "running":
        front.state = "done"
        app.button(key="stability-again").click().run()
        assert app.get("plotly_chart")
