"""The command line: fixed JSON, exit codes, one clear line per mistake."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stethoscope.cli import main
from stethoscope.cli import progress as on_stderr
from stethoscope.errors import RecipeError
from stethoscope.profiles import Profile, load_profile
from stethoscope.recipes.files import parse_layers
from stethoscope.store.home import runs_dir
from stethoscope.store.runs import RunStore

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def run(tmp_path: Path, profile_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("STETHOSCOPE_HOME", str(tmp_path / "home"))

    def invoke(*argv: str, profile: str | None = None) -> tuple[int, str, str]:
        try:
            code = main([*argv, "--profile", profile or str(profile_file), "--device", "cpu"])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return invoke


def printed(result: tuple[int, str, str]) -> dict[str, object]:
    code, out, err = result
    assert code == 0, err
    assert out.count("\n") == 1
    return json.loads(out)


def without_run_ids(out: str) -> str:
    """Return a command's output without the ids of its runs, which depend on the time."""
    return re.sub(r"r\d{8}-\d{6}-[0-9a-f]{4}", "RUN", out)


def test_info(run: Run) -> None:
    info = printed(run("info", "--json"))
    assert {"profile", "model", "saes", "task_vectors"} <= set(info)
    assert {"id", "revision", "dtype", "n_layers", "d_model", "parameters"} <= set(info["model"])
    assert {"layer", "site", "d_sae", "architecture"} <= set(info["saes"][0])
    assert len(info["task_vectors"][0]["relative_norm_by_layer"]) == info["model"]["n_layers"]


def test_preflight(run: Run, pico_profile: Profile, tmp_path: Path, as_toml: Callable[[Profile], str]) -> None:
    result = printed(run("preflight", "--json"))
    assert result["usable"] is True
    assert len(result["layers"]) == 4  # type: ignore[arg-type]
    assert "cosine with base" in run("preflight")[1]
    broken = shutil.copytree(pico_profile.task_vectors[0].tuned, tmp_path / "broken")
    not_finite(broken)
    reference = pico_profile.task_vectors[0].model_copy(update={"tuned": str(broken)})
    path = tmp_path / "broken.toml"
    path.write_text(as_toml(pico_profile.model_copy(update={"task_vectors": (reference,)})), encoding="utf-8")
    assert "NaN or infinity in" in assert_one_line(run("preflight", "--json", profile=str(path)))


def test_diagnose_is_the_same_to_the_byte_in_two_homes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run("diagnose", "--json", "--top-k", "3")
    monkeypatch.setenv("STETHOSCOPE_HOME", str(tmp_path / "other"))
    assert without_run_ids(run("diagnose", "--json", "--top-k", "3")[1]) == without_run_ids(first[1])
    result = printed(first)
    assert {"score", "subjects", "control", "cells", "order", "latents", "stability"} <= set(result)
    assert {"layer", "subject", "score", "ci_low", "ci_high", "p", "p_adjusted", "specific"} <= set(result["cells"][0])
    assert set(result["order"]) == set(result["subjects"])
    assert {"latent", "effect"} <= set(result["latents"][0])
    assert {row["kind"] for row in result["stability"]["rows"]} == {"score", "k", "control"}


IN_A_PROCESS = """
import json, sys
from stethoscope.cli import main

for argv in json.loads(sys.argv[1]):
    if code := main(argv):
        sys.exit(code)
"""


def test_two_processes_print_the_same_bytes(profile_file: Path, tmp_path: Path) -> None:
    """With different homes, hash seeds and numbers of threads."""
    common = ("--json", "--profile", str(profile_file), "--device", "cpu", "--seed", "3")
    diagnose = ("diagnose", "--score", "activation_mass", *common)
    energy = ("energy", "--subject", "geometry", "--k", "2,4", *common)
    printed = []
    for i, threads in enumerate(("1", "2")):
        home = {"STETHOSCOPE_HOME": str(tmp_path / f"home{i}"), "PYTHONHASHSEED": str(i)}
        threads_of = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        ran = subprocess.run(
            [sys.executable, "-c", IN_A_PROCESS, json.dumps([diagnose, energy])],
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
            env=os.environ | home | threads_of,
        )
        printed.append(without_run_ids(ran.stdout))
    assert printed[0] == printed[1]
    scores, kept = map(json.loads, printed[0].splitlines())
    assert scores["score"] == "activation_mass"
    assert "random_mean" in kept["layers"][0]


