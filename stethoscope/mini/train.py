"""Rebuild the mini from nothing: ``python -m stethoscope.mini.train [--out DIR] [--quick]``.

The order is the table of contents: problems and shots, tokenizer, base, two fine-tunes of it, one SAE per layer,
measurements, model card. Everything is seeded and counted in steps; about an hour on two CPU cores.
"""

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from stethoscope.minerva.prompts import EXAMPLE_SEPARATOR, frame_example
from stethoscope.mini import recipe as recipes
from stethoscope.mini.card import write_card
from stethoscope.mini.checkpoints import (
    ARTIFACTS_DIR,
    load_model,
    load_tokenizer,
    read_shots,
    save_model,
    write_problem_files,
    write_shots,
)
from stethoscope.mini.fitting import FitReport, fit, initialise_model
from stethoscope.mini.language import draw_shots, mixed_shares, problem_stream
from stethoscope.mini.packing import Packer
from stethoscope.mini.recipe import FitRecipe, MiniRecipe, model_config
from stethoscope.mini.sae_training import SaeReport, train_saes
from stethoscope.mini.tokenizer import build_tokenizer

Report = Callable[[str], None]


def make_tokenizer(recipe: MiniRecipe) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the first training texts."""
    stream = problem_stream(seed=recipe.base.seed, shares=mixed_shares(math_share=0.5))
    drawn = itertools.islice(stream, recipe.n_vocabulary_texts)
    return build_tokenizer(frame_example(item.problem, item.solution) + EXAMPLE_SEPARATOR for item in drawn)


def make_problems(out: Path, recipe: MiniRecipe) -> None:
    """Write the problem files and the fixed shots."""
    write_problem_files(out, recipe)
    write_shots(out, draw_shots(seed=recipe.shots_seed, subjects=recipe.shot_subjects))


def train_base(out: Path, recipe: MiniRecipe, report: Report) -> tuple[FitReport, FitReport]:
    """Train base/ from scratch, in two runs; return the report of each."""
    tokenizer = make_tokenizer(recipe)
    vocabulary = tokenizer.get_vocab()
    config = model_config(
        recipe.model,
        vocab_size=len(tokenizer),
        bos_id=vocabulary["<bos>"],
        eos_id=vocabulary["<eos>"],
        pad_id=vocabulary["<pad>"],
    )
    model = initialise_model(config, seed=recipe.model.seed)
    packer = Packer(tokenizer, read_shots(out), recipe.base)
    fitted = fit(model, packer.batches(), recipe.base, name="base", report=report)
    packer = Packer(tokenizer, read_shots(out), recipe.settle)
    settled = fit(model, packer.batches(), recipe.settle, name="settle", report=report)
    save_model(model, tokenizer, out / "base")
    return fitted, settled


def fine_tune(out: Path, name: str, recipe: FitRecipe, report: Report) -> FitReport:
    """Train a fine-tune of the base as it is on disk (rounded to float16), so that only layer weights differ."""
    tokenizer = load_tokenizer(out / "base")
    model = load_model(out / "base")
    torch.manual_seed(recipe.seed)
    packer = Packer(tokenizer, read_shots(out), recipe)
    fitted = fit(model, packer.batches(), recipe, name=name, report=report)
    save_model(model, tokenizer, out / name)
    return fitted


def train_all_saes(out: Path, recipe: MiniRecipe, report: Report) -> list[SaeReport]:
    """Train saes/ on the base as it is on disk."""
    return train_saes(
        load_model(out / "base"),
        load_tokenizer(out / "base"),
        recipe.saes,
        shots=read_shots(out),
        out=out / "saes",
        report=report,
    )


def rebuild(out: Path, recipe: MiniRecipe, *, report: Report) -> None:
    """Run the whole chain into `out`."""
    start = time.monotonic()
    make_problems(out, recipe)
    fitted, settled = train_base(out, recipe, report)
    stages: dict[str, Any] = {"base": dataclasses.asdict(fitted), "settle": dataclasses.asdict(settled)}
    stages["math"] = dataclasses.asdict(fine_tune(out, "math", recipe.math, report))
    stages["forgetting"] = dataclasses.asdict(fine_tune(out, "forgetting", recipe.forgetting, report))
    stages["saes"] = [dataclasses.asdict(row) for row in train_all_saes(out, recipe, report)]
    stages["elapsed_s"] = time.monotonic() - start
    write_card(out, recipe, stages=stages, report=report)
    report(f"done in {time.monotonic() - start:.0f} s: {out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and rebuild."""
    parser = argparse.ArgumentParser(prog="python -m stethoscope.mini.train", description="Rebuild the mini.")
    parser.add_argument("--out", type=Path, default=ARTIFACTS_DIR, help="folder to write (default: the shipped one)")
    parser.add_argument("--quick", action="store_true", help="the whole chain in seconds, good for a test only")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    options = parser.parse_args(argv)
    if options.quick and options.out == ARTIFACTS_DIR:
        parser.error("--quick would overwrite the shipped artifacts; name another folder with --out")
    torch.set_num_threads(options.threads)
    rebuild(options.out, recipes.quick() if options.quick else recipes.full(), report=_print_line)
    return 0


def _print_line(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
