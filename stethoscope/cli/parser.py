"""Parse the options of every command into an `argparse.Namespace`; an error prints one line and exits with code 2."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from stethoscope.errors import one_line
from stethoscope.recipes.files import size_in_bytes
from stethoscope.records import MOST, SCORE_NAMES
from stethoscope.use_cases import KEPT_KINDS

EPILOG = """\
examples:
  %(prog)s app
  %(prog)s diagnose --profile mini
  %(prog)s recipe --profile mini --layers 3,5=0.5 --alpha 0.8 --out r.json
  %(prog)s rank r.json
  %(prog)s bench r.json --subjects number_theory --n 100 --controls
  %(prog)s export r.json --out edited-model

Ctrl-C saves finished results. To resume a benchmark that was stopped or killed, run the same command again.
"""

COMMAND = "stethoscope"  # of an installed package
ARMS = (
    "raw",
    "projected",
    "projected-norm-matched",
    "raw-where-projected",
    "random-subspace",
    "random-subspace-norm-matched",
)
FORCE = "overwrite the file even if another command wrote it"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {one_line(message)}. See {self.prog} --help.\n")


def _unfit(text: str, expected: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"got {text[:80]!r}; expected {expected}")


def _whole(low: int, high: int = MOST) -> Callable[[str], int]:
    """Return a parser of whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise _unfit(text, f"a whole number from {low:,} to {high:,}")
        return value

    return read


_positive = _whole(1)
_seed = _whole(0, 2**32 - 1)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _unfit(text, "a number")
    return value


def _gigabytes(text: str) -> float:
    value = _number(text)
    if not 1e-6 <= value <= 1e9:
        raise _unfit(text, "a size in GB, from 0.000001 to 1,000,000,000")
    return value


def _size(text: str) -> int:
    try:
        return size_in_bytes(text)
    except ValueError as error:
        raise _unfit(text, "a size such as 5GB or 500MB") from error


def _sample_size(text: str) -> int | str:
    return text if text == "all" else _positive(text)


def _k_list(text: str) -> tuple[int, ...]:
    return tuple(sorted({_positive(part) for part in text.split(",")}))


def _add_diagnose_options(diagnose: argparse.ArgumentParser) -> None:
    diagnose.add_argument("--score", choices=SCORE_NAMES, help="layer score (default: mean_rate_difference)")
    diagnose.add_argument(
        "--top-k", type=_positive, help="latents selected per layer and subject (default: the profile's)"
    )
    diagnose.add_argument("--control", help="control corpus (default: the profile's first)")
    diagnose.add_argument("--documents", type=_whole(20), help="documents per subject, at least 20")
    diagnose.add_argument(
        "--tokens", choices=("prompt", "all"), help="use the tokens of the prompt (default) or all tokens"
    )
    diagnose.add_argument("--split", choices=("train", "dev", "test"), help="split of the documents (default: train)")
    diagnose.add_argument("--seed", type=_seed, default=0)


def _add_gain_options(gain: argparse.ArgumentParser) -> None:
    gain.add_argument("--subject", help="subject or control corpus to show (default: all subjects pooled)")
    gain.add_argument("--task-vector", help="default: the profile's first")
    gain.add_argument("--n", type=_whole(2), help="dev problems per subject (default: 16)")
    gain.add_argument(
        "--random-sets", type=_positive, metavar="N", help="random sets of layers to compare with (default: 99)"
    )
    gain.add_argument("--control", help="control corpus of the layer scores (default: the profile's first)")
    gain.add_argument("--seed", type=_seed, default=0)


