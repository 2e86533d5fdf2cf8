"""Any file given to a command is read promptly or refused in one line; stored data stays intact."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stethoscope.cli import main
from stethoscope.profiles import Profile
from stethoscope.records import ExportSpec
from stethoscope.store.runs import RunStore

DEEP = 100_000
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("a file is waited for"))
    signal.alarm(120)
    yield
    signal.alarm(0)


@pytest.fixture
def run(tmp_path: Path, profile_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("STETHOSCOPE_HOME", str(tmp_path / "home"))

    def invoke(*argv: str, profile: Path | None = None) -> tuple[int, str, str]:
        of_runs = argv[0] == "runs"
        try:
            code = main([*argv, *(() if of_runs else ("--profile", str(profile or profile_file), "--device", "cpu"))])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return invoke


def one_line(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, err
    assert err.startswith("stethoscope: ")
    return err


def made(kind: str, path: Path) -> Path:
    """Create something other than a regular file at `path`."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)
    return path


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
@pytest.mark.parametrize("reader", ["profile", "extends", "recipe", "problems", "task_vector", "delta", "shots"])
def test_what_is_no_file_is_refused_at_once(
    kind: str, reader: str, run: Run, tmp_path: Path, as_toml: Callable[[Profile], str], pico_profile: Profile
) -> None:
    def with_problems(place: Path) -> tuple[int, str, str]:
        return run("problems", "--problems", str(place))

    def with_shots(place: Path) -> tuple[int, str, str]:
        problems = pico_profile.problems.model_copy(update={"shots": str(place)})
        mine = tmp_path / "mine.toml"
        mine.write_text(as_toml(pico_profile.model_copy(update={"problems": problems})))
        assert run("recipe", "--layers", "1", "--out", str(tmp_path / "r.json"))[0] == 0
        return run("bench", str(tmp_path / "r.json"), "--plan", profile=mine)

    def extended(place: Path) -> tuple[int, str, str]:
        (tmp_path / "mine.toml").write_text(f'extends = "{place.name}"')
        return run("info", profile=tmp_path / "mine.toml")

    name, read = {
        "profile": ("p.toml", lambda place: run("info", profile=place)),
        "extends": ("p.toml", extended),
        "recipe": ("r.json", lambda place: run("rank", str(place))),
        "problems": ("p.jsonl", with_problems),
        "task_vector": ("tau", lambda place: run("preflight", "--task-vector", str(place))),
        "delta": ("d.safetensors", lambda place: run("preflight", "--task-vector", str(place))),
        "shots": ("s.json", with_shots),
    }[reader]
    assert name.partition(".")[0] in one_line(read(made(kind, tmp_path / name)))


