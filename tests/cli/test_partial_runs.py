"""Stored runs of a model with SAEs on layers 2, 3, 6 and a task vector on 1, 3, 4, 6: tables and reports."""

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stethoscope.cli import main
from stethoscope.judging import arms
from stethoscope.profiles import Profile
from stethoscope.records import (
    BenchArm,
    BenchSpec,
    EditRecipe,
    EnergySpec,
    GainSpec,
    LayerAlpha,
    ProjectedEdit,
    RankSpec,
    Spec,
    StabilitySpec,
)
from stethoscope.store.home import runs_dir
from stethoscope.store.runs import RunStore

SUBJECT = "geometry"
Show = Callable[[Spec], tuple[str, str, Any]]


@pytest.fixture
def show(
    partial_run: Callable[[Spec], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Show:
    """Function that stores the run of a spec and returns its id, the output of `runs show` and the result; it also
    checks that `--json` prints the result.
    """
    monkeypatch.setenv("STETHOSCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    store = RunStore(runs_dir())

    def of(spec: Spec) -> tuple[str, str, Any]:
        result, run_id = partial_run(spec), store.start_run(spec)
        store.finish_run(run_id, state="done", result=result, elapsed_s=1.0)
        assert main(["runs", "show", run_id, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["result"] == result.model_dump(mode="json")
        assert main(["runs", "show", run_id]) == 0
        return run_id, capsys.readouterr().out, result

    return of


def table(printed: str, first: str) -> list[list[str]]:
    """Return the cells of the first printed table whose first column is called `first`, the header before the rows."""
    found: list[list[str]] = []
    for line in printed.splitlines():
        cells = [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]
        if cells and (found or cells[0] == first):
            found.append(cells)
        elif found and line.startswith("└"):
            break
    return found


@pytest.fixture
def recipe(partial_profile: Profile) -> EditRecipe:
    layers = {2: LayerAlpha(), 3: LayerAlpha(), 4: LayerAlpha()}
    return EditRecipe(model=partial_profile.model, task_vector=partial_profile.task_vector("some"), layers=layers)


def test_a_diagnosis_and_its_stability(show: Show, partial_profile: Profile) -> None:
    _, printed, result = show(partial_profile.diagnose_spec())
    header, *lines = table(printed, "subject")
    assert header == ["subject", "2", "3", "6"]
    scores = {(cell.subject, cell.layer): cell.score for cell in result.cells}
    assert lines == [[name, *(f"{scores[name, layer]:.2f}" for layer in (2, 3, 6))] for name in result.subjects]
    assert "No SAE for layers 0, 1, 4, 5, 7." in printed
    _, printed, result = show(StabilitySpec(diagnosis=partial_profile.diagnose_spec()))
    variants = [f"{row.kind} {row.variant}" for row in result.rows if row.subject == SUBJECT]
    assert [line[0] for line in table(printed, "variant")[1:]] == variants


def test_energy_gain_and_rank(show: Show, partial_profile: Profile, recipe: EditRecipe) -> None:
    diagnosis, vector = partial_profile.diagnose_spec(), partial_profile.task_vector("some")
    _, printed, result = show(EnergySpec(diagnosis=diagnosis, task_vector=vector, subject=SUBJECT, k=(4, 8)))
    _, *lines = table(printed, "layer")
    assert [(int(line[0]), int(line[1])) for line in lines] == [(cell.layer, cell.k) for cell in result.layers]
    assert {int(line[0]) for line in lines if "unchanged" in line} == {2, 7}
    assert "No SAE for layers 0, 1, 5." in printed
    silent = partial_profile.diagnose_spec(silent=True)
    _, printed, result = show(GainSpec(diagnosis=silent, task_vector=vector, n=2, top_n=2, random_sets=1))
    _, *lines = table(printed, "layer")
    gains = {cell.layer: cell.gain for cell in result.cells if cell.subject == "all"}
    assert {int(line[0]): line[1] for line in lines} == {
        layer: "unchanged" if gain is None else f"{gain:+.4f}" for layer, gain in gains.items()
    }
    assert {layer for layer, gain in gains.items() if gain is None} == {0, 2, 5, 7}
    _, printed, _ = show(RankSpec(recipe=recipe, problems=partial_profile.problems, n=2, n_sets=5))
    assert "Layers 3, 4 among 5 other sets" in printed
    assert "layers 1, 3, 4, 6." in printed


def test_a_benchmark_and_its_report(show: Show, partial_profile: Profile, recipe: EditRecipe, tmp_path: Path) -> None:
    arm = ProjectedEdit(diagnosis=partial_profile.diagnose_spec(), subject=SUBJECT, top_k=4)
    spec = BenchSpec(
        model=partial_profile.model,
        problems=partial_profile.problems,
        arms=(
            arms.BASE,
            BenchArm(name="projected", recipe=recipe.model_copy(update={"edit_type": arm})),
            BenchArm(name="still", recipe=arms.with_layers(recipe, (0, 5))),
        ),
        subjects=(SUBJECT,),
        n=2,
        max_new_tokens=2,
    )
    run_id, printed, result = show(spec)
    assert result.idle == ("still",)
    verdicts = {
        line[0]: line[-1] for line in table(printed.split("Paired differences")[1], "arm") if line[1] == SUBJECT
    }
    assert verdicts["still"] == "no change"
    assert main(["runs", "report", run_id, "--out", str(tmp_path / "r.html")]) == 0
    page = html.unescape((tmp_path / "r.html").read_text(encoding="utf-8"))
    for text in (" ".join(printed.split()), page):
        assert "no SAE for o_proj, down_proj in layer 4." in text
        assert "The task vector changes nothing in layer 2, which the recipe edits." in text
        assert "The task vector changes nothing in layers 0, 5, which the recipe edits." in text
    edited = {name: certificate.layers_edited for name, certificate in result.certificates.items()}
    assert edited == {"base": (), "projected": (3, 4), "still": ()}
    assert "<td>projected</td><td>yes</td><td>3, 4</td>" in page
    assert "<td>still</td><td>yes</td><td>none</td>" in page
