"""Stored runs on the command line: list, show, report, delete; each command prints the id of the run it stores."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stethoscope.cli import main
from stethoscope.errors import StoreError
from stethoscope.store.home import runs_dir
from stethoscope.store.runs import RunStore

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.setenv("STETHOSCOPE_HOME", str(tmp_path / "home"))

    def invoke(*argv: str) -> tuple[int, str, str]:
        try:
            code = main(argv)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return invoke


def printed(result: tuple[int, str, str]) -> dict[str, object]:
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


@pytest.fixture
def asked(cli: Cli, profile_file: Path, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Function that runs a command on the pico profile; `r.json` is a recipe."""

    def invoke(*argv: str) -> tuple[int, str, str]:
        return cli(*argv, "--profile", str(profile_file), "--device", "cpu")

    assert invoke("recipe", "--layers", "1", "--out", str(tmp_path / "r.json"))[0] == 0
    return invoke


def test_every_command_that_keeps_a_run_names_it(asked: Cli, tmp_path: Path) -> None:
    recipe = str(tmp_path / "r.json")
    bench = ("bench", recipe, "--n", "2", "--max-new-tokens", "2")
    commands = {
        "diagnose": ("diagnose", "--top-k", "3"),
        "energy": ("energy", "--subject", "geometry", "--k", "2"),
        "gain": ("gain", "--n", "2"),
        "rank": ("rank", recipe, "--n", "2", "--n-sets", "2"),
        "bench": bench,
    }
    for kind, argv in commands.items():
        found = printed(asked(*argv, "--json"))
        assert RunStore(runs_dir()).get_run(str(found["run_id"])).kind == kind
        assert str(found["run_id"]) in asked(*argv)[1] or kind == "bench", "a run is reused, and then named as well"
    exported = printed(asked("export", recipe, "--out", str(tmp_path / "edited"), "--json"))
    assert RunStore(runs_dir()).get_run(str(exported["run_id"])).kind == "export"
    last = RunStore(runs_dir()).list_runs("bench")[0].run_id
    out = " ".join(asked(*bench)[1].split())
    newest = RunStore(runs_dir()).list_runs("bench")[0].run_id
    assert newest != last
    assert f"runs report {newest} --out" in out
    assert "run_id" not in printed(asked("info", "--json")), "what is not kept has no run"


def test_from_a_list_to_a_report_to_nothing(asked: Cli, cli: Cli, tmp_path: Path) -> None:
    bench = printed(asked("bench", str(tmp_path / "r.json"), "--n", "2", "--max-new-tokens", "2", "--json"))
    run_id = str(bench["run_id"])
    diagnosis = str(printed(asked("diagnose", "--json"))["run_id"])
    listed = printed(cli("runs", "list", "--json"))["runs"]
    assert isinstance(listed, list)
    assert {run_id, diagnosis} < {row["run_id"] for row in listed}
    assert [row["created_at"] for row in listed] == sorted((row["created_at"] for row in listed), reverse=True)
    (only,) = printed(cli("runs", "list", "--kind", "bench", "--json"))["runs"]  # type: ignore[misc]
    assert (only["state"], only["about"]) == ("done", "2 arms, 2 subjects, n = 2")
    assert len(printed(cli("runs", "list", "--limit", "1", "--json"))["runs"]) == 1  # type: ignore[arg-type]
    assert run_id in cli("runs", "list")[1], "at 80 columns an id is whole"

    shown = printed(cli("runs", "show", run_id, "--json"))
    assert shown["run"] == only
    assert shown["spec"] == bench["spec"]
    result = shown["result"]
    assert isinstance(result, dict)
    assert result["comparisons"] == bench["comparisons"]
    assert len(result["items"]) == 8
    assert "Paired differences" in cli("runs", "show", run_id)[1]
    assert "0" in cli("runs", "show", diagnosis)[1]

    page = tmp_path / "report.html"
    assert printed(cli("runs", "report", run_id, "--out", str(page), "--json"))["size_bytes"] == page.stat().st_size
    assert run_id in page.read_text(encoding="utf-8")

    assert printed(cli("runs", "delete", run_id, "--json")) == {"run_id": run_id, "deleted": True}
    assert [row["run_id"] for row in printed(cli("runs", "list", "--kind", "bench", "--json"))["runs"]] == []  # type: ignore[attr-defined]
    for gone in (("show", run_id), ("report", run_id, "--out", str(page)), ("delete", run_id)):
        code, out, err = cli("runs", *gone)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "deleted" in err


def test_a_deleted_run_leaves_its_answers_and_the_record_that_it_was(asked: Cli, tmp_path: Path) -> None:
    argv = ("bench", str(tmp_path / "r.json"), "--n", "2", "--max-new-tokens", "2", "--json")
    first = printed(asked(*argv))
    store = RunStore(runs_dir())
    record = store.get_run(str(first["run_id"]))
    blob = store.blobs.path(str(record.result_id))
    assert blob.exists()
    store.delete_run(record.run_id)
    assert not blob.exists()
    assert store.list_runs("bench") == []
    assert [run.run_id for run in store.list_runs("bench", deleted=True)] == [record.run_id]
    again = printed(asked(*argv))
    assert again["run_id"] != first["run_id"]
    assert again["comparisons"] == first["comparisons"]
    assert again["configurations_tried"] == first["configurations_tried"]


def test_a_result_that_another_run_shares_stays(asked: Cli, tmp_path: Path) -> None:
    argv = ("bench", str(tmp_path / "r.json"), "--n", "2", "--max-new-tokens", "2", "--json")
    first, second = (str(printed(asked(*argv))["run_id"]) for _ in range(2))
    store = RunStore(runs_dir())
    assert store.get_run(first).result_id == store.get_run(second).result_id
    store.delete_run(first)
    assert store.load_result(second)


def test_a_run_that_goes_on_is_not_deleted(tmp_path: Path, asked: Cli) -> None:
    printed(asked("bench", str(tmp_path / "r.json"), "--n", "2", "--max-new-tokens", "2", "--json"))
    store = RunStore(runs_dir())
    spec = store.list_runs("bench")[0].spec
    running = store.start_run(spec)
    with pytest.raises(StoreError, match="running"):
        RunStore(runs_dir()).delete_run(running)
    store.finish_run(running, state="paused", elapsed_s=1.0)
    store.delete_run(running)
    assert store.start_run(spec) != running, "a deleted run does not go on"


def test_mistakes_are_one_line_each(cli: Cli, tmp_path: Path) -> None:
    for argv in (
        ("runs",),
        ("runs", "burn"),
        ("runs", "show"),
        ("runs", "show", "r-none"),
        ("runs", "delete", "r-none"),
        ("runs", "report", "r-none", "--out", str(tmp_path / "r.html")),
        ("runs", "list", "--kind", "magic"),
        ("runs", "list", "--limit", "0"),
    ):
        code, out, err = cli(*argv)
        assert (code, out, err.count("\n")) == (2, "", 1), argv
