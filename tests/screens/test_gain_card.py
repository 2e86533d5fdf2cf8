"""The layer gain card on Diagnose: started by its button only; progress, stop, error, stored results."""

from collections.abc import Callable

import pytest
from fake_front import FakeFront, gain
from streamlit.testing.v1 import AppTest

from stethoscope.formatting import duration_text
from stethoscope.profiles import MINI
from stethoscope.records import GainSpec
from stethoscope.store import fingerprints
from stethoscope.store.fingerprints import record_fingerprints
from stethoscope.store.measured import put_measured, scored_key

Open = Callable[..., AppTest]
SPEC = GainSpec(diagnosis=MINI.diagnose_spec(), task_vector=MINI.task_vectors[0])


def said(app: AppTest) -> str:
    kinds = (app.markdown, app.caption, app.error)
    return "\n".join(str(element.value) for kind in kinds for element in kind).replace("\\", "")


def keys(app: AppTest) -> set[str | None]:
    return {button.key for button in app.button}


def asked(front: FakeFront) -> list[GainSpec]:
    return [spec for spec in front.submitted if isinstance(spec, GainSpec)]


def test_it_waits_for_its_button_and_then_draws(front: FakeFront, open_page: Open) -> None:
    app = open_page("diagnose", layers=[3, 5])
    assert not asked(front)
    assert "Does the score predict which layers help?" in said(app)
    before = len(app.get("plotly_chart"))
    app.button(key="gain-start").click().run()
    assert asked(front) == [SPEC]
    assert not app.exception
    assert len(app.get("plotly_chart")) == before + 2
    assert "does not predict which layers help" in said(app)
    assert "gain-start" not in keys(app)
    app.segmented_control(key="gain-rows").set_value("the subject").run()
    assert "20 of 99" not in said(app), "the sets on show are those of the subject"


def test_what_it_costs_stands_before_the_button_as_the_worker_tells_it(front: FakeFront, open_page: Open) -> None:
    app = open_page("diagnose", layers=[3, 5])
    n_texts = SPEC.most_texts(10)
    assert f"{n_texts:,} texts" in said(app)
    assert "not yet measured" in said(app)
    put_measured(front.store.database, scored_key(MINI.model, "cpu"), [100.0, 50.0, 60.0])
    app.run()
    assert f"{n_texts:,} texts, about {duration_text(n_texts / 60)}" in said(app)


def test_a_running_study_can_be_stopped_and_started_again(front: FakeFront, open_page: Open) -> None:
    app = open_page("diagnose")
    front.state = "running"
    app.button(key="gain-start").click().run()
    assert "gain-stop" in keys(app)
    app.button(key="gain-stop").click().run()
    app.run()
    assert "before anything was measured" in said(app)
    assert "gain-start" in keys(app)
    assert len(asked(front)) == 1


def test_an_error_is_a_banner_and_the_button_comes_back(front: FakeFront, open_page: Open) -> None:
    app = open_page("diagnose")
    front.state = "failed"
    app.button(key="gain-start").click().run()
    assert "basis has d_model=640" in said(app)
    assert "gain-start" in keys(app)


@pytest.mark.parametrize("same", [True, False])
def test_a_stored_result_of_the_same_spec_is_shown_at_once(same: bool, front: FakeFront, open_page: Open) -> None:
    spec = SPEC if same else SPEC.model_copy(update={"task_vector": MINI.task_vectors[1]})
    run_id = front.store.start_run(spec, extra=record_fingerprints(spec))
    front.store.finish_run(run_id, state="done", result=gain(spec), elapsed_s=1.0)
    app = open_page("diagnose")
    assert not asked(front)
    assert ("does not predict which layers help" in said(app)) == same
    assert ("gain-start" in keys(app)) != same


def test_the_page_hashes_no_weights_and_shows_the_result_once_the_worker_has(
    front: FakeFront, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = front.store.start_run(SPEC, extra=record_fingerprints(SPEC))
    front.store.finish_run(run_id, state="done", result=gain(SPEC), elapsed_s=1.0)
    monkeypatch.setattr(fingerprints, "_known", {})
    monkeypatch.setattr(fingerprints, "PIECE_BYTES", 1 << 16)  # the mini's weights are large then
    app = open_page("diagnose")
    assert "gain-start" in keys(app)
    weights = [key for key in fingerprints._known if key[0].endswith(".safetensors")]
    assert not weights
    record_fingerprints(SPEC)
    assert "gain-start" not in keys(app.run())
    assert not asked(front)


def test_results_of_other_weights_are_not_shown(front: FakeFront, open_page: Open) -> None:
    run_id = front.store.start_run(SPEC, extra=("embedded:base=another",))
    front.store.finish_run(run_id, state="done", result=gain(SPEC), elapsed_s=1.0)
    assert "gain-start" in keys(open_page("diagnose"))


def test_another_score_is_another_question(front: FakeFront, open_page: Open) -> None:
    app = open_page("diagnose")
    app.button(key="gain-start").click().run()
    app.selectbox(key="score-select").set_value("log_ratio").run()
    assert "gain-start" in keys(app)
    assert len(asked(front)) == 1
