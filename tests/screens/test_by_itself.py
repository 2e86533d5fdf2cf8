"""A page starts only cheap work by itself, in the background; everything else needs a button."""

from collections.abc import Callable

import pytest
from fake_front import FakeFront
from streamlit.testing.v1 import AppTest

from screens.shared import session
from stethoscope.profiles import MINI
from stethoscope.records import BenchSpec, DiagnoseSpec, DoseSpec, EnergySpec, ModelRef, StabilitySpec

Open = Callable[..., AppTest]
SLOW = (DoseSpec, EnergySpec, StabilitySpec)


def of_kind(front: FakeFront, *kinds: type) -> list[object]:
    return [spec for spec in front.submitted if isinstance(spec, kinds)]


def took(front: FakeFront, elapsed_s: float) -> None:
    """Make every stored run report this duration from now on."""
    listed = front.store.list_runs
    front.store.list_runs = lambda *args, **more: [  # type: ignore[method-assign]
        type(run)(**{name: getattr(run, name) for name in run.__slots__} | {"elapsed_s": elapsed_s})
        for run in listed(*args, **more)
    ]


def test_on_the_mini_all_of_it_starts_by_itself_behind_what_is_asked(front: FakeFront, open_page: Open) -> None:
    open_page("diagnose")
    open_page("edit", layers=[2])
    for kind in SLOW:
        assert of_kind(front, kind)
    assert all(spec in front.unasked for spec in of_kind(front, *SLOW))
    own, other = of_kind(front, DiagnoseSpec)
    assert own not in front.unasked, "the page was opened for it"
    assert other in front.unasked


@pytest.mark.parametrize(
    ("page", "kind", "slot"),
    [("edit", DoseSpec, "dose"), ("diagnose", EnergySpec, "energy"), ("diagnose", StabilitySpec, "stability")],
)
def test_what_took_long_waits_for_its_button_which_says_how_long(
    page: str, kind: type, slot: str, front: FakeFront, open_page: Open
) -> None:
    first = open_page(page, layers=[2])
    took(front, 400.0)
    front.submitted.clear()
    asked = {"edit": {"layers": [5]}, "diagnose": {"layers": [2], "top_k": 24}}[page]
    app = open_page(page, **asked)
    assert not app.exception
    assert not of_kind(front, kind)
    assert "about 7 min" in " ".join(caption.value for caption in app.caption)
    app.button(key=f"{slot}-ask").click().run()
    assert len(of_kind(front, kind)) == 1
    assert of_kind(front, kind)[0] not in front.unasked, "somebody asked for it"
    assert first


def test_what_was_never_measured_with_a_model_of_ones_own_waits(
    front: FakeFront, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = MINI.model_copy(update={"model": ModelRef(id="someone/large")})
    monkeypatch.setattr(session, "load_profile", lambda _: own)
    app = open_page("diagnose")
    app.button(key="diagnosis-load").click().run()
    assert of_kind(front, DiagnoseSpec)
    assert not of_kind(front, EnergySpec, StabilitySpec)
    assert "has not been measured" in " ".join(caption.value for caption in app.caption)
    assert not of_kind(front, BenchSpec)
