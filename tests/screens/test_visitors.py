"""Visitors' data stays private: uploads by content, links accepted whole or refused, profile kept on reload."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_front import FakeFront
from streamlit.testing.v1 import AppTest

from screens.setup import profile_choice
from stethoscope.profiles import MINI
from stethoscope.recipes.files import from_link, setup_from_link, to_link
from stethoscope.records import (
    BenchArm,
    BenchSpec,
    DiagnoseSpec,
    EditRecipe,
    EditType,
    ExportSpec,
    LayerAlpha,
    ModelRef,
    NormMatchedEdit,
    ProbeSpec,
    RandomSubspaceEdit,
    SaeRef,
    SetupChange,
    TaskVectorRef,
)

Open = Callable[..., AppTest]
APP = str(Path(__file__).parent.parent.parent / "app.py")
ON_EVERY_PAGE = ["setup", "features", "diagnose", "edit", "benchmark", "runs"]


def recipe(**fields: object) -> EditRecipe:
    start = {"model": MINI.model, "task_vector": MINI.task_vectors[0], "layers": {3: LayerAlpha()}}
    return EditRecipe.model_validate(start | fields)


def projected(*, subject: str = "geometry", top_k: int = 16, **fields: object) -> EditRecipe:
    diagnosis = MINI.diagnose_spec(top_k=top_k, **fields)
    return recipe(edit_type=NormMatchedEdit(diagnosis=diagnosis, subject=subject, top_k=top_k))


def upload(app: AppTest, name: str, title: str) -> str:
    """Upload a profile and return the place under which the session holds it."""
    app.selectbox(key="profile-choice").set_value(profile_choice.OWN).run()
    content = f'extends = "mini"\ntitle = "{title}"\n'.encode()
    app.file_uploader(key="profile-upload").set_value((name, content, "application/toml")).run()
    return app.session_state["profile"]


def address(app: AppTest, name: str) -> str:
    """Return the page's query parameter `name`."""
    value = app.query_params[name]
    return value[0] if isinstance(value, list) else value


def errors(app: AppTest) -> str:
    return "\n".join(error.value for error in app.error).replace("\\", "")


def captions(app: AppTest) -> str:
    return "\n".join(str(element.value) for element in app.caption)


def own_profile(folder: Path, title: str = "Mine") -> Path:
    path = folder / "mine.toml"
    path.write_text(f'extends = "mini"\ntitle = "{title}"\n', encoding="utf-8")
    return path


def test_two_visitors_may_give_two_profiles_one_name(front: FakeFront, open_page: Open) -> None:
    first, second = open_page("setup"), open_page("setup")
    mine = upload(first, "mine.toml", "The first one's")
    other = upload(second, "mine.toml", "The second one's")
    assert Path(mine).name == Path(other).name == "mine.toml"
    assert "The first one's: " in captions(first.run())
    assert "The second one's: " in captions(second.run())
    assert upload(open_page("setup"), "mine.toml", "The first one's") == mine, "the same content lies there once"


@pytest.mark.parametrize("name", ["../../../evil.toml", "..", "a\0b.toml", "x" * 400 + ".toml", ".toml"])
def test_an_uploaded_profiles_name_stays_a_name(name: str, front: FakeFront, open_page: Open) -> None:
    open_page("setup")
    kept = profile_choice.keep(front.store.root / "profiles", name, b'extends = "mini"\n')
    assert kept.resolve().is_relative_to(front.store.root.resolve() / "profiles")
    assert kept.read_bytes() == b'extends = "mini"\n'


@pytest.mark.parametrize("page", ON_EVERY_PAGE)
def test_the_profile_is_part_of_every_pages_address(
    page: str, front: FakeFront, open_page: Open, tmp_path: Path
) -> None:
    place = str(own_profile(tmp_path))
    app = open_page(page, query={"profile": place}, layers=[3])
    assert app.session_state["profile"] == place
    assert address(app, "profile") == place
    assert "Mine: " in captions(app)
    assert "profile" not in open_page(page).query_params, "the mini is where everybody begins"


