"""The edit studio: presets, bulk changes, undo and redo, files, links, differences, export."""

from collections.abc import Callable

import fake_front
import pytest
from fake_front import FakeFront
from streamlit.testing.v1 import AppTest

from stethoscope.judging.arms import FINE_TUNE
from stethoscope.profiles import MINI
from stethoscope.recipes.files import from_link, to_link
from stethoscope.records import (
    CompareTextSpec,
    DoseSpec,
    EditRecipe,
    InfoSpec,
    LayerAlpha,
    ModelRef,
    ProbeSpec,
    RandomSubspaceEdit,
    TaskVectorRef,
)
from stethoscope.results import InfoResult

Open = Callable[..., AppTest]


def recipe(**fields: object) -> EditRecipe:
    layers = {3: LayerAlpha(attention=0.5), 5: LayerAlpha()}
    start = {"model": MINI.model, "task_vector": MINI.task_vectors[0], "layers": layers, "master_alpha": 0.7}
    return EditRecipe.model_validate(start | fields)


def current(app: AppTest) -> EditRecipe:
    """Return the recipe in the page's address."""
    return from_link(
        app.query_params["recipe"][0] if isinstance(app.query_params["recipe"], list) else app.query_params["recipe"]
    )


def test_the_address_carries_the_whole_recipe_and_restores_it(front: FakeFront, open_page: Open) -> None:
    wanted = recipe(edit_type=RandomSubspaceEdit(rank=12, saes=MINI.saes, seed=4), norms=True)
    app = open_page("edit", query={"recipe": to_link(wanted)})
    assert not app.exception
    assert current(app) == wanted
    assert [spec.recipe for spec in front.submitted if isinstance(spec, ProbeSpec)] == [wanted]
    assert front.store.list_recipes() == []  # looking at a link stores nothing


def test_presets_and_bulk_changes(open_page: Open) -> None:
    app = open_page("edit", layers=[2, 4])
    app.button(key="preset-attention").click().run()
    assert current(app).layers == dict.fromkeys((2, 4), LayerAlpha(attention=1, mlp=0))
    app.number_input(key="bulk-value").set_value(0.3)
    app.selectbox(key="bulk-part").set_value("mlp").run()
    app.button(key="bulk-set").click().run()
    assert current(app).layers == dict.fromkeys((2, 4), LayerAlpha(attention=1, mlp=0.3))
    app.button(key="bulk-multiply").click().run()
    assert current(app).layers[2].mlp == 0.09
    app.button(key="preset-ramp").click().run()
    assert current(app).layers[4].mlp == round(4 / 9, 4)
    app.button(key="preset-all").click().run()
    assert current(app).layers == dict.fromkeys(range(10), LayerAlpha())
    assert not app.exception


def test_top_and_bottom_come_from_the_diagnosis(front: FakeFront, open_page: Open) -> None:
    app = open_page("edit", layers=[2])
    order = next(
        view.result.order["algebra"] for view in map(front.snapshot, front.jobs) if hasattr(view.result, "order")
    )
    app.button(key="preset-top").click().run()
    assert set(current(app).layers) == set(order[: MINI.top_n])
    app.button(key="preset-bottom").click().run()
    assert set(current(app).layers) == set(order[-MINI.top_n :])


def test_undo_and_redo(open_page: Open) -> None:
    app = open_page("edit", layers=[2])
    first = current(app)
    app.slider(key="master-alpha").set_value(0.4).run()
    second = current(app)
    app.button(key="preset-all").click().run()
    app.button(key="undo").click().run()
    assert current(app) == second
    app.button(key="undo").click().run()
    assert current(app) == first
    assert app.button(key="undo").disabled
    app.button(key="redo").click().run()
    assert current(app) == second
    app.slider(key="master-alpha").set_value(1.2).run()
    assert app.button(key="redo").disabled  # what was undone is forgotten


def test_saved_recipes_can_be_loaded_and_compared(front: FakeFront, open_page: Open) -> None:
    app = open_page("edit", query={"recipe": to_link(recipe())})
    app.button(key="save-recipe").click().run()
    assert [stored.recipe for stored in front.store.list_recipes()] == [recipe()]
    app.slider(key="master-alpha").set_value(1.5).run()
    table = next(frame.value for frame in app.dataframe if "field" in frame.value.columns)
    assert table.to_dict("records") == [{"field": "master_alpha", "before": "0.7", "now": "1.5"}]
    app.button(key="load-recipe").click().run()
    assert current(app) == recipe()


def test_a_recipe_that_does_not_fit_gets_one_clear_message(open_page: Open) -> None:
    for wrong, said in (
        (recipe(model=ModelRef(id="other/model")), "the recipe is for another model"),
        (recipe(task_vector=TaskVectorRef(name="x", tuned="y")), "task vector is not in the profile"),
    ):
        app = open_page("edit", query={"recipe": to_link(wrong)})
        assert not app.exception
        assert any(said in error.value.replace("\\", "") for error in app.error)
    app = open_page("edit", query={"recipe": to_link(recipe())[:-9]})
    assert any("cannot be read" in error.value for error in app.error)


