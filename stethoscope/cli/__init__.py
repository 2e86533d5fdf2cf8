"""argv -> spec -> pipeline.run: the same specs and the same code as the dashboard.

Every command takes --json and then prints one JSON object on stdout and nothing else; progress goes to stderr.
Exit codes: 0 done, 2 the user's mistake (one line on stderr, no traceback), 1 ours, 130 interrupted.
"""

import json
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from stethoscope.cli.commands import Commands
from stethoscope.cli.parser import build_parser
from stethoscope.cli.stored import run_action
from stethoscope.cli.terminal import stopped_by_ctrl_c
from stethoscope.errors import Cancelled, Paused, UserError
from stethoscope.profiles import load_profile
from stethoscope.recipes import first_problem


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = build_parser().parse_args(argv)
    commands: Commands | None = None
    try:
        if options.command == "runs":
            printed = run_action(options)
        else:
            commands = Commands(options, load_profile(options.profile))
            with stopped_by_ctrl_c(commands.progress, for_now=options.command == "bench"):
                printed = commands.run()
    except UserError as error:
        sys.stderr.write(f"stethoscope: {error}\n")
        return 2
    except ValidationError as error:
        sys.stderr.write(f"stethoscope: {first_problem(error)}\n")
        return 2
    except Paused as stopped:
        sys.stderr.write(f"stethoscope: {stopped}. The same command goes on from there.\n")
        return 130
    except (KeyboardInterrupt, Cancelled):
        sys.stderr.write("stethoscope: interrupted; finished items are stored\n")
        return 130
    finally:
        if commands is not None:
            commands.context.close()
    if options.json:
        sys.stdout.write(json.dumps(printed, allow_nan=False) + "\n")
    return 0
