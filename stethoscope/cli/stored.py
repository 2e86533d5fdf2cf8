"""Stored runs: list, show, report and delete them, without a model."""

import argparse
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from stethoscope.cli.tables import PlainConsole
from stethoscope.cli.terminal import (
    print_bench,
    print_diagnosis,
    print_energy,
    print_gain,
    print_rank,
    print_stability,
    show_command,
)
from stethoscope.files import write_file
from stethoscope.locations import path_of
from stethoscope.results import (
    BenchResult,
    DiagnosisResult,
    EnergyResult,
    GainResult,
    RankResult,
    Result,
    StabilityResult,
)
from stethoscope.results.gain import POOLED
from stethoscope.store.history import RunRecord
from stethoscope.store.home import runs_dir
from stethoscope.store.runs import RunStore
from stethoscope.store.settings import get_settings

TABLES: dict[type[Result], Callable[[Console, Any], None]] = {
    BenchResult: print_bench,
    DiagnosisResult: print_diagnosis,
    EnergyResult: print_energy,
    GainResult: lambda console, result: print_gain(console, result, POOLED),
    RankResult: print_rank,
    StabilityResult: print_stability,
}


def run_action(options: argparse.Namespace, kept: list[str]) -> dict[str, object]:
    """Run the action of `runs` and return the object for --json; add what was written to `kept`."""
    store, console = RunStore(runs_dir()), PlainConsole(quiet=options.json)
    act = {"list": _list, "show": _show, "report": partial(_report, kept=kept), "delete": _delete}[options.action]
    return act(store, console, options)


def _fields(run: RunRecord) -> dict[str, object]:
    """Return the fields of a stored run without its spec."""
    known = {name: value for name, value in dataclasses.asdict(run).items() if name != "spec_json"}
    return {**known, "about": run.about}


def _started(run: RunRecord) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(run.created_at))


def _list(store: RunStore, console: Console, options: argparse.Namespace) -> dict[str, object]:
    runs = store.list_runs(options.kind, options.limit)
    table = Table("run", "kind", "state", "about")
    table.columns[0].no_wrap = True
    for run in runs:
        table.add_row(run.run_id, run.kind, run.state, run.title or run.about)
    console.print(table if runs else "No stored runs yet.")
    return {"runs": [_fields(run) for run in runs]}


def _show(store: RunStore, console: Console, options: argparse.Namespace) -> dict[str, object]:
    run = store.get_run(options.run)
    settings = get_settings(store.database, run.run_id)
    result = None if run.result_id is None else store.load_result(run.run_id)
    seconds = "" if run.elapsed_s is None else f", {run.elapsed_s:.1f} s"
    lines = [f"{run.run_id}: {run.kind}, {run.state}, started {_started(run)}{seconds}", run.title or run.about]
    lines += [] if settings is None else [f"Computed with {settings.in_words}"]
    lines += [] if run.error is None else [run.error]
    console.print("\n".join(lines))
    if result is not None and type(result) in TABLES:
        TABLES[type(result)](console, result)
    elif result is not None:
        console.print(f"Result: {show_command(run.run_id)} --json", soft_wrap=True)
    return {
        "run": _fields(run),
        "spec": run.spec.model_dump(mode="json"),
        "settings": None if settings is None else settings.model_dump(mode="json"),
        "result": None if result is None else result.model_dump(mode="json"),
    }


def _report(store: RunStore, console: Console, options: argparse.Namespace, kept: list[str]) -> dict[str, object]:
    from stethoscope.report import is_report, of_run  # plotly

    page = of_run(store, options.run).encode()
    write_file(path_of(options.out), page, ours=is_report, force=options.force)
    kept.append(f"Report written to {options.out}.")
    console.print(f"Report of {options.run}: {options.out}, {len(page) / 1e6:.1f} MB", soft_wrap=True)
    return {"run_id": options.run, "out": options.out, "size_bytes": len(page)}


def _delete(store: RunStore, console: Console, options: argparse.Namespace) -> dict[str, object]:
    store.delete_run(options.run)
    console.print(f"Deleted the result of {options.run}. Its graded answers are kept and still count as seen.")
    return {"run_id": options.run, "deleted": True}