def test_runs_shows_what_changed_between_two_recipes(front: FakeFront, open_page: Open) -> None:
    for alpha in (0.5, 1.0):
        spec = CompareTextSpec(recipe=recipe(master_alpha=alpha), prompts=("x",), problems=MINI.problems)
        run_id = front.store.start_run(spec, extra=())
        front.store.finish_run(run_id, state="failed", error="stopped", elapsed_s=1.0)
    app = open_page("runs")
    assert not any("field" in frame.value.columns for frame in app.dataframe)  # stopped runs are hidden at first
    app.toggle(key="runs-all").set_value(True).run()
    assert not app.exception
    tables = [frame.value for frame in app.dataframe if "field" in frame.value.columns]
    assert tables[0].to_dict("records") == [{"field": "master_alpha", "before": "0.5", "now": "1.0"}]


def test_a_list_of_prompts_with_a_third_column(front: FakeFront, open_page: Open) -> None:
    app = open_page("edit", layers=[2], prompt_kind="a list", prompt_list="What is 1 + 1?\n\n What is 2 + 2?")
    app.selectbox(key="third-choice").set_value("fine-tune").run()
    app.checkbox(key="text-chat").check().run()
    app.button(key="run-compare").click().run()
    assert not app.exception
    spec = next(spec for spec in front.submitted if isinstance(spec, CompareTextSpec))
    assert spec.prompts == ("What is 1 + 1?", "What is 2 + 2?")
    assert (spec.framed, spec.chat_template) == (True, True)
    assert spec.third is not None
    assert list(spec.third.layers) == list(range(10))
    assert spec.third.norms
    assert spec.third.embeddings
    said = "\n".join(str(element.value) for element in app.caption)
    assert "of 2 edited texts differ from the base’s" in said


def test_a_fine_tune_that_no_edit_gives_is_offered_on_no_page(
    front: FakeFront, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untied(spec: InfoSpec) -> InfoResult:
        known = fake_front.info(spec)
        rows = [row.model_copy(update={"not_the_fine_tune": "it holds lm_head"}) for row in known.task_vectors]
        return known.model_copy(update={"task_vectors": tuple(rows)})

    monkeypatch.setitem(fake_front.ANSWERS, InfoSpec, untied)
    app = open_page("edit", layers=[2])
    assert "the full fine-tune" not in app.selectbox(key="third-choice").options
    assert "lm" in app.selectbox(key="third-choice").help
    app.switch_page("screens/benchmark/benchmark.py").run()
    app.button(key="bench-standard").click().run()
    assert FINE_TUNE not in app.session_state["bench_controls"]
    assert not app.exception


def test_without_a_prompt_nothing_can_be_written(open_page: Open) -> None:
    app = open_page("edit", layers=[2], prompt_kind="free text", free_text="  ")
    assert app.button(key="run-compare").disabled


def test_the_dose_curve_is_asked_as_a_batch_job_and_survives_the_slider(front: FakeFront, open_page: Open) -> None:
    app = open_page("edit", layers=[2])
    app.slider(key="master-alpha").set_value(0.4).run()
    curves = [spec for spec in front.submitted if isinstance(spec, DoseSpec)]
    assert len(curves) == 1  # the slider asks for the same curve
    assert not app.exception
    said = "\n".join(str(element.value) for element in app.caption)
    assert "Choose alpha here, on dev items" in said


def test_an_alpha_beyond_the_slider_is_refused(open_page: Open) -> None:
    app = open_page("edit", query={"recipe": to_link(recipe(master_alpha=2.0))})
    assert any("outside the slider's range" in error.value for error in app.error)


def test_what_changed_names_the_recipe_that_the_table_compares_with(open_page: Open) -> None:
    app = open_page("edit", layers=[2])
    for alpha in (0.5, 0.25):
        app.slider(key="master-alpha").set_value(alpha).run()

    def shown() -> tuple[str, dict[str, str]]:
        box = next(box for box in app.selectbox if box.label == "Compare with")
        assert box.proto.default == box.options.index(box.value)
        rows = [
            row for frame in app.dataframe if "field" in frame.value.columns for row in frame.value.to_dict("records")
        ]
        return box.value, {row["field"]: row["before"] for row in rows}

    named, before = shown()
    assert "alpha 0.5 " in named
    assert before == {"master_alpha": "0.5"}
    box = next(box for box in app.selectbox if box.label == "Compare with")
    box.set_value(next(name for name in box.options if "alpha 1 " in name)).run()
    app.slider(key="master-alpha").set_value(0.75).run()
    named, before = shown()
    assert "alpha 1 " in named  # a choice stays while one goes on editing
    assert before == {"master_alpha": "1.0"}


def test_the_prompt_s_subject_is_that_of_diagnose_until_another_is_chosen(open_page: Open) -> None:
    app = open_page("edit", subject="geometry", layers=[3, 5])
    assert app.selectbox(key="prompt-subject").value == "geometry"
    app.selectbox(key="prompt-subject").set_value("algebra").run()
    assert app.session_state["prompt_subject"] == "algebra"
    app.session_state["subject"] = "precalculus"
    app.run()
    assert app.selectbox(key="prompt-subject").value == "precalculus"


@pytest.mark.parametrize("layers", [[], [3, 5]])
def test_an_edit_leads_to_its_benchmark(layers: list[int], open_page: Open) -> None:
    app = open_page("edit", layers=layers)
    (link,) = [link for link in app.get("page_link") if "Benchmark" in link.proto.label]
    assert link.proto.disabled == (not layers)
