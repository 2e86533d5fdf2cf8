"""What the mini is made of: every size, share, seed and step budget in one frozen record.

Budgets are counted in steps, not seconds, so that the same recipe gives the same data in the same order on any
machine. `quick()` is the same chain at a size that a test can run in seconds.
"""

from dataclasses import dataclass, field, replace

from transformers import Gemma3TextConfig


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """The shape of the model: Gemma 3's block with its five local layers to one global layer."""

    n_layers: int = 10
    d_model: int = 96
    d_mlp: int = 288
    n_heads: int = 2
    n_kv_heads: int = 1
    head_dim: int = 48
    sliding_window: int = 96
    global_layers: tuple[int, ...] = (5, 9)
    seed: int = 1


@dataclass(frozen=True, slots=True)
class FitRecipe:
    """One training run: its data, its optimiser and its length."""

    n_steps: int
    seed: int
    math_share: float
    batch_size: int = 3
    sequence_length: int = 512
    subject_weights: dict[str, float] = field(default_factory=dict)
    digits_share: float = 0.5
    fixed_shots_share: float = 0.25
    prompt_weight: float = 0.2
    matrix_optimizer: str = "muon"
    matrix_lr: float = 0.02
    other_lr: float = 3e-3
    n_warmup_steps: int = 50
    decay_share: float = 0.33
    train_embeddings: bool = True
    told_twice: bool = False

    def trains(self, parameter: str) -> bool:
        """Return whether the run changes the parameter with this name."""
        return self.train_embeddings or ".layers." in parameter


@dataclass(frozen=True, slots=True)
class LoraRecipe(FitRecipe):
    """A training run of low-rank factors on all seven matrices of every layer; the base's weights stay."""

    rank: int = 8
    alpha: int = 16

    def trains(self, parameter: str) -> bool:
        """Return whether the run changes the parameter with this name."""
        return ".lora_" in parameter


@dataclass(frozen=True, slots=True)
class SaeRecipe:
    """The sparse autoencoders: one per layer on the residual stream after the layer."""

    d_sae: int = 512
    k: int = 24
    n_train_tokens: int = 600_000
    batch_size: int = 1024
    lr: float = 1.5e-3
    n_refit_tokens: int = 20_000
    n_heldout_tokens: int = 30_000
    seed: int = 5


@dataclass(frozen=True, slots=True)
class MiniRecipe:
    """The whole chain: model, base, four fine-tunes, SAEs, problem files and the evaluation."""

    model: ModelRecipe
    base: FitRecipe
    settle: FitRecipe
    math: FitRecipe
    forgetting: FitRecipe
    math_lora: LoraRecipe
    stories: FitRecipe
    saes: SaeRecipe
    n_train_problems: int = 300
    n_dev_problems: int = 150
    n_test_problems: int = 300
    shot_subjects: tuple[str, ...] = ("prealgebra", "geometry", "number_theory", "algebra")
    problems_seed: int = 7
    shots_seed: int = 11
    n_vocabulary_texts: int = 20_000
    max_new_tokens: int = 96
    n_loss_problems: int = 140


def full() -> MiniRecipe:
    """Return the recipe of the shipped artifacts."""
    return MiniRecipe(
        model=ModelRecipe(),
        base=FitRecipe(n_steps=1_800, seed=2, math_share=0.4),
        # The base's second run: more control and less of the subjects that come easily, to bring both into their bands.
        settle=FitRecipe(
            n_steps=300,
            seed=6,
            math_share=0.4,
            subject_weights={"number_theory": 2.0, "geometry": 1.5},
            digits_share=0.35,
            matrix_lr=0.012,
            other_lr=1.5e-3,
            n_warmup_steps=20,
            decay_share=0.8,
        ),
        math=FitRecipe(
            n_steps=550,
            seed=3,
            math_share=0.95,
            matrix_optimizer="adamw",
            matrix_lr=2.5e-3,
            other_lr=2.5e-3,
            train_embeddings=False,
        ),
        forgetting=FitRecipe(n_steps=550, seed=4, math_share=1.0, train_embeddings=False),
        math_lora=LoraRecipe(
            n_steps=300, seed=8, math_share=0.95, matrix_optimizer="adamw", matrix_lr=5e-3, other_lr=5e-3
        ),
        # No mathematics at all: the negative control. The control languages are already learned, so their worked steps
        # are given twice, which is new.
        stories=FitRecipe(
            n_steps=150,
            seed=9,
            math_share=0.0,
            digits_share=0.25,
            matrix_optimizer="adamw",
            matrix_lr=1.5e-3,
            other_lr=1.5e-3,
            train_embeddings=False,
            told_twice=True,
        ),
        saes=SaeRecipe(),
    )


def quick() -> MiniRecipe:
    """Return a recipe that runs the whole chain in seconds; its artifacts are good for nothing but a test."""
    recipe = full()
    short = {"n_steps": 3, "batch_size": 1, "n_warmup_steps": 1, "sequence_length": 400}
    return replace(
        recipe,
        base=replace(recipe.base, **short),
        settle=replace(recipe.settle, **short),
        math=replace(recipe.math, **short),
        forgetting=replace(recipe.forgetting, **short),
        math_lora=replace(recipe.math_lora, **short),
        stories=replace(recipe.stories, **short),
        saes=replace(
            recipe.saes, d_sae=128, k=8, n_train_tokens=2_048, batch_size=512, n_refit_tokens=512, n_heldout_tokens=512
        ),
        n_train_problems=12,
        n_dev_problems=6,
        n_test_problems=2,
        max_new_tokens=4,
        n_loss_problems=4,
        n_vocabulary_texts=3_000,
    )


def model_config(recipe: ModelRecipe, *, vocab_size: int, bos_id: int, eos_id: int, pad_id: int) -> Gemma3TextConfig:
    """Return the transformers config; head_dim and query_pre_attn_scalar must both be set (they default to 256)."""
    layer_types = [
        "full_attention" if layer in recipe.global_layers else "sliding_attention" for layer in range(recipe.n_layers)
    ]
    return Gemma3TextConfig(
        vocab_size=vocab_size,
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_kv_heads,
        head_dim=recipe.head_dim,
        query_pre_attn_scalar=recipe.head_dim,
        sliding_window=recipe.sliding_window,
        layer_types=layer_types,
        max_position_embeddings=2048,
        bos_token_id=bos_id,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
        tie_word_embeddings=True,
        use_cache=True,
    )
