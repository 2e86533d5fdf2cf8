"""Run a study as a script: compute it in its own context, print it as Markdown, and optionally write it to a file."""

from collections.abc import Callable
from pathlib import Path

from stethoscope.pipeline.context import Context
from stethoscope.store.home import runs_dir
from stethoscope.store.runs import RunStore


def print_report(measure: Callable[[Context], str], out: Path | None) -> None:
    """Print the result of `measure` and write it to `out`; always ends the context's processes."""
    context = Context(RunStore(runs_dir()))
    try:
        text = measure(context)
    finally:
        context.close()
    print(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")
