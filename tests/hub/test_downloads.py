"""The expected download is listed from a local hub without fetching any file."""

import hashlib
import json
from pathlib import Path

import pytest

from stethoscope import hub as fetching
from stethoscope.cli import main
from stethoscope.hub import fetch_folder, forget_commits
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.download import run
from stethoscope.profiles import MINI, PROFILES
from stethoscope.progress import Progress
from stethoscope.records import DownloadSpec, ModelRef, ProblemsRef, SaeRef, TaskVectorRef
from stethoscope.results import DownloadPart, DownloadResult
from stethoscope.store.runs import RunStore
from tests.hub import contents
from tests.hub.server import READER, STRANGER, LoopbackHub, point_at

GEMMA = PROFILES["gemma-3-4b-it"]
SPEC = DownloadSpec(
    model=GEMMA.model,
    saes=GEMMA.saes,
    task_vectors=(TaskVectorRef(name="lora", tuned=contents.ADAPTER),),
    problems=GEMMA.problems,
)


def plan(tmp_path: Path, spec: DownloadSpec = SPEC) -> DownloadResult:
    return run(spec, Context(RunStore(tmp_path / "runs"), device="cpu"), Progress())


def part(result: DownloadResult, name: str) -> DownloadPart:
    return next(found for found in result.parts if found.part == name)


def sizes(folder: Path, *patterns: str) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for pattern in patterns
        for path in folder.glob(pattern)
    }


def test_every_file_is_listed_with_its_size_and_none_is_fetched(hub: LoopbackHub, tmp_path: Path) -> None:
    commits = contents.fill(hub)
    result = plan(tmp_path)
    made = contents.made_once()
    assert [(found.part, found.location) for found in result.parts] == [
        ("model", contents.GEMMA),
        ("SAEs", contents.SCOPE),
        ("task vector lora", contents.ADAPTER),
        ("problems", contents.PROBLEMS),
    ], "the controls are shipped"
    assert [found.revision for found in result.parts] == [commits[found.location] for found in result.parts]
    saes = "resid_post_all/layer_*_width_16k_l0_small/"
    assert {file.name: file.size_bytes for file in part(result, "SAEs").files} == sizes(
        made / contents.SCOPE, saes + "config.json", saes + "params.safetensors"
    )
    problems = sizes(made / contents.PROBLEMS, "*/*.parquet")
    assert {file.name: file.size_bytes for file in part(result, "problems").files} == problems
    assert sum(sizes(made / contents.GEMMA, "*.safetensors").values()) <= part(result, "model").size_bytes
    assert result.missing_bytes == result.size_bytes == sum(found.size_bytes for found in result.parts)
    assert result.fits
    assert not result.offline
    assert result.refusals == ()
    assert [ask for ask in hub.asked if ask.method == "GET" and "/resolve/" in ask.path] == []
    assert not any(ask.host == "store" for ask in hub.asked)


def test_what_is_here_is_counted_whole_or_in_part(hub: LoopbackHub, tmp_path: Path) -> None:
    contents.fill(hub)
    shards = sorted(sizes(contents.made_once() / contents.GEMMA, "model-*.safetensors"))
    whole, cut = shards[0], shards[1]
    fetch_folder(contents.GEMMA, patterns=(whole,))
    before = plan(tmp_path)
    first, content = ((contents.made_once() / contents.GEMMA / name).read_bytes() for name in (whole, cut))
    blobs = tmp_path / "hf" / "hub" / f"models--{contents.GEMMA.replace('/', '--')}" / "blobs"
    (blobs / f"{hashlib.sha256(content).hexdigest()}.incomplete").write_bytes(content[:1000])
    after = plan(tmp_path)
    assert [file.name for file in part(after, "model").files if file.here] == [whole]
    assert part(after, "model").begun_bytes == 1000
    assert part(before, "model").missing_bytes == part(before, "model").size_bytes - len(first)
    assert before.missing_bytes - after.missing_bytes == 1000
    fetch_folder(contents.GEMMA, patterns=(cut,))
    assert [ask.range for ask in hub.sent(cut)] == ["bytes=1000-"], "the download counts on the same bytes"


