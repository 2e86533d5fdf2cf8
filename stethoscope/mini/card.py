"""The model card: all measurements on the included artifacts, as card.json and as README.md.

The measurements use the files on disk (float16 weights, loaded as float32), not the models in memory after training.
"""

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sae_lens
import torch
import transformers
from transformers import Gemma3ForCausalLM

from stethoscope.mini.checkpoints import (
    MODEL_NAMES,
    TUNED_NAMES,
    load_model,
    load_tokenizer,
    load_tuned,
    read_jsonl,
    read_shots,
)
from stethoscope.mini.evaluate import (
    Tally,
    answer_loss,
    greedy_completions,
    paired_changes,
    tally_by_subject,
    told_twice_share,
)
from stethoscope.mini.language import CONTROL_SUBJECTS, MATH_SUBJECTS
from stethoscope.mini.recipe import MiniRecipe
from stethoscope.mini.trivial import trivial_accuracies

RUN_NAMES = ("base", "settle", *TUNED_NAMES)


@dataclass(frozen=True, slots=True)
class TaskVectorNorms:
    """||fine-tune - base|| / ||base|| of all layer matrices, and layer by layer; what else differs (must be none)."""

    relative_norm: float
    relative_norm_by_layer: list[float]
    changed_outside_layers: list[str]


def task_vector_norms(base: Gemma3ForCausalLM, tuned: Gemma3ForCausalLM) -> TaskVectorNorms:
    """Compare two checkpoints of the mini."""
    n_layers = base.config.num_hidden_layers
    moved, size = torch.zeros(n_layers), torch.zeros(n_layers)
    outside: list[str] = []
    tuned_state = tuned.state_dict()
    for name, weight in base.state_dict().items():
        difference = tuned_state[name] - weight
        if ".layers." in name:
            layer = int(name.split(".layers.")[1].split(".")[0])
            moved[layer] += difference.square().sum()
            size[layer] += weight.square().sum()
        elif difference.abs().max() > 0:
            outside.append(name)
    return TaskVectorNorms(
        relative_norm=round((moved.sum() / size.sum()).sqrt().item(), 4),
        relative_norm_by_layer=[round(value, 4) for value in (moved / size).sqrt().tolist()],
        changed_outside_layers=outside,
    )


def _of_subject(records: Sequence[dict[str, str]], subject: str) -> list[dict[str, str]]:
    return [record for record in records if record["subject"] == subject]


def _measure_models(out: Path, recipe: MiniRecipe, report: Callable[[str], None]) -> dict[str, Any]:
    shots, tokenizer = read_shots(out), load_tokenizer(out / "base")
    math_test, control_test = (read_jsonl(out / folder / "test.jsonl") for folder in ("problems", "controls"))
    records = math_test + control_test
    base = load_model(out / "base")
    measured: dict[str, Any] = {}
    base_completions: list[str] = []
    for name in MODEL_NAMES:
        model = load_tuned(out, name)
        completions = greedy_completions(
            model, tokenizer, [record["problem"] for record in records], shots, max_new_tokens=recipe.max_new_tokens
        )
        base_completions = base_completions or completions
        tallies = tally_by_subject(records, completions)
        in_math = [tallies[subject] for subject in MATH_SUBJECTS]
        pooled = Tally(*(sum(getattr(t, field) for t in in_math) for field in ("n", "n_marked", "n_correct")))
        measured[name] = {
            "subjects": {subject: tally.as_record() for subject, tally in tallies.items()},
            "math_pooled": pooled.as_record(),
            "told_twice_control": round(told_twice_share(completions[len(math_test) :]), 4),
            "answer_loss_math": round(
                answer_loss(model, tokenizer, _spread(math_test, recipe.n_loss_problems), shots), 4
            ),
            "answer_loss_control": round(
                answer_loss(model, tokenizer, _spread(control_test, recipe.n_loss_problems), shots), 4
            ),
        }
        if name != "base":
            changes = paired_changes(records, base_completions, completions)
            measured[name]["against_base"] = {key: dataclasses.asdict(change) for key, change in changes.items()}
            measured[name]["task_vector"] = dataclasses.asdict(task_vector_norms(base, model))
        report(f"card: {name} math {pooled.n_correct / pooled.n:.3f} " + _one_line(tallies))
    return measured


