"""Setup: choose a profile from the list, a file or a name; nothing is downloaded before the button."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_front import ANSWERS, FakeFront, info
from streamlit.testing.v1 import AppTest

from screens.setup import profile_choice
from screens.shared import edit_recipe, session
from stethoscope.profiles import MINI, PROFILES
from stethoscope.records import DownloadSpec, InfoSpec, MatrixRole, MemorySpec, ModelRef, PreflightSpec, SaeRef
from stethoscope.results import InfoResult, PreflightCheck, TaskVectorRow

Open = Callable[..., AppTest]
GEMMA = PROFILES["gemma-3-4b-it"]


def of_models(front: FakeFront) -> list[str]:
    """Ids of the models that were asked for, in order."""
    return [spec.model.id for spec in front.submitted if isinstance(spec, InfoSpec | PreflightSpec)]


def test_the_mini_loads_by_itself(front: FakeFront, open_page: Open) -> None:
    app = open_page("setup")
    assert MINI.model.id in of_models(front)
    assert app.button(key="unload-model")


@pytest.mark.parametrize("name", ["setup", "features", "diagnose", "edit", "benchmark", "runs"])
def test_no_page_loads_a_model_of_the_hub_by_itself(front: FakeFront, open_page: Open, name: str) -> None:
    app = open_page("runs", profile="gemma-3-4b-it", layers=[3])
    front.submitted.clear()
    app.switch_page(f"screens/{name}/{name}.py").run()
    assert not app.exception
    assert front.submitted == []
    if name in ("setup", "features", "diagnose"):
        app.button(key=f"{'diagnosis' if name == 'diagnose' else 'info'}-load").click().run()
        assert front.submitted, "the button loads"


def test_the_button_loads_what_it_names_and_another_name_waits_again(front: FakeFront, open_page: Open) -> None:
    app = open_page("setup")
    app.selectbox(key="profile-choice").set_value("gemma-3-4b-it").run()
    assert set(of_models(front)) == {MINI.model.id}
    assert not any(isinstance(spec, MemorySpec) and spec.model == GEMMA.model for spec in front.submitted)
    app.button(key="info-load").click().run()
    assert of_models(front)[-1] == "google/gemma-3-4b-it"
    app.text_input(key="change-revision").set_value("abc").run()
    front.submitted.clear()
    app.button(key="change-use").click().run()
    assert front.submitted == [], "another revision is another download"
    app.button(key="info-load").click().run()
    (spec,) = [spec for spec in front.submitted if isinstance(spec, InfoSpec)]
    assert spec.model == ModelRef(id="google/gemma-3-4b-it", revision="abc", dtype="bfloat16")


def test_unloading_and_the_device(front: FakeFront, open_page: Open) -> None:
    app = open_page("setup")
    app.button(key="unload-model").click().run()
    assert front.unloaded == 1
    assert not any(button.key == "unload-model" for button in app.button)
    app.button(key="load-model").click().run()
    assert app.button(key="unload-model")
    app.selectbox(key="device").set_value("offload").run()
    assert (front.unloaded, front.device) == (2, "offload")
    assert app.selectbox(key="device").value == "offload"


def test_other_saes_are_taken_by_name_and_back(front: FakeFront, open_page: Open) -> None:
    app = open_page("setup")
    app.selectbox(key="profile-choice").set_value("gemma-3-4b-it").run()
    wanted = SaeRef(location="gemma-scope-2-4b-it-att-all", site="attn_out", width="16k", l0="big")
    app.selectbox(key="change-known").set_value((GEMMA.saes, *GEMMA.other_saes).index(wanted)).run()
    assert app.text_input(key="change-location").value == wanted.location
    app.button(key="change-use").click().run()
    app.button(key="info-load").click().run()
    spec = next(spec for spec in reversed(front.submitted) if isinstance(spec, InfoSpec))
    assert (spec.saes, spec.model) == (wanted, GEMMA.model)
    app.button(key="change-back").click().run()
    assert app.text_input(key="change-location").value == GEMMA.saes.location
    assert not any(button.key == "change-back" for button in app.button)


def test_a_model_of_another_name_takes_no_task_vector_over(front: FakeFront, open_page: Open) -> None:
    app = open_page("setup")
    app.text_input(key="own-tuned").set_value("/models/mine").run()
    app.button(key="own-add").click().run()
    app.text_input(key="change-model").set_value("someone/other").run()
    app.button(key="change-use").click().run()
    assert not app.exception
    assert not [box for box in app.selectbox if box.key == "task-vector"]
    assert app.session_state["task_vector"] is None
    assert app.session_state["own_task_vectors"]["mini"] == []


def test_a_suggestion_says_what_is_known_and_is_fetched_by_its_button(front: FakeFront, open_page: Open) -> None:
    app = open_page("setup")
    app.selectbox(key="profile-choice").set_value("gemma-3-4b-it").run()
    assert "The card was read, the weights were not." in " ".join(text.value for text in app.markdown)
    assert not any(isinstance(spec, PreflightSpec) and spec.model == GEMMA.model for spec in front.submitted)
    app.button(key="suggestion-biomed").click().run()
    assert app.session_state["task_vector"] == "biomed"
    assert not any(button.key == "suggestion-biomed" for button in app.button)


def test_an_uploaded_profile_is_kept_beside_the_runs(front: FakeFront, open_page: Open) -> None:
    app = open_page("setup")
    app.selectbox(key="profile-choice").set_value(profile_choice.OWN).run()
    app.file_uploader(key="profile-upload").set_value(
        ("../mine.toml", b'extends = "mini"\ntitle = "Mine"\n', "application/toml")
    ).run()
    place = Path(app.session_state["profile"])
    assert (place.name, place.parent.parent) == ("mine.toml", front.store.root / "profiles")
    assert app.text_input(key="profile-path").value == app.session_state["profile"]
    app.file_uploader(key="profile-upload").set_value(("mine.toml", b"titel = 3", "application/toml")).run()
    assert any("has an unknown field" in error.value or "does not fit" in error.value for error in app.error)
    assert "Mine" in place.read_text(), "a broken one replaces nothing"
    assert app.session_state["profile"] == str(place)


def test_changed_keeps_the_rest_of_the_same_model_only() -> None:
    role = MatrixRole(module="self_attn.o_proj", part="attention", side="write")
    same = GEMMA.changed(model=GEMMA.model.model_copy(update={"roles": (role,)}), saes=GEMMA.other_saes[0])
    assert {same.saes, *same.other_saes} == {GEMMA.saes, *GEMMA.other_saes}
    assert same.suggestions == GEMMA.suggestions
    other = MINI.changed(model=ModelRef(id="someone/other"), saes=MINI.saes)
    assert (other.task_vectors, other.suggestions, other.other_saes) == ((), (), ())
    assert (other.name, other.title) == ("mini", "someone/other")


def test_the_tour_stays_away_in_later_sessions(front: FakeFront, open_page: Open) -> None:
    open_page("setup").button(key="tour-dismiss").click().run()
    later = open_page("setup")
    assert not any("1 · Diagnose" in text.value for text in later.markdown)
    later.button(key="tour-back").click().run()
    assert any("1 · Diagnose" in text.value for text in later.markdown)
    assert not any(button.key == "tour-back" for button in later.button)
    assert any("1 · Diagnose" in text.value for text in open_page("setup").markdown)


def test_what_is_copied_of_an_error_is_its_words(front: FakeFront, open_page: Open) -> None:
    front.state = "failed"
    app = open_page("setup")
    copied = [code.value for code in app.code]
    assert "basis has d_model=640, the model has 96\nGot: 640\nExpected: 96\n" in copied[0] or "SaeError" in copied[0]
    app.selectbox(key="profile-choice").set_value(profile_choice.OWN).run()
    app.text_input(key="profile-path").set_value("/nowhere.toml").run()
    assert any("/nowhere.toml" in code.value and "(" not in code.value.split("/nowhere")[0] for code in app.code)


def test_a_task_vector_that_cannot_be_used_is_named_and_every_page_stands(
    front: FakeFront, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = PreflightCheck(
        name="opens", outcome="fail", what="it has another RoPE", got="a base of 20000", expected="10000"
    )

    def refused(spec: InfoSpec) -> InfoResult:
        found = info(spec)
        row = TaskVectorRow(name=found.task_vectors[0].name, source="x", relative_norm_by_layer=(), unusable=why)
        return found.model_copy(update={"task_vectors": (row, *found.task_vectors[1:])})

    monkeypatch.setitem(ANSWERS, InfoSpec, refused)
    app = open_page("setup")
    assert not app.exception
    assert app.dataframe, "the SAEs are shown"
    assert not [text for text in app.markdown if "Relative size of the task vector" in text.value]
    assert not open_page("edit", layers=[3]).exception
    app = open_page("benchmark", layers=[3])
    assert "it has another RoPE" in app.error[0].value
    assert "run-bench" not in [button.key for button in app.button]


def test_what_would_be_downloaded_is_asked_by_a_button_and_drawn(front: FakeFront, open_page: Open) -> None:
    app = open_page("setup")
    assert not any(button.key == "download-ask" for button in app.button), "the mini is all here"
    app.selectbox(key="profile-choice").set_value("gemma-3-4b-it").run()
    assert not any(isinstance(spec, DownloadSpec) for spec in front.submitted)
    app.button(key="download-ask").click().run()
    (spec,) = [spec for spec in front.submitted if isinstance(spec, DownloadSpec)]
    assert (spec.model, spec.saes, spec.problems) == (GEMMA.model, GEMMA.saes, GEMMA.problems)
    shown = " ".join(text.value for text in app.caption)
    assert "14.64 of 19.60 GB to download, 3 files in total; 100.0 GB free at /cache/hub." in shown
    (refused,) = app.error
    assert "google/scope is gated" in refused.value
    assert "Accept the terms \\*there\\*." in refused.value
    (table,) = [frame.value for frame in app.dataframe if "file" in frame.value.columns]
    assert list(table["here"]) == ["yes", "no", "no"]
    assert list(table["size"]) == ["5.0 GB", "3.6 GB", "11.0 GB"]
    app.button(key="info-load").click().run()
    assert app.button(key="download-ask"), "what was missing may be here now"


def test_the_strip_says_what_is_loaded_of_this_profile(front: FakeFront, open_page: Open) -> None:
    app = open_page("setup")
    strip = " ".join(text.value for text in app.caption)
    assert "10 layers · float32" in strip
    app.selectbox(key="profile-choice").set_value("gemma-3-4b-it").run()
    strip = next(text.value for text in app.caption if "Gemma Scope 2: " in text.value)
    assert "Gemma Scope 2: not loaded" in strip
    assert "10 layers" not in strip
    assert not any("BASE verified" in text.value for text in app.markdown)


@pytest.mark.parametrize(("page", "key"), [("edit", "edit"), ("benchmark", "bench"), ("diagnose", "energy")])
def test_a_page_without_a_task_vector_says_where_to_name_one(
    front: FakeFront, open_page: Open, monkeypatch: pytest.MonkeyPatch, page: str, key: str
) -> None:
    bare = MINI.model_copy(update={"task_vectors": ()})
    monkeypatch.setattr(session, "load_profile", lambda _: bare)
    app = open_page(page, layers=[3])
    assert not app.exception
    assert not app.error, [error.value for error in app.error]
    assert "No task vector is set" in " ".join(text.value for text in app.caption)
    went: list[str] = []
    monkeypatch.setattr(edit_recipe.st, "switch_page", went.append)
    app.button(key=f"{key}-name").click().run()
    assert went == ["screens/setup/setup.py"]