def test_options_of_diagnose_reach_the_scores(run: Run) -> None:
    few = ("diagnose", "--json")
    cells = {}
    for name, options in {
        "default": (),
        "prompt train": ("--tokens", "prompt", "--split", "train"),
        "all": ("--tokens", "all"),
        "dev": ("--split", "dev"),
        "seed": ("--seed", "1"),
        "k": ("--top-k", "2"),
    }.items():
        cells[name] = json.dumps(printed(run(*few, *options))["cells"])
    assert cells["default"] == cells["prompt train"]
    assert len(set(cells.values())) == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--score", "astrology"), "mean_rate_difference"),
        (("--documents", "19"), "20"),
        (("--documents", "500"), "too few problems"),
        (("--control", "nothing"), "no such control corpus"),
        (("--top-k", "0"), "whole number from 1"),
    ],
)
def test_bad_diagnoses_are_one_clear_line(run: Run, options: tuple[str, ...], said: str) -> None:
    code, out, err = run("diagnose", "--json", *options)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_energy(run: Run) -> None:
    result = printed(run("energy", "--json", "--subject", "geometry", "--k", "2,4"))
    wanted = {
        "layer",
        "matrix",
        "subject",
        "k",
        "rank",
        "d",
        "retention",
        "null_mean",
        "null_sd",
        "enrichment",
        "z",
        "ceiling",
    }
    assert wanted <= set(result["cells"][0])
    assert wanted <= set(result["layers"][0])
    assert result["fold_gains"] is True
    plain = printed(run("energy", "--json", "--subject", "geometry", "--k", "2,4", "--plain-weights"))
    assert plain["fold_gains"] is False
    assert plain["cells"] != result["cells"]


