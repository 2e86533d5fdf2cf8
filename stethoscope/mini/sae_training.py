"""One sparse autoencoder per layer: sae_lens' BatchTopK trainer, saved as JumpReLU, its threshold refitted.

The trainer keeps a running average of the threshold that starts at zero and lags behind, so the saved SAE would
fire too often. One threshold for all latents is therefore refitted on held-out tokens, to the L0 that was trained
for. Activations are scaled for the training only and the scale is folded into the weights: a consumer feeds the
residual stream as it is. Position 0 (BOS) is left out everywhere.

Explained variance = 1 - sum ||x - x_hat||^2 / sum ||x - mean||^2, over held-out tokens.
"""

import contextlib
import io
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, JumpReLUSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor
from transformers import Gemma3ForCausalLM, PreTrainedTokenizerBase

from stethoscope.minerva.prompts import EXAMPLE_SEPARATOR, few_shot_prefix, frame_example
from stethoscope.mini.language import mixed_shares, problem_stream
from stethoscope.mini.recipe import SaeRecipe
from stethoscope.records import Split

DOCUMENT_TOKENS = 512


@dataclass(frozen=True, slots=True)
class SaeReport:
    """What was measured on held-out tokens: explained variance, latents per token, share that never fires."""

    layer: int
    explained_variance: float
    l0: float
    dead_share: float
    threshold: float
    elapsed_s: float


def token_documents(
    tokenizer: PreTrainedTokenizerBase, *, seed: int, split: Split, shots: list[tuple[str, str]]
) -> Iterator[list[int]]:
    """Yield BOS-led documents forever: packed examples (some after the fixed shots), and single bare problems."""
    shares = mixed_shares(math_share=0.5)
    problems = problem_stream(seed=seed, shares=shares, split=split)
    rng = random.Random(seed)
    while True:
        if rng.random() < 0.8:  # one document in five is long, which makes four tokens in five packed ones
            yield tokenizer(next(problems).problem).input_ids
            continue
        text = few_shot_prefix(shots) if rng.random() < 0.25 else ""
        while len(text) < 4 * DOCUMENT_TOKENS:
            drawn = next(problems)
            text += frame_example(drawn.problem, drawn.solution) + EXAMPLE_SEPARATOR
        yield tokenizer(text).input_ids[:DOCUMENT_TOKENS]


@torch.no_grad()
def collect_residuals(model: Gemma3ForCausalLM, documents: Iterator[list[int]], *, n_tokens: int) -> Tensor:
    """Return the residual stream after every layer [n_layers, n_tokens, d_model], position 0 left out."""
    layers = model.model.layers
    kept: list[list[Tensor]] = [[] for _ in layers]
    handles = []
    for store, layer in zip(kept, layers, strict=True):

        def hook(_module: object, _inputs: object, output: Tensor | tuple, store: list[Tensor] = store) -> None:
            residual = output[0] if isinstance(output, tuple) else output
            store.append(residual[0, 1:])

        handles.append(layer.register_forward_hook(hook))
    seen = 0
    try:
        while seen < n_tokens:
            ids = torch.tensor([next(documents)])
            model.model(input_ids=ids, use_cache=False)
            seen += ids.shape[1] - 1
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([torch.cat(store)[:n_tokens] for store in kept])


def _shuffled_batches(acts: Tensor, *, batch_size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(acts), generator=generator)
        for start in range(0, len(acts) - batch_size + 1, batch_size):
            yield acts[order[start : start + batch_size]]


