"""The training loop of base and fine-tunes: Muon for the matrices, AdamW for the rest, or AdamW for all.

Learning rates rise linearly over the warm-up, stay, and fall linearly to zero over the last third. A fine-tune
leaves the (tied) embeddings and the final norm as they are, so that its task vector lives in the layers alone; a LoRA
trains its factors only.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from stethoscope.mini.packing import Batch
from stethoscope.mini.recipe import FitRecipe

REPORT_EVERY = 50


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a training run did: its length, its time and its last smoothed loss (nats per weighted token)."""

    n_steps: int
    n_tokens: int
    elapsed_s: float
    final_loss: float


def initialise_model(config: Gemma3TextConfig, *, seed: int) -> Gemma3ForCausalLM:
    """Return a fresh model; embeddings with sd d^-0.5, matrices with sd fan_in^-0.5, norms at their default."""
    torch.manual_seed(seed)
    model = Gemma3ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            scale = config.hidden_size if "embed" in name else parameter.shape[1]
            nn.init.normal_(parameter, std=scale**-0.5)
    return model.float()


def weighted_loss(model: Gemma3ForCausalLM, batch: Batch) -> Tensor:
    """Return the weighted mean cross-entropy of predicting each next token."""
    logits = model(input_ids=batch.ids[:, :-1], use_cache=False).logits  # [batch, sequence, vocabulary]
    losses = F.cross_entropy(logits.flatten(0, 1).float(), batch.ids[:, 1:].flatten(), reduction="none")
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum().clamp(min=1.0)


def _optimizers(model: Gemma3ForCausalLM, recipe: FitRecipe) -> list[torch.optim.Optimizer]:
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(recipe.trains(name))
        if parameter.requires_grad:
            (matrices if ".layers." in name and parameter.ndim == 2 else others).append(parameter)
    if recipe.matrix_optimizer == "muon":
        return [
            torch.optim.Muon(matrices, lr=recipe.matrix_lr, weight_decay=0.0),
            torch.optim.AdamW(others, lr=recipe.other_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
    groups = [{"params": matrices, "lr": recipe.matrix_lr}, {"params": others, "lr": recipe.other_lr}]
    return [torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)]


def schedule(step: int, recipe: FitRecipe) -> float:
    """Return the factor on the learning rates at a step: warm-up, plateau, linear decay."""
    left = (recipe.n_steps - step) / max(1.0, recipe.decay_share * recipe.n_steps)
    return min(1.0, (step + 1) / recipe.n_warmup_steps, left)


def fit(
    model: Gemma3ForCausalLM,
    batches: Iterator[Batch],
    recipe: FitRecipe,
    *,
    name: str,
    report: Callable[[str], None] = print,
) -> FitReport:
    """Train `model` in place for the recipe's steps and report progress lines (step, loss, tokens/s, ETA)."""
    optimizers = _optimizers(model, recipe)
    base_lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    smoothed, start = 0.0, time.monotonic()
    tokens_per_step = recipe.batch_size * recipe.sequence_length
    for step in range(recipe.n_steps):
        factor = schedule(step, recipe)
        for optimizer, lrs in zip(optimizers, base_lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
        loss = weighted_loss(model, next(batches))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        smoothed = loss.item() if step == 0 else 0.97 * smoothed + 0.03 * loss.item()
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == recipe.n_steps:
            elapsed_s = time.monotonic() - start
            rate = (step + 1) * tokens_per_step / elapsed_s
            eta_s = elapsed_s / (step + 1) * (recipe.n_steps - step - 1)
            report(
                f"{name}: step {step + 1}/{recipe.n_steps} loss {smoothed:.4f} {rate:.0f} tokens/s ETA {eta_s:.0f} s"
            )
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return FitReport(
        n_steps=recipe.n_steps,
        n_tokens=recipe.n_steps * tokens_per_step,
        elapsed_s=time.monotonic() - start,
        final_loss=smoothed,
    )
