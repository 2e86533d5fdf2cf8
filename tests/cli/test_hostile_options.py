"""Every option of every command with absurd values: one line and exit code 2, or success; nothing hangs.

The options are read from the parser, so new ones are included automatically.
"""

import argparse
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from stethoscope.cli import main
from stethoscope.cli.parser import build_parser
from stethoscope.errors import ResourceError
from stethoscope.minerva.grading import GraderPool
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.recipes.files import parse_layers
from stethoscope.records import MOST, EditRecipe, GoldReading

VALUES = (
    "\0",
    "a\0b.toml",
    "~nouser/x.toml",
    "x" * 300,
    "nan",
    "inf",
    "-1",
    str(10**20),
    "1" * 5000,
    "1e400",
    "",
    "[red]x[/red]",
    "a\nb",
    "\x1b[31mx",
    "\udcff",
    "FIFO",
    "FIFO.toml",
    "/dev/zero",
    "FOLDER",
    "1,,2",
    "--",
)
HANGS_S = 60  # on a busy machine
SMALL = {  # what keeps the work of a command with a model short
    "n": "2",
    "random_sets": "2",
    "n_sets": "2",
    "documents": "20",
    "max_new_tokens": "2",
    "subjects": "geometry",
}
Invoke = Callable[..., tuple[int, str, str]]


def commands(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list]]:
    """Yield every command, by its words, with its options and arguments that take a value."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for name, inner in action.choices.items():
            yield from commands(inner, (*path, name))
    if not below:
        yield path, [action for action in parser._actions if action.nargs != 0]


COMMANDS = dict(commands(build_parser()))


@pytest.fixture
def invoke(
    tmp_path: Path,
    profile_file: Path,
    pico_profile: Profile,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Invoke:
    """Function `invoke(command, option, value)` that fills in the command's other arguments."""
    monkeypatch.setenv("STETHOSCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("stethoscope.cli.serve", lambda port: 0)  # it would take the place of this process
    monkeypatch.chdir(tmp_path)
    recipe = EditRecipe(model=pico_profile.model, task_vector=pico_profile.task_vectors[0], layers=parse_layers("1", 4))
    (tmp_path / "r.json").write_text(recipe.model_dump_json())
    os.mkfifo(tmp_path / "FIFO")
    os.mkfifo(tmp_path / "FIFO.toml")
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FOLDER" / "file").write_text("")
    plain = {
        "recipe": "r.json",
        "recipes": "r.json",
        "layers": "1",
        "subject": "geometry",
        "run": "r20260101-000000-0000",
        "profile": str(profile_file),
        "device": "cpu",
        **SMALL,
    }

    def run(command: tuple[str, ...], option: argparse.Action, value: str) -> tuple[int, str, str]:
        out = tmp_path / f"out{random.random()}"
        argv = list(command)
        last = []
        for action in COMMANDS[command]:
            given = value if action is option else plain.get(action.dest, str(out) if action.dest == "out" else None)
            if action is not option and not (action.required or action.dest in ("profile", "device", *SMALL)):
                continue
            if action.option_strings:
                argv.append(f"{action.option_strings[0]}={given}")
            else:
                last.append(given)
        signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"{argv} hangs"))
        signal.alarm(HANGS_S)
        try:
            code = main([*argv, "--", *last] if last else argv)
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            signal.alarm(0)
        return code, *capsys.readouterr()

    return run


def assert_told(result: tuple[int, str, str]) -> None:
    code, out, err = result
    assert code in (0, 2), err
    assert "Traceback" not in out + err
    if code == 2:
        assert err.count("\n") == 1, err
        assert err.removesuffix("\n").isprintable(), err
        assert len(err) < 1500


@pytest.mark.parametrize("command", COMMANDS, ids="-".join)
def test_no_value_of_an_option_ends_in_a_traceback(
    command: tuple[str, ...], invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ResourceError("the model would be loaded")

    def read(_: GraderPool, golds: Sequence[str], **__: object) -> list[GoldReading]:  # seconds each, in a process
        return [GoldReading.WHOLE] * len(golds)

    monkeypatch.setattr(Context, "load", refuse)
    monkeypatch.setattr(GraderPool, "read_golds", read)
    for option in COMMANDS[command]:
        for value in VALUES:
            assert_told(invoke(command, option, value))


def numbers() -> list[tuple[tuple[str, ...], argparse.Action]]:
    """Numeric options of commands with a model; a benchmark may legitimately take long."""
    commands = ("diagnose", "energy", "gain", "recipe", "rank")
    return [
        (command, action)
        for command in COMMANDS
        if command[0] in commands
        for action in COMMANDS[command]
        if callable(action.type)
    ]


@pytest.mark.parametrize(
    ("command", "option"), [pytest.param(*pair, id=f"{'-'.join(pair[0])}-{pair[1].dest}") for pair in numbers()]
)
def test_the_largest_number_that_an_option_takes_is_done_or_told(
    command: tuple[str, ...], option: argparse.Action, invoke: Invoke
) -> None:
    assert_told(invoke(command, option, str(MOST)))
