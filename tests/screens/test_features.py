"""Features: the submitted specs, the opened latent, the effect of a search, and texts shown as text."""

import json
from collections.abc import Callable

import pytest
from fake_front import FakeFront, latents
from streamlit.testing.v1 import AppTest

from screens.features import latent_table
from stethoscope.profiles import MINI
from stethoscope.records import LatentExamplesSpec, LatentsSpec

Open = Callable[..., AppTest]


def asked(front: FakeFront, kind: type) -> list:
    return [spec for spec in front.submitted if isinstance(spec, kind)]


def said(app: AppTest) -> str:
    kinds = (app.title, app.markdown, app.caption, app.error)
    return "\n".join(str(element.value) for kind in kinds for element in kind).replace("\\", "")


def test_it_asks_for_the_best_layer_of_a_diagnosis_at_hand(front: FakeFront, open_page: Open) -> None:
    app = open_page("features")
    diagnosis = front.snapshot(front.submit(MINI.diagnose_spec())).result  # type: ignore[union-attr]
    (spec,) = asked(front, LatentsSpec)
    assert spec == LatentsSpec(diagnosis=MINI.diagnose_spec(), subject="algebra", layer=diagnosis.order["algebra"][0])
    assert len(app.get("plotly_chart")) == 1
    assert "60 of 512 latents are live" in said(app)


def test_a_picked_layer_comes_first_and_controls_ask_again(front: FakeFront, open_page: Open) -> None:
    app = open_page("features", layers=[7, 8])
    assert asked(front, LatentsSpec)[-1].layer == 7
    app.selectbox(key="feature-layer").set_value(2).run()
    app.selectbox(key="feature-subject").set_value("geometry").run()
    app.selectbox(key="feature-control").set_value("digits_and_codes").run()
    last = asked(front, LatentsSpec)[-1]
    assert (last.layer, last.subject, last.diagnosis.control) == (2, "geometry", "digits_and_codes")


def test_the_level_recolours_and_asks_for_nothing(front: FakeFront, open_page: Open) -> None:
    app = open_page("features", layers=[3])

    def passing() -> int:
        (trace,) = [t for t in json.loads(app.get("plotly_chart")[0].proto.spec)["data"] if t["name"].startswith("q ≤")]
        return len(trace["customdata"])

    before, many = len(front.submitted), passing()
    app.selectbox(key="feature-fdr").set_value(0.01).run()
    assert 0 < passing() < many
    assert len(front.submitted) == before


def test_the_first_selected_latent_opens_and_another_layer_opens_its_own(front: FakeFront, open_page: Open) -> None:
    app = open_page("features", layers=[3])
    first = latents(asked(front, LatentsSpec)[0]).rows[0]
    assert first.selected
    assert asked(front, LatentExamplesSpec)[-1].latent == first.latent
    app.number_input(key="latent-number").set_value(17).run()
    assert asked(front, LatentExamplesSpec)[-1].latent == 17
    app.selectbox(key="feature-subject").set_value("geometry").run()
    assert asked(front, LatentExamplesSpec)[-1].latent == 17, "another subject keeps the latent"
    app.selectbox(key="feature-layer").set_value(4).run()
    assert asked(front, LatentExamplesSpec)[-1].latent == latents(asked(front, LatentsSpec)[-1]).rows[0].latent


def test_strips_are_escaped_and_the_control_that_never_fires_says_so(open_page: Open) -> None:
    app = open_page("features", layers=[3])
    strips = [element.proto.body for element in app.get("html") if "activation" in element.proto.body]
    assert len(strips) == 2
    assert all("&lt;b&gt;gcd&lt;/b&gt;" in body and "<b>" not in body for body in strips)
    assert "Fires in none of these documents." in said(app)
    (link,) = app.get("link_button")
    assert link.proto.url == f"https://www.neuronpedia.org/mini/3-res/{app.session_state['latent']}"


@pytest.mark.parametrize(
    ("search", "left"),
    [
        ("", 60),
        ("1, 9 17", 3),
        ("dense", 5),
        ("dense selected", 0),
        ("2", 0),
        ("nonsense", 0),
    ],
)
def test_search(search: str, left: int) -> None:
    result = latents(LatentsSpec(diagnosis=MINI.diagnose_spec(), subject="algebra", layer=3))
    assert len(latent_table.matching(result.rows, search, 0.05)) == left


def test_passing_follows_the_level() -> None:
    result = latents(LatentsSpec(diagnosis=MINI.diagnose_spec(), subject="algebra", layer=3))
    strict, loose = (latent_table.matching(result.rows, "passing", level) for level in (0.01, 0.2))
    assert {row.latent for row in strict} < {row.latent for row in loose}
    assert all(row.q_value <= 0.01 for row in strict)


def test_a_search_without_a_match_says_so(open_page: Open) -> None:
    app = open_page("features", layers=[3])
    app.text_input(key="latent-search").set_value("dense selected").run()
    assert "No live latent matches the search." in said(app)
