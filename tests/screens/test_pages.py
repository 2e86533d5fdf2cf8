"""Every page in every state (empty, running, done, failed), its submitted specs, and restoring from a link."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_front import FakeFront
from streamlit.testing.v1 import AppTest

from screens.shared import session
from stethoscope.profiles import MINI
from stethoscope.records import (
    BenchSpec,
    CompareTextSpec,
    DiagnoseSpec,
    EditRecipe,
    EnergySpec,
    PreflightSpec,
    ProbeSpec,
    ProblemsRef,
    TaskVectorRef,
)

PAGES = ("setup", "features", "diagnose", "edit", "benchmark", "runs")
Open = Callable[..., AppTest]


def texts(app: AppTest) -> str:
    """Return all text on the page."""
    kinds = (app.title, app.markdown, app.caption, app.error, app.warning, app.badge if hasattr(app, "badge") else [])
    return "\n".join(str(element.value) for kind in kinds for element in kind).replace("\\", "")


def asked(front: FakeFront, kind: type) -> list:
    return [spec for spec in front.submitted if isinstance(spec, kind)]


def recipe(layers: dict[int, float], alpha: float = 1.0) -> EditRecipe:
    return EditRecipe(
        model=MINI.model,
        task_vector=MINI.task_vectors[0],
        layers=layers,  # type: ignore[arg-type]
        master_alpha=alpha,
    )


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("state", ["done", "running", "failed", "cancelled"])
def test_every_page_stands_in_every_state(name: str, state: str, front: FakeFront, open_page: Open) -> None:
    front.state = state
    app = open_page(name, layers=[3, 5])
    assert not app.exception
    assert app.title[0].value == name.capitalize()
    if state == "failed" and name in ("setup", "features", "diagnose", "edit"):
        said = texts(app)
        assert "basis has d_model=640" in said
        assert "Next step: Pick an SAE trained on this model." in said
    if state == "running" and name == "diagnose":
        assert [button for button in app.button if button.key == "diagnosis-stop"]


def test_pages_leave_torch_alone(tmp_path: Path) -> None:
    code = """
import sys
sys.path.insert(0, "tests/screens"); sys.path.insert(0, ".")
from pathlib import Path
from fake_front import FakeFront
from stethoscope import jobs
from stethoscope.store.runs import RunStore
fake = FakeFront(RunStore(Path(sys.argv[1]))); jobs.front = lambda: fake
from streamlit.testing.v1 import AppTest
app = AppTest.from_file("app.py", default_timeout=600).run()
assert not app.exception
for name in ("setup", "features", "edit", "benchmark", "runs"):
    app.session_state["layers"] = [3]
    app.switch_page(f"screens/{name}/{name}.py").run()
    assert not app.exception, name
