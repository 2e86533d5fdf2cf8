"""From hub ids alone: download (killed, resumed), diagnose, project, edit, benchmark, export; then offline.

Model, SAEs, a fine-tune, a LoRA and the problems come from the hub; control corpora and shots are the included
profile's.

The command line runs in child processes, which find the hub through the environment only; the model is gated.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM, Gemma3ForConditionalGeneration

from stethoscope.cli import main
from stethoscope.profiles import PROFILES
from tests.hub import contents
from tests.hub.server import READER, LoopbackHub, Trouble, hub_environment, point_at

ROOT = Path(__file__).parents[2]
PROFILE = f"""
title = "A small gemma-3-4b-it on a test hub"
documents = 20
top_k = 4
live_share = 0.0
dense_rate = 1.0

[model]
id = "{contents.GEMMA}"
dtype = "bfloat16"

[saes]
location = "gemma-scope-2-4b-it-res-all"
site = "resid_post"
width = "16k"
l0 = "small"

[[task_vectors]]
name = "math"
tuned = "{contents.TUNED}"

[[task_vectors]]
name = "lora"
tuned = "{contents.ADAPTER}"

[problems]
problems = "{contents.PROBLEMS}"
controls = "embedded:corpora/controls"
shots = "lm_eval:minerva_math"
subjects = ["algebra", "number_theory"]
control_names = CONTROLS
"""
PROFILE = PROFILE.replace("CONTROLS", json.dumps(PROFILES["gemma-3-4b-it"].problems.control_names))
DRIVER = """
import contextlib, io, json, sys
from stethoscope.cli import main
outputs = []
for argv in json.loads(sys.stdin.read()):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(argv)
    if code:
        sys.exit(code)
    outputs.append(json.loads(out.getvalue()))