@pytest.mark.parametrize("inside", ["config.json", "generation_config.json", "tokenizer.json", "adapter_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "nested"])
def test_a_fine_tune_with_such_a_file_in_it(
    inside: str, kind: str, run: Run, tmp_path: Path, pico_profile: Profile
) -> None:
    tuned = shutil.copytree(pico_profile.task_vectors[0].tuned, tmp_path / "tuned")
    (tuned / inside).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(tuned / inside)
    else:
        (tuned / inside).write_text("[" * DEEP + "]" * DEEP)
    code, _, err = run("preflight", "--task-vector", str(tuned))
    assert "Traceback" not in err
    assert code == 2 or kind == "pipe" or inside == "generation_config.json"  # not there; a remark


@pytest.mark.parametrize("reader", ["recipe", "problems", "profile", "profile table", "base"])
def test_what_is_nested_too_deeply_is_one_line(
    reader: str, run: Run, tmp_path: Path, as_toml: Callable[[Profile], str], pico_profile: Profile
) -> None:
    deep = "[" * DEEP + "]" * DEEP
    path = tmp_path / {"problems": "deep.jsonl", "profile": "deep.toml", "profile table": "deep.toml"}.get(
        reader, "deep"
    )
    if reader == "recipe":
        path.write_text(f'{{"layers": {deep}}}')
        one_line(run("rank", str(path)))
    elif reader == "problems":
        path.write_text(deep)
        one_line(run("problems", "--problems", str(path)))
    elif reader == "base":
        base = shutil.copytree(pico_profile.model.id, tmp_path / "base")
        (base / "config.json").write_text(f'{{"model_type": {deep}}}')
        path.with_suffix(".toml").write_text(as_toml(_with_base(pico_profile, base)))
        one_line(run("info", profile=path.with_suffix(".toml")))
    else:
        path.write_text(f"title = {deep}" if reader == "profile" else ".".join("a" * 10_000) + " = 1")
        one_line(run("info", profile=path))


def _with_base(profile: Profile, base: Path) -> Profile:
    return profile.model_copy(update={"model": profile.model.model_copy(update={"id": str(base)})})


@pytest.mark.parametrize("extends", ["['mini']", "{a = 1}", "3", "true", "'\\u0000'", "''"])
def test_a_profile_extends_one_name(extends: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(f"extends = {extends}".replace("'", '"'))
    one_line(run("info", profile=path))


@pytest.mark.parametrize("place", ["a\\u0000b", "~nouser/x", "x" * 300, ""])
@pytest.mark.parametrize("field", ["model.id", "saes.location", "problems.shots", "problems.problems"])
def test_no_place_in_a_profile_ends_in_a_traceback(
    field: str, place: str, run: Run, tmp_path: Path, as_toml: Callable[[Profile], str], pico_profile: Profile
) -> None:
    table, name = field.split(".")
    old = json.dumps(str(getattr(getattr(pico_profile, table), name)))
    path = tmp_path / "p.toml"
    path.write_text(as_toml(pico_profile).replace(f"{name} = {old}", f'{name} = "{place}"'))
    one_line(run("gain" if table == "problems" else "info", profile=path))


@pytest.mark.parametrize("kinds", [["weird"] * 4, ["full_attention"] * 3, [["full_attention"]] * 4, "full_attention"])
@pytest.mark.parametrize("command", ["info", "memory"])
def test_layer_types_that_transformers_does_not_know(
    command: str, kinds: object, run: Run, tmp_path: Path, as_toml: Callable[[Profile], str], pico_profile: Profile
) -> None:
    base = shutil.copytree(pico_profile.model.id, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"layer_types": kinds}))
    path = tmp_path / "p.toml"
    path.write_text(as_toml(_with_base(pico_profile, base)))
    assert "layer_types" in one_line(run(command, profile=path))


# --- what is written ------------------------------------------------------------------------------------------------


def test_a_recipe_is_written_over_our_own_and_over_nothing_else(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    write = ("recipe", "--out", str(out), "--layers")
    for layers in ("1", "1", "2"):
        assert run(*write, layers)[0] == 0
        assert list(json.loads(out.read_text())["layers"]) == [layers]
    ours = out.read_text()
    for theirs in ("notes", ours.replace('"master_alpha": 1.0', '"master_alpha": 0.5'), "", "{}", "\udcff"):
        out.write_text(theirs, errors="surrogateescape")
        before = out.read_bytes()
        assert "--force" in one_line(run(*write, "2"))
        assert out.read_bytes() == before
    out.chmod(0o640)
    assert run(*write, "3", "--force")[0] == 0
    assert list(json.loads(out.read_text())["layers"]) == ["3"]
    assert out.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_no_output_goes_into_what_is_no_file(kind: str, run: Run, tmp_path: Path) -> None:
    out = made(kind, tmp_path / "r.json")
    one_line(run("recipe", "--layers", "1", "--force", "--out", str(out)))
    assert out.exists()
    assert not out.is_file()


def test_a_link_stays_and_leads_to_what_is_new(run: Run, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    out = tmp_path / "r.json"
    out.symlink_to(tmp_path / "folder" / "real.json")
    assert run("recipe", "--layers", "1", "--out", str(out))[0] == 0
    assert out.is_symlink()
    assert json.loads((tmp_path / "folder" / "real.json").read_text())


def test_a_write_that_fails_leaves_what_was_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "r.json"
    assert run("recipe", "--layers", "1", "--out", str(out))[0] == 0
    before = out.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert "No space left" in one_line(run("recipe", "--layers", "2", "--out", str(out)))
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_report_is_written_over_our_own_and_over_nothing_else(run: Run, tmp_path: Path) -> None:
    recipe, page = tmp_path / "r.json", tmp_path / "page.html"
    assert run("recipe", "--layers", "1", "--out", str(recipe))[0] == 0
    code, out, err = run("bench", str(recipe), "--subjects", "geometry", "--n", "2", "--max-new-tokens", "4", "--json")
    assert code == 0, err
    run_id = json.loads(out)["run_id"]
    report = ("runs", "report", run_id, "--out", str(page))
    for _ in range(2):
        assert run(*report)[0] == 0
    ours = page.read_bytes()
    for theirs in (b"notes", ours.replace(b"<h1>", b"<h1>Mine: ", 1), ours[:-30]):
        page.write_bytes(theirs)
        assert "--force" in one_line(run(*report))
        assert page.read_bytes() == theirs
    assert run(*report, "--force")[0] == 0
    assert page.read_bytes() == ours
    assert str(page).replace("\n", "") in run(*report)[1].replace("\n", "")


# --- what is printed ------------------------------------------------------------------------------------------------


def test_brackets_and_escapes_are_printed_letter_by_letter(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "[red]a[bold] :smile: [b].json"
    assert out.name in run("recipe", "--layers", "1", "--out", str(out))[1]
    store = RunStore(tmp_path / "home" / "runs")
    recipe = store.list_recipes()[0].recipe
    spec = ExportSpec(recipe=recipe, out="o")
    for title in ("[red]t[/red]", "[/]", "[b", ":smile:", "\x1b[31mred", "a\tb"):
        run_id = store.start_run(spec, title=title)
        store.finish_run(run_id, state="cancelled", elapsed_s=1.0)
        for command in (("list",), ("show", run_id)):
            shown = run("runs", *command)[1]
            assert title.replace("\x1b", "\\x1b").replace("\t", "\\t") in shown
            assert "\x1b" not in shown