heavy = {"torch", "transformers", "sae_lens", "lm_eval", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""
    root = Path(__file__).parent.parent.parent
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_diagnosis_starts_by_itself_and_draws(front: FakeFront, open_page: Open) -> None:
    app = open_page("diagnose")
    assert asked(front, DiagnoseSpec)[0] == MINI.diagnose_spec()
    assert asked(front, EnergySpec)[0].subject == "algebra"
    charts = app.get("plotly_chart")
    assert len(charts) == 5
    figure = json.loads(charts[0].proto.spec)
    assert [trace["type"] for trace in figure["data"]] == ["heatmap", "heatmap", "scatter", "scatter"]
    assert len(figure["data"][3]["customdata"]) == 70
    assert "Our definition; the paper's formula is unavailable." in texts(app)


def test_pick_top_n_fills_the_pills_and_the_other_pages_see_them(front: FakeFront, open_page: Open) -> None:
    app = open_page("diagnose")
    app.button(key="pick-top").click().run()
    result = front.snapshot(front.submit(MINI.diagnose_spec())).result  # type: ignore[union-attr]
    best = sorted(result.order["algebra"][:4])
    assert app.session_state["layers"] == best
    outlined = json.loads(app.get("plotly_chart")[0].proto.spec)["layout"]["shapes"]
    assert [round(shape["x0"] + 0.48) for shape in outlined] == best
    app.switch_page("screens/edit/edit.py").run()
    assert list(asked(front, ProbeSpec)[0].recipe.layers) == best


def test_changed_controls_cancel_the_former_probe_and_ask_again(front: FakeFront, open_page: Open) -> None:
    app = open_page("edit", layers=[3, 5])
    assert asked(front, ProbeSpec)[-1].recipe.master_alpha == 1.0
    front.state = "running"
    app.slider(key="master-alpha").set_value(0.8).run()
    first = [job for job, (_, spec, _) in front.jobs.items() if spec == asked(front, ProbeSpec)[-1]][-1]
    app.slider(key="master-alpha").set_value(0.5).run()
    assert asked(front, ProbeSpec)[-1].recipe.master_alpha == 0.5
    assert front.cancelled[-1] == first
    assert app.get("plotly_chart"), "the former result stays while the new one is computed"


def test_an_overtaken_job_is_asked_again_but_a_stopped_one_is_not(front: FakeFront, open_page: Open) -> None:
    front.state = "running"
    app = open_page("edit", layers=[3])
    job = next(job_id for job_id, (_, spec, _) in front.jobs.items() if isinstance(spec, ProbeSpec))
    for owner in front.jobs[job][0].owners:  # as the slider moved forth and back would
        front.cancel(job, owner)
    app.run()
    assert len(asked(front, ProbeSpec)) == 2
    while any(button.key == "cancel-job" for button in app.button):
        app.button(key="cancel-job").click().run()
    stopped = len(asked(front, ProbeSpec))
    app.run()
    assert len(asked(front, ProbeSpec)) == stopped


def test_stop_leaves_a_job_to_the_other_visitor_who_waits_for_it(front: FakeFront, open_page: Open) -> None:
    front.state = "running"
    app = open_page("edit", layers=[3])
    for other in list(front.jobs):
        front.follow(other, "another visitor")
    first = front.active()[0]
    app.button(key="cancel-job").click().run()
    assert front.cancelled == [first.job_id]
    assert front.snapshot(first.job_id).state == "running"
    assert front.snapshot(first.job_id).owners == {"another visitor"}
    assert not [button for button in app.button if button.key == "cancel-job"]


def test_recipe_has_layers_alphas_and_arm(front: FakeFront, open_page: Open) -> None:
    app = open_page("edit", layers=[3, 5], layer_alpha={"5": [0.5, 0.25]}, alpha=0.8, edit_type="projected", edit_k=8)
    got = asked(front, ProbeSpec)[-1].recipe
    assert got.alpha(3, "mlp") == pytest.approx(0.8)
    assert got.alpha(5, "attention") == pytest.approx(0.4)
    assert got.alpha(5, "mlp") == pytest.approx(0.2)
    assert got.edit_type.kind == "projected"
    assert got.edit_type.top_k == 8
    assert "top 8 algebra latents" in texts(app)


def test_empty_edit_offers_one_button_that_mends_it(front: FakeFront, open_page: Open) -> None:
    app = open_page("edit")
    assert not asked(front, ProbeSpec)
    app.button(key="edit-pick").click().run()
    assert len(app.session_state["layers"]) == 4
    assert asked(front, ProbeSpec)


def test_text_is_escaped_and_the_first_difference_marked(front: FakeFront, open_page: Open) -> None:
    app = open_page("edit", layers=[3])
    app.button(key="run-compare").click().run()
    assert asked(front, CompareTextSpec)[0].prompts[0].startswith("What is")
    bodies = [element.proto.body for element in app.get("html")]
    assert any("&lt;b&gt;18&lt;/b&gt;" in body for body in bodies)
    assert not any("<b>18" in body for body in bodies)
    assert sum('aria-label="first difference"' in body for body in bodies) == 2


def test_a_benchmark_starts_only_by_its_button(front: FakeFront, open_page: Open) -> None:
    app = open_page("benchmark", layers=[3, 5])
    assert not asked(front, BenchSpec)
    app.number_input(key="bench-n").set_value(20).run()
    app.button(key="run-bench").click().run()
    (spec,) = asked(front, BenchSpec)
    assert [arm.name for arm in spec.arms][:3] == ["base", "recipe", "all layers"]
    assert spec.arms[3].name.startswith("random layers ")
    assert spec.n == 20
    said = texts(app)
    assert "n = 20 problems per subject" in said
    assert "Smoke test" in said
    assert app.query_params["run"]


def test_a_link_shows_a_stored_benchmark_and_starts_none(front: FakeFront, open_page: Open) -> None:
    app = open_page("benchmark", layers=[3, 5])
    app.button(key="run-bench").click().run()
    run_id = app.query_params["run"]
    before = len(asked(front, BenchSpec))
    again = open_page("benchmark", query={"run": run_id})
    assert not again.exception
    assert again.session_state["layers"] == [3, 5]
    assert again.get("plotly_chart")
    assert len(asked(front, BenchSpec)) == before


def test_a_stored_energy_sets_the_choice_of_weights(front: FakeFront, open_page: Open) -> None:
    open_page("diagnose")
    open_page("diagnose", fold_gains=False)
    runs = front.store.list_runs("energy")
    assert {run.spec.fold_gains for run in runs} == {True, False}
    for run in runs:
        before = len(asked(front, EnergySpec))
        app = open_page("diagnose", query={"run": run.run_id})
        assert not app.exception
        assert app.session_state["energy-gains"] is run.spec.fold_gains
        assert len(asked(front, EnergySpec)) == before


def test_a_recipe_link_restores_the_edit(front: FakeFront, open_page: Open) -> None:
    recipe_id = front.store.put_recipe(recipe({2: 1.0, 7: 0.5}, alpha=0.65))
    app = open_page("edit", query={"recipe": recipe_id})
    assert app.session_state["layers"] == [2, 7]
    got = asked(front, ProbeSpec)[-1].recipe
    assert got.alpha(7, "mlp") == pytest.approx(0.325)
    assert app.slider(key="master-alpha").value == pytest.approx(0.65)


@pytest.mark.parametrize("query", [{"recipe": "feedbeef"}, {"run": "nonsense"}, {"job": "j99"}, {"recipe": "<b>"}])
def test_a_broken_link_is_a_message(query: dict[str, str], open_page: Open) -> None:
    app = open_page("diagnose", query=query)
    assert not app.exception
    assert app.get("plotly_chart")


def test_runs_lists_opens_and_pins(front: FakeFront, open_page: Open) -> None:
    app = open_page("diagnose", layers=[3, 5])
    app.switch_page("screens/benchmark/benchmark.py").run()
    app.button(key="run-bench").click().run()
    app.switch_page("screens/runs/runs.py").run()
    assert len(app.selectbox(key="run-select").options) == 5, (
        "diagnosis, its other control, stability, energy, benchmark"
    )
    app.button(key="pin-run").click().run()
    assert [run.kind for run in front.store.list_runs() if run.pinned] == ["bench"]
    app.session_state["layers"] = []
    app.button(key="open-run").click().run()
    assert not app.exception
    assert app.session_state["layers"] == [3, 5]


def test_no_runs_is_an_empty_state(front: FakeFront, open_page: Open) -> None:
    front.state = "running"
    app = open_page("runs")
    assert "No stored runs yet." in texts(app)


def test_the_strip_names_the_weights_behind_the_result(open_page: Open) -> None:
    assert "BASE verified" in texts(open_page("diagnose"))
    assert "EDITED: layers 3,5 · alpha 0.8 · recipe 3f3f…" in texts(open_page("edit", layers=[3, 5], alpha=0.8))


def test_a_broken_profile_is_a_message_and_changes_nothing(front: FakeFront, open_page: Open, tmp_path: Path) -> None:
    app = open_page("setup")
    app.selectbox(key="profile-choice").set_value("your own (TOML file)").run()
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ", encoding="utf-8")
    app.text_input(key="profile-path").set_value(str(broken)).run()
    assert "is not valid TOML" in texts(app)
    assert app.session_state["profile"] == "mini"


def test_a_fault_of_ours_is_a_banner(front: FakeFront, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(front, "submit", fail)
    app = open_page("diagnose")
    assert not app.exception
    assert "Unexpected ZeroDivisionError: planted" in texts(app)
    assert app.code, "the detail can be copied"


def test_a_deep_address_in_a_fresh_process_still_runs_inside_the_app(tmp_path: Path) -> None:
    code = """
import sys
sys.path.insert(0, "tests/screens"); sys.path.insert(0, ".")
from pathlib import Path
from fake_front import FakeFront
from stethoscope import jobs
from stethoscope.store.runs import RunStore
fake = FakeFront(RunStore(Path(sys.argv[1]))); jobs.front = lambda: fake
from streamlit.testing.v1 import AppTest
app = AppTest.from_file("app.py", default_timeout=600)
app.switch_page("screens/setup/setup.py").run()
assert not app.exception
assert [title.value for title in app.title] == ["Setup"]
assert fake.warmed == ["mini"], "app.py has run around the page"
"""
    root = Path(__file__).parent.parent.parent
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_setup_reports_the_preflight_in_words_and_a_heatmap(front: FakeFront, open_page: Open) -> None:
    app = open_page("setup", task_vector="math")
    (spec,) = asked(front, PreflightSpec)
    assert spec.task_vector == MINI.task_vector("math")
    said = texts(app)
    assert "1 pass · 1 warn" in said
    assert ":orange-badge[warn] **embeddings**: the embeddings change more" in said
    assert "got relative norm 0.4000" in said
    assert "69 of 70 matrices change" in said
    figures = [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]
    heat = next(figure for figure in figures if figure["data"][0]["type"] == "heatmap")
    assert heat["data"][1]["text"] == ["–"]
    assert (heat["data"][0]["zmin"], heat["data"][0]["zmax"]) == (0, pytest.approx(5.0)), "colour starts at no change"
    assert "cosine of the realised and intended delta 0.9100 to 0.9550" in said


def test_a_task_vector_of_ones_own_is_checked_then_used_on_every_page(front: FakeFront, open_page: Open) -> None:
    app = open_page("setup")
    app.text_input(key="own-tuned").set_value("/models/my-lora/").run()
    app.text_input(key="own-revision").set_value("abc").run()
    app.button(key="own-add").click().run()
    own = TaskVectorRef(name="my-lora", tuned="/models/my-lora/", revision="abc")
    assert asked(front, PreflightSpec)[-1].task_vector == own
    assert app.session_state["task_vector"] == "my-lora"
    assert app.selectbox(key="task-vector").value == "my-lora"
    app.session_state["layers"] = [3]
    app.switch_page("screens/edit/edit.py").run()
    assert asked(front, ProbeSpec)[-1].recipe.task_vector == own
    app.switch_page("screens/setup/setup.py").run()
    app.button(key="own-remove").click().run()
    assert "my-lora" not in app.selectbox(key="task-vector").options
    assert app.session_state["task_vector"] == "math"


def test_a_broken_task_vector_is_a_message_and_nothing_is_lost(front: FakeFront, open_page: Open) -> None:
    app = open_page("setup", layers=[2])
    app.text_input(key="own-tuned").set_value("/models/broken").run()
    app.button(key="own-add").click().run()
    said = texts(app)
    for part in ("is not a plain LoRA", "Got: use", "Expected: LoRA or rsLoRA", "Next step: Merge it"):
        assert part in said
    assert app.text_input(key="own-tuned").value == "/models/broken"
    assert app.session_state["task_vector"] == "math"
    assert app.session_state["layers"] == [2]
    app.text_input(key="own-tuned").set_value("elsewhere/math").run()
    assert app.button(key="own-add").disabled
    assert "there is already a task vector with this name" in texts(app)


NO_SAES = {"saes": None, "other_saes": ()}
NO_CONTROLS = {"problems": MINI.problems.model_copy(update={"controls": None, "control_names": ()})}
NO_PROBLEMS = {"problems": ProblemsRef()}


@pytest.mark.parametrize("name", ["setup", "features", "diagnose", "edit", "benchmark", "runs"])
@pytest.mark.parametrize(
    ("without", "where"),
    [
        (NO_SAES, {"features": "[saes]", "diagnose": "[saes]"}),
        (NO_CONTROLS, {"features": "controls =", "diagnose": "controls ="}),
        (
            NO_SAES | NO_PROBLEMS,
            {"features": "[saes]", "diagnose": "[saes]", "edit": "problems =", "benchmark": "problems ="},
        ),
    ],
    ids=["no SAEs", "no controls", "neither SAEs nor problems"],
)
def test_every_page_of_a_profile_that_names_less(
    name: str,
    without: dict[str, object],
    where: dict[str, str],
    open_page: Callable[..., AppTest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    less = MINI.model_copy(update=without)
    monkeypatch.setattr(session, "load_profile", lambda _: less)
    app = open_page(name, layers=[3, 5], edit_type="projected")
    assert not app.exception
    assert not [error.value for error in app.error]
    said = [box.value.replace("\\", "") for box in app.info if "profile mini has no" in box.value]
    assert len(said) == (name in where)
    assert name not in where or where[name] in said[0]
    if name == "edit":
        assert app.session_state["edit_type"] == "raw"
        assert app.button(key="run-compare")