@pytest.mark.parametrize(("token", "said"), [(None, "no token"), (STRANGER, "a token of an account without access")])
def test_a_licence_that_is_not_accepted_is_told_before_the_download(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, said: str
) -> None:
    contents.fill(hub, gated=True)
    point_at(monkeypatch, hub.endpoint, tmp_path / "hf", token=token)
    result = plan(tmp_path)
    model = part(result, "model")
    assert model.files, "its listing is public"
    assert model.refusal is not None
    assert (model.refusal.what, model.refusal.got) == (f"model {contents.GEMMA} is gated", said)
    assert [found.part for found in result.parts if found.refusal] == ["model"]
    assert len(result.refusals) == 1
    point_at(monkeypatch, hub.endpoint, tmp_path / "hf", token=READER)
    assert plan(tmp_path).refusals == ()


def test_a_wrong_token_is_one_message_for_all_that_it_was_asked_for(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents.fill(hub)
    point_at(monkeypatch, hub.endpoint, tmp_path / "hf", token="mistyped")
    result = plan(tmp_path)
    assert all(found.refusal and not found.files for found in result.parts)
    (refusal,) = result.refusals
    assert "rejected the token" in refusal.what
    assert contents.SCOPE in refusal.what
    assert contents.PROBLEMS in refusal.what
    assert "mistyped" not in result.model_dump_json()


def test_offline_tells_what_is_cached_and_what_was_never_seen(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents.fill(hub)
    fetch_folder(contents.GEMMA, patterns=("config.json",))
    hub.stop()
    forget_commits()
    point_at(monkeypatch, hub.endpoint, tmp_path / "hf", offline=True)
    result = plan(tmp_path)
    assert result.offline
    model = part(result, "model")
    assert model.refusal is None
    assert [file.name for file in model.files if file.here] == ["config.json"]
    assert model.size_bytes > model.missing_bytes > 0, "the listing was kept, too"
    (refusal,) = result.refusals
    assert "HF_HUB_OFFLINE is set" in refusal.what
    assert part(result, "SAEs").files == ()


def test_a_disk_without_room_is_told(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents.fill(hub)
    whole = plan(tmp_path)
    monkeypatch.setattr(fetching.cache, "disk_usage", lambda _: type("Usage", (), {"free": whole.size_bytes - 1}))
    result = plan(tmp_path)
    assert result.free_bytes == whole.size_bytes - 1
    assert not result.fits


def test_what_lies_here_is_no_part(tmp_path: Path) -> None:
    spec = DownloadSpec(model=MINI.model, saes=MINI.saes, task_vectors=MINI.task_vectors, problems=MINI.problems)
    assert plan(tmp_path, spec).parts == ()


def test_controls_and_named_repositories_are_parts(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("house/controls", {"train.jsonl": "{}\n", "read.md": "x"}, repo_type="dataset")
    hub.add_folder("house/saes", contents.made_once() / contents.SCOPE / "resid_post_all")
    spec = DownloadSpec(
        model=ModelRef(id="embedded:base"),
        saes=SaeRef(location="house/saes"),
        problems=ProblemsRef(
            problems="embedded:problems", controls="house/controls", shots="", subjects=("a",), control_names=("b",)
        ),
    )
    result = plan(tmp_path, spec)
    assert [found.part for found in result.parts] == ["SAEs", "controls"]
    assert len(part(result, "SAEs").files) == 2 * contents.N_LAYERS
    assert [file.name for file in part(result, "controls").files] == ["train.jsonl"]


def test_the_command_line_prints_the_same(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contents.fill(hub, gated=True)
    monkeypatch.setenv("STETHOSCOPE_HOME", str(tmp_path / "home"))
    argv = ["downloads", "--profile", "gemma-3-4b-it", "--task-vector", contents.ADAPTER]
    assert main([*argv, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"parts", "cache", "free_bytes", "offline", "size_bytes", "missing_bytes", "fits"} == set(printed)
    assert [found["part"] for found in printed["parts"]] == [
        "model",
        "SAEs",
        f"task vector {contents.ADAPTER.partition('/')[2]}",
        "problems",
    ]
    model = printed["parts"][0]
    assert model["size_bytes"] == sum(file["size_bytes"] for file in model["files"])
    assert model["missing_bytes"] == model["size_bytes"]
    assert model["refusal"]["what"] == f"model {contents.GEMMA} is gated"
    assert main(argv) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("is gated") == 1
    assert "to download" in shown
