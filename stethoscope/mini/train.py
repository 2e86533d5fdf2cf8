"""Rebuild the mini from scratch: ``python -m stethoscope.mini.train [--out DIR] [--quick] [--only NAME ...]``.

Steps, in order: problems and shots, tokenizer, base, four fine-tunes of it (two checkpoints, a LoRA adapter, a bare
delta), one SAE per layer, measurements, model card. Everything is seeded and measured in steps, not time; it takes
about an hour on two CPU cores. `--only` trains the named fine-tunes on the base on disk and repeats the measurements.
"""

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Gemma3ForCausalLM, PreTrainedTokenizerBase

from stethoscope.minerva.prompts import EXAMPLE_SEPARATOR, frame_example
from stethoscope.mini import recipe as recipes
from stethoscope.mini.card import write_card
from stethoscope.mini.checkpoints import (
    ARTIFACTS_DIR,
    TUNED_NAMES,
    load_model,
    load_tokenizer,
    read_shots,
    save_adapter,
    save_delta,
    save_model,
    write_problem_files,
    write_shots,
)
from stethoscope.mini.fitting import FitReport, fit, initialise_model
from stethoscope.mini.language import draw_shots, mixed_shares, problem_stream
from stethoscope.mini.packing import Packer
from stethoscope.mini.recipe import FitRecipe, LoraRecipe, MiniRecipe, model_config
from stethoscope.mini.sae_training import SaeReport, train_saes
from stethoscope.mini.tokenizer import build_tokenizer
from stethoscope.model.layout import READERS, WRITERS

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


def fit_base(out: Path, name: str, recipe: FitRecipe, model: Gemma3ForCausalLM, report: Report) -> FitReport:
    """Train `model`, which starts as the base on disk, on the recipe's documents."""
    packer = Packer(load_tokenizer(out / "base"), read_shots(out), recipe)
    return fit(model, packer.batches(), recipe, name=name, report=report)


def fine_tune(out: Path, name: str, recipe: FitRecipe, report: Report) -> FitReport:
    """Train a fine-tune of the base as it is on disk (rounded to float16), so that only layer weights differ."""
    model = load_model(out / "base")
    torch.manual_seed(recipe.seed)
    fitted = fit_base(out, name, recipe, model, report)
    save_model(model, load_tokenizer(out / "base"), out / name)
    return fitted


def fine_tune_delta(out: Path, name: str, recipe: FitRecipe, report: Report) -> FitReport:
    """Train as `fine_tune` does, and keep only what moved."""
    model = load_model(out / "base")
    torch.manual_seed(recipe.seed)
    fitted = fit_base(out, name, recipe, model, report)
    save_delta(model, load_model(out / "base"), out / name)
    return fitted


def fine_tune_lora(out: Path, name: str, recipe: LoraRecipe, report: Report) -> FitReport:
    """Train a LoRA adapter of the base as it is on disk, on all seven matrices of every layer."""
    torch.manual_seed(recipe.seed)
    matrices = [*READERS, *WRITERS]
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=matrices, task_type="CAUSAL_LM")
    model = load_model(out / "base")
    adapted = get_peft_model(model, config)  # puts the factors into `model`
    fitted = fit_base(out, name, recipe, model, report)
    assert isinstance(adapted, PeftModel)
    save_adapter(adapted, out / name)
    return fitted


def fine_tune_all(out: Path, names: Sequence[str], recipe: MiniRecipe, report: Report) -> dict[str, Any]:
    """Train the named fine-tunes of the base on disk; return the report of each."""
    stages = {
        "math": lambda: fine_tune(out, "math", recipe.math, report),
        "forgetting": lambda: fine_tune(out, "forgetting", recipe.forgetting, report),
        "math-lora": lambda: fine_tune_lora(out, "math-lora", recipe.math_lora, report),
        "stories": lambda: fine_tune_delta(out, "stories", recipe.stories, report),
    }
    return {name: dataclasses.asdict(stages[name]()) for name in names}


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
    stages |= fine_tune_all(out, TUNED_NAMES, recipe, report)
    stages["saes"] = [dataclasses.asdict(row) for row in train_all_saes(out, recipe, report)]
    stages["elapsed_s"] = time.monotonic() - start
    write_card(out, recipe, stages=stages, report=report)
    report(f"done in {time.monotonic() - start:.0f} s: {out}")


def rebuild_only(out: Path, names: Sequence[str], recipe: MiniRecipe, *, report: Report) -> None:
    """Train the named fine-tunes again (none: measure only); the card keeps the reports of all other stages."""
    former = json.loads((out / "card.json").read_text(encoding="utf-8"))
    fitted = fine_tune_all(out, names, recipe, report)
    stages = {name: former[name] for name in ("saes", "notes")} | former["training"] | fitted
    replaced_s = sum(former["training"].get(name, {}).get("elapsed_s", 0.0) for name in names)
    stages["elapsed_s"] = former["elapsed_s"] - replaced_s + sum(row["elapsed_s"] for row in fitted.values())
    write_card(out, recipe, stages=stages, report=report)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and rebuild."""
    parser = argparse.ArgumentParser(prog="python -m stethoscope.mini.train", description="Rebuild the mini.")
    parser.add_argument("--out", type=Path, default=ARTIFACTS_DIR, help="folder to write (default: the shipped one)")
    parser.add_argument("--quick", action="store_true", help="the whole chain in seconds, good for a test only")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument(
        "--only",
        nargs="*",
        choices=TUNED_NAMES,
        metavar="NAME",
        help="these fine-tunes, then the card (none: the card)",
    )
    options = parser.parse_args(argv)
    if options.quick and options.out == ARTIFACTS_DIR:
        parser.error("--quick would overwrite the shipped artifacts; name another folder with --out")
    torch.set_num_threads(options.threads)
    recipe = recipes.quick() if options.quick else recipes.full()
    if options.only is None:
        rebuild(options.out, recipe, report=_print_line)
    else:
        rebuild_only(options.out, options.only, recipe, report=_print_line)
    return 0


def _print_line(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
