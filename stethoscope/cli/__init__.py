"""The command line: builds the same specs as the dashboard and runs them with `pipeline.run`.

With --json, a command prints a single JSON object to stdout; progress goes to stderr. Exit codes: 0 success, 1 internal
error, 2 invalid input (one line on stderr, no traceback), 130 interrupted. If stdout cannot be written, the work is
still done and stored, and a line on stderr says how to show the result.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from stethoscope.cli.app import serve
from stethoscope.cli.commands import Commands
from stethoscope.cli.parser import read_options
from stethoscope.cli.progress import stopped_by_ctrl_c
from stethoscope.cli.stored import run_action
from stethoscope.cli.streams import guarded_streams, not_printed
from stethoscope.errors import Cancelled, Paused, UserError
from stethoscope.profiles import load_profile
from stethoscope.recipes.files import first_problem


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    kept: list[str] = []
    with guarded_streams() as stdout:
        try:
            code = _run(read_options(argv), kept)
        except SystemExit as stop:  # --help, or invalid options
            code = int(stop.code or 0)
        stdout.flush()
        closed = isinstance(stdout.failure, BrokenPipeError)  # the reader closed the pipe
        if stdout.failure is not None and (kept or not closed):
            _say(not_printed(stdout.failure, kept))
    return code if stdout.failure is None or closed else 2


def _run(options: argparse.Namespace, kept: list[str]) -> int:
    """Run the command of `options`, and add what it stored to `kept`."""
    commands: Commands | None = None
    try:
        if options.command == "app":
            return serve(options.port)
        if options.command == "runs":
            printed = run_action(options, kept)
        else:
            commands = Commands(options, load_profile(options.profile), kept)
            with stopped_by_ctrl_c(commands.progress, for_now=options.command == "bench"):
                printed = commands.run()
    except UserError as error:
        _say(error)
        return 2
    except ValidationError as error:
        _say(first_problem(error))
        return 2
    except Paused as stopped:
        _say(f"{stopped}. Run the same command again to continue.")
        return 130
    except (KeyboardInterrupt, Cancelled):
        _say("interrupted; finished results are saved")
        return 130
    finally:
        if commands is not None:
            commands.context.close()
    if options.json:
        sys.stdout.write(json.dumps(printed, allow_nan=False) + "\n")
    if commands is not None and commands.unkept is not None:
        _say(commands.unkept)
        return 2
    return 0


def _say(said: object) -> None:
    sys.stderr.write(f"stethoscope: {said}\n")