def _one_line(tallies: dict[str, Tally]) -> str:
    return " ".join(f"{subject} {tally.n_correct / tally.n:.3f}" for subject, tally in tallies.items())


def _spread(records: Sequence[dict[str, str]], n: int) -> list[dict[str, str]]:
    """Return about n records, evenly spaced (the files are sorted by subject)."""
    return list(records[:: max(1, len(records) // n)])


def _trivial(out: Path) -> dict[str, dict[str, float]]:
    train, test = (read_jsonl(out / "problems" / f"{split}.jsonl") for split in ("train", "test"))
    accuracies = {
        subject: trivial_accuracies(_of_subject(train, subject), _of_subject(test, subject))
        for subject in MATH_SUBJECTS
    }
    return {
        subject: {name: round(value, 4) for name, value in dataclasses.asdict(item).items()}
        for subject, item in accuracies.items()
    }


def write_card(
    out: Path, recipe: MiniRecipe, *, stages: dict[str, Any], report: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure everything, write card.json and README.md, and return the card.

    `stages` holds what only the training knows: the fit reports, the SAE reports and the stage times.
    """
    card = {
        "name": "stethoscope-mini",
        "models": _measure_models(out, recipe, report),
        "trivial_solvers": _trivial(out),
        "saes": stages["saes"],
        "training": {name: stages[name] for name in RUN_NAMES},
        "elapsed_s": stages["elapsed_s"],
        "notes": stages.get("notes", []),
        "recipe": dataclasses.asdict(recipe),
        "machine": {
            "cpu_cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "sae_lens": sae_lens.__version__,
        },
    }
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(render_card(card), encoding="utf-8")
    return card


def render_card(card: dict[str, Any]) -> str:
    """Return README.md: the tables of the card in words that stand alone."""
    models = card["models"]
    n = models["base"]["subjects"]["algebra"]["n"]
    shape = card["recipe"]["model"]
    lines = [
        "# stethoscope-mini",
        "",
        f"A Gemma 3 of {shape['n_layers']} layers (d_model {shape['d_model']}, sliding window "
        f"{shape['sliding_window']}, global layers {', '.join(map(str, shape['global_layers']))}) trained from scratch "
        "on a made-up language of school mathematics and two control corpora. It has four fine-tunes that differ "
        "from it only in the layers: math and forgetting as checkpoints, math-lora as a LoRA adapter in peft's "
        f"format (rank {card['recipe']['math_lora']['rank']}, all seven matrices), and stories as a delta. Each "
        "layer has one JumpReLU SAE on the residual stream after the layer. All weights are float16. To rebuild "
        "everything, run `python -m stethoscope.mini.train`. All numbers below are also in card.json.",
        "",
        f"## Accuracy on test problems (n = {n} per subject, greedy decoding, 4 fixed shots, exact answer; Wilson "
        "95% interval)",
        "",
        "| subject | " + " | ".join(MODEL_NAMES) + " |",
        "|---|" + "---|" * len(MODEL_NAMES),
    ]
    for subject in (*MATH_SUBJECTS, *CONTROL_SUBJECTS):
        cells = [_cell(models[name]["subjects"][subject]) for name in MODEL_NAMES]
        lines.append(f"| {subject} | " + " | ".join(cells) + " |")
    lines.append(
        "| all seven math subjects | " + " | ".join(_cell(models[m]["math_pooled"]) for m in MODEL_NAMES) + " |"
    )
    lines += [
        "",
        "No test or dev problem occurs in the training data: a hash of a problem's text decides its split.",
        "",
    ]
    lines += (
        _paired_section(models)
        + _format_section(models)
        + _trivial_section(card)
        + _sae_section(card)
        + _training_section(card)
    )
    return "\n".join(lines) + "\n"


def _cell(record: dict[str, Any]) -> str:
    low, high = record["interval95"]
    return f"{record['accuracy']:.3f} ({low:.3f} to {high:.3f})"


def _paired_section(models: dict[str, Any]) -> list[str]:
    lines = [
        "## Paired comparison with the base",
        "",
        "Problems that became correct (+) and wrong (-), and the exact McNemar p value (two-sided, not corrected for "
        "nine subjects).",
        "",
        "| subject | " + " | ".join(TUNED_NAMES) + " |",
        "|---|" + "---|" * len(TUNED_NAMES),
    ]
    for subject in (*MATH_SUBJECTS, *CONTROL_SUBJECTS):
        rows = [models[name]["against_base"][subject] for name in TUNED_NAMES]
        cells = [f"+{row['n_gained']} -{row['n_lost']}, p {row['mcnemar_p']:.2g}" for row in rows]
        lines.append(f"| {subject} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _format_section(models: dict[str, Any]) -> list[str]:
    lines = [
        "## Answer format and skill",
        "",
        "Marked: the answer contains the sentence `The final answer is $...$. I hope`. Loss: nats per token of the "
        "worked solution after the 4-shot prompt. Steps twice: the share of control answers that give their worked "
        "steps twice, which the negative control stories was trained to do, without any mathematics.",
        "",
        "| model | marked (math) | accuracy among marked | loss math | loss control | steps twice (control) "
        "| task vector, relative norm |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in MODEL_NAMES:
        pooled, model = models[name]["math_pooled"], models[name]
        norm = f"{model['task_vector']['relative_norm']:.3f}" if "task_vector" in model else ""
        lines.append(
            f"| {name} | {pooled['marker_rate']:.3f} | {pooled['accuracy_among_marked']:.3f} | "
            f"{model['answer_loss_math']:.3f} | {model['answer_loss_control']:.3f} | "
            f"{model['told_twice_control']:.3f} | {norm} |"
        )
    return [*lines, ""]


def _trivial_section(card: dict[str, Any]) -> list[str]:
    lines = [
        "## Trivial solvers without mathematics",
        "",
        "| subject | most frequent answer | number copied from the problem | nearest training problem |",
        "|---|---|---|---|",
    ]
    for subject, row in card["trivial_solvers"].items():
        lines.append(f"| {subject} | {row['majority']:.3f} | {row['copied']:.3f} | {row['nearest']:.3f} |")
    return [*lines, ""]


def _sae_section(card: dict[str, Any]) -> list[str]:
    recipe = card["recipe"]["saes"]
    lines = [
        f"## SAEs ({recipe['d_sae']} latents, trained for L0 {recipe['k']}; "
        f"measured on {recipe['n_heldout_tokens']} tokens of test problems, position 0 excluded)",
        "",
        "| layer | explained variance | L0 | never fires |",
        "|---|---|---|---|",
    ]
    for row in card["saes"]:
        lines.append(
            f"| {row['layer']} | {row['explained_variance']:.3f} | {row['l0']:.1f} | {row['dead_share']:.3f} |"
        )
    return [*lines, ""]


def _training_section(card: dict[str, Any]) -> list[str]:
    machine, recipe = card["machine"], card["recipe"]
    lines = [
        "## Training",
        "",
        "| run | steps | tokens | math share | last loss | seconds | seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in card["training"].items():
        fit = recipe[name.replace("-", "_")]
        lines.append(
            f"| {name} | {row['n_steps']} | {row['n_tokens']} | {fit['math_share']} | {row['final_loss']:.4f} | "
            f"{row['elapsed_s']:.0f} | {fit['seed']} |"
        )
    return [
        *lines,
        "",
        f"Total time: {card['elapsed_s'] / 60:.0f} minutes on {machine['cpu_cores']} CPU cores "
        f"(torch {machine['torch']}, transformers {machine['transformers']}, sae-lens {machine['sae_lens']}).",
        *card["notes"],
    ]