def _add_recipe_options(recipe: argparse.ArgumentParser) -> None:
    recipe.add_argument(
        "--layers", required=True, help="layers with optional strengths, for example 3,5=0.5, 2-4 or all"
    )
    recipe.add_argument("--alpha", type=_number, default=1.0, help="master alpha (default: 1)")
    recipe.add_argument("--task-vector", help="default: the profile's first")
    recipe.add_argument("--edit-type", choices=ARMS, default="raw", help="edit type (default: raw)")
    recipe.add_argument("--rank", type=_positive, help="dimensions of the random subspace")
    recipe.add_argument("--seed", type=_seed, default=0, help="seed of the random subspace (default: 0)")
    recipe.add_argument("--norms", action="store_true", help="also edit the layers' norms")
    recipe.add_argument("--embeddings", action="store_true", help="also edit embeddings, head and final norm")
    recipe.add_argument("--basis-subject", help="subject whose latents span the projection (projected edits only)")
    recipe.add_argument(
        "--top-k", type=_positive, help="latents in the span (projected edits only; default: the profile's)"
    )
    recipe.add_argument("--site", choices=("resid_post", "mlp_out", "attn_out"), help="which SAEs (default: profile's)")
    recipe.add_argument("--out", required=True, help="file to write")
    recipe.add_argument("--force", action="store_true", help=FORCE)


def _add_bench_options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("recipes", nargs="+", metavar="RECIPE", help="recipe files")
    bench.add_argument("--subjects", default="all", help="comma-separated, or all (default: all)")
    bench.add_argument("--n", type=_sample_size, default=50, help="problems per subject, or all (default: 50)")
    bench.add_argument("--seed", type=_seed, default=0)
    bench.add_argument("--split", choices=("dev", "test"), default="test")
    bench.add_argument("--max-new-tokens", type=_positive, default=256, metavar="N")
    bench.add_argument("--chat-template", action="store_true", help="format prompts with the tokenizer's chat template")
    bench.add_argument("--batch-size", type=_positive, default=32, metavar="N")
    bench.add_argument(
        "--block-size",
        type=_positive,
        default=64,
        metavar="N",
        help="problems per block; all arms finish a block before the next starts (default: 64)",
    )
    bench.add_argument("--plan", action="store_true", help="show the plan and the first prompt, then exit")
    bench.add_argument(
        "--controls", action="store_true", help="add the standard set of control arms for the first recipe"
    )


def _add_rank_options(rank: argparse.ArgumentParser) -> None:
    rank.add_argument("recipe", metavar="RECIPE", help="recipe file")
    rank.add_argument("--n", type=_whole(2), default=16, help="problems per subject, at least 2 (default: 16)")
    rank.add_argument(
        *("--random-sets", "--n-sets"),
        dest="n_sets",
        type=_positive,
        default=99,
        metavar="N",
        help="random sets of layers (default: 99)",
    )
    rank.add_argument("--split", choices=("train", "dev", "test"), default="dev", help="default: dev")
    rank.add_argument("--seed", type=_seed, default=0, help="seed of the problems and of the sets (default: 0)")


def _add_memory_options(memory: argparse.ArgumentParser) -> None:
    memory.add_argument("--layers", type=_whole(0), metavar="N", help="layers edited at once (default: all)")
    memory.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="prompts per batch (default: 32)")
    memory.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the profile's")
    memory.add_argument(
        "--capacity-gb", type=_gigabytes, metavar="GB", help="check against a device with this much memory instead"
    )


def _add_problems_options(problems: argparse.ArgumentParser) -> None:
    problems.add_argument("--split", choices=("train", "dev", "test"), default="test")
    problems.add_argument("--n", type=_sample_size, default="all", help="problems per subject (default: all)")
    problems.add_argument("--seed", type=_seed, default=0)


def _add_runs(commands: "argparse._SubParsersAction[_Parser]") -> None:
    text = "list, show, report or delete stored runs"
    runs = commands.add_parser("runs", help=text, description=text[0].upper() + text[1:] + ".")
    actions = runs.add_subparsers(dest="action", required=True, parser_class=_Parser, metavar="ACTION")

    def add(name: str, text: str, *, of_a_run: bool = True) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if of_a_run:
            action.add_argument("run", metavar="RUN", help="run id, as shown by runs list")
        action.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
        return action

    listing = add("list", "list the stored runs, newest first", of_a_run=False)
    listing.add_argument("--kind", choices=KEPT_KINDS, help="list only runs of this kind")
    listing.add_argument("--limit", type=_positive, default=20, metavar="N", help="list at most N runs (default: 20)")
    add("show", "show the settings and result of a run")
    report = add("report", "write a stored benchmark as one HTML file that needs no model, GPU or network")
    report.add_argument("--out", required=True, help="file to write")
    report.add_argument("--force", action="store_true", help=FORCE)
    add("delete", "delete the result of a run; its graded answers are kept and still count as seen")