def test_a_link_to_a_job_brings_its_profile_and_its_question(front: FakeFront, open_page: Open, tmp_path: Path) -> None:
    path = own_profile(tmp_path)
    front.state = "running"
    asked = MINI.diagnose_spec(control="digits_and_codes", top_k=32)
    job_id = front.submit(asked)
    app = open_page("diagnose", query={"profile": str(path), "job": job_id})
    assert app.session_state["profile"] == str(path)
    assert [spec for spec in front.submitted if isinstance(spec, DiagnoseSpec)] == [asked], "nothing else is asked"
    assert app.number_input(key="top-k").value == 32
    assert not front.cancelled


ADDED = TaskVectorRef(name="second", tuned="embedded:math-lora")
OTHER = ModelRef(id=MINI.model.id, dtype="bfloat16")
CHANGES = {
    "another model and no SAEs": SetupChange(model=OTHER),
    "other SAEs": SetupChange(model=MINI.model, saes=SaeRef(location="embedded:saes", site="mlp_out")),
    "a task vector": SetupChange(task_vectors=(ADDED,)),
    "both": SetupChange(model=OTHER, saes=MINI.saes, task_vectors=(ADDED,)),
}


def shown(app: AppTest) -> tuple[object, ...]:
    """Return the visitor's changes and additions, and the chosen task vector."""
    state = app.session_state
    changed, added = (state[name] if name in state else {} for name in ("changed", "own_task_vectors"))  # noqa: SIM401
    return changed.get("mini"), added.get("mini"), state["task_vector"]


@pytest.mark.parametrize(
    ("page", "change"), [("setup", name) for name in CHANGES] + [(page, "both") for page in ON_EVERY_PAGE[1:]]
)
def test_what_a_visitor_changed_and_added_outlives_a_reload_of_every_page(
    page: str, change: str, front: FakeFront, open_page: Open
) -> None:
    wanted = CHANGES[change]
    app = open_page(page, query={"setup": to_link(wanted)})
    assert not app.error
    assert setup_from_link(address(app, "setup")) == wanted
    changed, added, chosen = shown(app)
    model = None if wanted.model is None else wanted.model_dump(mode="json", include={"model", "saes"})
    assert changed == model
    assert added == ([ADDED.model_dump()] if wanted.task_vectors else None)
    assert chosen == ("second" if wanted.task_vectors else MINI.task_vectors[0].name)


def test_a_change_by_name_and_an_added_task_vector_stand_in_the_address(front: FakeFront, open_page: Open) -> None:
    app = open_page("setup")
    app.text_input(key="change-location").set_value("").run()
    app.button(key="change-use").click().run()
    assert setup_from_link(address(app, "setup")) == SetupChange(model=MINI.model)
    app.button(key="change-back").click().run()
    assert "setup" not in app.query_params


@pytest.mark.parametrize(
    "broken",
    [
        "z.AAAA",
        "z.",
        "nonsense",
        to_link(recipe()),
        to_link(SetupChange(task_vectors=(ADDED, ADDED))),
        to_link(SetupChange(task_vectors=MINI.task_vectors[:1])),
    ],
)
def test_a_setup_that_cannot_be_read_or_taken_is_refused_whole(broken: str, front: FakeFront, open_page: Open) -> None:
    app = open_page("setup", query={"setup": broken})
    assert len(app.error) == 1
    assert "Next step" in app.error[0].value
    assert shown(app) == (None, None, MINI.task_vectors[0].name)


def test_nothing_of_the_hubs_is_loaded_by_a_link_though_the_model_is_shipped(front: FakeFront, open_page: Open) -> None:
    added = SetupChange(task_vectors=(TaskVectorRef(name="far", tuned="somebody/tuned"),))
    app = open_page("setup", query={"setup": to_link(added)})
    assert not app.error
    named = [str(spec.model_dump()) for spec in front.submitted]
    assert not [spec for spec in named if "somebody/tuned" in spec]
    app.button(key="info-load").click().run()
    assert [spec for spec in front.submitted if "somebody/tuned" in str(spec.model_dump())]


@pytest.mark.parametrize("page", ["diagnose", "edit", "benchmark"])
def test_layers_that_the_model_does_not_have_are_refused_and_none_is_picked(
    page: str, front: FakeFront, open_page: Open
) -> None:
    app = open_page(page, query={"layers": "3,40"})
    assert "40" in errors(app)
    assert app.session_state["layers"] == []
    assert "40" in errors(app.run()), "and the word stays"
    assert open_page(page, query={"layers": "3,9"}).session_state["layers"] == [3, 9]


