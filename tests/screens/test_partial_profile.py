"""Every page on a model with SAEs on layers 2, 3 and 6 and a task vector on 1, 3, 4 and 6.

The results come from the real pipeline, with fewer problems where a study would take long. Pages are compared with
the records.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_front import FakeFront
from streamlit.testing.v1 import AppTest

from screens.shared import session
from stethoscope import jobs
from stethoscope.judging import arms
from stethoscope.profiles import PROFILES, Profile
from stethoscope.recipes.files import to_link
from stethoscope.records import (
    BenchArm,
    BenchPlanSpec,
    BenchSpec,
    CompareTextSpec,
    DoseSpec,
    EditRecipe,
    EnergySpec,
    GainSpec,
    InfoSpec,
    LatentsSpec,
    LayerAlpha,
    ProbeSpec,
    RandomSubspaceEdit,
    RankSpec,
    Spec,
    StabilitySpec,
)
from stethoscope.results import BenchResult, DiagnosisResult, EnergyResult, GainResult, Result
from stethoscope.store.runs import RunStore

HEARD = [2, 3, 6]
MOVED = [1, 3, 4, 6]
STILL = [0, 2, 5, 7]
SUBJECT = "geometry"
Run = Callable[[Spec], Any]
Walk = Callable[..., AppTest]
FEWER: dict[type[Spec], dict[str, object]] = {
    GainSpec: {"n": 2, "random_sets": 1},
    ProbeSpec: {"n": 2},
    DoseSpec: {"n": 2, "alphas": (0.0, 1.0)},
    RankSpec: {"n": 2},
}


class PipelineFront(FakeFront):
    """A front that computes results immediately."""

    def __init__(self, store: RunStore, run: Run) -> None:
        super().__init__(store)
        self.run = run

    def answer(self, spec: Spec) -> Result:
        result = self.run(spec.model_copy(update=FEWER.get(type(spec), {})))
        return result.model_copy(update={"spec": spec}) if isinstance(spec, RankSpec) else result


@pytest.fixture
def front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partial_profile: Profile, partial_run: Run) -> PipelineFront:
    front = PipelineFront(RunStore(tmp_path / "runs"), partial_run)
    named = partial_profile.model_dump(include={"model", "saes", "task_vectors"})
    front.worker = replace(front.worker, model=partial_run(InfoSpec.model_validate(named)).model)
    monkeypatch.setattr(jobs, "front", lambda: front)
    monkeypatch.setitem(PROFILES, partial_profile.name, partial_profile)
    return front


@pytest.fixture
def walk(open_page: Walk, partial_profile: Profile) -> Walk:
    """Factory of a page with the partial profile and a loaded model."""

    def open_(name: str, query: dict[str, str] | None = None, **state: object) -> AppTest:
        wanted = {"subject": SUBJECT, "load_asked": session._parts(partial_profile)}
        named = {"profile": partial_profile.name}
        if query is not None:
            return checked(open_page(name, query=named | query, **wanted | state))
        return checked(open_page(name, **named | wanted | state))

    return open_


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], str]]:
    """Content of all download buttons drawn so far, by file name."""
    import streamlit as st

    offered: dict[str, Callable[[], str]] = {}
    plain = st.download_button

    def kept(label: str, data: Any, file_name: str, *more: Any, **options: Any) -> bool:
        offered[file_name] = data if callable(data) else lambda: data
        return plain(label, data, file_name, *more, **options)

    monkeypatch.setattr(st, "download_button", kept)
    return offered


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def said(app: AppTest) -> str:
    kinds = (app.markdown, app.caption, app.warning, app.info, app.error)
    return "\n".join(str(element.value) for kind in kinds for element in kind).replace("\\", "")


def figures(app: AppTest) -> dict[str, dict[str, Any]]:
    """Return the figures of the page by the name that they are saved under."""
    charts = app.get("plotly_chart")
    names = [json.loads(chart.proto.config)["toImageButtonOptions"]["filename"] for chart in charts]
    return dict(zip(names, (json.loads(chart.proto.spec) for chart in charts), strict=True))


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def checked(app: AppTest) -> AppTest:
    """Return `app`, on which nothing raised, no text is of a missing number and no figure is blank."""
    assert not app.exception
    assert not app.error, [error.value for error in app.error]
    drawn = figures(app)
    for text in (said(app), *texts({name: figure["data"] for name, figure in drawn.items()})):
        assert not {"nan", "NaN", "None", "inf"} & set(text.replace(",", " ").split()), text
    for name, figure in drawn.items():
        has_points = any(trace.get("x") or trace.get("z") or trace.get("y") for trace in figure["data"])
        assert has_points or figure["layout"].get("annotations"), name
    return app


def in_heatmap(figure: dict[str, Any]) -> set[int]:
    """Return the layers in which any heatmap of `figure` has a value."""
    grids = [(trace["x"], values) for trace in figure["data"] if trace["type"] == "heatmap" for values in trace["z"]]
    return {x for columns, values in grids for x, value in zip(columns, values, strict=True) if value is not None}


def noted(figure: dict[str, Any], text: str) -> list[int]:
    return sorted({note["x"] for note in figure["layout"].get("annotations", []) if note["text"] == text})


def table(app: AppTest, column: str) -> Any:
    """Return the first table on the page that has `column`."""
    return next(frame.value for frame in app.dataframe if column in frame.value.columns)


def test_setup_shows_which_layers_have_an_sae_and_which_move(walk: Walk, files: dict[str, Any]) -> None:
    app = walk("setup", task_vector="some")
    assert [int(layer) for layer in table(app, "latents")["layer"]] == HEARD
    (metric,) = [metric for metric in app.metric if metric.label == "SAEs"]
    assert metric.value == "3 of 8"
    norms = figures(app)["norms"]
    drawn = {x: y for trace in norms["data"] for x, y in zip(trace["x"], trace["y"], strict=True) if y is not None}
    assert sorted(drawn) == MOVED
    assert noted(norms, "–") == STILL
    matrices = figures(app)["matrix-norms"]
    assert in_heatmap(matrices) == set(MOVED)
    assert "28 of 56 matrices change" in said(app)
    assert "4 of 8 layers change (1, 3, 4, 6)" in said(app)
    by_layer = rows(files["norms.csv"]())
    assert [int(row["layer"]) for row in by_layer if float(row["relative_norm"])] == MOVED
    assert {int(row["layer"]) for row in rows(files["matrix-norms.csv"]()) if row["moves"] == "True"} == set(MOVED)
    app = walk("setup", task_vector="nothing")
    assert "none of 8 layers changes" in said(app)
    assert "0 of 56 matrices change" in said(app)


@pytest.mark.parametrize(("picked", "first"), [([], 2), ([6], 6), ([4, 6], 6), ([4], 2)])
def test_features_begins_at_a_layer_that_has_an_sae(
    picked: list[int], first: int, walk: Walk, front: PipelineFront, partial_run: Run
) -> None:
    app = walk("features", layers=picked)
    assert [int(option) for option in app.selectbox(key="feature-layer").options] == HEARD
    (spec,) = [spec for spec in front.submitted if isinstance(spec, LatentsSpec)]
    assert spec.layer == first
    known = partial_run(spec)
    assert list(table(app, "auroc")["latent"]) == [row.latent for row in known.rows]
    assert f"Layer {first}, geometry against stories" in said(app)


def test_features_begins_at_the_best_layer_of_a_diagnosis(walk: Walk, front: PipelineFront) -> None:
    app = walk("diagnose")
    app.switch_page("screens/features/features.py").run()
    best = front.run(front.submitted[-1].diagnosis).order[SUBJECT][0]  # type: ignore[union-attr]
    assert front.submitted[-1].layer == best == 3  # type: ignore[union-attr]


@pytest.fixture
def diagnosis(partial_profile: Profile, partial_run: Run) -> DiagnosisResult:
    return partial_run(partial_profile.diagnose_spec())


def test_diagnose_shows_and_picks_the_layers_that_have_a_score(
    walk: Walk, files: dict[str, Any], diagnosis: DiagnosisResult
) -> None:
    app = walk("diagnose")
    heatmap, strip = figures(app)["heatmap"], figures(app)["strip"]
    assert in_heatmap(heatmap) == set(HEARD)
    assert heatmap["data"][3]["customdata"] == [[cell.layer, cell.subject] for cell in diagnosis.cells]
    assert noted(heatmap, "no SAE") == [0, 1, 4, 5, 7]
    assert sorted(x for trace in strip["data"] for x in trace["x"]) == HEARD
    assert [int(row["layer"]) for row in rows(files["heatmap.csv"]())] == [cell.layer for cell in diagnosis.cells]
    assert [float(row["score"]) for row in rows(files["heatmap.csv"]())] == [cell.score for cell in diagnosis.cells]
    assert {int(row["layer"]) for row in rows(files["heatmap_latents.csv"]())} == set(HEARD)
    order = diagnosis.order[SUBJECT]
    assert app.session_state["top_n"] == 2, "the profile's own"
    checked(app.button(key="pick-top").click().run())
    assert app.session_state["layers"] == sorted(order[:2])
    checked(app.button(key="pick-bottom").click().run())
    assert app.session_state["layers"] == sorted(order[-2:])
    checked(app.number_input(key="top-n").set_value(4).run())
    assert [app.button(key=f"pick-{kind}").disabled for kind in ("top", "bottom", "random")] == [True, True, False]
    assert app.button(key="pick-top").help == "Only 3 layers have a score, which is too few to pick 4."


def test_a_pick_to_be_frozen_says_what_it_does_not_change(walk: Walk) -> None:
    app = walk("diagnose", layers=[2, 3])
    assert "The task vector changes nothing in layer 2, which the recipe edits." in said(app)
    app = walk("diagnose", layers=[0, 5])
    assert "Changes nothing: its weights equal those of the base." in said(app)
    app = walk("diagnose", layers=[3, 6])
    assert "changes nothing" not in said(app)
    assert table(app.button(key="freeze-prediction").click().run(), "picked")["layers"].to_list() == ["3, 6"]


def test_energy_is_that_of_the_record(
    walk: Walk, files: dict[str, Any], partial_profile: Profile, partial_run: Run
) -> None:
    app = walk("diagnose", task_vector="some")
    app = checked(app.button(key="energy-ask").click().run())
    spec = EnergySpec(
        diagnosis=partial_profile.diagnose_spec(),
        task_vector=partial_profile.task_vector("some"),
        subject=SUBJECT,
    )
    result: EnergyResult = partial_run(spec)
    assert [int(layer) for layer in app.selectbox(key="energy-layer").options] == [2, 3, 4, 6, 7]
    k = app.session_state["energy_k"]
    geometry = table(app, "enrichment")
    moved = [cell for cell in result.layers if cell.k == k and cell.retention is not None]
    assert list(geometry["layer"]) == [cell.layer for cell in moved] == [3, 4, 6]
    assert list(geometry["enrichment"]) == [cell.enrichment for cell in moved]
    assert not geometry.isna().to_numpy().any()
    assert "Without a row: layers 2, 7 (unchanged by the task vector)." in said(app)
    assert in_heatmap(figures(app)["enrichment"]) == {3, 4, 6}
    named = rows(files["retention_all_layers.csv"]())
    assert [(int(row["layer"]), int(row["k"])) for row in named] == [(cell.layer, cell.k) for cell in result.layers]
    for layer in (2, 3, 4, 6, 7):
        checked(app.selectbox(key="energy-layer").set_value(layer).run())
        stays = layer in (2, 7)
        curve = next(trace for trace in figures(app)["retention"]["data"] if trace.get("name") == "selected latents")
        cells = [cell for cell in result.layers if cell.layer == layer]
        assert curve["x"] == ([] if stays else [cell.k for cell in cells])
        assert (f"Layer {layer}: undefined (unchanged by the task vector)." in said(app)) == stays
    app = walk("diagnose", task_vector="nothing")  # by now it is known to be quick, and starts by itself
    assert "changes no matrix that has an SAE" in said(app)


def test_stability_stands_at_the_layers_that_have_an_sae(
    walk: Walk, files: dict[str, Any], partial_profile: Profile, partial_run: Run
) -> None:
    app = checked(walk("diagnose").button(key="stability-ask").click().run())
    result = partial_run(StabilitySpec(diagnosis=partial_profile.diagnose_spec()))
    assert in_heatmap(figures(app)["stability"]) == set(HEARD)
    assert noted(figures(app)["stability"], "no SAE") == [0, 1, 4, 5, 7]
    of_subject = [row for row in result.rows if row.subject == SUBJECT]
    written = rows(files["stability.csv"]())
    assert [int(row["layer"]) for row in written] == HEARD * len(of_subject)
    assert [float(row["score"]) for row in written] == [score for row in of_subject for score in row.scores]


def test_gains_stand_at_the_layers_that_move(walk: Walk, files: dict[str, Any], front: PipelineFront) -> None:
    app = checked(walk("diagnose", task_vector="some").button(key="gain-start").click().run())
    (asked,) = [spec for spec in front.submitted if isinstance(spec, GainSpec)]
    result: GainResult = front.run(asked.model_copy(update=FEWER[GainSpec]))
    points = {text for trace in figures(app)["gain-scatter"]["data"] for text in trace["text"]}
    assert points == {"<b>3</b>", "<b>6</b>"}
    assert "Not shown because they have no score: layers 1, 4." in said(app)
    assert "Unchanged by the task vector: layers 0, 2, 5, 7." in said(app)
    by_layer = {int(row["layer"]): row["gain"] for row in rows(files["gain-scatter.csv"]())}
    pooled = {cell.layer: cell.gain for cell in result.cells if cell.subject == "all"}
    assert {layer: float(gain) for layer, gain in by_layer.items() if gain} == {
        layer: gain for layer, gain in pooled.items() if gain is not None
    }
    assert [layer for layer, gain in by_layer.items() if not gain] == STILL


LACKS = {
    "raw": "",
    "projected": "no SAE for o_proj, down_proj in layer 4.",
    "random-subspace": "no SAE for o_proj, down_proj in layer 4.",
}


@pytest.mark.parametrize("edit_type", list(LACKS))
def test_an_edit_says_which_layers_it_changes(edit_type: str, walk: Walk, front: PipelineFront) -> None:
    app = walk("edit", layers=[2, 3, 4], edit_type=edit_type, task_vector="some")
    assert "The task vector changes nothing in layer 2, which the recipe edits." in said(app)
    assert LACKS[edit_type] in said(app)
    assert ("Edits 12 of 14 matrices" in said(app)) == bool(LACKS[edit_type])
    assert ":orange-badge[EDITED: layers 3,4 " in said(app), "the certificate's layers"
    bars = figures(app)["strengths"]["data"]
    assert all([x for x, y in zip(bar["x"], bar["y"], strict=True) if y] == [2, 3, 4] for bar in bars)
    assert list(table(app, "attention").index) == [2, 3, 4]
    assert {"probe", "dose"} <= set(figures(app))


def test_an_edit_of_layers_that_do_not_move_says_so(walk: Walk) -> None:
    app = walk("edit", layers=[0, 5], task_vector="some")
    assert "Changes nothing: its weights equal those of the base." in said(app)
    assert "EDITED" not in said(app)


def test_presets_take_the_layers_that_have_a_score(walk: Walk, diagnosis: DiagnosisResult) -> None:
    app = walk("diagnose")
    app.switch_page("screens/edit/edit.py").run()
    app.button(key="edit-pick").click().run()
    assert app.session_state["layers"] == sorted(diagnosis.order[SUBJECT][:2])
    checked(app.button(key="preset-bottom").click().run())
    assert app.session_state["layers"] == sorted(diagnosis.order[SUBJECT][-2:])
    checked(app.button(key="preset-all").click().run())
    assert app.session_state["layers"] == list(range(8))
    assert "layers 0, 2, 5, 7" in said(app)
    app.button(key="undo").click().run()
    assert app.session_state["layers"] == sorted(diagnosis.order[SUBJECT][-2:])


@pytest.mark.parametrize("served", [True, False])
def test_a_random_subspace_is_taken_with_its_saes_and_without(
    served: bool, walk: Walk, front: PipelineFront, partial_profile: Profile
) -> None:
    edit_type = RandomSubspaceEdit(rank=4, seed=3, saes=partial_profile.saes if served else None)
    recipe = EditRecipe(
        model=partial_profile.model,
        task_vector=partial_profile.task_vector("some"),
        layers={3: LayerAlpha(), 4: LayerAlpha()},
        edit_type=edit_type,
    )
    app = walk("edit", query={"recipe": to_link(recipe)})
    assert [spec.recipe for spec in front.submitted if isinstance(spec, ProbeSpec)] == [recipe]
    assert app.checkbox(key="edit-served").value == served
    assert ("Edits 12 of 14 matrices" in said(app)) == served
    checked(app.checkbox(key="edit-served").set_value(not served).run())
    (last,) = [spec.recipe for spec in front.submitted if isinstance(spec, ProbeSpec)][1:]
    other = edit_type.model_copy(update={"saes": None if served else partial_profile.saes})
    assert last == recipe.model_copy(update={"edit_type": other})


def test_a_benchmark_plans_runs_and_reports_the_layers_that_move(
    walk: Walk, files: dict[str, Any], front: PipelineFront
) -> None:
    few = {"bench_n": 2, "bench_tokens": 2, "bench_subjects": [SUBJECT], "bench_draws": 2}
    controls = ["all layers", "random layers", "projected"]
    app = walk("benchmark", layers=[3, 4], task_vector="some", bench_controls=controls, **few)
    assert "Control layers are chosen from those that such an edit changes: 1, 3, 4, 6." in said(app)
    (plan,) = [spec for spec in front.submitted if isinstance(spec, BenchPlanSpec)]
    edited = {arm.name: tuple(arm.recipe.layers) for arm in plan.bench.arms if arm.recipe}
    assert edited["all layers"] == tuple(MOVED)
    drawn = [layers for name, layers in edited.items() if name.startswith("random")]
    assert len(drawn) == 2
    assert all(set(layers) < set(MOVED) for layers in drawn)
    app = checked(app.button(key="run-bench").click().run())
    (asked,) = [spec for spec in front.submitted if isinstance(spec, BenchSpec)]
    result: BenchResult = front.run(asked)
    assert {row["arm"] for row in rows(files["forest.csv"]())} == {row.arm for row in result.comparisons}
    assert "no SAE for o_proj, down_proj in layer 4." in said(app)
    assert figures(app)["claims-0"]["data"][0]["x"] == [100 * row.difference for row in result.layer_claims]
    (run_id,) = [run.run_id for run in front.store.list_runs("bench")]
    assert json.loads(files[f"{run_id}.json"]()) == result.model_dump(mode="json")
    report = files[f"{run_id}.html"]()
    assert "layers 3, 4, master alpha 1" in report
    assert "no SAE for o_proj, down_proj in layer 4." in report
    app = checked(app.button(key="run-rank").click().run())
    assert "all 5 other sets of 2 layers that such an edit can change from layers 1, 3, 4, 6;" in said(app)
    sets = {row["layers"] for row in rows(files["rank_sets.csv"]())}
    assert sets == {"[1, 3]", "[1, 4]", "[1, 6]", "[3, 6]", "[4, 6]"}


def test_every_kind_of_run_is_listed_and_its_tables_have_the_layers_of_the_record(
    walk: Walk, files: dict[str, Any], front: PipelineFront, partial_profile: Profile
) -> None:
    diagnosis, vector = partial_profile.diagnose_spec(), partial_profile.task_vector("some")
    recipe = EditRecipe(model=partial_profile.model, task_vector=vector, layers={3: LayerAlpha(), 4: LayerAlpha()})
    specs: list[Spec] = [
        diagnosis,
        StabilitySpec(diagnosis=diagnosis),
        EnergySpec(diagnosis=diagnosis, task_vector=vector, subject=SUBJECT),
        GainSpec(diagnosis=partial_profile.diagnose_spec(silent=True), task_vector=vector, top_n=2),
        RankSpec(recipe=recipe, problems=partial_profile.problems, n_sets=99),
    ]
    for spec in specs:
        front.snapshot(front.submit(spec))
    app = walk("runs")
    assert sorted(table(app, "about")["kind"]) == ["diagnose", "energy", "gain", "rank", "stability"]
    for run in front.store.list_runs():
        files.clear()
        checked(app.selectbox(key="run-select").set_value(run.run_id).run())
        result = front.store.load_result(run.run_id)
        tables = {name: rows(write()) for name, write in files.items() if name.endswith(".csv")}
        assert tables
        for name, written in tables.items():
            records = getattr(result, name.removeprefix(f"{run.run_id}_").removesuffix(".csv"))
            assert len(written) == len(records)
            if "layer" in written[0]:
                assert [int(row["layer"]) for row in written] == [row.layer for row in records]
    energy = next(run for run in front.store.list_runs("energy"))
    app.selectbox(key="run-select").set_value(energy.run_id).run()
    app = checked(app.button(key="open-run").click().run())
    assert app.title[0].value == "Diagnose"
    assert in_heatmap(figures(app)["enrichment"]) == {3, 4, 6}


def test_texts_are_of_the_edit_that_the_certificate_names(walk: Walk, front: PipelineFront) -> None:
    app = walk("edit", layers=[2, 3, 4], edit_type="projected", task_vector="some", new_tokens=4)
    checked(app.button(key="run-compare").click().run())
    (asked,) = [spec for spec in front.submitted if isinstance(spec, CompareTextSpec)]
    assert front.run(asked).certificate.layers_edited == (3, 4)
    assert ":orange-badge[EDITED: layers 3,4 " in said(app)
    assert "edited texts differ from the base’s" in said(app)


def test_two_benchmarks_side_by_side_say_which_layers_differ(
    walk: Walk, front: PipelineFront, partial_profile: Profile
) -> None:
    for layers in ((3, 4), (1, 6)):
        named = dict.fromkeys(layers, LayerAlpha())
        vector = partial_profile.task_vector("some")
        recipe = EditRecipe(model=partial_profile.model, task_vector=vector, layers=named)
        spec = BenchSpec(
            model=partial_profile.model,
            problems=partial_profile.problems,
            arms=(arms.BASE, BenchArm(name="recipe", recipe=recipe)),
            subjects=(SUBJECT,),
            n=2,
            max_new_tokens=2,
        )
        front.snapshot(front.submit(spec))
    app = walk("runs")
    changed = table(app, "field")
    taken = {row.field.split(".")[1] for row in changed.itertuples() if row.now == "–"}
    added = {row.field.split(".")[1] for row in changed.itertuples() if row.before == "–"}
    assert (taken, added) == ({"3", "4"}, {"1", "6"})
    assert {"side-pairs", "side-forest-A", "side-forest-B"} <= set(figures(app))
