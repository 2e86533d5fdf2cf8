"""Terminal tables show the values of --json for every layer, at any number of layers and any width."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from stethoscope.cli import main
from stethoscope.cli.tables import PlainConsole
from stethoscope.cli.terminal import print_diagnosis, print_energy, print_info
from stethoscope.profiles import Profile
from stethoscope.results import DiagnosisResult, EnergyCell, EnergyResult, InfoResult, SpecificityCell

Cells = dict[str, dict[str, str]]


def cells_of(text: str, title: str, keys: int = 1) -> Cells:
    """Return row -> column -> cell of the tables under `title`, which fold into several with the same first `keys`."""
    found: Cells = {}
    columns: list[str] = []
    shown = False
    for line in text.splitlines():
        if not line.startswith(("┃", "│")):
            shown |= title in line
            continue
        parts = [part.strip() for part in line.replace("┃", "│").split("│")[1:-1]]
        if line.startswith("┃"):
            columns = parts
        elif shown:
            row = found.setdefault(" ".join(parts[:keys]), {})
            row |= dict(zip(columns[keys:], parts[keys:], strict=True))
    return found


def drawn(draw: Callable[..., None], *args: object, width: int = 80) -> str:
    out = io.StringIO()
    draw(PlainConsole(file=out, width=width), *args)
    assert all(len(line) <= width for line in out.getvalue().splitlines() if line.startswith(("┃", "│")))
    return out.getvalue()


def diagnosis(layers: Sequence[int], n_layers: int) -> DiagnosisResult:
    cells = [
        SpecificityCell(
            layer=layer,
            subject=subject,
            score=sign * layer / 100,
            ci_low=0.0,
            ci_high=0.5,
            p=0.01,
            p_adjusted=0.03,
            specific=True,
            n_live=20,
            n_documents=20,
        )
        for subject, sign in (("counting_and_probability", 1), ("geometry", -1))
        for layer in layers
    ]
    return DiagnosisResult(
        score="mean_rate_difference",
        formula="T",
        subjects=("counting_and_probability", "geometry"),
        control="stories",
        n_layers=n_layers,
        site="resid_post",
        top_k=4,
        null=0.0,
        cells=tuple(cells),
        order={"geometry": tuple(layers)},
        latents=(),
    )


@pytest.mark.parametrize("layers", [(3, 15, 27), tuple(range(34))], ids=["three SAEs", "34 SAEs"])
@pytest.mark.parametrize("width", [60, 80, 300])
def test_each_score_stands_under_its_own_layer(layers: tuple[int, ...], width: int) -> None:
    result = diagnosis(layers, 34)
    text = drawn(print_diagnosis, result, width=width)
    found = cells_of(text, "cross-fitted")
    for cell in result.cells:
        assert found[cell.subject][str(cell.layer)] == f"{cell.score:.2f}"
    assert {int(column) for row in found.values() for column in row} == set(layers)
    assert ("No SAE for layers 0-2, 4-14, 16-26, 28-33" in text) == (len(layers) == 3)


def test_energy_shows_every_number_at_80_columns() -> None:
    cells = [
        EnergyCell(
            layer=layer,
            matrix="all",
            subject="geometry",
            k=k,
            rank=k,
            d=2560,
            retention=0.123,
            null_mean=0.45,
            null_sd=0.067,
            enrichment=1.23,
            z=4.5,
            ceiling=0.678,
            approximate=False,
            percentile=0.999,
            components=0.321,
            random_mean=0.234,
            control=0.111,
        )
        for layer in (3, 15)
        for k in (4, 256)
    ]
    result = EnergyResult(
        task_vector="math",
        subject="geometry",
        control="stories",
        site="resid_post",
        n_layers=34,
        d_model=2560,
        k=(4, 256),
        cells=(),
        layers=tuple(cells),
        fold_gains=True,
        draws=8,
        n_tokens=100,
    )
    found = cells_of(drawn(print_energy, result), "Energy kept", keys=2)
    assert set(found) == {"3 4", "3 256", "15 4", "15 256"}
    assert found["15 256"] == {
        "rank": "256",
        "r/d": "0.100",
        "kept": "0.123",
        "chance": "0.450 ± 0.067",
        "enrichment": "1.23",
        "z": "+4.5",
        "percentile": "0.999",
        "ceiling": "0.678",
        "components": "0.321",
        "random latents": "0.234",
        "control": "0.111",
    }


@pytest.fixture
def both(
    partial_profile: Profile,
    as_toml: Callable[[Profile], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[str, dict]]:
    """Function that runs a command on the model with SAEs on some layers: what it draws, and its JSON."""
    monkeypatch.setenv("STETHOSCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    profile = tmp_path / "partial.toml"
    profile.write_text(as_toml(partial_profile), encoding="utf-8")

    def run(*argv: str) -> tuple[str, dict]:
        outs = []
        for more in ((), ("--json",)):
            assert main([*argv, *more, "--profile", str(profile), "--device", "cpu"]) == 0
            outs.append(capsys.readouterr().out)
        return outs[0], json.loads(outs[1])

    return run


def test_diagnose_draws_what_its_json_holds(both: Callable[..., tuple[str, dict]]) -> None:
    text, result = both("diagnose")
    found = cells_of(text.partition("Kendall")[0], "cross-fitted")
    scores = {(cell["subject"], str(cell["layer"])): cell["score"] for cell in result["cells"]}
    assert {(subject, layer) for subject, row in found.items() for layer in row} == set(scores)
    assert all(found[subject][layer] == f"{score:.2f}" for (subject, layer), score in scores.items())
    assert "No SAE for layers 0, 1, 4, 5, 7" in text


def test_energy_draws_what_its_json_holds(both: Callable[..., tuple[str, dict]]) -> None:
    text, result = both("energy", "--subject", "geometry", "--k", "2,4")
    found = cells_of(text, "Energy kept", keys=2)
    assert {key: row["kept"] for key, row in found.items()} == {
        f"{cell['layer']} {cell['k']}": "unchanged" if cell["retention"] is None else f"{cell['retention']:.3f}"
        for cell in result["layers"]
    }
    assert {cell["layer"] for cell in result["layers"] if cell["retention"] is None} == {2, 7}
    assert "No SAE for layers 0, 1, 5" in text


def test_gain_draws_what_its_json_holds(both: Callable[..., tuple[str, dict]]) -> None:
    text, result = both("gain", "--n", "4")
    gains = {str(cell["layer"]): cell for cell in result["cells"] if cell["subject"] == "all"}
    found = cells_of(text.partition("Does the predictor rank")[0], "into one layer at a time")
    assert set(found) == set(gains) == {str(layer) for layer in range(8)}
    for layer, cell in gains.items():
        moved = layer in "1346"
        assert found[layer]["gain"] == (f"{cell['gain']:+.4f}" if moved else "unchanged")
        assert (cell["gain"] is not None) == (cell["ci_low"] is not None) == moved
    assert result["idle"] == [0, 2, 5, 7]
    assert "Unchanged by the task vector: layers 0, 2, 5, 7." in " ".join(text.split())
    taus = cells_of(text, "Does the predictor rank")
    for row in result["agreement"]:
        if row["subject"] == "all" and row["kendall_tau"] is not None:
            shown = taus[row["predictor"]]
            assert shown["Kendall's tau"] == f"{row['kendall_tau']:+.2f}"
            assert shown["p"] == f"{row['p']:.3f}*"
            assert row["cannot_be_significant"]
    moved = {layer for row in (*result["sets"], *result["random_sets"]) for layer in row["layers"]}
    assert moved == {1, 3, 4, 6}


def test_recipe_rank_and_bench_tell_what_is_moved(
    both: Callable[..., tuple[str, dict]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "240")  # one line a row, whatever the arms are called
    raw, projected = str(tmp_path / "raw.json"), str(tmp_path / "projected.json")
    text, made = both(
        "recipe", "--layers", "0,1,3,4", "--edit-type", "projected", "--basis-subject", "geometry", "--out", projected
    )
    assert made["reach"]["layers"] == [3, 4]
    assert made["reach"]["idle"] == [0]
    assert {row["layer"] for row in made["reach"]["lacks"]} == {1, 4}
    assert made["reach"]["in_words"] in " ".join(text.split())
    subspace = both(
        "recipe",
        "--layers",
        "0,1,3,4",
        "--edit-type",
        "random-subspace",
        "--rank",
        "4",
        "--out",
        str(tmp_path / "random.json"),
    )[1]
    assert subspace["reach"] == made["reach"], "the control moves what the projected arm moves"
    _, whole = both("recipe", "--layers", "0,1,3", "--out", raw)
    assert whole["reach"]["layers"] == [1, 3]
    text, ranked = both("rank", raw, "--n", "2")
    assert (ranked["layers"], ranked["movable"]) == ([1, 3], [1, 3, 4, 6])
    assert {layer for found in ranked["sets"] for layer in found["layers"]} == {1, 3, 4, 6}
    assert "Layers 1, 3 among 5 other sets" in text
    assert "layers 1, 3, 4, 6" in text
    text, found = both("bench", projected, "--n", "2", "--max-new-tokens", "2", "--controls")
    assert found["reach"]["projected"]["moves"] == made["reach"]["moves"]
    moved = {name: {row["layer"] for row in of["moves"]} for name, of in found["reach"].items()}
    assert moved["projected"] == {3, 4}
    assert all(layers <= {1, 3, 4, 6} for layers in moved.values())
    for name, certificate in found["certificates"].items():
        assert set(certificate["layers_edited"]) == moved.get(name, set())
    rows = cells_of(text, "Paired differences", keys=2)
    for row in found["comparisons"]:
        shown = rows[f"{row['arm']} {row['subject']}"]
        assert shown["difference"] == f"{row['difference']:+.3f}"
        assert shown["verdict"] == row["verdict"] + "*" * row["cannot_be_significant"]


def test_info_draws_what_its_json_holds(both: Callable[..., tuple[str, dict]]) -> None:
    text, result = both("info")
    found = cells_of(text, "||tau||")
    for row in result["task_vectors"]:
        for layer, norm in enumerate(row["relative_norm_by_layer"]):
            assert found[str(layer)][row["name"]] == (f"{norm:.4f}" if norm else "unchanged")
    assert "SAEs of layers 2, 3, 6" in " ".join(text.split())


def test_a_name_in_brackets_stays_as_it_is(both: Callable[..., tuple[str, dict]]) -> None:
    _, result = both("info")
    info = InfoResult.model_validate({key: value for key, value in result.items() if key != "profile"})
    row = info.task_vectors[0].model_copy(update={"name": "tau[bold]"})
    text = drawn(print_info, "Pico", "resid_post", info.model_copy(update={"task_vectors": (row,)}))
    assert "tau[bold]" in text