def test_a_job_that_is_forgotten_is_a_message(open_page: Open) -> None:
    assert "the link's job" in errors(open_page("diagnose", query={"job": "j99"}))


@pytest.mark.parametrize("page", ON_EVERY_PAGE)
def test_a_profile_that_went_away_is_named_and_what_was_read_stays(
    page: str, front: FakeFront, open_page: Open, tmp_path: Path
) -> None:
    path = own_profile(tmp_path)
    app = open_page("setup", query={"profile": str(path)})
    path.unlink()
    app.session_state["layers"] = [3]
    app.switch_page(f"screens/{page}/{page}.py").run()
    assert not app.exception
    assert "Mine: " in captions(app), "not another model without a word"
    (said,) = [error.value for error in app.error]
    assert "mine.toml" in said
    assert "Next step" in said
    own_profile(tmp_path)
    assert not app.run().error


def test_a_reload_after_the_profile_went_away_says_so_and_keeps_the_address(open_page: Open, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.toml")
    app = open_page("diagnose", query={"profile": gone})
    assert "gone.toml" in errors(app)
    assert app.get("plotly_chart"), "the page is alive"
    assert address(app, "profile") == gone
    app.run()
    assert "gone.toml" in errors(app), "for as long as it is so"
    own = tmp_path / "gone.toml"
    own.write_text('extends = "mini"\ntitle = "Back"\n', encoding="utf-8")
    assert "Back: " in captions(app.run())


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (projected(subject="alchemy"), "subject: alchemy"),
        (recipe(edit_type=RandomSubspaceEdit(rank=8, site="mlp_out")), "edit_type.site: mlp_out"),
        (recipe(layers={3: LayerAlpha(), 40: LayerAlpha()}), "40"),
        (projected(top_k=10**6), "1000000"),
        (recipe(edit_type=RandomSubspaceEdit(rank=10**6)), "1000000"),
        (recipe(edit_type=RandomSubspaceEdit(rank=8, seed=2**32 - 1)), str(2**32 - 1)),
    ],
)
def test_a_recipe_that_a_page_cannot_show_is_refused_and_changes_nothing(
    wrong: EditRecipe, named: str, front: FakeFront, open_page: Open
) -> None:
    fresh = open_page("edit", query={"recipe": to_link(wrong)})
    assert named in errors(fresh.run().run()), "and the word stays"
    assert fresh.session_state["layers"] == []
    app = open_page("edit", layers=[2, 4], alpha=0.4, subject="algebra", edit_k=12)
    front.store.put_recipe(wrong)
    before = from_link(address(app, "recipe"))
    app.run()
    app.button(key="load-recipe").click().run()
    assert named in errors(app)
    assert from_link(address(app, "recipe")) == before
    assert all(spec.recipe == before for spec in front.submitted if isinstance(spec, ProbeSpec))


OUT_OF_BOUNDS = RandomSubspaceEdit.model_construct(
    kind="random-subspace", rank=8, site="resid_post", saes=None, seed=0, norm_matched=False
)


@pytest.mark.parametrize(
    ("edit_type", "named"),
    [
        (OUT_OF_BOUNDS.model_copy(update={"seed": -1}), "-1"),
        (OUT_OF_BOUNDS.model_copy(update={"seed": 10**20}), str(10**20)),
        (OUT_OF_BOUNDS.model_copy(update={"rank": 10**9}), "1000000000"),
        (projected().edit_type.model_copy(update={"top_k": 10**9}), "1000000000"),
    ],
)
def test_a_number_out_of_bounds_in_a_link_is_refused(edit_type: EditType, named: str, open_page: Open) -> None:
    app = open_page("edit", query={"recipe": to_link(recipe().model_copy(update={"edit_type": edit_type}))})
    assert "report this" not in errors(app)
    assert named in errors(app)
    assert app.session_state["layers"] == []