def _add_app(commands: "argparse._SubParsersAction[_Parser]") -> None:
    text = "start the dashboard on this machine; stop it with Ctrl-C"
    app = commands.add_parser("app", help=text, description=text[0].upper() + text[1:] + ".")
    app.add_argument("--port", type=_whole(1, 65535), default=8501, help="port of the dashboard (default: 8501)")
    app.set_defaults(json=False)


def _add_export_options(export: argparse.ArgumentParser) -> None:
    export.add_argument("recipe", metavar="RECIPE", help="recipe file")
    export.add_argument("--out", required=True, help="folder to create")
    export.add_argument("--delta-only", action="store_true", help="write only the delta instead of the full checkpoint")
    export.add_argument(
        "--shard-size", type=_size, help="maximum size of a weights file, for example 500MB (default: 5GB)"
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog=COMMAND if Path(sys.argv[0]).stem == COMMAND else f"python -m {COMMAND}",
        description=(
            "Find the layers that carry a skill with SAEs, inject a task vector into them, and benchmark the edit."
        ),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("--profile", default="mini", help="name of a profile, or a TOML file (default: mini)")
        command.add_argument(
            "--problems", metavar="PLACE", help="your own problems: a folder, a .jsonl file or a data set id OWNER/NAME"
        )
        command.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
        command.add_argument(
            "--device",
            default="auto",
            help="auto (cuda if available, otherwise cpu), cpu, cuda, cuda:1, spread, offload, offload-disk",
        )
        return command

    _add_app(commands)
    add("info", "show the model, its SAEs, and how much each task vector changes each layer")

    _add_memory_options(add("memory", "estimate the memory of each use case before anything is loaded"))
    downloads = add("downloads", "show what would be downloaded, what is already here, and the free disk space")
    downloads.add_argument("--task-vector", help="name, path or hub id (default: all task vectors of the profile)")
    _add_problems_options(
        add("problems", "count the problems of each subject, and the gold answers that lm-eval cannot read")
    )

    preflight = add("preflight", "check a task vector against the base: shapes, finite values, sizes, rounding")
    preflight.add_argument("--task-vector", help="default: the profile's first")

    _add_diagnose_options(add("diagnose", "score how specific each layer is to each subject"))

    energy = add(
        "energy", "show how much of the task vector's energy the span of the top latents keeps, and the chance level"
    )
    energy.add_argument("--subject", required=True)
    energy.add_argument("--k", type=_k_list, help="numbers of latents, for example 4,8,16")
    energy.add_argument("--task-vector", help="default: the profile's first")
    energy.add_argument("--control", help="control corpus (default: the profile's first)")
    energy.add_argument("--site", choices=("resid_post", "mlp_out", "attn_out"), help="which SAEs (default: profile's)")
    energy.add_argument("--plain-weights", action="store_true", help="do not scale by the norm weights")
    energy.add_argument("--seed", type=_seed, default=0)

    _add_gain_options(
        add("gain", "measure the gain of injecting each layer alone, and compare it with the layer scores")
    )

    _add_recipe_options(add("recipe", "write an edit recipe as JSON"))
    _add_rank_options(add("rank", "rank a recipe's layers among random sets of the same size, by likelihood"))
    _add_bench_options(add("bench", "compare recipes with the base on the same test problems"))

    _add_export_options(add("export", "write the edited model as a checkpoint"))
    _add_runs(commands)
    return parser


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed options in `argv` (None: those of this process); raise `SystemExit` with code 2 on an error."""
    parser = build_parser()
    given = sys.argv[1:] if argv is None else argv
    for text in given:
        try:
            text.encode()
        except UnicodeEncodeError:  # a file name in another encoding: records are JSON and cannot store it
            parser.error(f"argument {text!r}: contains bytes that are not UTF-8; rename the file or folder")
    options = parser.parse_args(given)
    for name, value in vars(options).items():
        if value == []:  # argparse reads --name=-- as no value
            parser.error(f"argument --{name.replace('_', '-')}: got no value; expected one")
    return options