def train_sae(acts: Tensor, recipe: SaeRecipe, *, layer: int, folder: Path) -> None:
    """Train on acts [n_tokens, d_model] and save a JumpReLU SAE in sae_lens' format; thresholds still lag."""
    torch.manual_seed(recipe.seed + layer)
    sae_config = BatchTopKTrainingSAEConfig(
        d_in=acts.shape[1],
        d_sae=recipe.d_sae,
        k=recipe.k,
        normalize_activations="expected_average_only_in",
        apply_b_dec_to_input=True,
    )
    sae_config.metadata.hook_name = f"blocks.{layer}.hook_resid_post"
    sae_config.metadata.model_name = "stethoscope-mini"
    n_samples = recipe.n_train_tokens
    n_steps = n_samples // recipe.batch_size
    trainer_config = SAETrainerConfig(
        total_training_samples=n_samples,
        train_batch_size_samples=recipe.batch_size,
        lr=recipe.lr,
        lr_warm_up_steps=min(50, n_steps // 4),
        lr_decay_steps=n_steps // 3,
        lr_end=recipe.lr / 100,
        dead_feature_window=100,
        n_batches_for_norm_estimate=min(20, n_steps),
    )
    sae = BatchTopKTrainingSAE(sae_config)
    with torch.no_grad():
        sae.b_dec.copy_(acts.mean(0) * (acts.shape[1] ** 0.5 / acts.norm(dim=1).mean()))
    data = _shuffled_batches(acts, batch_size=recipe.batch_size, seed=recipe.seed + layer)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar; ours are lines
        trained = SAETrainer(trainer_config, sae, data).fit()
    trained.save_inference_model(folder)


@torch.no_grad()
def refit_threshold(sae: JumpReLUSAE, acts: Tensor, *, l0: float) -> float:
    """Set one threshold for all latents so that `l0` of them fire per token of `acts`; return it."""
    sae.threshold.fill_(-1e9)
    positive = sae.encode(acts).flatten()
    n_firing = int(l0 * len(acts))
    threshold = positive.kthvalue(len(positive) - n_firing).values.clamp(min=0).item()
    sae.threshold.fill_(threshold)
    return threshold


@torch.no_grad()
def explained_variance(sae: SAE, acts: Tensor) -> float:
    """Return the explained variance of the SAE's reconstruction of acts [n_tokens, d_model]."""
    residual = acts - sae.decode(sae.encode(acts))
    return 1 - (residual.square().sum() / (acts - acts.mean(0)).square().sum()).item()


@torch.no_grad()
def measure_sae(sae: JumpReLUSAE, acts: Tensor, *, layer: int, elapsed_s: float) -> SaeReport:
    """Measure a saved SAE on held-out activations."""
    fired = sae.encode(acts) > 0  # [n_tokens, d_sae]
    return SaeReport(
        layer=layer,
        explained_variance=explained_variance(sae, acts),
        l0=fired.float().sum(1).mean().item(),
        dead_share=(~fired.any(0)).float().mean().item(),
        threshold=sae.threshold[0].item(),
        elapsed_s=elapsed_s,
    )


def train_saes(
    model: Gemma3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    recipe: SaeRecipe,
    *,
    shots: list[tuple[str, str]],
    out: Path,
    report: Callable[[str], None] = print,
) -> list[SaeReport]:
    """Train, refit, save and measure one SAE per layer under out/layer_{l}."""
    acts: dict[str, Tensor] = {}
    parts: tuple[tuple[Split, int], ...] = (
        ("train", recipe.n_train_tokens // 2),
        ("dev", recipe.n_refit_tokens),
        ("test", recipe.n_heldout_tokens),
    )
    for split, n_tokens in parts:
        documents = token_documents(tokenizer, seed=recipe.seed, split=split, shots=shots)
        acts[split] = collect_residuals(model, documents, n_tokens=n_tokens)
    reports = []
    for layer in range(model.config.num_hidden_layers):
        start = time.monotonic()
        folder = out / f"layer_{layer}"
        train_sae(acts["train"][layer], recipe, layer=layer, folder=folder)
        sae = JumpReLUSAE.load_from_disk(str(folder))
        refit_threshold(sae, acts["dev"][layer], l0=recipe.k)
        sae.cfg.metadata.hook_name = f"blocks.{layer}.hook_resid_post"
        sae.save_model(folder)
        measured = measure_sae(
            JumpReLUSAE.load_from_disk(str(folder)),
            acts["test"][layer],
            layer=layer,
            elapsed_s=time.monotonic() - start,
        )
        reports.append(measured)
        report(
            f"saes: layer {layer} EV {measured.explained_variance:.3f} L0 {measured.l0:.1f} "
            f"dead {measured.dead_share:.2f} in {measured.elapsed_s:.0f} s"
        )
    return reports