@pytest.mark.parametrize(
    "exact",
    [
        recipe(layers={3: LayerAlpha(attention=1 / 3, mlp=2.75)}, master_alpha=1 / 3),
        projected(seed=5),
        projected(documents=20, split="dev"),
    ],
)
def test_every_number_of_a_recipe_is_taken_as_it_is(exact: EditRecipe, front: FakeFront, open_page: Open) -> None:
    app = open_page("edit", query={"recipe": to_link(exact)})
    assert not app.error
    assert from_link(address(app, "recipe")) == exact


def test_a_link_waits_for_the_model_before_it_is_refused(front: FakeFront, open_page: Open) -> None:
    front.unload()
    wrong = to_link(recipe(layers={40: LayerAlpha()}))
    app = AppTest.from_file(APP, default_timeout=600)
    app.query_params["recipe"] = wrong
    app.switch_page("screens/edit/edit.py").run()
    assert not app.error
    assert address(app, "recipe") == wrong, "a reload still has it"
    front.worker = FakeFront(front.store).worker  # the model is there again
    app.run()
    assert "40" in errors(app)


def test_layers_wait_for_the_model_before_they_are_refused(front: FakeFront, open_page: Open) -> None:
    front.unload()
    app = AppTest.from_file(APP, default_timeout=600)
    app.query_params["layers"] = "3,40"
    app.switch_page("screens/edit/edit.py").run()
    assert not app.error
    front.worker = FakeFront(front.store).worker
    app.run()
    assert "40" in errors(app)
    assert app.session_state["layers"] == []


def test_a_stored_diagnosis_shows_the_links_layers_before_its_model_is_loaded(
    front: FakeFront, open_page: Open
) -> None:
    run_id = str(front.snapshot(front.submit(MINI.diagnose_spec())).run_id)  # type: ignore[union-attr]
    front.unload()
    assert open_page("diagnose", query={"run": run_id, "layers": "3,9"}).session_state["layers"] == [3, 9]
    refused = open_page("diagnose", query={"run": run_id, "layers": "3,40"})
    assert "40" in errors(refused)
    assert refused.session_state["layers"] == []


def test_a_stored_run_that_a_page_would_ask_anew_is_refused(front: FakeFront, open_page: Open) -> None:
    elsewhere = MINI.problems.model_copy(update={"controls": None})
    spec = MINI.diagnose_spec(problems=elsewhere)
    run_id = front.snapshot(front.submit(spec)).run_id  # type: ignore[union-attr]
    front.submitted.clear()
    app = open_page("diagnose", query={"run": str(run_id)})
    assert "problems.controls" in errors(app)
    app = open_page("runs")
    app.selectbox(key="run-select").set_value(run_id).run()
    app.button(key="open-run").click().run()
    assert "problems.controls" in errors(app.run()), "the message stays"


def test_a_stored_diagnosis_with_many_latents_opens(front: FakeFront, open_page: Open) -> None:
    spec = MINI.diagnose_spec(top_k=1000)
    run_id = front.snapshot(front.submit(spec)).run_id  # type: ignore[union-attr]
    app = open_page("diagnose", query={"run": str(run_id)})
    assert not app.error
    assert app.number_input(key="top-k").value == 1000


def test_a_stored_benchmark_opens_whatever_its_numbers(front: FakeFront, open_page: Open) -> None:
    spec = BenchSpec(
        model=MINI.model,
        problems=MINI.problems,
        subjects=("algebra",),
        n=9000,
        arms=(BenchArm(name="base"), BenchArm(name="recipe", recipe=recipe())),
        seed=10**6,
        max_new_tokens=9000,
        margin=0.7,
        block_size=4000,
    )
    run_id = front.snapshot(front.submit(spec)).run_id  # type: ignore[union-attr]
    app = open_page("benchmark", query={"run": str(run_id)})
    assert not app.error
    assert app.number_input(key="bench-n").value == 9000


def test_a_run_that_no_page_shows_says_so(front: FakeFront, open_page: Open, tmp_path: Path) -> None:
    spec = ExportSpec(recipe=recipe(), out=str(tmp_path / "out"))
    run_id = front.store.start_run(spec)
    front.store.finish_run(run_id, state="failed", error="stopped", elapsed_s=1.0)
    app = open_page("edit", query={"run": run_id})
    assert "has no result" in errors(app)