def test_recipe_bench_export(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "r.json"
    made = printed(run("recipe", "--json", "--layers", "1,2=0.5", "--alpha", "0.8", "--out", str(recipe)))
    assert made["recipe"]["layers"]["2"] == {"attention": 0.5, "mlp": 0.5}
    bench = printed(run("bench", str(recipe), "--json", "--n", "3", "--max-new-tokens", "4", "--controls"))
    assert {"arms", "comparisons", "totals"} <= set(bench)
    arm_fields = {"arm", "recipe_id", "subject", "n", "correct", "accuracy", "ci_low", "ci_high"}
    assert arm_fields | {"marker_rate", "truncation_rate"} <= set(bench["arms"][0])
    comparison_fields = {
        "arm",
        "reference",
        "subject",
        "n11",
        "n10",
        "n01",
        "n00",
        "difference",
        "ci_low",
        "ci_high",
        "mcnemar_p",
        "holm_p",
        "z_unpooled",
        "verdict",
    }
    assert comparison_fields <= set(bench["comparisons"][0])
    names = {row["arm"] for row in bench["arms"]}
    assert {"base", "r", "all layers", "last 2", "bottom 2", "projected", "projected, norm-matched"} <= names
    assert sum(name.startswith("random layers ") for name in names) == 3
    assert "full fine-tune" in names
    assert made["recipe_id"] in {row["recipe_id"] for row in bench["arms"]}
    assert {total["kind"] for total in bench["totals"]} == {"macro", "micro"}
    exported = printed(run("export", str(recipe), "--json", "--out", str(tmp_path / "edited")))
    assert exported["max_abs_difference"] == 0.0


def test_a_plan_says_what_would_be_asked_and_its_benchmark_asks_that(run: Run, tmp_path: Path) -> None:
    recipe, page = str(tmp_path / "r.json"), tmp_path / "report.html"
    assert run("recipe", "--layers", "1", "--out", recipe)[0] == 0
    bench = ("bench", recipe, "--n", "3", "--subjects", "geometry", "--max-new-tokens", "4")
    plan = printed(run(*bench, "--plan", "--json"))
    assert plan["available"] == {"geometry": 24}
    assert plan["stored"] == {"base": 0, "r": 0}
    assert plan["first_prompt"].startswith(
        "<bos>Problem:\n1 + 7?\n\nSolution: 8.\n\nProblem:\ngeometry prime divisor: "
    )
    assert plan["first_prompt"].endswith("\n\nSolution:")
    assert 0 < plan["first_prompt_tokens"] <= len(plan["first_prompt"])
    assert not RunStore(runs_dir()).list_runs("bench"), "a plan is no run"
    shown = run(*bench, "--plan")[1]
    assert plan["first_prompt"] in shown
    assert "6 answers, 0 of them already stored." in shown
    found = printed(run(*bench, "--json"))
    assert [kept.run_id for kept in RunStore(runs_dir()).list_runs("bench")] == [found["run_id"]]
    assert found["first_prompt"] == plan["first_prompt"]
    assert printed(run(*bench, "--plan", "--json"))["stored"] == {"base": 3, "r": 3}
    every = printed(run("bench", recipe, "--n", "all", "--plan", "--json"))
    assert every["available"] == {"number_theory": 24, "geometry": 24}
    assert main(["runs", "report", str(found["run_id"]), "--out", str(page)]) == 0
    assert f'<pre class="prompt">{html.escape(plan["first_prompt"])}</pre>' in page.read_text(encoding="utf-8")


def test_random_subspace_norms_embeddings_and_a_bare_delta(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "r.json"
    argv = ("recipe", "--json", "--layers", "1", "--out", str(recipe), "--edit-type", "random-subspace-norm-matched")
    assert "--rank" in assert_one_line(run(*argv))
    made = printed(run(*argv, "--rank", "4", "--seed", "7", "--norms", "--embeddings"))["recipe"]
    saes = made["edit_type"].pop("saes")
    assert saes["site"] == "resid_post"
    assert made["edit_type"] == {
        "kind": "random-subspace",
        "rank": 4,
        "site": "resid_post",
        "seed": 7,
        "norm_matched": True,
    }
    assert (made["norms"], made["embeddings"]) == (True, True)
    exported = printed(run("export", str(recipe), "--json", "--out", str(tmp_path / "d"), "--delta-only"))
    assert exported["files"] == ["README.md", "delta.safetensors", "export.json", "recipe.json"]
    whole = printed(run("export", str(recipe), "--json", "--out", str(tmp_path / "e"), "--shard-size", "40KB"))
    assert "model.safetensors.index.json" in whole["files"]
    assert "random-subspace" in whole["left_out"]
    assert_one_line(run("export", str(recipe), "--out", str(tmp_path / "f"), "--shard-size", "much"))


def test_controls_beside_a_control_corpus_alone(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "r.json"
    printed(run("recipe", "--json", "--layers", "1", "--out", str(recipe)))
    argv = ("bench", str(recipe), "--json", "--subjects", "stories", "--n", "2", "--max-new-tokens", "2", "--controls")
    assert {row["subject"] for row in printed(run(*argv))["arms"]} == {"stories"}


def test_tables_are_drawn_without_json(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("diagnose", "--top-k", "3")
    assert code == 0
    assert "geometry" in out
    code, out, _ = run("info")
    assert code == 0
    assert "tuned" in out


def corrupt(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a safetensors file")


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def wrong_shape(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "down_proj" in name)
    save_file(tensors | {name: tensors[name][:, :-1].contiguous()}, path, metadata={"format": "pt"})


def not_finite(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "down_proj" in name)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("damage", [corrupt, truncated, wrong_shape, not_finite])
@pytest.mark.parametrize("which", ["base", "tuned"])
def test_a_damaged_checkpoint_is_one_clear_line(
    run: Run,
    pico_profile: Profile,
    tmp_path: Path,
    as_toml: Callable[[Profile], str],
    damage: Callable[[Path], None],
    which: str,
) -> None:
    place = pico_profile.model.id if which == "base" else pico_profile.task_vectors[0].tuned
    folder = tmp_path / "damaged"
    shutil.copytree(place, folder)
    damage(folder)
    if which == "base":
        changed = pico_profile.model_copy(update={"model": pico_profile.model.model_copy(update={"id": str(folder)})})
    else:
        task_vector = pico_profile.task_vectors[0].model_copy(update={"tuned": str(folder)})
        changed = pico_profile.model_copy(update={"task_vectors": (task_vector,)})
    path = tmp_path / "damaged.toml"
    path.write_text(as_toml(changed), encoding="utf-8")
    assert_one_line(run("energy", "--subject", "geometry", "--json", profile=str(path)))
    shown = run("info", "--json", profile=str(path))
    if which == "base":
        assert_one_line(shown)
        return
    code, out, err = shown
    assert code == 0, "the rest of the profile is shown"
    (row,) = json.loads(out)["task_vectors"]
    assert (row["name"], row["moved"]) == (pico_profile.task_vectors[0].name, [])
    assert row["unusable"]["outcome"] == "fail"
    for part in ("what", "next_step"):
        assert row["unusable"][part]
        assert "\n" not in row["unusable"][part]
    assert "Traceback" not in err


def test_damaged_saes_and_problems_are_one_clear_line(
    run: Run, pico_profile: Profile, tmp_path: Path, as_toml: Callable[[Profile], str]
) -> None:
    saes, problems = tmp_path / "saes", tmp_path / "problems"
    shutil.copytree(pico_profile.saes.location, saes)
    shutil.copytree(pico_profile.problems.problems, problems)
    path = tmp_path / "damaged.toml"
    changed = pico_profile.model_copy(
        update={
            "saes": pico_profile.saes.model_copy(update={"location": str(saes)}),
            "problems": pico_profile.problems.model_copy(update={"problems": str(problems)}),
        }
    )
    path.write_text(as_toml(changed), encoding="utf-8")
    (problems / "train.jsonl").write_bytes(b'{"problem": "1 + 1?"}\n')
    assert "line 1" in assert_one_line(run("diagnose", "--json", profile=str(path)))
    shutil.copy(Path(pico_profile.problems.problems) / "train.jsonl", problems)
    weights = saes / "layer_1" / "sae_weights.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor[..., :-1].contiguous() for name, tensor in tensors.items()}, weights)
    assert "layer_1" in assert_one_line(run("diagnose", "--json", profile=str(path)))
    weights.write_bytes(b"no safetensors")
    assert "layer_1" in assert_one_line(run("diagnose", "--json", profile=str(path)))


def assert_one_line(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def test_mistakes_are_one_clear_line_each(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "r.json"
    assert run("recipe", "--layers", "1", "--out", str(recipe))[0] == 0
    good = json.loads(recipe.read_text())

    def written(content: str) -> str:
        path = tmp_path / "bad.json"
        path.write_text(content, encoding="utf-8")
        return str(path)

    assert "mini" in assert_one_line(run("info", profile="nowhere"))
    assert_one_line(run("info", profile=str(tmp_path / "none.toml")))
    (tmp_path / "broken.toml").write_text("name = [", encoding="utf-8")
    assert_one_line(run("info", profile=str(tmp_path / "broken.toml")))
    assert "mean_rate_difference" in assert_one_line(run("diagnose", "--score", "astrology"))
    assert "stories" in assert_one_line(run("diagnose", "--control", "poems"))
    assert "20" in assert_one_line(run("diagnose", "--documents", "3"))
    assert_one_line(run("diagnose", "--documents", "9999"))
    assert "geometry" in assert_one_line(run("energy", "--subject", "alchemy"))
    assert_one_line(run("energy", "--subject", "geometry", "--k", "0"))
    assert_one_line(run("recipe", "--layers", "99", "--out", str(recipe)))
    assert_one_line(run("recipe", "--layers", "one", "--out", str(recipe)))
    assert_one_line(run("recipe", "--layers", "1=nan", "--out", str(recipe)))
    assert_one_line(run("recipe", "--layers", "1", "--alpha", "nan", "--out", str(recipe)))
    assert_one_line(run("recipe", "--layers", "1", "--edit-type", "projected", "--out", str(recipe)))
    assert_one_line(run("recipe", "--layers", "1", "--out", str(tmp_path / "no" / "such" / "r.json")))
    assert_one_line(run("bench", str(tmp_path / "missing.json")))
    assert_one_line(run("bench", written("{")))
    assert "surprise" in assert_one_line(run("bench", written(json.dumps(good | {"surprise": 1}))))
    assert_one_line(run("bench", written(json.dumps(good | {"layers": {"9": 1.0}}))))
    assert_one_line(run("bench", written(json.dumps(good | {"master_alpha": float("nan")}))))
    other = good | {"model": good["model"] | {"id": "embedded:nowhere"}}
    assert_one_line(run("export", written(json.dumps(other)), "--out", str(tmp_path / "x")))
    store = RunStore(tmp_path / "home" / "runs")
    diagnoses = len(store.list_runs("diagnose"))
    assert "no chat template" in assert_one_line(run("bench", str(recipe), "--n", "2", "--chat-template"))
    assert_one_line(run("bench", str(recipe), "--subjects", "alchemy"))
    assert "alchemy" in assert_one_line(run("bench", str(recipe), "--subjects", "alchemy", "--controls"))
    assert len(store.list_runs("diagnose")) == diagnoses, "the mistake is told before any work"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert_one_line(run("export", str(recipe), "--out", str(tmp_path / "full")))
    assert_one_line(run("divine"))


def test_layer_lists() -> None:
    strengths = parse_layers("3,5=0.5,7-8=2", 10)
    assert {layer: alpha.mlp for layer, alpha in strengths.items()} == {3: 1.0, 5: 0.5, 7: 2.0, 8: 2.0}
    assert sorted(parse_layers("all", 4)) == [0, 1, 2, 3]
    for bad in ("", "4", "2-1", "x", "1=x", "-1"):
        with pytest.raises(RecipeError):
            parse_layers(bad, 4)


def test_the_mini_is_a_profile() -> None:
    assert load_profile("mini").title


def test_gain_prints_all_subjects_or_one(run: Run) -> None:
    everything = printed(run("gain", "--json", "--n", "3"))
    assert {row["subject"] for row in everything["agreement"]} == {"number_theory", "geometry", "all"}
    assert {cell["subject"] for cell in everything["cells"]} == {"number_theory", "geometry", "stories", "all"}
    assert everything["verified"] is True
    one = printed(run("gain", "--json", "--n", "3", "--subject", "geometry"))
    for rows in ("agreement", "cells", "predictors", "sets"):
        assert one[rows] == [row for row in everything[rows] if row["subject"] == "geometry"]
    assert "NaN" not in json.dumps(everything)
    code, out, _ = run("gain", "--n", "3")
    assert code == 0
    assert "first_order" in out
    assert "base weights restored after each" in out


def test_rank_prints_the_recipe_among_sets_of_equal_size(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "r.json"
    made = printed(run("recipe", "--json", "--layers", "1,2=0.5", "--out", str(recipe)))
    every = printed(run("rank", str(recipe), "--json", "--n", "3"))
    assert {row["subject"] for row in every["rows"]} == {"all", "number_theory", "geometry"}
    assert (every["recipe_id"], every["layers"], every["complete"]) == (made["recipe_id"], [1, 2], True)
    assert len(every["sets"]) == every["n_possible"] == 5
    few = printed(run("rank", str(recipe), "--json", "--n", "2", "--n-sets", "2", "--split", "test", "--seed", "4"))
    asked = {name: few["spec"][name] for name in ("n", "n_sets", "split", "seed")}
    assert asked == {"n": 2, "n_sets": 2, "split": "test", "seed": 4}
    assert len(few["sets"]) == 2
    whole = every["rows"][0]
    code, out, _ = run("rank", str(recipe), "--n", "3")
    assert code == 0
    shown = " ".join(out.split())
    assert "Layers 1, 2 among 5 other sets" in shown
    assert f"{1 + whole['as_good']} of 6" in shown
    assert f"{1 + whole['as_good_matched']} of 6" in shown
    assert "at least 0.167: cannot be significant at this size" in shown
    assert {row["cannot_be_significant"] for row in every["rows"]} == {True}
    assert "2 random sets" in " ".join(run("rank", str(recipe), "--n", "2", "--n-sets", "2")[1].split())


def test_mistakes_of_rank_are_one_line_each(run: Run, tmp_path: Path) -> None:
    recipe, full = str(tmp_path / "r.json"), str(tmp_path / "full.json")
    for layers, out in (("1", recipe), ("all", full)):
        assert run("recipe", "--layers", layers, "--out", out)[0] == 0
    assert "4 of the 4 layers" in assert_one_line(run("rank", full))
    assert "whole number from 2" in assert_one_line(run("rank", recipe, "--n", "1"))
    assert_one_line(run("rank", recipe, "--n-sets", "0"))
    assert_one_line(run("rank", recipe, "--n", "9999"))
    assert_one_line(run("rank", str(tmp_path / "missing.json")))


def test_mistakes_of_gain_are_one_line_each(run: Run) -> None:
    assert "alchemy" in assert_one_line(run("gain", "--subject", "alchemy"))
    assert "2" in assert_one_line(run("gain", "--n", "1"))
    assert_one_line(run("gain", "--task-vector", "nowhere"))
    assert_one_line(run("gain", "--n", "9999"))


def test_progress_in_a_file_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # noqa: ANN001
    """Without a terminal: one complete line every ten seconds, no control characters, and nothing for quick work."""
    now = [0.0]
    monkeypatch.setattr(on_stderr.time, "perf_counter", lambda: now[0])
    progress = on_stderr.StderrProgress()
    progress.start("Injecting sets", 100)
    for _ in range(9):
        now[0] += 1
        progress.advance()
    assert capsys.readouterr().err == ""
    for _ in range(25):
        now[0] += 1
        progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"Injecting sets: {done} of 100" for done in (10, 20, 30)]
    assert "66 s left" not in lines[0]
    assert lines[0].endswith("2 min left")
    assert lines[2].endswith("70 s left")
    assert not any("\r" in line or "\033" in line for line in lines)
    progress.note("about 3 h")
    assert capsys.readouterr().err == "about 3 h\n"


def test_the_random_sets_of_gain_and_rank_are_an_option(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "r.json"
    assert run("recipe", "--layers", "1", "--out", str(recipe))[0] == 0
    ranked = json.loads(run("rank", str(recipe), "--n", "2", "--random-sets", "2", "--json")[1])
    assert len(ranked["sets"]) == 2
    gained = json.loads(run("gain", "--n", "2", "--random-sets", "3", "--json")[1])
    assert len(gained["random_sets"]) == 3
    assert_one_line(run("gain", "--random-sets", "0"))


def test_a_profile_of_a_model_and_a_task_vector_does_plain_work(
    run: Run, pico_profile: Profile, tmp_path: Path, as_toml: Callable[[Profile], str]
) -> None:
    profile, ref = str(tmp_path / "plain.toml"), pico_profile.task_vectors[0]
    model = f'[model]\nid = "{pico_profile.model.id}"\n'
    Path(profile).write_text(f'{model}[[task_vectors]]\nname = "{ref.name}"\ntuned = "{ref.tuned}"\n')
    recipe = str(tmp_path / "r.json")
    for command in (
        ("info",),
        ("memory",),
        ("downloads",),
        ("preflight",),
        ("recipe", "--layers", "1,2", "--out", recipe),
        ("export", recipe, "--out", str(tmp_path / "out")),
    ):
        code, out, err = run(*command, "--json", profile=profile)
        assert code == 0, err
        json.loads(out)
    needs = {
        "no problems and no subjects and no shots": [("bench", recipe)],
        "no problems and no subjects": [("problems",), ("rank", recipe)],
        "no problems and no subjects and no controls": [("gain",)],
        "has no SAEs": [("diagnose",)],
    }
    for missing, commands in needs.items():
        for command in commands:
            code, out, err = run(*command, profile=profile)
            assert (code, out, len(err.splitlines())) == (2, "", 1), err
            assert missing in err
    shots = run("bench", recipe, "--problems", str(pico_profile.problems.problems), profile=profile)
    assert shots[0] == 2
    assert "has no shots" in shots[2]


def test_a_profile_without_saes_does_all_that_needs_none(
    run: Run, pico_profile: Profile, tmp_path: Path, as_toml: Callable[[Profile], str]
) -> None:
    silent = tmp_path / "silent.toml"
    text = as_toml(pico_profile)
    silent.write_text("\n".join(line for line in text.splitlines() if not line.startswith(("saes", "other_saes"))))
    profile = str(silent)

    def done(*argv: str) -> dict:
        code, out, err = run(*argv, "--json", profile=profile)
        assert code == 0, err
        return json.loads(out)

    assert done("info")["saes"] == []
    done("memory")
    done("downloads")
    done("preflight")
    gain = done("gain", "--n", "2")
    assert {row["predictor"] for row in gain["predictors"]} == {
        "first_order",
        "relative_update",
        "probe_auroc",
        "depth",
    }
    recipe = str(tmp_path / "r.json")
    done("recipe", "--layers", "1,2", "--out", recipe)
    short = ("--subjects", "geometry", "--n", "2", "--max-new-tokens", "4")
    arms = {row["arm"] for row in done("bench", recipe, *short, "--controls")["arms"]}
    assert {"base", "r", "all layers", "full fine-tune"} <= arms
    assert not arms & {"projected", "projected, norm-matched"}
    done("export", recipe, "--out", str(tmp_path / "out"))
    assert run("info", profile=profile)[0] == run("gain", "--n", "2", profile=profile)[0] == 0
    projected = ("recipe", "--layers", "1", "--edit-type", "projected", "--basis-subject", "geometry", "--out", recipe)
    for command in (("diagnose",), ("energy", "--subject", "geometry"), projected):
        code, out, err = run(*command, profile=profile)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert "has no SAEs" in err
        assert "[saes]" in err
