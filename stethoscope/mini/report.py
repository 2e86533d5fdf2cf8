"""A study as a script: measured in a context of its own, printed as Markdown, and written to a file where asked."""

from collections.abc import Callable
from pathlib import Path

from stethoscope.pipeline.context import Context
from stethoscope.store.home import runs_dir
from stethoscope.store.runs import RunStore


def print_report(measure: Callable[[Context], str], out: Path | None) -> None:
    """Print what `measure` returns and write it to `out`; the context's processes end whatever happens."""
    context = Context(RunStore(runs_dir()))
    try:
        text = measure(context)
    finally:
        context.close()
    print(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")
