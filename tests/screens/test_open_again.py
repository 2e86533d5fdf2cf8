"""Every stored use case reopens from the Runs page with all its fields and without recomputation."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_front import FakeFront
from streamlit.testing.v1 import AppTest

from screens.shared.jobs import spec_key
from stethoscope.profiles import MINI
from stethoscope.records import (
    BenchArm,
    BenchSpec,
    CompareTextSpec,
    DiagnoseSpec,
    DoseSpec,
    EditRecipe,
    EnergySpec,
    ExportSpec,
    GainSpec,
    LayerAlpha,
    NormMatchedEdit,
    RankSpec,
    Spec,
    StabilitySpec,
)
from stethoscope.use_cases import KEPT_KINDS, use_case_of

APP = str(Path(__file__).parent.parent.parent / "app.py")
Open = Callable[..., AppTest]
DIAGNOSIS = MINI.diagnose_spec(
    control=MINI.problems.control_names[1],
    score="log_ratio",
    top_k=8,
    documents=20,
    split="dev",
    tokens="all",
    live_share=0.02,
    dense_rate=0.2,
    n_splits=4,
    n_bootstrap=50,
    n_permutations=99,
    seed=3,
)
BY_RATES = DIAGNOSIS.model_copy(update={"score": "mean_rate_difference"})  # the one of the fake gains
VECTOR = MINI.task_vectors[-1]
EDIT_TYPE = NormMatchedEdit(diagnosis=DIAGNOSIS, subject="geometry", top_k=DIAGNOSIS.top_k)
RECIPE = EditRecipe(
    model=MINI.model,
    task_vector=VECTOR,
    layers={2: LayerAlpha(), 5: LayerAlpha(mlp=0.5)},
    master_alpha=0.75,
    edit_type=EDIT_TYPE,
)
NAMED = {"recipe": RECIPE, "problems": MINI.problems}
SPECS: tuple[Spec, ...] = (
    DIAGNOSIS,
    StabilitySpec(diagnosis=DIAGNOSIS, ks=(2, 6)),
    EnergySpec(diagnosis=DIAGNOSIS, task_vector=VECTOR, subject="geometry", k=(3, 5), fold_gains=False, draws=2),
    GainSpec(diagnosis=BY_RATES, task_vector=VECTOR, split="train", n=7, alpha=0.5, top_n=2, random_sets=40, seed=5),
    DoseSpec(**NAMED, alphas=(0.0, 0.5), split="train", n=5, seed=4),
    RankSpec(**NAMED, split="train", n=5, n_sets=40, seed=4),
    CompareTextSpec(**NAMED, prompts=("What is 1 + 1?", "What is 2 + 2?"), max_new_tokens=40),
    CompareTextSpec(**NAMED, prompts=("Once\nupon ",), framed=False, chat_template=True),
    CompareTextSpec(**NAMED, prompts=("A problem\nof two lines",), third=RECIPE),
    BenchSpec(
        model=MINI.model,
        problems=MINI.problems,
        subjects=("algebra",),
        n=9,
        seed=2,
        margin=0.05,
        arms=(BenchArm(name="base"), BenchArm(name="recipe", recipe=RECIPE)),
    ),
    ExportSpec(recipe=RECIPE, out="exports/elsewhere", kind="delta", max_shard_bytes=10**8),
)


def test_every_kept_use_case_is_here() -> None:
    assert {use_case_of(spec).kind for spec in SPECS} == set(KEPT_KINDS)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: use_case_of(spec).kind)
def test_it_opens_as_it_was_asked(spec: Spec, front: FakeFront, open_page: Open) -> None:
    place = use_case_of(spec).place
    assert place is not None
    run_id = front.snapshot(front.submit(spec)).run_id  # type: ignore[union-attr]
    app = open_page("runs")
    app.toggle(key="runs-all").set_value(True).run()
    app.selectbox(key="run-select").set_value(run_id).run()
    front.submitted.clear()
    app.button(key="open-run").click().run()
    app.switch_page(f"screens/{place.page}/{place.page}.py").run()
    assert not app.error, app.error[0].value
    assert not app.exception
    assert app.session_state["slots"][place.slot] == {
        "spec": spec_key(spec),
        "job": None,
        "run": run_id,
        "shown": {"run": run_id},
    }
    asked = [asked for asked in front.submitted if type(asked) is type(spec)]
    if isinstance(spec, DiagnoseSpec):  # stability over controls looks at the next one
        asked = [other for other in asked if isinstance(other, DiagnoseSpec) and other.control == spec.control]
    assert not asked
    if not isinstance(spec, BenchSpec | ExportSpec):
        settings = app.session_state["opened_settings"]
        assert (use_case_of(spec).kind in settings) == (not isinstance(spec, CompareTextSpec))


def test_the_profiles_own_settings_come_back_by_a_button(front: FakeFront, open_page: Open) -> None:
    run_id = front.snapshot(front.submit(DIAGNOSIS)).run_id  # type: ignore[union-attr]
    app = open_page("diagnose", query={"run": str(run_id)})
    assert "documents 20" in " ".join(caption.value for caption in app.caption)
    app.button(key="diagnose-own").click().run()
    own = MINI.diagnose_spec(control=DIAGNOSIS.control, score=DIAGNOSIS.score, top_k=DIAGNOSIS.top_k)
    assert own in front.submitted
    assert app.session_state["opened_settings"] == {}


def test_a_rank_is_shown_without_its_benchmark(front: FakeFront, open_page: Open) -> None:
    spec = RankSpec(**NAMED, n_sets=40)
    run_id = front.snapshot(front.submit(spec)).run_id  # type: ignore[union-attr]
    app = open_page("benchmark", query={"run": str(run_id)})
    assert app.session_state["layers"] == [2, 5]
    assert len(app.get("plotly_chart")) == 1
    assert not [button for button in app.button if button.key == "run-rank"]


def test_the_projected_column_is_the_projected_recipe(front: FakeFront, open_page: Open) -> None:
    """One diagnosis in every place: with another score chosen, the third column's edit is the Edit page's own."""
    app = open_page(
        "edit", layers=[2], edit_type="projected", score="log_ratio", third="projected", prompt_kind="a list"
    )
    app.button(key="run-compare").click().run()
    (asked,) = [spec for spec in front.submitted if isinstance(spec, CompareTextSpec)]
    assert asked.third == asked.recipe


def test_a_link_to_a_rank_waits_for_the_model_on_its_page(front: FakeFront, open_page: Open) -> None:
    spec = RankSpec(**NAMED, n_sets=40)
    run_id = front.snapshot(front.submit(spec)).run_id  # type: ignore[union-attr]
    front.unload()
    app = AppTest.from_file(APP, default_timeout=600)
    app.query_params["run"] = str(run_id)
    app.switch_page("screens/benchmark/benchmark.py").run()
    assert not app.get("plotly_chart")
    assert not [button for button in app.button if button.key == "bench-pick"], "its layers are known, not missing"
    front.worker = FakeFront(front.store).worker  # the model is there
    app.run()
    assert app.session_state["layers"] == [2, 5]
    assert len(app.get("plotly_chart")) == 1