print(json.dumps(outputs))
"""


def commands(folder: Path, profile: Path) -> list[list[str]]:
    """Return the command lines of one pass that writes into `folder`."""
    common = ["--profile", str(profile), "--device", "cpu", "--json"]
    lora, projected = str(folder / "lora.json"), str(folder / "projected.json")
    onto = ["--edit-type", "projected", "--basis-subject", "algebra", "--top-k", "4"]
    return [
        ["info", *common],
        ["diagnose", *common],
        ["energy", *common, "--subject", "algebra", "--k", "2,4"],
        ["recipe", *common, "--layers", "3,5=0.5", "--task-vector", "lora", "--out", lora],
        ["recipe", *common, "--layers", "1,2", "--task-vector", "math", *onto, "--out", projected],
        ["bench", lora, projected, *common, "--subjects", "algebra", "--n", "2", "--max-new-tokens", "6"],
        ["export", lora, *common, "--out", str(folder / "edited")],
    ]


def run_all(argv: list[list[str]], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(argv),
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )


def a_shard() -> str:
    return sorted(file.name for file in (contents.made_once() / contents.GEMMA).glob("model-*.safetensors"))[1]


def kill_mid_download(hub: LoopbackHub, argv: list[str], environment: Mapping[str, str], home: Path) -> int:
    """Start a command, kill its process while a shard is downloading, and return the number of bytes on disk."""
    hub.troubles[a_shard()] = Trouble(pause_s=0.5)  # 2 s for the shard
    child = subprocess.Popen(
        [sys.executable, "-m", "stethoscope", *argv],
        env={**os.environ, **environment},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    digest = hashlib.sha256((contents.made_once() / contents.GEMMA / a_shard()).read_bytes()).hexdigest()
    part = home / "hub" / f"models--{contents.GEMMA.replace('/', '--')}" / "blobs" / f"{digest}.incomplete"
    try:
        ends = time.monotonic() + 600
        while not (part.is_file() and part.stat().st_size):
            assert time.monotonic() < ends, "no download began"
            assert child.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    hub.troubles.clear()
    return part.stat().st_size


def test_from_the_hub_to_an_export_and_again_without_it(hub: LoopbackHub, tmp_path: Path) -> None:
    commits = contents.fill(hub, gated=True)
    profile, home = tmp_path / "test.toml", tmp_path / "hf-of-children"
    profile.write_text(PROFILE)
    online = hub_environment(hub.endpoint, home, token=READER) | {"STETHOSCOPE_HOME": str(tmp_path / "home")}

    kept = kill_mid_download(hub, commands(tmp_path, profile)[0], online, home)
    hub.asked.clear()
    first = tmp_path / "first"
    first.mkdir()
    done = run_all(commands(first, profile), online)
    assert done.returncode == 0, done.stderr
    assert [ask.range for ask in hub.sent(a_shard()) if contents.GEMMA in ask.path] == [f"bytes={kept}-"]
    info, diagnosis, energy, _, _, bench, _ = outputs = json.loads(done.stdout)
    check(info, diagnosis, energy, bench, commits)
    check_export(first / "edited")
    assert any("/datasets/" in ask.path and ask.path.endswith(".parquet") for ask in hub.asked)

    hub.stop()
    offline = hub_environment(hub.endpoint, home, offline=True) | {"STETHOSCOPE_HOME": str(tmp_path / "other-home")}
    second = tmp_path / "second"
    second.mkdir()
    again = run_all(commands(second, profile), offline)
    assert again.returncode == 0, again.stderr
    for was, now in zip(outputs[:3], json.loads(again.stdout)[:3], strict=True):
        assert _without_run_ids(was) == _without_run_ids(now)
    assert json.loads(again.stdout)[5]["comparisons"] == bench["comparisons"]

    for file in (tmp_path / "home").rglob("*"):
        assert not file.is_file() or READER.encode() not in file.read_bytes(), file
    assert READER not in done.stdout + done.stderr


def _without_run_ids(printed: Any) -> Any:
    """Remove what may differ offline: ids of runs, and "saes" (an SAE not yet fetched has the width in its name)."""
    if isinstance(printed, dict):
        return {key: _without_run_ids(value) for key, value in printed.items() if key not in ("run_id", "saes")}
    return [_without_run_ids(value) for value in printed] if isinstance(printed, list) else printed


def check(info: Any, diagnosis: Any, energy: Any, bench: Any, commits: Mapping[str, str]) -> None:
    assert info["model"]["revision"] == commits[contents.GEMMA]
    assert [row["layer"] for row in info["saes"]] == list(range(contents.N_LAYERS))
    assert {row["site"] for row in info["saes"]} == {"resid_post"}
    assert all(
        commits[name] in row["source"]
        for name, row in zip((contents.TUNED, contents.ADAPTER), info["task_vectors"], strict=True)
    )
    assert {cell["layer"] for cell in diagnosis["cells"]} == set(range(contents.N_LAYERS))
    assert all(0 <= cell["retention"] <= 1 + 1e-9 for cell in energy["layers"] if cell["retention"] is not None)
    assert [(row["subject"], row["n"]) for row in bench["arms"]] == [("algebra", 2)] * 3  # base, LoRA, projected
    assert len({row["recipe_id"] for row in bench["arms"]}) == 3


def check_export(folder: Path) -> None:
    """The export is the whole multimodal checkpoint, and transformers loads it without warnings."""
    assert (folder / "README.md").is_file()
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, Gemma3ForConditionalGeneration)
    assert not report["missing_keys"]
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        assert any(name.startswith("vision_tower.vision_model.") for name in tensors.keys())  # noqa: SIM118


@pytest.mark.parametrize(
    ("token", "said"), [(None, "is gated; got no token"), ("mistyped", "the hub rejected the token")]
)
def test_a_refusal_is_one_line_and_exit_code_2(
    hub: LoopbackHub,
    tmp_path: Path,
    token: str | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    contents.fill(hub, gated=True)
    profile = tmp_path / "test.toml"
    profile.write_text(PROFILE)
    point_at(monkeypatch, hub.endpoint, tmp_path / "hf", token=token)
    monkeypatch.setenv("STETHOSCOPE_HOME", str(tmp_path / "home"))
    capsys.readouterr()  # of the hub's models, which this process may just have written
    assert main(commands(tmp_path, profile)[0]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
    assert "mistyped" not in err
